"""What two stores hold is one store's afterwards; nothing that was there is changed, and nothing
damaged comes in."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrant.errors import DataError, OutputError
from calibrant.results import MASK, Cell, Run, Store, measurement_id, merge, pack, verify
from calibrant.results.live import DATABASE, LiveResults
from calibrant.results.stored import StoredRun

from tests.databases import change, spoil
from tests.refusing import refused
from tests.results.conftest import MEASURE, files, told, varied
from tests.results.samples import ALONE, LOSS, MEASURED, RECORD, RUN

TASK = {"spec": "task", "revision": 1, "name": "piqa"}


def run(target: str, **changes: Any) -> Run:
    return replace(RUN, target=target, **changes)


def cell(asked: Run, *evaluators: Mapping[str, Any], known: bool = True) -> Cell:
    labels = "tiny", asked.data, "wanda", asked.target, asked.seed
    if not known:
        return Cell(*labels, "", {}, asked.propagate)
    measures = {str(form["spec"]): measurement_id(asked.id, form) for form in evaluators}
    return Cell(*labels, asked.id, measures, asked.propagate)


def made(
    folder: Path,
    *runs: Run,
    measured: tuple[Mapping[str, Any], ...] = (LOSS,),
    grid: bool = True,
    **changes: Any,
) -> Path:
    """A store of these runs, each measured so; what is known beside them says where it is."""
    provenance = {"where": folder.name}
    with Store(folder) as store:
        for asked in runs:
            store.add_record(replace(RECORD, run=asked, provenance=provenance, **changes))
            for evaluator in measured:
                measurement = replace(MEASURED, provenance=provenance)
                store.add_measurement(asked.id, evaluator, measurement)
        if grid:
            cells = [cell(asked, *measured) for asked in runs]
            revisions = {"method wanda": 1, f"evaluator {folder.name}": 1}
            store.write_cells(cells, {"baseline": folder.name}, revisions)
    return folder


def test_what_one_lacks_comes_from_the_others(tmp_path: Path):
    one = made(tmp_path / "one", run("0.5"), run("0.6"))
    two = made(tmp_path / "two", run("0.6"), run("0.7"), measured=(TASK,))
    three = made(tmp_path / "three", run("0.8"))
    pack(three)
    before = files(two), files(three)
    found = merge(one, [two, three])
    assert (found.runs, found.measurements, found.kept, found.problems) == (2, 3, 1, ())
    assert verify(one) == []
    assert (files(two), files(three)) == before
    with Store(one, create=False) as store:
        both = cell(run("0.6"), LOSS, TASK)
        expected = cell(run("0.5"), LOSS), both, cell(run("0.7"), TASK), cell(run("0.8"), LOSS)
        assert store.cells() == list(expected)
        assert store.index().study == {"baseline": "one"}
        assert store.index().revisions.keys() >= {
            "evaluator one",
            "evaluator two",
            "evaluator three",
        }
        assert len(store.measured(run("0.6").id)) == 2
        measure = measurement_id(run("0.7").id, TASK)
        assert store.provenance(run("0.7").id, measure) == {"where": "two"}
    merged = told(one)
    again = merge(one, [two, three])
    assert (again.runs, again.measurements, again.kept, again.problems) == (0, 0, 6, ())
    assert told(one) == merged


def test_all_that_a_store_may_hold_comes_along(store: Path, tmp_path: Path):
    merge(tmp_path / "new", [store])
    assert told(tmp_path / "new") == told(store)


def test_other_results_of_the_same_run_are_told_and_not_taken(tmp_path: Path):
    one = made(tmp_path / "one", run("0.5"), grid=False)
    two = made(tmp_path / "two", run("0.5"), sparsity=0.25, measured=(), grid=False)
    with Store(two) as store:
        store.add_measurement(
            run("0.5").id, LOSS, replace(ALONE, score=replace(ALONE.score, value=3.0))
        )
    before = told(one)
    first, second = merge(one, [two]).problems
    assert first.what.endswith("sparsity")
    assert "3.0 there, 1.3466" in second.what
    assert told(one) == before


def test_other_words_for_the_same_result_are_no_difference(tmp_path: Path):
    one = made(tmp_path / "one", run("0.5"))
    labels = {"model_name": "/models/tiny", "data": "pile", "seed": 7}
    facts = {"tokens": 9, "licence": "?"}
    two = made(tmp_path / "two", run("0.5", **labels), data_facts=facts, grid=False)
    found = merge(one, [two])
    assert (found.problems, found.kept) == ((), 2)


@pytest.mark.parametrize("packed", [False, True])
def test_other_weights_or_another_mask_are_another_result(tmp_path: Path, packed: bool):
    for name, error, mask in (
        ("one", 0.1, b"\x01"),
        ("two", 0.2, b"\x01"),
        ("three", 0.1, b"\x02"),
    ):
        weights = ({**RECORD.weights[0], "error": error},)
        with Store(tmp_path / name) as store:
            store.add_record(replace(RECORD, weights=weights), {MASK: mask})
        if packed:
            pack(tmp_path / name)
    (weights,) = merge(tmp_path / "one", [tmp_path / "two"]).problems
    assert weights.what.endswith("weights")
    (mask,) = merge(tmp_path / "one", [tmp_path / "three"]).problems
    assert mask.what.endswith(MASK)


def test_what_is_damaged_is_not_copied(tmp_path: Path):
    source = made(tmp_path / "source", run("0.5"), run("0.6"), measured=(LOSS, TASK))
    lost = measurement_id(run("0.6").id, TASK)
    change(source / DATABASE, "UPDATE runs SET record = '{}' WHERE id = ?", run("0.5").id)
    change(source / DATABASE, "UPDATE measurements SET items = x'00' WHERE id = ?", lost)
    found = merge(tmp_path / "into", [source])
    assert (found.runs, found.measurements) == (1, 1)
    assert {problem.where.rpartition("/")[2] for problem in found.problems} == {
        run("0.5").id.partition(":")[2],
        lost.partition(":")[2],
    }
    assert {problem.where for problem in verify(tmp_path / "into")} == {"the grid"}
    with Store(tmp_path / "into", create=False) as store:
        assert store.ids() == [run("0.6").id]


def test_what_was_measured_on_a_damaged_run_is_copied_where_that_run_is(tmp_path: Path):
    into = made(tmp_path / "into", RUN, grid=False)
    source = made(tmp_path / "source", RUN, grid=False, measured=(TASK,))
    spoil(source / DATABASE, "runs", "record")
    found = merge(into, [source])
    assert (found.runs, found.measurements, found.kept) == (0, 1, 0)
    assert {problem.run for problem in found.problems} == {RUN.id}
    assert verify(into) == []


def test_other_edits_and_other_scores_beside_are_other_results(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, removed in ((one, 2), (two, 3)):
        score = replace(MEASURED.score, value=float(removed))
        with Store(folder) as store:
            store.add_record(replace(RECORD, edits=({"edit": "remove", "removed": removed},)))
            store.add_measurement(RUN.id, LOSS, replace(MEASURED, beside=(score,)))
    run_problem, measurement_problem = merge(one, [two]).problems
    assert run_problem.what.endswith("edits")
    assert "beside" in measurement_problem.what


def test_a_record_without_a_part_is_compared(tmp_path: Path):
    with Store(tmp_path / "one") as store:
        fields = {"id": RUN.id, **RECORD.plain()}
        weights, provenance = fields.pop("weights"), fields.pop("provenance")
        del fields["dense"]
        store.adopt(StoredRun(RUN.id, fields, weights, provenance))
    two = made(tmp_path / "two", RUN, grid=False, measured=())
    (problem,) = merge(tmp_path / "one", [two]).problems
    assert problem.what.endswith("dense")


def test_what_is_damaged_here_is_told_and_left(tmp_path: Path):
    into = made(tmp_path / "into", RUN, grid=False)
    spoil(into / DATABASE, "measurements", "items")
    (problem,) = merge(into, [made(tmp_path / "source", RUN, grid=False)]).problems
    assert problem.measurement == MEASURE
    assert {problem.measurement for problem in verify(into)} == {MEASURE}


def test_stores_without_a_grid(tmp_path: Path):
    one = made(tmp_path / "one", run("0.5"), grid=False)
    merge(one, [made(tmp_path / "two", run("0.6"), grid=False)])
    with Store(one, create=False) as store:
        assert store.index().cells == ()
        assert {cell.target for cell in store.cells()} == {"0.5", "0.6"}
    merge(one, [made(tmp_path / "three", run("0.7"))])
    with Store(one, create=False) as store:
        assert {cell.target for cell in store.cells()} == {"0.5", "0.6", "0.7"}
        assert store.index().study == {"baseline": "three"}
    assert verify(one) == []


def test_failures_that_are_answered_are_dropped_and_others_come_along(tmp_path: Path):
    one = made(tmp_path / "one", run("0.5"))
    two = made(tmp_path / "two", run("0.6"), measured=(TASK,))
    task = measurement_id(run("0.6").id, TASK)
    loss = measurement_id(run("0.6").id, LOSS)
    lost, later = cell(run("0.9"), known=False), cell(run("0.8"), known=False)
    same = cell(run("0.6"), TASK)
    with Store(one) as store:
        store.write_cells([cell(run("0.5"), LOSS), same, later, lost])
        failed = {
            run("0.6").id: same.labels[:5],
            task: same.labels[:5],
            "sha256:before": later.labels,
            "sha256:lost": lost.labels,
        }
        for failed_id, labels in failed.items():
            store.add_failure(failed_id, {"error": "out of memory", "cell": list(labels)})
    with Store(two) as store:
        store.add_record(replace(RECORD, run=run("0.8")))
        store.write_cells([cell(run("0.6"), TASK, LOSS), cell(run("0.8"))])
        store.add_failure(loss, {"error": "not finite", "cell": list(same.labels)})
        store.add_failure(run("0.5").id, {"error": "here it failed"})
    merge(one, [two])
    with Store(one, create=False) as store:
        errors = {name: what["error"] for name, what in store.failures().items()}
        assert errors == {"sha256:lost": "out of memory", loss: "not finite"}
        cells = [(cell.target, bool(cell.run)) for cell in store.cells()]
        assert cells == [("0.5", True), ("0.6", True), ("0.8", True), ("0.9", False)]
    assert verify(one) == []


def test_a_damaged_failure_stops_no_merge_and_is_not_copied(tmp_path: Path):
    one, two = made(tmp_path / "one", run("0.5")), made(tmp_path / "two", run("0.6"))
    for folder in (one, two):
        with Store(folder) as store:
            store.add_failure("sha256:lost", {"error": "out of memory"})
        query = "UPDATE documents SET seal = '' WHERE kind = 'failure'"
        change(folder / DATABASE, query)
    assert merge(tmp_path / "new", [one, two]).problems == merge(one, [two]).problems == ()
    for folder in (tmp_path / "new", one):
        with Store(folder, create=False) as store:
            assert store.failures() == {}
    assert verify(tmp_path / "new") == []


def test_what_failed_of_another_propagation_stays(tmp_path: Path):
    one = made(tmp_path / "one", run("0.5"))
    lost = cell(run("0.5", propagate="arrival"), known=False)
    with Store(one) as store:
        store.write_cells([*store.cells(), lost])
        for failed_id, labels in {
            "sha256:six": lost.labels,
            "sha256:five": lost.labels[:5],
        }.items():
            store.add_failure(failed_id, {"error": "out of memory", "cell": list(labels)})
    merge(one, [made(tmp_path / "two", run("0.6"))])
    with Store(one, create=False) as store:
        assert store.failures().keys() == {"sha256:six"}, "five labels don't say which it was"


def test_what_cannot_be_merged_is_refused_before_anything_is_made(tmp_path: Path):
    one, damaged = varied(tmp_path / "one"), varied(tmp_path / "damaged")
    spoil(damaged / DATABASE, "documents", "content")
    (tmp_path / "link").symlink_to(one)
    (tmp_path / "empty").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("x")
    before = files(tmp_path)
    refusals = [
        (OutputError, one, [tmp_path / "link"], one),
        (OutputError, tmp_path / "new", [one, tmp_path / "empty"], tmp_path / "empty"),
        (OutputError, tmp_path / "thesis", [one], tmp_path / "thesis"),
        (DataError, tmp_path / "new", [damaged], damaged / DATABASE / "index-"),
    ]
    for error, into, sources, subject in refusals:
        with refused(error, subject):
            merge(into, sources)
    assert not (tmp_path / "new").exists()
    assert files(tmp_path) == before


def test_two_runs_of_a_cell_stay_and_are_told(tmp_path: Path):
    into = made(tmp_path / "into", run("0.5"), run("0.6"))
    other = run("0.5", dtype="bfloat16")
    again = made(tmp_path / "again", other, run("0.5", propagate="arrival"), run("0.6"))
    found = merge(into, [again])
    assert (found.runs, found.measurements, found.kept) == (2, 2, 2)
    (problem,) = found.problems
    assert problem.where == "the grid"
    for said in ("wanda 0.5 dense on wikitext, draw 3 of tiny", other.id, "differs", "dtype"):
        assert said in problem.what
    assert verify(into) == []
    with Store(into, create=False) as store:
        assert [cell.run for cell in store.cells()][:2] == [run("0.5").id, other.id]
    assert merge(into, [again]).problems == (problem,), "the second time too"


def test_a_run_that_is_only_planned_is_no_other_run(tmp_path: Path):
    into = made(tmp_path / "into", run("0.5"))
    again = made(tmp_path / "again", run("0.5", dtype="bfloat16"), measured=())
    with Store(again) as store:
        store.remove(store.ids()[0])
    assert merge(into, [again]).problems == ()


def test_a_label_that_is_taken_is_told_and_a_full_disk_ends_the_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    into = made(tmp_path / "into", run("0.5"))
    source = made(tmp_path / "source", run("0.6"))
    with Store(source) as store:
        (known,) = store.grid()
        store.add_cell(replace(known, target="0.5"))
    (taken,) = merge(into, [source]).problems
    assert "another model with these labels" in taken.what

    def full(*_: object) -> None:
        raise OutputError("the disk is full", subject="into")

    monkeypatch.setattr(LiveResults, "put_document", full)
    with refused(OutputError, "into"):
        merge(into, [source])


def test_not_into_a_store_at_which_a_study_is_at_work(tmp_path: Path):
    one, two = made(tmp_path / "one", run("0.5")), made(tmp_path / "two", run("0.6"))
    with Store(one) as busy, busy.claim("something", wait=True), refused(OutputError, one):
        merge(one, [two])
    assert merge(one, [two]).runs == 1
