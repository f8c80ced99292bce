"""A disk that is full at the k-th thing that is done to it, for all k: what was there is as it was,
folders made on the way included.

What SQLite does to a full disk is tested with a real one, in test_full_disk.py.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant.activations import FeatureNorms, Seen
from calibrant.cli import _frame
from calibrant.compress.checkpoint import Checkpoint
from calibrant.edits import Replace
from calibrant.errors import OutputError
from calibrant.lab.report import report
from calibrant.lab.report.plots import drawing
from calibrant.lab.report.plots.picture import Plot
from calibrant.models import view
from calibrant.packed import Compressed
from calibrant.results import pack
from calibrant.results.database import SIDE_SUFFIXES
from calibrant.results.outcomes import Journal
from calibrant.system.durable import UNFINISHED
from calibrant.testing import tiny_model
from calibrant.walk.statistics import Statistics

from tests.results.conftest import filled

BLOCK = view(tiny_model("llama")).blocks[0]
EDIT = Replace(BLOCK.weights[0], Compressed(BLOCK.weights[0].get())).stored()
SEEN = {
    weight: Seen(
        {FeatureNorms: FeatureNorms(torch.ones(weight.shape[1], dtype=torch.float64), 1, 1.0)}
    )
    for weight in BLOCK.weights
}
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" viewBox="0 0 9 9"></svg>\n'


WRITERS: dict[str, Callable[[Path], object]] = {
    "a checkpoint": lambda folder: Checkpoint(folder / "deep" / "out", "run").add(
        0, [EDIT], [{"name": BLOCK.weights[0].name}]
    ),
    "statistics": lambda folder: Statistics(folder / "deep", "sha256:1").add(
        FeatureNorms, BLOCK, SEEN
    ),
    "a page": lambda folder: report(folder.parent / "old").write_html(folder / "page.html"),
    "a result of the command line": lambda folder: _frame.write(folder / "found.json", {"a": 1}),
    "plots": lambda folder: drawing.write([Plot("plot", "", "", {})], folder / "deep" / "plots"),
}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything but what a reader keeps beside a database for its own life."""
    found = dict[str, bytes | None]()
    for path in folder.rglob("*"):
        if not path.name.endswith(SIDE_SUFFIXES):
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


@contextmanager
def full_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """From the `number`-th on nothing can be made, written, flushed or renamed; the list says
    what was tried.
    """
    done: list[str] = []

    def failing(
        what: str, act: Callable[..., Any], counts: Callable[..., bool] = lambda *_: True
    ) -> Callable[..., Any]:
        def acting(*given: Any, **named: Any) -> Any:
            if counts(*given):
                done.append(what)
                if len(done) > number:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return act(*given, **named)

        return acting

    with monkeypatch.context() as patched:
        for name in ("mkdir", "fsync", "replace", "rename"):
            patched.setattr(os, name, failing(name, getattr(os, name)))
        patched.setattr(
            io, "open", failing("open", io.open, lambda _, mode="r", *rest: mode[0] in "wax")
        )
        yield done


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_leaves_nothing(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import vl_convert  # noqa: F401  # its own files are there before the disk is full

    monkeypatch.setattr(drawing, "_file", lambda *_: PICTURE)
    monkeypatch.setattr("calibrant.lab.report.reporting.Report.html", lambda _: "")
    write, ends = WRITERS[what], list[dict[str, bytes | None]]()
    for number in range(50):  # until there is room enough
        base = tmp_path / str(number)
        (base / "new").mkdir(parents=True)
        if what == "a page":
            filled(base / "old")
        before = tree(base)
        with full_at(number, monkeypatch):
            said = complaint(lambda base=base: write(base / "new"))
        ends.append(tree(base))
        if not said:
            break
    assert not said, "with room it goes well"
    assert len(ends) > 2, "nothing was written at all"
    if what == "plots":  # each file by itself is whole or not there
        assert ends[0] == before
        assert not any(UNFINISHED in name for end in ends for name in end)
        return
    # Where the last flush of a folder fails, what was written is there, and whole.
    results = [
        {name: content for name, content in end.items() if UNFINISHED not in name} for end in ends
    ]
    assert all(
        end == before or result == results[-1] for end, result in zip(ends, results, strict=True)
    ), what
    assert ends[0] == before


def complaint(act: Callable[[], object]) -> str:
    """What is said of the disk; nothing where there was room."""
    try:
        act()
    except OutputError as error:
        return str(error)
    return ""


def test_files_have_the_rights_that_the_user_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("calibrant.lab.report.reporting.Report.html", lambda _: "")
    monkeypatch.setattr(drawing, "_file", lambda *_: PICTURE)
    before = os.umask(0o027)
    try:
        filled(tmp_path / "store")
        pack(tmp_path / "store", tmp_path / "packed")
        Journal(tmp_path / "deep" / "journal.sqlite", "question").add({"item": 1})
        for what in WRITERS.keys() - {"a page"}:
            WRITERS[what](tmp_path)
        report(tmp_path / "store").write_html(tmp_path / "page.html")
        report(tmp_path / "store").write_html()
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o640 if path.is_file() else 0o750), path
    assert len(list(tmp_path.rglob("*.*"))) > 15
