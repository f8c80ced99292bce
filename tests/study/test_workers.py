"""Workers that are processes: they give what one process gives, may die, and leave nobody
behind.
"""

import errno
import json
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from calibrant.cli import main
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import (
    DataError,
    InputError,
    ModelError,
    Problem,
    SpecError,
    StudyError,
    WorkerError,
)
from calibrant.lab.study import driver
from calibrant.lab.study.driver import WAITING
from calibrant.lab.study.workers import (
    IDLE_DEATHS,
    LONGEST,
    PAUSES,
    Process,
    Summary,
    Worker,
    check,
    environment,
    reporting,
    supervise,
    uninterrupted,
)
from calibrant.results import STATISTICS, STUDY, Store
from calibrant.results.live import DATABASE
from calibrant.results.stored import BLOBS
from calibrant.spec import identity
from calibrant.system.progress import silent
from calibrant.testing import tiny_folder

from tests.study.mortal import Died, worked
from tests.study.small import asked, claims, ended, forked, journals, results
from tests.test_wire import Bomb

ONCE = """
import os, pathlib, signal
import calibrant.lab.study.driver as driver
compress = driver.compress
def dying(*args, **options):
    mark = pathlib.Path(__file__).with_name("died")
    if options["data"] == "random_tokens" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return compress(*args, **options)
driver.compress = dying
"""
BUSY = """
import time
import calibrant.lab.study.driver as driver
driver.compress = lambda *_, **__: time.sleep(600)
"""
IDLE = "import time; time.sleep(600)"


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have every worker run some code when it starts."""

    def run(code: str) -> None:
        (tmp_path / "poison").mkdir()
        (tmp_path / "poison" / "sitecustomize.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "poison")

    return run


def workers_of(number: int) -> list[psutil.Process]:
    return [
        p for p in psutil.Process(number).children() if "study.workers" in " ".join(p.cmdline())
    ]


def until(true: Callable[[], Any], seconds: float = 900.0) -> Any:
    began = time.monotonic()
    while not (found := true()):
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return found


def test_a_worker_that_dies_is_replaced_and_all_is_as_of_one_process(
    given: dict[str, str], tmp_path: Path, poison: Callable[[str], None]
):
    study, store, told = (
        asked(given, data=["random_tokens", "full_stops"], methods="wanda"),
        tmp_path / "store",
        list[tuple[str, int, int]](),
    )
    study.run(tmp_path / "whole")
    poison(ONCE)
    finished = study.run(store, lambda *what: told.append(what), workers=2)
    (died,) = finished.died
    assert re.match(
        r"process \d+ was ended by SIGKILL .*wanda 0\.5 on random_tokens; it was tried again$", died
    )
    assert (finished.computed, finished.found, finished.failures) == (3 + 6, 0, {})
    assert results(store) == results(tmp_path / "whole")
    assert (told[0], told[-1]) == (("study", 0, 3), ("study", 3, 3))
    assert {("wanda 0.5 on full_stops", 2, 2), ("measuring wanda 0.5 on full_stops", 2, 2)} <= set(
        told
    )
    assert finished.seconds["open"] > 0
    assert {path.name for path in store.iterdir()} == {BLOBS, DATABASE, STATISTICS, STUDY}, (
        "no tokens of a data set stay"
    )


@pytest.mark.slow
def test_no_worker_outlives_a_driver_that_is_killed(
    given: dict[str, str], tmp_path: Path, poison: Callable[[str], None]
):
    poison(BUSY)
    number = forked(lambda: asked(given).run(tmp_path / "store", workers=2), tmp_path / "said")
    workers = until(lambda: len(found := workers_of(number)) == 2 and found)
    until(lambda: len(claims(tmp_path / "store")) >= 2)
    os.kill(number, signal.SIGKILL)
    ended(number)
    assert not psutil.wait_procs(workers, timeout=300)[1]


def test_an_interrupt_between_the_beginning_of_a_worker_and_its_entry_comes_afterwards():
    done: list[str] = []

    def begin() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("entered")

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # whoever starts tests in the background may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            begin()
        assert done == ["entered"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_study_ends_its_workers_and_says_how_to_go_on(
    given: dict[str, str], tmp_path: Path, poison: Callable[[str], None]
):
    poison(IDLE)
    (tmp_path / "study.yaml").write_text(asked(given).as_yaml())

    def command() -> None:
        sys.argv = [
            "calibrant",
            "study",
            str(tmp_path / "study.yaml"),
            "--out",
            str(tmp_path / "store"),
            "--workers",
            "2",
        ]
        main()

    number = forked(command, tmp_path / "said")
    workers = until(lambda: len(found := workers_of(number)) == 2 and found)
    os.kill(number, signal.SIGINT)
    assert ended(number) == 130
    assert (tmp_path / "said").read_text().count("\n") == 1
    assert not psutil.wait_procs(workers, timeout=300)[1]
    assert not Store(tmp_path / "store", create=False).failures()


# How workers are supervised, with ones of this process


def test_a_run_that_kills_twice_is_recorded_and_tried_again_on_request(
    given: dict[str, str], whole: Path, tmp_path: Path
):
    runs = {cell.run for cell in Store(whole, create=False).cells() if cell.data == "random_tokens"}
    finished = worked(asked(given), tmp_path, lambda what, failed_id: failed_id in runs)
    assert {f["what"] for f in finished.failures.values()} == {
        "wanda 0.5 on random_tokens",
        "sparsegpt 0.5 on random_tokens",
    }
    assert set(finished.failures) == runs
    assert all(
        re.match(r"WorkerError: worker \d+ fell", failure["error"])
        for failure in finished.failures.values()
    )
    ends = [died.partition("; ")[2] for died in finished.died]
    assert (ends.count("it was tried again"), ends.count("it was given up") >= 2) == (2, True)
    assert {
        k: v for k, v in results(tmp_path).items() if k.startswith(("run ", "measured "))
    }.items() <= results(whole).items()

    again = asked(given).run(tmp_path)
    assert (again.computed, len(again.failures)) == (0, 2), (
        "what failed isn't tried again without a request"
    )
    third = asked(given).run(tmp_path, retry=True)
    assert (third.computed, third.failures) == (2 + 4, {})
    assert results(tmp_path) == results(whole)


def test_a_death_at_the_start_counts_no_more_when_a_worker_has_started(
    given: dict[str, str], tmp_path: Path
):
    """A long study may lose one at its start now and then."""
    doing = ["doing", "opening a model", "", 0, ""]
    lives = iter([[], [doing], [], [doing, ["end"]]])

    class Scripted(Worker):
        def messages(self) -> Iterator[Any]:
            for message in next(lives):
                if message == ["end"]:
                    return
                yield message
            raise WorkerError("a worker fell", subject="a worker")

        def end(self) -> None:
            pass

    with Store(tmp_path) as store:
        summary = Summary(store, asked(given).workload(), silent)
        finished = supervise(summary, [Scripted])
    assert [sentence.partition(" while at work on ")[2] for sentence in finished.died] == [
        "starting; it was tried again",
        "opening a model; it was tried again",
        "starting; it was tried again",
    ]


def test_deaths_at_runs_of_one_label_are_not_added_up(given: dict[str, str], tmp_path: Path):
    other = tiny_folder(tmp_path / "other", num_hidden_layers=1)
    study = asked(
        given,
        models=[given["model"], str(other)],
        data=["random_tokens"],
        methods="wanda",
        evaluate=(),
    )
    died: list[str] = []

    def once(what: str, failed_id: str) -> bool:
        deadly = what == "wanda 0.5 on random_tokens" and failed_id not in died
        if deadly:
            died.append(failed_id)
        return deadly

    finished = worked(study, tmp_path / "store", once)
    assert len(died) == 4, "before and after the tokens of two models"
    assert not finished.failures
    assert all(sentence.endswith("it was tried again") for sentence in finished.died)


def test_a_measurement_that_kills_costs_no_other(given: dict[str, str], tmp_path: Path):
    study = asked(given, data=["random_tokens"], methods="wanda")
    bad, good = study.evaluators()
    finished = worked(study, tmp_path, lambda what, _: what.endswith(f"measured by {bad}"))
    assert set(finished.failures) == {c.measures[bad] for c in finished.cells}
    assert all(f["what"].endswith(f"measured by {bad}") for f in finished.failures.values())
    assert all(
        c.measures[good] in Store(tmp_path, create=False).measured(c.run) for c in finished.cells
    )


def test_a_model_that_kills_every_worker_is_refused(given: dict[str, str], tmp_path: Path):
    with pytest.raises(ModelError) as caught:
        worked(asked(given), tmp_path, lambda what, _: what.startswith("opening"))
    assert caught.value.subject == given["model"]


@pytest.mark.parametrize("deadly", ["opening", "tokens"])
def test_what_kills_every_worker_before_its_id_is_known_fails_only_where_it_is_asked_for(
    given: dict[str, str], tmp_path: Path, deadly: str
):
    other = str(tiny_folder(tmp_path / "other", num_hidden_layers=1))
    groups = {"small": {"model": given["model"]}, "other": {"model": other}}
    study = asked(
        given,
        models=[other, given["model"]],
        data=["random_tokens"],
        methods="wanda",
        evaluate=(),
        groups=groups,
    )
    work = study.workload()
    failed_ids = [work.provisional(work.requests[number]) for number in work.about(other)]

    def kills(what: str, failed_id: str) -> bool:
        if deadly == "opening":
            return what == f"opening {other}"
        return failed_id == failed_ids[1]

    finished = worked(study, tmp_path / "store", kills, groups="small")
    assert (finished.computed, finished.failures) == (2, {})
    ends = [died.partition("; ")[2] for died in finished.died]
    assert ends.count("it was tried again") == 1
    assert Store(tmp_path / "store", create=False).failures() == {}
    finished = worked(study, tmp_path / "store", kills)
    lost = failed_ids if deadly == "opening" else failed_ids[1:]
    assert finished.failures.keys() == set(lost)
    # Without a request nothing of it is tried again, also where the dense run opens the model.
    again = study.run(tmp_path / "store")
    assert (again.computed, again.failures.keys()) == (0, set(lost))
    assert study.run(tmp_path / "store", retry=True).failures == {}


def test_what_another_is_at_is_passed_over_and_waited_for(
    given: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compress, order = driver.compress, list[str]()

    def noted(*args: Any, **told: Any) -> Any:
        order.append(told["data"])
        if told["data"] == "full_stops":
            threading.Timer(0.5, claim.free).start()
        return compress(*args, **told)

    monkeypatch.setattr(driver, "compress", noted)
    run = next(
        c.run
        for c in Store(whole, create=False).cells()
        if c.data == "random_tokens" and c.method.startswith("wanda")
    )
    with Store(tmp_path / "store") as store:
        claim = store.claim(run)
        assert claim is not None
        asked(given, methods="wanda").run(tmp_path / "store")
    assert order == ["", given["prose"], "full_stops", "random_tokens"]


def waiting(monkeypatch: pytest.MonkeyPatch, *happen: Callable[[], object]) -> None:
    """Let one thing after the other happen each time that a driver has nothing to do. It fails
    where it still waits after the last.
    """
    left = list(happen)

    def sleep(seconds: float) -> None:
        assert left, f"it waits another {seconds} seconds"
        left.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)


@pytest.mark.parametrize("awaited", ["run", "tokens"])
def test_no_run_is_blamed_for_workers_that_die_while_they_wait(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, awaited: str
):
    study = asked(given, data=["random_tokens"], methods="wanda", evaluate=())
    study.run(tmp_path / "before")
    name = wanda_runs(tmp_path / "before")["random_tokens"]
    if awaited == "tokens":
        request = next(one for one in study.workload().requests if one.calibration is not None)
        digits = identity([request.model, repr(request.calibration)]).removeprefix("sha256:")
        name = f"{digits}.tokens"
    told = list[str]()

    def dies() -> None:
        raise Died

    def noted(what: str, _: str) -> bool:
        told.append(what)
        return False

    with Store(tmp_path / "store") as store:
        claim = store.claim(name)
        assert claim is not None
        waiting(monkeypatch, dies, dies, claim.free)
        finished = worked(study, tmp_path / "store", noted)
    assert (finished.computed, finished.failures) == (2, {})
    assert len(finished.died) == 2
    assert all(
        sentence.endswith(" while it waited for others; another took its place")
        for sentence in finished.died
    )
    # Three waited, and the third was told of again when it went on.
    places = [place for place, what in enumerate(told) if what == WAITING[1]]
    assert len(places) == 3
    assert told[places[-1] + 1] == "wanda 0.5 on random_tokens"


class Idle(Worker):
    """Finds a request in the store, as every new worker does of what is done, and dies when it
    waits. Once so many are `born` it dies only when `free` is set.
    """

    born = 0
    free = threading.Event()
    held = 0

    def __init__(self) -> None:
        Idle.born += 1
        assert Idle.born < 100, "it is replaced without end"
        self._number = Idle.born

    def messages(self) -> Iterator[Any]:
        yield ["done", 0]
        yield WAITING
        if self._number == Idle.held:
            assert Idle.free.wait(900)
        raise WorkerError(f"worker {self._number} fell", subject="a worker")

    def end(self) -> None:
        pass


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], type[Idle]]:
    """Workers that die at every wait, of which one waits longer."""

    def made(held: int = 0) -> type[Idle]:
        monkeypatch.setattr(Idle, "born", 0)
        monkeypatch.setattr(Idle, "free", threading.Event())
        monkeypatch.setattr(Idle, "held", held)
        return Idle

    return made


class Healthy(Worker):
    """Is at work until the others died as often as they may, and longer than another birth takes.
    What it made first frees the one that is held.
    """

    def __init__(self, births: int, makes: bool) -> None:
        self._births = births
        self._makes = makes

    def messages(self) -> Iterator[Any]:
        if self._makes:
            until(lambda: Idle.born == Idle.held)
            yield ["made", "sha256:1"]
            Idle.free.set()
        until(lambda: Idle.born >= self._births)
        time.sleep(0.3)

    def end(self) -> None:
        pass


@pytest.mark.parametrize("makes", [False, True])
def test_a_worker_that_dies_at_every_wait_is_replaced_only_so_often(
    given: dict[str, str], tmp_path: Path, idle: Callable[[int], type[Idle]], makes: bool
):
    """What is made meanwhile lets others wait again; what was found in the store doesn't."""
    births = 1 + IDLE_DEATHS
    held = 0
    if makes:
        held = 3
        births += held - 1
    dying = idle(held)
    with Store(tmp_path) as store:
        summary = Summary(store, asked(given).workload(), silent)
        finished = supervise(summary, [lambda: Healthy(births, makes), dying])
    assert Idle.born == births
    *replaced, last = finished.died
    assert len(replaced) == births - 1
    assert all(
        sentence.endswith(" fell while it waited for others; another took its place")
        for sentence in replaced
    )
    assert last == (
        f"worker {births} fell while it waited for others, and so did {IDLE_DEATHS} before it; "
        "none took its place"
    )


def test_where_all_workers_died_while_they_waited_the_study_ends_with_it(
    given: dict[str, str], tmp_path: Path, idle: Callable[[int], type[Idle]]
):
    with Store(tmp_path) as store:
        summary = Summary(store, asked(given).workload(), silent)
        with pytest.raises(WorkerError, match="no worker is left; give workers more memory"):
            supervise(summary, [idle(0)])
    assert Idle.born == 1 + IDLE_DEATHS


def test_a_death_while_nothing_is_left_to_wait_for_ends_no_study(
    given: dict[str, str], tmp_path: Path, idle: Callable[[int], type[Idle]]
):
    with Store(tmp_path) as store:
        workload = replace(asked(given).workload(), chosen=frozenset([0]))
        finished = supervise(Summary(store, workload, silent), [idle(0)])
    assert len(finished.died) == 1 + IDLE_DEATHS


# When the index is written


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that messages come at; a test moves it on."""
    now = [1000.0]
    told = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("calibrant.lab.study.workers.time", told)
    return now


@pytest.mark.parametrize(("takes", "pause"), [(0.0, 0.0), (0.25, PAUSES * 0.25), (100.0, LONGEST)])
def test_an_index_that_takes_long_to_write_is_written_seldom(
    given: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: list[float],
    takes: float,
    pause: float,
):
    begun = list[float]()
    ended = list[float]()

    def slow(*_: Any) -> None:
        begun.append(clock[0])
        clock[0] += takes
        ended.append(clock[0])

    monkeypatch.setattr(Store, "write_cells", slow)
    with Store(tmp_path) as store:
        summary = Summary(store, asked(given).workload(), silent)
        for second in range(200):
            run_id = f"sha256:{second}"
            for message in (["cell", 0, run_id, {}, []], ["made", run_id], ["done", 0]):
                summary.add(message)
            clock[0] += 1
    pauses = [later - earlier for earlier, later in zip(ended, begun[1:], strict=False)]
    assert len(pauses) > 1
    assert all(max(pause, 1.0) <= waited <= pause + 1 for waited in pauses)


def test_the_index_of_a_study_that_is_broken_off_tells_of_all_that_is_done(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
):
    write = Store.write_cells
    written = list[int]()

    def slow(*index: Any) -> None:
        clock[0] += 1
        written.append(1)
        write(*index)

    class Breaking(Worker):
        def messages(self) -> Iterator[Any]:
            for number in range(3):
                run_id = f"sha256:{number}"
                yield from (["cell", number, run_id, {}, []], ["made", run_id], ["done", number])
            raise OSError(errno.ENOSPC, "no room")

        def end(self) -> None:
            pass

    monkeypatch.setattr(Store, "write_cells", slow)
    with Store(tmp_path) as store:
        summary = Summary(store, asked(given).workload(), silent)
        with pytest.raises(OSError, match="no room"):
            supervise(summary, [Breaking])
        assert {cell.run for cell in store.cells()} >= {f"sha256:{number}" for number in range(3)}
    assert len(written) == 2, "after the first, and when it was broken off"


def wanda_runs(store: Path) -> dict[str, str]:
    """The ids of the runs of `wanda` by their sets."""
    found = dict[str, str]()
    for cell in Store(store, create=False).cells():
        if cell.method.startswith("wanda"):
            found[cell.data] = cell.run
    return found


def test_nobody_waits_for_one_run_while_another_can_be_done(
    given: dict[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compress, order = driver.compress, list[str]()

    def noted(*args: Any, **told: Any) -> Any:
        order.append(told["data"])
        return compress(*args, **told)

    monkeypatch.setattr(driver, "compress", noted)
    runs = wanda_runs(whole)
    with Store(tmp_path / "store") as store:
        first = store.claim(runs["random_tokens"])
        second = store.claim(runs["full_stops"])
        assert first is not None
        assert second is not None
        # The one that comes later in the study is free earlier.
        waiting(monkeypatch, second.free, first.free)
        asked(given, methods="wanda").run(tmp_path / "store")
    assert order == ["", given["prose"], "full_stops", "random_tokens"]


def test_another_model_is_worked_on_while_the_last_runs_of_one_are_anothers(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = str(tiny_folder(tmp_path / "other", num_hidden_layers=1))
    one_model = asked(given, data=["random_tokens"], methods="wanda")
    one_model.run(tmp_path / "before")
    opened = list[str]()
    open_model = driver.open_model

    def noted(model: str, *args: Any) -> Any:
        opened.append(model)
        return open_model(model, *args)

    monkeypatch.setattr(driver, "open_model", noted)
    with Store(tmp_path / "store") as store:
        claim = store.claim(wanda_runs(tmp_path / "before")["random_tokens"])
        assert claim is not None

        def finishes() -> None:
            assert opened == [given["model"], other]
            claim.free()
            one_model.run(tmp_path / "store")

        waiting(monkeypatch, finishes)
        finished = replace(one_model, models=[given["model"], other]).run(tmp_path / "store")
    assert finished.failures == {}
    # The third opening is that of `finishes`. What it did isn't done again: the driver opens none.
    assert opened == [given["model"], other, given["model"]]


def test_what_is_on_disk_is_read_by_several_runs_at_a_time(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("fcntl", reason="elsewhere one run at a time has it")
    one_run = asked(given, data=["random_tokens"], methods="wanda")
    one_run.run(tmp_path / "store")
    (statistics,) = (tmp_path / "store" / STATISTICS).iterdir()
    waiting(monkeypatch)
    with Store(tmp_path / "store") as store:
        # As the run has it that gathered them, and is being compressed.
        claim = store.claim(f"sha256:{statistics.name}")
        assert claim is not None
        with claim:
            finished = replace(one_run, targets=[0.5, "2:4"]).run(tmp_path / "store")
    assert (finished.computed, finished.failures) == (3, {})


def test_what_a_kill_left_of_a_search_stays_while_another_is_at_its_run(
    given: dict[str, str], tmp_path: Path
):
    """Its run may be made again, for its weights."""
    study = asked(given, data=["random_tokens"], methods="wanda", evaluate=())
    finished = study.run(tmp_path / "store")
    run = next(cell.run for cell in finished.cells if cell.data)
    with Store(tmp_path / "store") as store:
        store.trials(run).add({"without block 1": 2.5})
        claim = store.claim(run)
        assert claim is not None
        with claim:
            study.run(tmp_path / "store")
        assert journals(tmp_path / "store") == [run]
    study.run(tmp_path / "store")
    assert journals(tmp_path / "store") == []


def test_statistics_beyond_the_limit_go_after_their_last_use(given: dict[str, str], tmp_path: Path):
    every = asked(
        given, data=["random_tokens", "full_stops"], methods="wanda", targets=[0.5, "2:4"]
    )
    every.run(tmp_path / "kept")
    kept = {p.name for p in (tmp_path / "kept" / "statistics").iterdir()}
    assert len(kept) == 2
    replace(every, statistics_gb=1e-7).run(tmp_path / "limited")
    assert not list((tmp_path / "limited" / "statistics").iterdir())
    same = {k: v for k, v in results(tmp_path / "limited").items() if k != "study.yaml"}
    assert same == {k: v for k, v in results(tmp_path / "kept").items() if k != "study.yaml"}


def job(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "shared": str(folder), "count": 1, "threads": 1, "place": 0}


def test_a_worker_that_has_ended_says_so(tmp_path: Path):
    worker = Process(job(tmp_path))
    worker.end()
    with pytest.raises(WorkerError) as caught:
        list(worker.messages())
    assert caught.value.subject == str(worker.number)


@pytest.mark.parametrize(
    ("changes", "given_as"),
    [
        ({"engine": "rai"}, "'rai'"),
        ({"workers": 0}, "0 workers"),
        ({"gpus": -1.0, "engine": "ray"}, "-1.0"),
        ({"address": "10.0.0.1:6379"}, "'10.0.0.1:6379'"),
        ({"gpus": 0.5}, "gpus=0.5"),
    ],
)
def test_what_an_engine_cant_do_is_refused_before_anything_is_written(
    given: dict[str, str], tmp_path: Path, changes: dict[str, Any], given_as: str
):
    with pytest.raises(SpecError) as raised:
        asked(given).run(tmp_path / "store", **changes)
    assert given_as in str(raised.value)
    assert not (tmp_path / "store").exists()


def test_ray_that_isnt_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError) as raised:
        check("ray")
    assert raised.value.subject == "ray"


def test_the_folder_that_modules_are_found_in_is_named_to_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    monkeypatch.chdir(tmp_path)
    assert environment(1)["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "/elsewhere"]


def test_a_message_that_nobody_reads_ends_the_worker(monkeypatch: pytest.MonkeyPatch):
    """Raised, it would be recorded as the failure of a run."""

    def left(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", left)
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "wb", closefd=False)
    with pytest.raises(SystemExit):
        reporting(pipe)(["end"])
    os.close(writer)


def test_an_interrupt_that_python_does_not_handle_comes_afterwards_too(tmp_path: Path):
    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            (tmp_path / "afterwards").touch()

    assert ended(forked(interrupted)) == -signal.SIGINT
    assert (tmp_path / "afterwards").exists()


PROCESSES = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_worker_ends_with_what_it_has_started(tmp_path: Path, poison: Callable[[str], None]):
    poison(PROCESSES)
    worker = Process(job(tmp_path))
    assert worker._process.stdout is not None
    child = psutil.Process(int(worker._process.stdout.readline()))
    worker.end()
    psutil.wait_procs([child], timeout=300)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "written",
    ["['doing', 'half of ", "{}\n", "[" * 100_000 + "\n"],
    ids=["half", "mapping", "deep"],
)
def test_a_worker_that_writes_what_is_no_message_is_taken_for_dead(
    tmp_path: Path, poison: Callable[[str], None], written: str
):
    poison(f"import os, sys\nsys.stdout.write({written!r})\nsys.stdout.flush()\nos._exit(0)")
    worker = Process(job(tmp_path))
    with pytest.raises(WorkerError) as raised:
        list(worker.messages())
    assert raised.value.subject == str(worker.number)
    worker.end()


def test_an_error_that_a_process_reports_is_raised_as_it_is(
    tmp_path: Path, poison: Callable[[str], None]
):
    said = json.dumps(["error", "OSError", "no room", "", errno.ENOSPC, "/a/file"])
    poison(f"import os, sys\nsys.stdout.write({said!r} + chr(10))\nsys.stdout.flush()\nos._exit(0)")
    worker = Process(job(tmp_path))
    with pytest.raises(OSError, match="no room") as raised:
        list(worker.messages())
    assert raised.value.errno == errno.ENOSPC
    worker.end()


def test_a_worker_that_writes_a_pickle_is_taken_for_dead(
    tmp_path: Path, poison: Callable[[str], None]
):
    poison(
        "import pathlib, pickle, "
        f"sys\nsys.stdout.buffer.write({pickle.dumps(Bomb(tmp_path / 'ran'))!r} + "
        "b'\\n')\nsys.stdout.flush()"
    )
    worker = Process(job(tmp_path))
    with pytest.raises(WorkerError) as raised:
        list(worker.messages())
    assert raised.value.subject == str(worker.number)
    worker.end()
    assert not (tmp_path / "ran").exists()


def test_tokens_that_are_a_pickle_are_a_failure_and_not_run(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = asked(given, data=["random_tokens"], methods="wanda", evaluate=())
    work = study.workload()
    provisional = [work.provisional(request) for request in work.requests]
    monkeypatch.setattr(
        driver, "put", lambda path, content: path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    )
    died: list[str] = []

    def before_its_run(what: str, failed_id: str) -> bool:
        """Dies once, when its tokens are there for others and what is made of them isn't."""
        deadly = what == "wanda 0.5 on random_tokens" and failed_id not in (*provisional, *died)
        if deadly:
            died.append(failed_id)
        return deadly

    finished = worked(study, tmp_path / "store", before_its_run)
    assert len(died) == 1
    (failure,) = finished.failures.values()
    assert failure["what"] == "wanda 0.5 on random_tokens"
    assert " is no message" in failure["error"]
    assert not (tmp_path / "ran").exists()


def test_one_worker_draws_a_set_and_the_others_read_it(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[str] = []
    tokens = CalibrationSet.tokens

    def noted(self: CalibrationSet, *args: Any) -> TokenBatch:
        drawn.append(str(self))
        return tokens(self, *args)

    monkeypatch.setattr(CalibrationSet, "tokens", noted)
    study = asked(given, data=["random_tokens", "full_stops"], methods="wanda", evaluate=())
    assert worked(study, tmp_path).failures == {}
    assert len(drawn) == len(set(drawn)) == 2


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (DataError("the file isn't there", subject="prose.jsonl"), DataError),
        (OSError(errno.ENOSPC, "no room", "/a/file"), OSError),
        (StudyError([Problem(3, "data", "lacks")], subject="a.yaml"), InputError),
    ],
)
def test_an_error_in_a_worker_ends_the_study_as_it_is(
    given: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    arrives: type[Exception],
):
    """A user's file may be gone by the time that a worker looks."""

    def gone(message: bytes) -> Any:
        raise error

    monkeypatch.setattr("calibrant.lab.study.workers.unpacked", gone)
    with pytest.raises(arrives) as raised:
        worked(asked(given), tmp_path)
    assert str(raised.value) == str(error)
    assert getattr(raised.value, "subject", "") == getattr(error, "subject", "")


def test_a_full_disk_in_a_worker_ends_the_study_and_is_no_failure(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(driver, "compress", full)
    with pytest.raises(OSError, match="no room") as raised:
        worked(asked(given), tmp_path)
    assert raised.value.errno == errno.ENOSPC
    assert not Store(tmp_path, create=False).failures()
