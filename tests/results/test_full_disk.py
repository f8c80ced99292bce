"""A disk that fills up, a real one: whatever could not be written is as if it had never been begun,
and with space it goes on."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from calibrant.errors import OutputError
from calibrant.results import MASK, Store, merge, pack, verify
from calibrant.results.live import DATABASE

from tests.results.conftest import CELL, told
from tests.results.samples import LOSS, MEASURED, RECORD, RUN

PAGE: Final = 4096
SMALL: Final = "mount -t tmpfs -o size={2} tmpfs {0} && {{ {1}; code=$?; umount {0}; exit $code; }}"
WAYS: Final = (("unshare", "-rm", "sh", "-c"), ("sh", "-c"))
"""A namespace of one's own, where anybody may mount; or the rights of root."""
FULL: Final = ": the disk is full; free some space and run the same command again"


def left_with(disk: Path, pages: int) -> None:
    """Fill a disk but for some pages."""
    (disk / "filler").unlink(missing_ok=True)
    room = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        file.write(b"x" * max(0, room.f_bavail * room.f_frsize - pages * PAGE))


def complaint_of(writing: Callable[[], object]) -> str:
    """What is said of a full disk; nothing if there was room."""
    try:
        writing()
    except OutputError as error:
        if FULL not in str(error):
            raise
        return str(error)
    return ""


def work(folder: Path) -> None:
    """A study's writing."""
    with Store(folder) as store:
        store.write_cells([CELL], {"baseline": None})
        store.add_record(RECORD, {MASK: b"\x01" * 3 * PAGE})
        journal = store.journal(RUN.id, LOSS)
        for number in range(4):
            if f"item {number}" not in journal:
                journal.add({f"item {number}": ["x" * PAGE]})
        store.add_measurement(RUN.id, LOSS, MEASURED)
        journal.remove()
        store.add_failure("sha256:1", {"error": "lost"})
        store.write_text("study.yaml", "x" * PAGE)


def fills_up(disk: Path, folder: Path) -> None:
    """Work with more and more room, from none to enough; in between, look at what a reader sees."""
    work(folder / "whole")
    pack(folder / "whole", folder / "packed")
    works: dict[str, Callable[[], object]] = {
        "work": lambda: work(disk / "work"),
        "merge": lambda: merge(disk / "merge", [folder / "whole"]),
        "pack": lambda: pack(folder / "whole", disk / "pack"),
    }
    for name, writing in works.items():
        complaints = set[str]()
        for pages in range(0, 100, 2):
            left_with(disk, pages)
            said = complaint_of(writing)
            (disk / "filler").unlink()
            if not said:
                break
            complaints.add(said.partition(" in ")[0])
            if (disk / name / DATABASE).exists():
                check_whole(disk / name)
        assert told(disk / name) == told(folder / "whole")
        assert verify(disk / name) == []
        assert len(complaints) >= (3 if name == "work" else 1), complaints
        shutil.rmtree(disk / name)


def check_whole(folder: Path) -> None:
    """What is there is what was written, or nothing; the grid alone may name what isn't there."""
    with Store(folder, create=False) as store:
        assert store.records() in ([], [RECORD])
        assert list(store.measurements(RUN.id).values()) in ([], [MEASURED])
    for problem in verify(folder):
        assert problem.where == "the grid" or problem.remedy.startswith("harmless"), problem


def on_a_disk_of_its_own(folder: Path, size: str, call: str) -> str:
    """Call `call(disk, folder)` of a test file in a process that has a small disk, and return why
    that can't be here."""
    disk = folder / "disk"
    disk.mkdir()
    module, _, name = call.rpartition(".")
    places = f"Path({str(disk)!r}), Path({str(folder)!r})"
    code = f"from pathlib import Path; from {module} import {name}; {name}({places}); print('done')"
    command = shlex.join([sys.executable, "-c", code])
    mounted = SMALL.format(shlex.quote(str(disk)), command, size)
    project = Path(__file__).parents[2]
    said: list[str] = []
    for way in WAYS:
        if not shutil.which(way[0]):
            continue
        words = [*way, mounted]
        done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
        if done.stdout.endswith("done\n"):
            return ""
        assert "Traceback" not in done.stderr, done.stderr
        said.append(done.stderr)
    return f"a small disk can't be mounted here: {' '.join(said)}"


def test_a_small_disk_that_fills_up(tmp_path: Path):
    reason = on_a_disk_of_its_own(tmp_path, "1m", "tests.results.test_full_disk.fills_up")
    if reason:
        pytest.skip(reason)
