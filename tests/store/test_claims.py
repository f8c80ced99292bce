"""A claim is its holder's alone, and dies with it."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from calibrant.errors import OutputError
from calibrant.spec import identity
from calibrant.store import Store, verify

from tests.store.conftest import filled, visible

FORK = multiprocessing.get_context("fork")
NAME = identity("a question")
FOREVER = 3600
"""Seconds that nobody waits for: a holder is killed before."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path)


def _holds(folder: Path, name: str, told: Connection, forks: bool) -> None:
    claim = Store(folder, create=False).claim(name)
    if not forks:
        told.send((claim is not None, 0))
    elif not os.fork():
        told.send((claim is not None, os.getpid()))
    time.sleep(FOREVER)


@contextmanager
def holder(folder: Path, name: str = NAME, forks: bool = False) -> Iterator[tuple[BaseProcess, int]]:
    """Another process that holds a claim until it is killed, and the child that it has forked meanwhile."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_holds, args=(folder, name, there, forks))
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
    before = visible(store.folder)
    claim = store.claim(NAME)
    assert claim is not None
    assert claim.name == NAME
    assert store.claim(NAME) is None
    assert Store(store.folder, create=False).claim(NAME) is None
    with store.claim("something else", wait=True):
        assert store.claim("something else") is None
    assert [p.name for p in (store.folder / ".claims").iterdir()] == [f"{NAME[7:]}.lock"]
    assert verify(store.folder) == [], "that someone is at work is nothing wrong"
    claim.free()
    claim.free()
    with store.claim(NAME, wait=True):
        pass
    assert visible(store.folder) == before
    assert list((store.folder / ".claims").iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/../b", "x" * 300, "Maß\n", "sha256:../../x"])
def test_any_text_can_be_claimed(store: Store, name: str):
    with store.claim(name, wait=True):
        (lock,) = (store.folder / ".claims").iterdir()
        assert len(lock.name) == 69
        assert store.claim(name) is None
        with store.claim(name + " ", wait=True):
            pass


def test_another_process_is_waited_for_and_dies_with_what_it_held(store: Store):
    with holder(store.folder):
        assert store.claim(NAME) is None
    with holder(store.folder) as (process, _):
        assert store.claim(NAME) is None
        killed = threading.Event()
        timer = threading.Timer(0.2, lambda: (killed.set(), process.kill()))
        timer.start()
        with store.claim(NAME, wait=True) as claim:
            assert killed.is_set()
            assert claim.name == NAME
        timer.join()
    assert list((store.folder / ".claims").iterdir()) == []


def test_a_child_that_outlives_its_parent_keeps_nothing_of_it(store: Store):
    with holder(store.folder, forks=True) as (process, child):
        assert store.claim(NAME) is None
        process.kill()
        process.join()
        os.kill(child, 0)  # it lives
        claim = store.claim(NAME)
        assert claim is not None
        claim.free()


def _counts(folder: Path, name: str, times: int, start: threading.Barrier) -> None:
    start.wait()
    store = Store(folder, create=False)
    for n in range(times):
        claim = store.claim(name, wait=n % 2 == 0)
        while claim is None:
            claim = store.claim(name)
        with claim:
            counted = int((folder / "count").read_text())
            time.sleep(0)
            (folder / "count").write_text(str(counted + 1))


def test_a_lock_that_is_removed_while_others_wait_for_it_is_nobodys(store: Store):
    """Each adds one, fifty times, to a number that only the claim protects: its file comes and goes all the while."""
    (store.folder / "count").write_text("0")
    start = FORK.Barrier(4)
    workers = [FORK.Process(target=_counts, args=(store.folder, NAME, 50, start)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(FOREVER)
        assert worker.exitcode == 0
    assert (store.folder / "count").read_text() == "200"
    assert list((store.folder / ".claims").iterdir()) == []


def test_where_no_lock_can_be_made_it_is_said(store: Store, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=NAME):
        store.claim(NAME)
