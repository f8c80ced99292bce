"""A claim is its holder's alone, and dies with it."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from calibrant.errors import CalibrantError, DataError
from calibrant.results import Store, pack, verify
from calibrant.results.live import DATABASE
from calibrant.spec import identity

from tests.databases import change
from tests.refusing import refused
from tests.results.conftest import filled
from tests.results.samples import LOSS, MEASURED, RECORD, RUN

FORK = multiprocessing.get_context("fork")
NAME = identity("a question")
FOREVER = 3600
"""Seconds that nobody waits for: a holder is killed before."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path)


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with Store(folder) as store:
        yield store


def ended(*processes: BaseProcess) -> list[int | None]:
    """The exit codes of processes that are started at once."""
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _holds(folder: Path, pipe: Connection, forks: bool) -> None:
    claim = Store(folder).claim(NAME)
    if not forks:
        pipe.send((claim is not None, 0))
    elif not os.fork():
        pipe.send((claim is not None, os.getpid()))
    time.sleep(FOREVER)


@contextmanager
def holder(folder: Path, forks: bool = False) -> Iterator[tuple[BaseProcess, int]]:
    """Another process that holds a claim until it is killed, and the child that it has forked
    meanwhile."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_holds, args=(folder, there, forks))
    process.start()
    child = 0
    try:
        holds, child = here.recv()
        assert holds
        yield process, child
    finally:
        process.kill()
        process.join()
        if child:
            os.kill(child, signal.SIGKILL)


def test_a_claim_is_given_once_and_again_when_it_is_free(store: Store):
    claim = store.claim(NAME)
    assert claim is not None
    assert claim.name == NAME
    assert store.claim(NAME) is None
    assert Store(store.folder).claim(NAME) is None
    with store.claim("something else", wait=True):
        assert store.claim("something else") is None
    assert store.at_work()
    assert verify(store.folder) == [], "that someone is at work is nothing wrong"
    claim.free()
    claim.free()
    assert not store.at_work()
    with store.claim(NAME, wait=True):
        pass


@pytest.mark.parametrize("name", ["", "a/../b", "x" * 300, "Maß\n", "'; DROP TABLE claims"])
def test_any_text_can_be_claimed(store: Store, name: str):
    with store.claim(name, wait=True):
        assert store.claim(name) is None
        with store.claim(name + " ", wait=True):
            pass


def test_a_killed_process_holds_nothing(store: Store):
    with holder(store.folder) as (process, _):
        assert store.claim(NAME) is None
        process.kill()
        process.join()
        claim = store.claim(NAME)
        assert claim is not None
        claim.free()


@pytest.mark.parametrize("started", ["'soon'", "x'00'", "1e999"])
@pytest.mark.parametrize("process", ["'me'", "-1", str(2**62)])
def test_a_row_that_is_damaged_claims_nothing(store: Store, process: str, started: str):
    claim = store.claim(NAME)
    assert claim is not None
    store.close()
    change(store.folder / DATABASE, f"UPDATE claims SET process = {process}, started = {started}")
    assert not store.at_work()
    with store.claim(NAME, wait=True):
        assert store.at_work()


def test_a_claim_that_could_not_be_freed_can_be_freed_later(store: Store):
    claim = store.claim(NAME)
    assert claim is not None
    store.close()
    change(store.folder / DATABASE, "ALTER TABLE claims RENAME TO gone")
    with pytest.raises(CalibrantError):
        claim.free()
    store.close()
    change(store.folder / DATABASE, "ALTER TABLE gone RENAME TO claims")
    assert store.at_work()
    claim.free()
    assert not store.at_work()


def test_a_claim_goes_with_the_database(store: Store):
    pack(store.folder, store.folder.with_name("packed"))
    with Store(store.folder.with_name("packed")) as packed, packed.claim(NAME, wait=True):
        packed.remove_database(1, 1)
    assert not (store.folder.with_name("packed") / DATABASE).exists()


def test_who_waits_gets_the_claim_when_its_holder_is_killed(store: Store):
    with holder(store.folder) as (process, _):
        killed = threading.Event()
        timer = threading.Timer(0.2, lambda: (killed.set(), process.kill()))
        timer.start()
        with store.claim(NAME, wait=True) as claim:
            assert killed.is_set()
            assert claim.name == NAME
        timer.join()


def test_a_child_that_outlives_its_parent_keeps_nothing_of_it(store: Store):
    with holder(store.folder, forks=True) as (process, child):
        assert store.claim(NAME) is None
        process.kill()
        process.join()
        os.kill(child, 0)  # it lives
        claim = store.claim(NAME)
        assert claim is not None
        claim.free()


def _forks(folder: Path) -> None:
    with Store(folder) as store, store.claim(NAME, wait=True):
        store.add_record(replace(RECORD, run=replace(RUN, target="0.6")))
        child = os.fork()
        if not child:
            assert store.claim(NAME) is None, "it is the parent's"
            store.add_measurement(RUN.id, {**LOSS, "tokens": 7}, MEASURED)
            sys.exit(0)  # unlike os._exit, with everything that a process does at its end
        assert os.waitpid(child, 0)[1] == 0
        assert Store(folder).claim(NAME) is None, "the child did not free it"
        store.add_record(replace(RECORD, run=replace(RUN, target="0.7")))


def test_a_forked_child_is_a_writer_of_its_own(folder: Path):
    assert ended(FORK.Process(target=_forks, args=(folder,))) == [0]
    with Store(folder, create=False) as store:
        assert len(store.ids()) == 3
        assert len(store.measured(RUN.id)) == 2
    assert verify(folder) == []


def _counts(folder: Path, times: int, start: Barrier) -> None:
    start.wait()
    store = Store(folder)
    for number in range(times):
        claim = store.claim(NAME, wait=number % 2 == 0)
        while claim is None:
            claim = store.claim(NAME)
        with claim:
            counted = int((folder / "count").read_text())
            time.sleep(0)
            (folder / "count").write_text(str(counted + 1))


@pytest.mark.parametrize("processes", [2, 4])
def test_one_at_a_time(folder: Path, processes: int):
    """Each adds one, many times, to a number that only the claim protects."""
    (folder / "count").write_text("0")
    start = FORK.Barrier(processes)
    given = folder, 15, start
    workers = [FORK.Process(target=_counts, args=given) for _ in range(processes)]
    assert ended(*workers) == [0] * processes
    assert (folder / "count").read_text() == str(15 * processes)


def _computes(folder: Path, worker: int, start: Barrier) -> None:
    """Work through all runs as a study does: what is there is skipped, what is claimed left."""
    start.wait()
    with Store(folder) as store:
        for number in range(20):
            run = replace(RUN, target=f"0.{number:02}")
            with store.claim(run.id, wait=True):
                if not store.has_record(run.id):
                    (folder / f"{worker}-{number}").touch()
                    store.add_record(replace(RECORD, run=run))


@pytest.mark.parametrize("processes", [2, 4])
def test_nothing_is_computed_twice(tmp_path: Path, processes: int):
    """The store is new: all of them make it at once."""
    start = FORK.Barrier(processes)
    folder = tmp_path / "store"
    places = [(folder, worker, start) for worker in range(processes)]
    workers = [FORK.Process(target=_computes, args=given) for given in places]
    assert ended(*workers) == [0] * processes
    computed = [path.name.partition("-")[2] for path in folder.glob("*-*")]
    assert sorted(computed, key=int) == [str(number) for number in range(20)]


def _adds(folder: Path, worker: int, start: Any) -> None:
    start.wait()
    with Store(folder) as store:
        for number in range(10):
            for target in (f"0.{number:02}", f"0.{number:02}{worker}"):
                run = store.add_record(replace(RECORD, run=replace(RUN, target=target)))
                store.add_measurement(run, LOSS, MEASURED)
            store.add_failure(identity(number), {"error": "lost"})
            store.clear_failure(identity(number))


def test_two_writers_neither_lose_nor_spoil_anything(tmp_path: Path):
    """They write the same ten runs and ten of their own each, at once, into a new store."""
    start = FORK.Barrier(2)
    folder = tmp_path / "store"
    workers = [FORK.Process(target=_adds, args=(folder, number, start)) for number in range(2)]
    assert ended(*workers) == [0, 0]
    assert verify(folder) == []
    with Store(folder, create=False) as store:
        assert len(store.records()) == 30
        assert store.failures() == {}


def _writes_until_told(folder: Path, pipe: Connection) -> None:
    with Store(folder) as store, store.live.database.writing("wait") as connection:
        connection.execute("DELETE FROM runs")
        pipe.send("in the middle")
        pipe.recv()


def test_a_reader_never_waits_for_a_writer(folder: Path):
    here, there = FORK.Pipe()
    writer = FORK.Process(target=_writes_until_told, args=(folder, there))
    writer.start()
    here.recv()
    began = time.monotonic()
    with Store(folder, create=False) as store:
        assert store.records() == [RECORD], "and sees nothing of what isn't done"
        assert verify(folder) == []
    assert time.monotonic() - began < 30, "a writer would have waited for a minute"
    here.send("go on")
    writer.join()


def test_where_no_claim_can_be_made_it_is_said(store: Store):
    store.close()
    change(store.folder / DATABASE, "ALTER TABLE claims RENAME TO gone")
    with refused(DataError, store.folder / DATABASE):
        store.claim(NAME)
