import hashlib
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from calibrant.compress import Recipe
from calibrant.errors import DataError, InputError, SpecError
from calibrant.lab.stats import compare, contrast, draws, read, tidy
from calibrant.lab.stats.crossed import ItemValues
from calibrant.lab.stats.results import GroupResults, grouped, narrowed
from calibrant.lab.study import Study
from calibrant.results import Cell, Measurement, Outcome, Score, Store, merge

from tests.stats.stores import (
    DRAWN,
    LOSSES,
    in_another_type,
    measured,
    measured_too,
    results_of,
    store_of,
    with_cells,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three draws of three sets; read and never written."""
    return store_of(tmp_path_factory.mktemp("results") / "drawn", DRAWN, missing=["svamp:icl/docs"])


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Sets that were drawn once; read and never written."""
    return store_of(tmp_path_factory.mktemp("results") / "once", LOSSES)


@pytest.mark.parametrize("rows", [10**6, 20])
def test_what_is_read_at_once_is_what_the_store_gives_one_by_one(drawn: Store, rows: int):
    with patch("calibrant.lab.stats.results.ROWS", rows):
        reading = read(drawn)
    assert len(reading.cells) == 10
    for cell in reading.cells:
        for measure_id in cell.measures.values():
            kept = drawn.measurement(cell.run, measure_id)
            if kept is None:
                assert measure_id == "sha256:none", "it was never measured"
                continue
            found, one = reading.items[cell.run][measure_id], ItemValues.of(kept)
            assert (found.score, found.items) == (one.score, one.items)
            assert np.array_equal(found.values, one.values)
            assert np.array_equal(found.weights, one.weights)
    assert compare(reading) == compare(drawn)
    assert tidy(reading).equals(tidy(drawn))


def test_items_of_format_1_are_those_that_have_shorter_names_now(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    number = 0
    for run in store.ids():
        for measure, form in store.evaluators(run).items():
            number += 1
            kept = store.measurement(run, measure)
            assert kept is not None
            store.remove(run, measure)
            outcomes = tuple(
                renamed(outcome, 16 if number % 2 else 64) for outcome in kept.outcomes
            )
            store.add_measurement(run, form, replace(kept, outcomes=outcomes))
    found = [sample.items for of in read(store).items.values() for sample in of.values()]
    assert {len(name) for items in found for name in items} == {16}
    assert len(set(found)) < len(found), "the same items, by whichever names"
    kept = [
        store.measurement(cell.run, measure)
        for cell in store.cells()
        for measure in cell.measures.values()
    ]
    assert {ItemValues.of(measured).items for measured in kept if measured} == set(found)


def renamed(outcome: Outcome, digits: int) -> Outcome:
    """An outcome of the same item, called by so many digits of a hash."""
    return replace(outcome, item=hashlib.sha256(outcome.item.encode()).hexdigest()[:digits])


def test_items_that_cannot_be_read_are_named_and_scores_need_none(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    cell = store.cells()[2]
    measure = cell.measures["loss(source='docs')"]
    harmed = "UPDATE measurements SET items = ?"
    with store.live.database.writing("harm it") as connection:
        connection.execute(f"{harmed} WHERE id = ?", (b"no parquet", measure))
    with pytest.raises(DataError) as raised:
        read(store)
    assert raised.value.subject == store.results(cell.run, measure).where(cell.run, measure)
    with store.live.database.writing("harm all") as connection:
        connection.execute(harmed, (b"",))
    assert tidy(store).height == 10


def test_measures_are_chosen_by_how_they_begin(once: Store):
    for wanted in (["docs"], ["loss(source='docs')"], ["docs:text"]):
        assert compare(once, wanted).rankings[0].measured == ("docs:text",)
    assert compare(once, ["docs", "loss"]).rankings[0].measured == ("docs:text", "code:text")
    assert narrowed(read(once), []).cells == read(once).cells
    with pytest.raises(SpecError) as raised:
        compare(once, ["docs", "wiki"])
    assert raised.value.subject == "wiki"


def test_the_failure_of_a_run_that_another_stands_for_is_no_reason_for_that(tmp_path: Path):
    store = store_of(tmp_path, LOSSES, missing=["c4/code"])
    (cell,) = [cell for cell in store.cells() if cell.data == "c4"]
    text = "loss(source='code')"
    other = replace(cell, run="sha256:other", measures={text: "sha256:failed"})
    store.write_cells([*store.cells(), other])
    failure = {"cell": list(cell.labels), "error": "the disk is full"}
    store.add_failure("sha256:failed", failure)
    said = f"tiny, wanda 0.5: c4 (draw 0) on {text}: not computed yet"
    assert compare(store).missing == (said,)


def test_what_is_missing_once_drawn_or_of_an_older_revision_is_told(tmp_path: Path, once: Store):
    store = store_of(tmp_path, DRAWN)
    more = replace(
        store.cells()[-1],
        data="pile",
        run="",
        measures={"loss(source='docs')": "", "loss(source='code')": ""},
    )
    store.write_cells([*store.cells(), more], revisions={"method wanda": 2})
    found = compare(store)
    assert found.comparisons == 9  # three pairs, on two measured sets and their mean
    holes = [hole.partition(" on ")[0] for hole in found.missing]
    assert holes == ["tiny, wanda 0.5: pile (draw 2)"] * 2
    assert not found.one_draw
    assert found.stale == 9
    assert {(r["method"], r["stale"]) for r in tidy(store).to_dicts()} == {
        ("none", False),
        ("wanda", True),
    }
    store.write_cells(store.cells(), revisions={"evaluator loss": 2})
    assert tidy(store)["stale"].all()
    assert (compare(once).one_draw, compare(once).stale, compare(once).missing) == (True, 0, ())


def test_a_run_whose_transform_was_revised_is_stale(tmp_path: Path, once: Store):
    record = next(iter(once.records()))
    rotated = replace(record.run, transforms=({"spec": "rotate", "revision": 1},))
    store = Store(tmp_path / "rotated")
    run = store.add_record(replace(record, run=rotated))
    for newest, stale in ((1, set()), (2, {run})):
        cells = [replace(once.cells()[0], run=run, measures={})]
        store.write_cells(cells, revisions={"transform rotate": newest})
        assert read(store).stale == stale


def test_a_run_whose_target_was_revised_is_stale(tmp_path: Path, once: Store):
    record = next(iter(once.records()))
    before = replace(record.run, target="NVFP4A16")
    now = Recipe.parse("rtn", "NVFP4A16").target
    store = Store(tmp_path / "rounded")
    runs = [replace(before, revised=times) for times in (0, now.revised)]
    cells: list[Cell] = []
    for seed, run in enumerate(runs):
        store.add_record(replace(record, run=run))
        cells.append(replace(once.cells()[0], run=run.id, seed=seed, measures={}))
    study = Study(
        "any", methods="rtn", targets=["NVFP4A16", "w4g64"], evaluate="loss(source=python_docs)"
    )
    store.write_cells(cells, revisions=study.workload().revisions)
    assert read(store).stale == {runs[0].id}


def test_the_tidy_table_has_a_row_for_each_score(tmp_path: Path, once: Store):
    rows = tidy(once).to_dicts()
    assert len(rows) == 10
    row = next(r for r in rows if r["data"] == "c4" and r["measured"] == "docs:text")
    assert (row["method"], row["target"], row["seed"], row["n"], row["unit"]) == (
        "wanda",
        "0.5",
        0,
        12,
        "nats/token",
    )
    dense = next(r for r in rows if r["method"] == "none" and r["measured"] == "docs:text")
    assert row["dense"] == dense["value"]
    assert row["kept"] == pytest.approx(math.exp(dense["value"] - row["value"]))
    assert dense["kept"] == 1
    assert not row["stale"]
    alone = tidy(results_of({"c4": LOSSES["c4"]}))
    assert alone["dense"].null_count() == alone["kept"].null_count() == alone.height == 2, (
        "without a dense model nothing is kept of it"
    )
    empty = tidy(Store(tmp_path))
    assert empty.is_empty()
    assert empty.columns[:6] == ["model", "data", "method", "target", "propagate", "seed"]


def test_scores_that_stand_beside_have_rows_too():
    def scored(number: int) -> Measurement:
        beside = Score("quiz", "acc", 0.5 if number else 0.75, 0.1, 4, "share", "higher", 0.25)
        return replace(measured([1, 2, 3, 4], [1] * 4, "quiz"), beside=(beside,))

    results = measured_too(results_of(LOSSES), "task", scored)
    rows = [r for r in tidy(results).to_dicts() if r["data"] == "c4" and r["measured"] == "quiz"]
    assert [(r["metric"], r["better"]) for r in rows] == [("loss", "lower"), ("acc", "higher")]
    assert (rows[1]["dense"], rows[1]["kept"], rows[1]["chance"]) == (0.75, 0.5, 0.25)


def test_the_draws_of_a_set_come_by_what_was_measured_in_the_order_of_their_seeds(tmp_path: Path):
    store = store_of(
        tmp_path, {**DRAWN, "c4": [[3.0, 2.0], [4.0, 3.0], [5.0, 4.0]]}, missing=["svamp:icl/docs"]
    )
    store.write_cells(store.cells()[::-1])
    found = draws(store, data="c4")
    assert found.keys() == {"docs:text", "code:text"}
    for kept in found.values():
        assert [m.score.value - kept[0].score.value for m in kept] == pytest.approx(
            [0, 1, 2], abs=0.01
        )
    assert [len(kept) for kept in draws(store, data="c4", seed=1).values()] == [1, 1]
    assert [len(kept) for kept in draws(store, data="").values()] == [1, 1]
    assert draws(store, data="svamp:icl").keys() == {"code:text"}, (
        "what one of the draws lacks is left out"
    )
    difference = contrast(draws(store, data="gsm8k:icl"), found)
    assert difference.value == pytest.approx(-0.1, abs=0.02)
    results = read(store)
    sides: dict[str, dict[str, list[ItemValues]]] = {"gsm8k:icl": {}, "c4": {}}
    for cell in sorted(results.cells, key=lambda cell: cell.seed):
        for measure in cell.measures.values() if cell.data in sides else ():
            of = results.items[cell.run][measure]
            sides[cell.data].setdefault(of.score.measured, []).append(of)
    assert contrast(sides["gsm8k:icl"], sides["c4"]) == difference, (
        "results that were read as a whole say the same"
    )
    store.write_cells(
        [
            replace(cell, measures={**cell.measures, "again": next(iter(cell.measures.values()))})
            for cell in store.cells()
        ]
    )
    with pytest.raises(DataError, match="'docs:text'"):
        draws(store, data="c4")  # two evaluators say the same of what they measured


def test_one_run_under_three_seeds_is_one_draw(tmp_path: Path):
    store = store_of(tmp_path, {**DRAWN, "full_stops": [[6.0, 6.0]]})
    (once,) = (cell for cell in store.cells() if cell.data == "full_stops")
    store.write_cells([*store.cells(), *(replace(once, seed=seed) for seed in (1, 2))])
    once_drawn = draws(store, data="full_stops")
    assert [len(side) for side in once_drawn.values()] == [1, 1]
    assert not contrast(once_drawn).over_draws


@pytest.mark.parametrize(
    ("labels", "error", "subject"),
    [
        ({"data": "c5"}, DataError, "data 'c5'"),
        ({"seed": 0}, DataError, "seed 0"),
        ({}, DataError, "no label"),
        ({"set": "c4"}, SpecError, "set"),
    ],
)
def test_labels_must_fit_one_set(
    drawn: Store, labels: dict[str, str | int], error: type[InputError], subject: str
):
    with pytest.raises(error) as raised:
        draws(drawn, **labels)
    assert raised.value.subject == subject


def test_of_a_set_with_holes_one_run_is_one_draw_and_shared_rows_are_told():
    losses = {**DRAWN, "full_stops": [[6.0, 6.0]]}
    missing = ["c4/code", "full_stops/code"]
    results = results_of(losses, missing=missing, overlap={"c4": 0.9})
    (once,) = (cell for cell in results.cells if cell.data == "full_stops")
    results = with_cells(results, *(replace(once, seed=seed) for seed in (1, 2)))
    (cells,) = grouped(results.cells).values()
    group = GroupResults.of(cells, results)
    counted = {name: side["docs:text"].counted for name, side in group.partial.items()}
    assert counted == {"full_stops": False, "c4": False}
    assert group.overlapping == {"c4": 0.9}


def test_two_runs_of_a_cell_are_one_draw_and_the_other_one_is_told(tmp_path: Path, once: Store):
    alone = compare(once)
    other = in_another_type(once, tmp_path / "other")
    merged = tmp_path / "merged"
    problems = merge(merged, [once.folder, other.folder]).problems
    assert len(problems) == len(once.cells()) == 5
    found = compare(Store(merged, create=False))
    assert found.rankings == alone.rankings
    assert found.one_draw
    assert {run.cell.run for run in found.uncounted} == set(other.ids())
    assert {(run.counted in once.ids(), run.differs) for run in found.uncounted} == {
        (True, ("dtype",))
    }
    assert (found.dtypes, alone.uncounted, alone.dtypes) == ({}, (), {})
    assert tidy(Store(merged, create=False)).equals(tidy(once))
    assert set(Store(merged, create=False).ids()) == {*once.ids(), *other.ids()}
    sides = draws(Store(merged, create=False), data="c4")
    assert [len(side) for side in sides.values()] == [1, 1]


def test_the_first_run_of_a_cell_that_was_measured_counts(tmp_path: Path):
    planned = store_of(tmp_path / "planned", LOSSES)
    other = in_another_type(planned, tmp_path / "other")
    for run in planned.ids():
        planned.remove(run)
    assert merge(planned.folder, [other.folder]).problems == ()
    found = compare(planned)
    assert found.missing == found.uncounted == ()
    assert {run for entry in found.rankings[0].entries for run in entry.runs} < set(other.ids())


def test_a_run_that_answers_several_draws_stands_for_another_in_all_of_them(tmp_path: Path):
    store = store_of(tmp_path / "s", {**DRAWN, "full_stops": [[6.0, 6.0]]})
    (once_drawn,) = (cell for cell in store.cells() if cell.data == "full_stops")
    other = in_another_type(store, tmp_path / "other")
    (again,) = (cell for cell in other.cells() if cell.data == "full_stops")
    other.write_cells([*other.cells(), *(replace(again, seed=seed) for seed in (1, 2))])
    for first, second, run in ((store, other, once_drawn.run), (other, store, again.run)):
        merged = tmp_path / f"merged into {first.folder.name}"
        merge(merged, [first.folder, second.folder])
        (ranking,) = compare(Store(merged, create=False)).rankings
        runs = {entry.name: entry.runs for entry in ranking.entries}
        assert runs["full_stops"] == (run,)
        assert len(runs["c4"]) == 3


def test_runs_in_several_types_are_told(tmp_path: Path):
    store = store_of(tmp_path / "s", {"dense": LOSSES["dense"]})
    more = store_of(tmp_path / "t", {name: LOSSES[name] for name in ("dense", "c4", "gsm8k:cot")})
    merge(store.folder, [in_another_type(more, tmp_path / "other").folder])
    found = compare(store)
    assert found.dtypes == {"tiny": ("bfloat16", "float32")}
    assert len(found.uncounted) == 1


def test_cells_of_two_propagations_are_two_cells(tmp_path: Path):
    store = store_of(tmp_path / "s", {"c4": [[3.5, 2.6]]})
    other = in_another_type(store, tmp_path / "other")
    other.write_cells([replace(cell, propagate="arrival") for cell in other.cells()])
    assert merge(store.folder, [other.folder]).problems == ()
    found = compare(store)
    assert [ranking.propagate for ranking in found.rankings] == ["", "arrival"]
    assert found.uncounted == ()
