"""A disk that fills up, a real one: whatever could not be written is as if it had never been begun, and with space it goes on."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.errors import OutputError
from calibrant.store import Cell, Store, measurement_id, merge, verify

from tests.store.conftest import LOSS, MEASURED, RECORD, RUN, filled, results

PAGE = 4096
CELL = Cell("tiny", "wikitext", "wanda", "0.5", 3, RUN.id, {"loss": measurement_id(RUN.id, LOSS)}, "dense")
SMALL = "mount -t tmpfs -o size={2} tmpfs {0} && {{ {1}; code=$?; umount {0}; exit $code; }}"
WAYS = (("unshare", "-rm", "sh", "-c"), ("sh", "-c"))
"""A namespace of one's own, where anybody may mount; or the rights of root."""


def left_with(disk: Path, pages: int) -> None:
    """Fill a disk but for some pages."""
    (disk / "filler").unlink(missing_ok=True)
    room = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        file.write(b"x" * (room.f_bavail * room.f_frsize - pages * PAGE))


def complaint_of(writing: Callable[[], object]) -> str:
    """What is said of a full disk; nothing if there was room."""
    try:
        writing()
    except OutputError as error:
        _, full, _ = str(error).partition(": the disk is full; free some space and run the same command again")
        if not full:
            raise
        return str(error)
    return ""


def work(folder: Path) -> None:
    """A study's writing."""
    with Store(folder) as store:
        store.write_cells([CELL], {"baseline": None})
        store.add_record(RECORD, {"mask.npz": b"\x01" * 3 * PAGE})
        journal = store.journal(RUN.id, LOSS)
        for n in range(4):
            if f"item {n}" not in journal:
                journal.add({f"item {n}": ["x" * PAGE]})
        store.add_measurement(RUN.id, LOSS, MEASURED)
        journal.remove()
        store.add_failure("sha256:1", {"error": "lost"})


def fills_up(disk: Path, folder: Path) -> None:
    """Work with more and more room, from none to enough; in between, look at what a reader sees."""
    whole = folder / "whole"
    work(whole)
    complaints: list[str] = []
    for pages in range(30):
        left_with(disk, pages)
        complaints.append(complaint_of(lambda: work(disk / "s")))
        if not complaints[-1]:
            break
        if (disk / "s" / "calibrant-store.json").exists():
            store = Store(disk / "s", create=False)
            assert store.records() in ([], [RECORD])
            assert [*store.measurements(RUN.id).values()] in ([], [MEASURED])
            assert {p.where for p in verify(disk / "s")} <= {"index.json"}, verify(disk / "s")
            assert results(disk / "s").items() <= {**results(whole), **{k: v for k, v in results(disk / "s").items() if ".journals" in k}}.items()
    (disk / "filler").unlink()
    assert results(disk / "s") == results(whole)
    assert verify(disk / "s") == []
    assert len({complaint.partition(" in ")[0] for complaint in complaints}) >= 4, complaints  # it was full in the middle of different things


def on_a_disk_of_its_own(folder: Path, size: str, call: str) -> str:
    """Call `call(disk, folder)` of a test file in a process that has a small disk, and return why that can't be here."""
    disk = folder / "disk"
    disk.mkdir()
    module, _, name = call.rpartition(".")
    code = f"from pathlib import Path; from {module} import {name}; {name}(Path({str(disk)!r}), Path({str(folder)!r})); print('done')"
    mounted = SMALL.format(shlex.quote(str(disk)), shlex.join([sys.executable, "-c", code]), size)
    said: list[str] = []
    for way in [way for way in WAYS if shutil.which(way[0])]:
        done = subprocess.run([*way, mounted], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        if done.stdout.endswith("done\n"):
            return ""
        assert "Traceback" not in done.stderr, done.stderr
        said.append(done.stderr)
    return f"a small disk can't be mounted here: {' '.join(said)}"


def test_a_small_disk_that_fills_up(tmp_path: Path):
    if why := on_a_disk_of_its_own(tmp_path, "1m", "tests.store.test_full_disk.fills_up"):
        pytest.skip(why)


@pytest.mark.parametrize("at", [0, 3, 6, 9, 11, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2, 4, 5, 7, 8, 10))])
def test_a_merge_on_a_full_disk_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int):
    """Without a real disk: from the `at`-th flush on there is no room."""
    filled(tmp_path / "a")
    calls, flush = iter(range(100)), os.fsync

    def full(handle: int) -> None:
        if next(calls) >= at:
            raise OSError(28, "No space left on device")
        flush(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError) as raised:
            merge(tmp_path / "b", [tmp_path / "a"])
    assert raised.value.subject.startswith(str(tmp_path / "b"))
    if (tmp_path / "b" / "calibrant-store.json").exists():
        assert verify(tmp_path / "b") == []
    merge(tmp_path / "b", [tmp_path / "a"])
    assert results(tmp_path / "b") == results(tmp_path / "a")
    assert Store(tmp_path / "b", create=False).record(RUN.id) == RECORD
