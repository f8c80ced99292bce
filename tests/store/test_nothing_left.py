"""A disk that is full at the k-th thing that is done to it, for all k: what was there is as it was, folders made on the way included."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant.activations import FeatureNorms, Seen
from calibrant.cli import _frame
from calibrant.compress.checkpoint import Checkpoint
from calibrant.durable import UNFINISHED
from calibrant.edits import Replace
from calibrant.errors import OutputError
from calibrant.models import view
from calibrant.outcomes import Journal
from calibrant.packed import Compressed
from calibrant.report import report
from calibrant.report.plots import drawing
from calibrant.report.plots.picture import Plot
from calibrant.store import Cell, Store
from calibrant.testing import tiny_model
from calibrant.walk.statistics import Statistics

from tests.store.conftest import LOSS, MEASURED, RECORD, RUN, filled

OTHER = replace(RECORD, run=replace(RUN, target="0.7"))
BLOCK = view(tiny_model("llama")).blocks[0]
EDIT = Replace(BLOCK.weights[0], Compressed(BLOCK.weights[0].get())).stored()
SEEN = {weight: Seen({FeatureNorms: FeatureNorms(torch.ones(weight.shape[1], dtype=torch.float64), 1, 1.0)}) for weight in BLOCK.weights}
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" viewBox="0 0 9 9"></svg>\n'


WRITERS: dict[str, Callable[[Path], object]] = {
    "a new store": lambda folder: Store(folder / "deep" / "store").close(),
    "a store in an empty folder": lambda folder: Store(folder).close(),
    "a record": lambda folder: add(folder, lambda store: store.add_record(RECORD, {"mask.npz": b"1"})),
    "a measurement": lambda folder: add(folder, lambda store: store.add_measurement(OTHER.run.id, LOSS, MEASURED)),
    "a failure": lambda folder: add(folder, lambda store: store.add_failure("sha256:1", {"error": "lost"})),
    "a grid": lambda folder: add(folder, lambda store: store.write_cells([Cell("m", "d", "wanda", "0.5", 0, RUN.id)])),
    "a journal": lambda folder: Journal(folder / "deep" / "journal", "question").add({"item": 1}),
    "a checkpoint": lambda folder: Checkpoint(folder / "deep" / "out", "run").add(0, [EDIT], [{"name": BLOCK.weights[0].name}]),
    "statistics": lambda folder: Statistics(folder / "deep", "sha256:1").add(FeatureNorms, BLOCK, SEEN),
    "a page": lambda folder: report(folder.parent / "old").write_html(folder / "page.html"),
    "a result of the command line": lambda folder: _frame.write(folder / "found.json", {"a": 1}),
    "plots": lambda folder: drawing.write([Plot("plot", "", "", {})], folder / "deep" / "plots"),
}


def add(folder: Path, what: Callable[[Store], object]) -> None:
    with Store(folder / "old") as store:
        what(store)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything but what a writer keeps for its own life, and whole files that stand by themselves."""
    there = (p for p in folder.rglob("*") if UNFINISHED not in p.relative_to(folder).parts or "new" in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in there}


@contextmanager
def full_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """From the `number`-th on nothing can be made, written, flushed or renamed; the list says what was tried."""
    done: list[str] = []

    def failing(what: str, act: Callable[..., Any], counts: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
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
        patched.setattr(io, "open", failing("open", io.open, lambda _, mode="r", *rest: mode[0] in "wax"))
        yield done


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_leaves_nothing(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import vl_convert  # noqa: F401  # its own files are there before the disk is full

    monkeypatch.setattr(drawing, "_file", lambda *_: PICTURE)
    monkeypatch.setattr("calibrant.report.reporting.Report.html", lambda _: "")
    write, ends = WRITERS[what], list[dict[str, bytes | None]]()
    for number in range(50):  # until there is room enough
        base = tmp_path / str(number)
        (base / "new").mkdir(parents=True)
        if old := what in ("a record", "a measurement", "a failure", "a grid", "a page"):
            add(base, lambda store: store.add_record(OTHER))
        before, place = tree(base), base if old and what != "a page" else base / "new"
        with full_at(number, monkeypatch):
            said = complaint(lambda place=place: write(place))
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
    results = [{name: content for name, content in end.items() if UNFINISHED not in name} for end in ends]
    assert all(end == before or result == results[-1] for end, result in zip(ends, results, strict=True)), what
    assert ends[0] == before


def complaint(act: Callable[[], object]) -> str:
    """What is said of the disk; nothing where there was room."""
    try:
        act()
    except OutputError as error:
        return str(error)
    return ""


def test_files_have_the_rights_that_the_user_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("calibrant.report.reporting.Report.html", lambda _: "")
    monkeypatch.setattr(drawing, "_file", lambda *_: PICTURE)
    before = os.umask(0o027)
    try:
        with filled(tmp_path / "store") as store:
            assert store.measured(RUN.id)
            Store(tmp_path / "store").journal(RUN.id, {**LOSS, "revision": 2}).add({"item": 1})
        add(tmp_path, lambda store: store.add_record(OTHER))
        for what in WRITERS.keys() - {"a store in an empty folder", "a page"}:
            WRITERS[what](tmp_path)
        report(tmp_path / "store").write_html(tmp_path / "page.html")
        report(tmp_path / "store").write_html()
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o640 if path.is_file() else 0o750), path
    assert len(list(tmp_path.rglob("*.*"))) > 15
