"""Killed anywhere, nothing that was reported is lost, and the same work goes on."""

import itertools
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import pytest

from calibrant.results import MASK, Store, merge, pack, verify
from calibrant.results.database import Database

from tests.results.conftest import told, varied
from tests.results.samples import LOSS, MEASURED, RECORD, RUN

FORK = multiprocessing.get_context("fork")
KILLS: Final = 10
"""Kills of one writer after the other, in the same store, in each test of random moments."""


def check_whole(folder: Path) -> None:
    """Nothing is wrong with a store but what killed writers may leave."""
    wrong = [problem for problem in verify(folder) if not problem.remedy.startswith("harmless")]
    assert wrong == []


# At a random moment


def _writes(folder: Path, first: int, pipe: Connection) -> None:
    """Write until killed, and say what is written."""
    with Store(folder) as store:
        for number in itertools.count(first):
            run = replace(RUN, target=f"0.{number:09}")
            store.add_record(replace(RECORD, run=run), {MASK: str(number).encode() * 1000})
            pipe.send((run.id, ""))
            pipe.send((run.id, store.add_measurement(run.id, LOSS, MEASURED)))


def _killed_after(folder: Path, kill: int, seconds: float) -> set[tuple[str, str]]:
    """Let a process write for a while, kill it, and return what it said. Every second one is killed
    while it opens the store."""
    here, there = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=_writes, args=(folder, kill * 10**6, there))
    writer.start()
    there.close()
    if kill % 2:
        assert here.poll(60)
    time.sleep(seconds)
    writer.kill()
    writer.join()
    said = set[tuple[str, str]]()
    try:
        while True:
            said.add(here.recv())
    except (EOFError, OSError):
        return said


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 21))]
)
def test_what_was_said_to_be_written_is_there(tmp_path: Path, seed: int):
    chance = random.Random(seed)
    folder = tmp_path / "store"
    said = set[tuple[str, str]]()
    for kill in range(KILLS):
        said |= _killed_after(folder, kill, chance.uniform(0, 0.1))
        if not said:
            continue
        with Store(folder, create=False) as store:
            there = {(run, "") for run in store.ids()}
            for run in store.ids():
                there |= {(run, measure) for measure in store.measured(run)}
                assert store.file(run, MASK) is not None
        assert said <= there
        check_whole(folder)
    assert len(said) >= KILLS // 2


# At every step of it


class Steps:
    """Counts what a process does to the disk, and every twentieth instruction of SQLite, and ends
    it at one of them."""

    def __init__(self, last: int) -> None:
        self.count = 0
        self._last = last

    def __enter__(self) -> "Steps":
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "link"):
            setattr(os, name, self._counted(getattr(os, name)))
        connected, step = Database._connected, self._step

        def watched(self: Database, path: Path, mode: str) -> sqlite3.Connection:
            connection = connected(self, path, mode)
            connection.set_progress_handler(step, 20)
            return connection

        Database._connected = watched
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is put back: the process ends here."""

    def _step(self) -> int:
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        return 0

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **named: Any) -> Any:
            self._step()
            return call(*given, **named)

        return counting


def _works(work: Callable[[Path], object], folder: Path, last: int, pipe: Connection) -> None:
    with Steps(last) as steps:
        work(folder)
        pipe.send(steps.count)
        os._exit(0)


def steps_of(work: Callable[[Path], object], folder: Path, last: int = -1) -> int:
    """Work in a process that is killed at the `last` step, and return how many steps it made; 0 if
    it was killed."""
    here, there = FORK.Pipe(duplex=False)
    worker = FORK.Process(target=_works, args=(work, folder, last, there))
    worker.start()
    there.close()
    worker.join()
    assert worker.exitcode in (0, -signal.SIGKILL)
    return here.recv() if worker.exitcode == 0 else 0


def write(base: Path) -> None:
    varied(base / "store")


def merge_two(base: Path) -> None:
    merge(base / "store", [base / "one", base / "two"])


def pack_in_place(base: Path) -> None:
    pack(base / "store")


def pack_elsewhere(base: Path) -> None:
    pack(base / "one", base / "store")


def pack_again(base: Path) -> None:
    pack(base / "packed")


WORKS: Final = (write, merge_two, pack_in_place, pack_elsewhere, pack_again)


def prepared(base: Path, work: Callable[[Path], object]) -> Path:
    """What is there before the work, and where its result will be."""
    base.mkdir()
    if work is merge_two:
        varied(base / "one")
        with Store(base / "two") as store:
            store.add_record(replace(RECORD, run=replace(RUN, target="0.9")))
    elif work is pack_elsewhere:
        varied(base / "one")
    elif work is pack_in_place:
        varied(base / "store")
    elif work is pack_again:
        with Store(base / "packed") as store:
            store.add_record(RECORD)
        pack(base / "packed")
        varied(base / "packed")
    return base / ("packed" if work is pack_again else "store")


@pytest.mark.parametrize("moments", [5, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", WORKS, ids=[work.__name__ for work in WORKS])
def test_killed_at_any_step_it_goes_on(
    tmp_path: Path, work: Callable[[Path], object], moments: int
):
    whole = prepared(tmp_path / "whole", work)
    before = told(whole) if whole.exists() else []
    steps = steps_of(work, tmp_path / "whole")
    expected = told(whole)
    assert steps > 10
    for last in range(0, steps, max(1, steps // moments)):
        base = tmp_path / str(last)
        folder = prepared(base, work)
        assert steps_of(work, base, last) == 0, "it is killed"
        if work in (pack_in_place, pack_again):
            assert told(folder) == before == expected
            check_whole(folder)
        work(base)
        assert told(folder) == expected
        check_whole(folder)
