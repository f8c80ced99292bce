"""What two stores hold is one store's afterwards; nothing that was there is changed, and nothing damaged comes in."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from calibrant.errors import DataError, OutputError
from calibrant.store import Cell, Run, Store, measurement_id, merge, verify

from tests.store.conftest import LOSS, MEASURED, RECORD, RUN, SCORE, as_format_1, results, visible

TASK = {"spec": "task", "revision": 1, "name": "piqa"}


def run(target: str, **changes: Any) -> Run:
    return replace(RUN, target=target, **changes)


def cell(of: Run, *evaluators: Mapping[str, Any], known: bool = True) -> Cell:
    measures = {str(e["spec"]): measurement_id(of.id, e) for e in evaluators}
    return Cell("tiny", of.data, "wanda", of.target, of.seed, of.id if known else "", measures if known else {}, of.propagate)


def made(folder: Path, *runs: Run, measured: tuple[Mapping[str, Any], ...] = (LOSS,), grid: bool = True, **changes: Any) -> Path:
    with Store(folder) as store:
        for of in runs:
            store.add_record(replace(RECORD, run=of, provenance={"where": folder.name}, **changes))
            for evaluator in measured:
                store.add_measurement(of.id, evaluator, replace(MEASURED, provenance={"where": folder.name}))
        if grid:
            store.write_cells([cell(of, *measured) for of in runs], {"baseline": folder.name}, {"method wanda": 1, f"evaluator {folder.name}": 1})
    return folder


def test_what_one_lacks_comes_from_the_others(tmp_path: Path):
    a = made(tmp_path / "a", run("0.5"), run("0.6"))
    b = made(tmp_path / "b", run("0.6"), run("0.7"), measured=(TASK,))
    c = made(tmp_path / "c", run("0.8"))
    before = {folder: visible(folder) for folder in (a, b, c)}
    found = merge(a, [b, c])
    assert (found.runs, found.measurements, found.kept, found.problems) == (2, 3, 1, ())
    assert verify(a) == []
    assert {folder: visible(folder) for folder in (b, c)} == {b: before[b], c: before[c]}
    assert visible(a).items() >= {k: v for k, v in before[a].items() if k != "index.json"}.items()
    store = Store(a, create=False)
    both = cell(run("0.6"), LOSS, TASK)
    assert store.cells() == [cell(run("0.5"), LOSS), both, cell(run("0.7"), TASK), cell(run("0.8"), LOSS)]
    assert store.study() == {"baseline": "a"}
    assert store.revisions() == {"method wanda": 1, "evaluator a": 1, "evaluator b": 1, "evaluator c": 1}
    for of, where in ((run("0.6"), b), (run("0.7"), b), (run("0.8"), c)):
        there = Store(where, create=False).measurements(of.id)
        assert store.measurements(of.id).items() >= there.items()
    assert store.measurements(run("0.7").id)[measurement_id(run("0.7").id, TASK)].provenance == {"where": "b"}, "provenance comes along"

    times = {name: (a / name).stat().st_mtime_ns for name in visible(a) if name != "index.json"}
    merged = results(a)
    again = merge(a, [b, c])
    assert (again.runs, again.measurements, again.problems) == (0, 0, ())
    assert {name: (a / name).stat().st_mtime_ns for name in times} == times
    assert results(a) == merged


def test_other_answers_to_the_same_question_are_told_and_not_taken(tmp_path: Path):
    a, b = made(tmp_path / "a", run("0.5")), made(tmp_path / "b", run("0.5"), sparsity=0.25, measured=())
    with Store(b) as store:
        store.add_measurement(run("0.5").id, LOSS, replace(MEASURED, score=replace(SCORE, value=3.0), outcomes=()))
    before = {name: content for name, content in results(a).items() if name != "index.json"}
    first, second = merge(a, [b]).problems
    assert first.where == str(b / "runs" / run("0.5").id[7:])
    assert first.what.endswith("sparsity")
    assert "3.0 there, 1.3466" in second.what
    assert results(a).items() >= before.items()


def test_other_words_for_the_same_answer_are_no_difference(tmp_path: Path):
    """Labels, provenance, and how another version of a library writes the same items."""
    a = made(tmp_path / "a", run("0.5"))
    b = made(tmp_path / "b", run("0.5", model_name="/models/tiny", data="pile", seed=7), data_facts={"tokens": 9, "licence": "?"}, grid=False)
    items = next(b.glob("runs/*/measures/*/items.parquet"))
    table = pq.read_table(items)
    with items.open("wb") as file:
        pq.write_table(table, file, compression="none")
    for path in b.rglob("sums.json"):
        path.unlink()  # what it was written with then
        path.with_name("provenance.json").unlink()
    assert items.read_bytes() != next(a.glob("runs/*/measures/*/items.parquet")).read_bytes()
    found = merge(a, [b])
    assert (found.problems, found.kept) == ((), 2)


@pytest.mark.parametrize("older", [False, True])
def test_other_weights_or_another_mask_are_another_answer(tmp_path: Path, older: bool):
    for name, error, mask in (("a", 0.1, b"\x01"), ("b", 0.2, b"\x01"), ("c", 0.1, b"\x02")):
        with Store(tmp_path / name) as store:
            store.add_record(replace(RECORD, weights=({**RECORD.weights[0], "error": error},)), {"mask.npz": mask})
        if older:
            as_format_1(store)
    (weights,) = merge(tmp_path / "a", [tmp_path / "b"]).problems
    assert weights.what.endswith("weights")
    (mask,) = merge(tmp_path / "a", [tmp_path / "c"]).problems
    assert mask.what.endswith("mask.npz")


def test_what_is_damaged_is_not_copied(tmp_path: Path):
    b = made(tmp_path / "b", run("0.5"), run("0.6"), measured=(LOSS, TASK))
    (Store(b).run_folder(run("0.5").id) / "record.json").write_text("{}")
    (Store(b).measure_folder(run("0.6").id, measurement_id(run("0.6").id, TASK)) / "items.parquet").write_bytes(b"")
    found = merge(tmp_path / "a", [b])
    assert (found.runs, found.measurements) == (1, 1)
    assert {Path(p.where).name for p in found.problems} == {"record.json", "items.parquet"}
    assert {p.where for p in verify(tmp_path / "a")} == {"index.json"}, "the grid says what lacks"
    assert Store(tmp_path / "a", create=False).ids() == [run("0.6").id]

    path = next((tmp_path / "a").glob("runs/*/record.json"))
    path.write_text("{")
    (problem,) = merge(tmp_path / "a", [made(tmp_path / "c", run("0.6"))]).problems
    assert problem.where == str(path), "what is damaged here is told and left"
    assert path.read_text() == "{"


def test_stores_without_a_grid(tmp_path: Path):
    a, b = made(tmp_path / "a", run("0.5"), grid=False), made(tmp_path / "b", run("0.6"), grid=False)
    merge(a, [b])
    assert not (a / "index.json").exists()
    assert {c.target for c in Store(a, create=False).cells()} == {"0.5", "0.6"}
    merge(a, [made(tmp_path / "c", run("0.7"))])
    assert {c.target for c in Store(a, create=False).cells()} == {"0.5", "0.6", "0.7"}
    assert Store(a, create=False).study() == {"baseline": "c"}
    assert verify(a) == []


def test_failures_that_are_answered_are_dropped_and_others_come_along(tmp_path: Path):
    a, b = made(tmp_path / "a", run("0.5")), made(tmp_path / "b", run("0.6"), measured=(TASK,))
    task, lost = measurement_id(run("0.6").id, TASK), cell(run("0.9"), known=False)
    with Store(a) as store:
        store.write_cells([cell(run("0.5"), LOSS), cell(run("0.6"), TASK), cell(run("0.8"), known=False), lost])
        labels = {"0.6": list(cell(run("0.6")).labels[:5]), "0.8": list(cell(run("0.8")).labels)}
        for failed_id, what in (
            (run("0.6").id, labels["0.6"]),
            (task, labels["0.6"]),
            ("sha256:before", labels["0.8"]),
            ("sha256:lost", list(lost.labels)),
        ):
            store.add_failure(failed_id, {"error": "out of memory", "cell": what})
    with Store(b) as store:
        store.add_record(replace(RECORD, run=run("0.8")))
        store.write_cells([cell(run("0.6"), TASK, LOSS), cell(run("0.8"))])
        store.add_failure(measurement_id(run("0.6").id, LOSS), {"error": "not finite", "cell": list(cell(run("0.6")).labels)})
        store.add_failure(run("0.5").id, {"error": "here it failed"})
    merge(a, [b])
    assert {i: what["error"] for i, what in Store(a, create=False).failures().items()} == {
        "sha256:lost": "out of memory",
        measurement_id(run("0.6").id, LOSS): "not finite",
    }
    assert [(c.target, bool(c.run)) for c in Store(a, create=False).cells()] == [("0.5", True), ("0.6", True), ("0.8", True), ("0.9", False)]
    assert verify(a) == []


def test_what_cannot_be_merged_is_refused_before_anything_is_made(tmp_path: Path):
    a, damaged = made(tmp_path / "a", run("0.5")), made(tmp_path / "damaged", run("0.5"))
    (damaged / "index.json").write_text('{"cells": [{"model": 1}]}')
    (tmp_path / "link").symlink_to(a)
    (tmp_path / "empty").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("x")
    before = visible(tmp_path)
    refusals = [
        (OutputError, a, [tmp_path / "link"], str(a)),
        (OutputError, tmp_path / "new", [a, tmp_path / "empty"], str(tmp_path / "empty")),
        (OutputError, tmp_path / "thesis", [a], str(tmp_path / "thesis")),
        (DataError, tmp_path / "new", [damaged], str(damaged / "index.json")),
    ]
    for error, into, sources, subject in refusals:
        with pytest.raises(error) as raised:
            merge(into, sources)
        assert raised.value.subject == subject
    assert not (tmp_path / "new").exists()
    assert visible(tmp_path) == before


def _dies(folder: Path, sources: list[Path], at: int) -> None:
    """Merge and be killed at the `at`-th rename."""
    calls, rename = itertools.count(), os.rename

    def deadly(*args: Any) -> None:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args)

    os.rename = deadly
    merge(folder, sources)
    os._exit(0)


def test_a_killed_merge_goes_on(tmp_path: Path):
    b, c = made(tmp_path / "b", run("0.5"), run("0.6"), grid=False), made(tmp_path / "c", run("0.5"), run("0.7"), measured=(LOSS, TASK))
    merge(tmp_path / "whole", [b, c])
    for at in (1, 3, 4):
        folder = tmp_path / f"killed {at}"
        child = multiprocessing.get_context("fork").Process(target=_dies, args=(folder, [b, c], at))
        child.start()
        child.join()
        assert child.exitcode == (-signal.SIGKILL if at < 4 else 0)
        assert {p.where.split("/")[0] for p in verify(folder)} <= {"index.json", ".unfinished"}
        merge(folder, [b, c])
        assert results(folder) == results(tmp_path / "whole")
        assert verify(folder) == []
