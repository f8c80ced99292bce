"""Nothing is lost: a study that is killed, that fills its disk, or that two processes work on at once, ends as if nothing had happened."""

import functools
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrant.cli import main
from calibrant.store import Store, verify

from tests.store.test_full_disk import left_with, on_a_disk_of_its_own
from tests.study.small import RUNS, Logged, asked, ended, finished, forked, results, tables, written

KILLS = 4
"""How often a study is killed before it may end."""


def dying(act: Callable[[], object], at: int | None, count: Path | None = None) -> None:
    """Do something, and be killed at the `at`-th call that makes something durable or visible; the number of such calls goes into a file."""
    calls = 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return made

    for name in ("fsync", "rename", "replace", "mkdir", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))
    act()
    if count is not None:
        count.write_text(str(calls))


@pytest.fixture(scope="module")
def calls(given: dict[str, str], whole: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The number of such calls of a study that nothing interrupts; what is loaded and compiled at first use is so in this process, by then."""
    folder = tmp_path_factory.mktemp("counted")
    run = functools.partial(asked(given).run, folder / "store")
    assert ended(forked(lambda: dying(run, None, folder / "count"), folder / "said")) == 0, (folder / "said").read_text()
    return int((folder / "count").read_text())


@pytest.mark.parametrize("chain", [0, *(pytest.param(chain, marks=pytest.mark.slow) for chain in (1, 2, 3))])
def test_killed_at_random_moments_it_ends_the_same(
    given: dict[str, str], whole: Path, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: int
):
    moments, log, store = random.Random(chain), Logged(tmp_path / "log", monkeypatch), tmp_path / "store"
    # All kills together come before as many calls as the whole takes, so that each comes in the middle.
    places = [moments.randint(1, calls // (KILLS + 1)) for _ in range(KILLS)]
    for at in [*places, None]:
        before, held, begun = written(store), finished(store), len(log())
        code = ended(forked(functools.partial(dying, functools.partial(asked(given).run, store), at), tmp_path / "said"))
        assert code == (0 if at is None else -signal.SIGKILL), (tmp_path / "said").read_text()
        assert written(store).items() >= before.items(), "what was there stays as it was"
        assert not held & {name for _, name in log()[begun:]}, "what was finished isn't computed again"
        if (store / "calibrant-store.json").exists():
            assert {p.where.partition("/")[0] for p in verify(store)} <= {"index.json", ".unfinished", ".journals"}, verify(store)
    assert results(store) == results(whole)
    assert tables(store) == tables(whole)
    assert verify(store) == []


def test_two_processes_on_one_store_share_the_work(given: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, store = Logged(tmp_path / "log", monkeypatch), tmp_path / "store"
    numbers = [forked(lambda: asked(given).run(store), tmp_path / "said") for _ in range(2)]
    assert [ended(number) for number in numbers] == [0, 0], (tmp_path / "said").read_text()
    done = Counter(log())
    assert set(done.values()) == {1}
    assert Counter(what for what, _ in done) == {"compress": RUNS, "measure": 2 * RUNS}
    assert results(store) == results(whole)
    assert tables(store) == tables(whole)
    assert not list((store / ".claims").glob("*"))


@pytest.mark.slow
def test_a_killed_process_leaves_its_requests_to_the_other(given: dict[str, str], whole: Path, calls: int, tmp_path: Path):
    store = tmp_path / "store"
    with Store(store):
        run = functools.partial(asked(given).run, store)
        first, second = (forked(functools.partial(dying, run, at), tmp_path / "said") for at in (calls // 10, None))
        ended(first)
        assert ended(second) == 0, (tmp_path / "said").read_text()
    assert results(store) == results(whole)


# A disk that fills up

PROGRESS = re.compile(r"\[\d+:\d\d\] ")
"""How a line begins that says how far a command is, after three seconds."""


def command(file: Path, store: Path, said: Path) -> int:
    """The command line's exit code."""

    def run() -> None:
        sys.argv = ["calibrant", "study", str(file), "--out", str(store)]
        main()

    said.unlink(missing_ok=True)
    return ended(forked(run, said))


def fills_up(disk: Path, folder: Path) -> None:
    """Ask with more and more room, until there is enough."""
    file = folder / "study.yaml"
    store, said, codes = disk / "store", folder / "said", list[int]()
    for pages in (2, 8, 30, 60, 90, 120, 150):
        left_with(disk, pages)
        codes.append(command(file, store, said))
        if codes[-1] == 0:
            break
        (error,) = (line for line in said.read_text().splitlines() if not PROGRESS.match(line))
        assert (codes[-1], "the disk is full" in error) == (2, True), said.read_text()
        if (store / "calibrant-store.json").exists():
            assert {p.where.partition("/")[0] for p in verify(store)} <= {"index.json", ".journals"}, verify(store)
            assert not Store(store, create=False).failures(), "a full disk is no failure of the question's"
    (disk / "filler").unlink()
    assert codes.count(2) >= 3, codes
    assert command(file, store, said) == 0, said.read_text()
    assert command(file, folder / "whole", said) == 0, said.read_text()
    assert results(store) == results(folder / "whole")
    assert tables(store) == tables(folder / "whole")
    assert verify(store) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle(given: dict[str, str], tmp_path: Path):
    (tmp_path / "study.yaml").write_text(asked(given).as_yaml())
    if why := on_a_disk_of_its_own(tmp_path, "4m", "tests.study.test_killing.fills_up"):
        pytest.skip(why)
