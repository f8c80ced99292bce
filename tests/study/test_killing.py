"""Nothing is lost: a study that is killed, that fills its disk, or that two processes work on at
once, ends as if nothing had happened.
"""

import functools
import os
import random
import re
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from calibrant.cli import main
from calibrant.results import Store, StoreProblem, is_store, verify
from calibrant.results.verifying import LEFTOVER

from tests.results.test_full_disk import left_with, on_a_disk_of_its_own
from tests.study.small import (
    RUNS,
    Logged,
    asked,
    claims,
    ended,
    finished,
    forked,
    journals,
    results,
    tables,
    written,
)

KILLS = 4
"""How often a study is killed before it may end."""
LATEST = 0.003
"""Seconds after a moment at which a timer ends a study: about as long as a transaction takes."""
STEPS = 40
"""Instructions of SQLite between two moments within a statement."""


class Moments:
    """The moments at which something becomes durable or visible, of which the `at`-th is deadly:
    a process is killed there or, `after` so many seconds, wherever it is then. What kind of
    moment that was goes into a file.
    """

    def __init__(self, at: int | None, told: Path, after: float = 0.0) -> None:
        self.passed, self._at, self._told, self._after = 0, at, told, after

    def come(self, kind: str) -> None:
        """One more has come."""
        self.passed += 1
        if self.passed != self._at:
            return
        self._told.write_text(kind)
        if self._after:
            signal.setitimer(signal.ITIMER_REAL, self._after)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function before each of whose calls one comes."""

        def made(*args: Any, **kwargs: Any) -> Any:
            self.come(call.__name__)
            return call(*args, **kwargs)

        return made


class Watched(sqlite3.Connection):
    """A connection at whose transactions moments come: before each statement, within it, and
    behind the last one.
    """

    moments: ClassVar[Moments]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.set_progress_handler(self._within, STEPS)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        verb = statement.split()[0]
        if self.in_transaction or verb == "BEGIN":
            self.moments.come(f"before {verb}")
        found = super().execute(statement, *values)
        if verb == "COMMIT":
            self.moments.come("behind COMMIT")
        return found

    def executemany(self, statement: str, *values: Any) -> sqlite3.Cursor:
        self.moments.come(f"before {statement.split()[0]}")
        return super().executemany(statement, *values)

    def _within(self) -> int:
        if self.in_transaction:
            self.moments.come("within a statement")
        return 0


def dying(
    act: Callable[[], object],
    at: int | None,
    told: Path,
    after: float = 0.0,
    transactions: bool = True,
) -> None:
    """Do something and die at a moment; without one, write how many came into the file `told`.
    Those of `transactions` may be left out.
    """
    moments = Moments(at, told, after)
    for name in ("fsync", "rename", "replace", "mkdir", "unlink"):
        setattr(os, name, moments.before(getattr(os, name)))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if transactions:
        Watched.moments = moments
        sqlite3.connect = functools.partial(sqlite3.connect, factory=Watched)
    act()
    if at is None:
        told.write_text(str(moments.passed))


@pytest.fixture(scope="module")
def moments(given: dict[str, str], whole: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The number of moments of a study that nothing interrupts; what is loaded and compiled at
    first use is so in this process, by then.
    """
    folder = tmp_path_factory.mktemp("counted")
    run = functools.partial(asked(given).run, folder / "store")
    assert ended(forked(lambda: dying(run, None, folder / "count"), folder / "said")) == 0, (
        folder / "said"
    ).read_text()
    return int((folder / "count").read_text())


@dataclass(frozen=True)
class Interrupted:
    """A study in a folder that is killed again and again."""

    run: Callable[[], object]
    folder: Path
    log: Logged

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def once(self, at: int | None, after: float = 0.0) -> str:
        """Let it go on until it is killed, or to its end, and return at what kind of moment that
        was.
        """
        before = written(self.store)
        never = finished(self.store)
        begun = len(self.log())
        kind = self._gone_on(at, after)
        now = written(self.store)
        assert now.items() >= before.items(), "what was there stays as it was"
        done = self.log()
        assert {name for what, name in done if what == "keep"} <= now.keys(), (
            "what was kept is there"
        )
        again = {name for what, name in done[begun:] if what != "keep"}
        assert not again & never, "what was finished isn't computed again"
        if is_store(self.store):
            assert harmful(self.store) == []
        return kind

    def _gone_on(self, at: int | None, after: float) -> str:
        """Do it in a process of its own, and see it end as it should."""
        told, said = self.folder / "told", self.folder / "said"
        number = forked(functools.partial(dying, self.run, at, told, after), said)
        code = 0
        if at is not None:
            code = -signal.SIGALRM if after else -signal.SIGKILL
        assert ended(number) == code, said.read_text()
        return told.read_text()

    def often(self, kills: int, total: int, generator: random.Random) -> Counter[str]:
        """Kill it so many times, half of them by a timer, and count the kinds of moments."""
        kinds = Counter[str]()
        for _ in range(kills):
            # All kills together come before as many moments as the whole takes, so that each comes
            # in the middle.
            at = generator.randint(1, total // (kills + 1))
            after = generator.choice((0.0, generator.uniform(LATEST / 100, LATEST)))
            kind = self.once(at, after)
            kinds[f"after {kind}" if after else kind] += 1
        return kinds


def harmful(store: Path) -> list[StoreProblem]:
    """What is wrong with a store, but for what a study that isn't finished lacks, and leftovers
    that it clears away.
    """
    found = verify(store)
    return [
        problem for problem in found if problem.where != "the grid" and problem.remedy != LEFTOVER
    ]


def ends_the_same(study: Interrupted, whole: Path) -> None:
    """Let it end, and look for anything that the kills left."""
    study.once(None)
    assert results(study.store) == results(whole)
    assert tables(study.store) == tables(whole)
    assert verify(study.store) == []
    assert journals(study.store) == []


def test_killed_at_random_moments_it_ends_the_same(
    given: dict[str, str],
    whole: Path,
    moments: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run = functools.partial(asked(given).run, tmp_path / "store")
    study = Interrupted(run, tmp_path, Logged(tmp_path / "log", monkeypatch))
    kinds = study.often(KILLS, moments, random.Random(0))
    assert kinds.total() == KILLS
    ends_the_same(study, whole)


@pytest.mark.slow
def test_killed_at_two_hundred_moments_it_ends_the_same(
    given: dict[str, str],
    whole: Path,
    moments: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    kinds = Counter[str]()
    for chain in range(25):
        folder = tmp_path / str(chain)
        folder.mkdir()
        with monkeypatch.context() as patch:
            run = functools.partial(asked(given).run, folder / "store")
            study = Interrupted(run, folder, Logged(folder / "log", patch))
            kinds += study.often(8, moments, random.Random(f"chain {chain}"))
            ends_the_same(study, whole)
    sys.stdout.write(
        f"{kinds.total()} kills; a study that nothing interrupts has {moments} moments: "
        f"{dict(kinds)}\n"
    )
    assert kinds.total() == 200
    assert {"within a statement", "before COMMIT", "after before COMMIT"} <= set(kinds)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_on_one_store_share_the_work(
    given: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
):
    log, store = Logged(tmp_path / "log", monkeypatch), tmp_path / "store"
    numbers = [forked(lambda: asked(given).run(store), tmp_path / "said") for _ in range(count)]
    assert {ended(number) for number in numbers} == {0}, (tmp_path / "said").read_text()
    done = Counter(log())
    assert set(done.values()) == {1}
    assert Counter(what for what, _ in done) == {
        "compress": RUNS,
        "measure": 2 * RUNS,
        "keep": 3 * RUNS,
    }
    assert results(store) == results(whole)
    assert tables(store) == tables(whole)
    assert claims(store) == []


@pytest.mark.slow
def test_a_killed_process_leaves_its_requests_to_the_other(
    given: dict[str, str], whole: Path, moments: int, tmp_path: Path
):
    store, said = tmp_path / "store", tmp_path / "said"
    run = functools.partial(asked(given).run, store)
    first, second = (
        forked(functools.partial(dying, run, at, tmp_path / "told"), said)
        for at in (moments // 10, None)
    )
    assert ended(first) == -signal.SIGKILL
    assert ended(second) == 0, said.read_text()
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
        if is_store(store):
            assert harmful(store) == []
            assert not Store(store, create=False).failures(), (
                "a full disk is no failure of the question's"
            )
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
