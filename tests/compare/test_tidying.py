import math
from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.compare import tidy
from calibrant.store import Score, Store

from tests.compare.stores import LOSSES, measured, store_of


def test_the_tidy_table_has_a_row_for_each_score(tmp_path: Path):
    rows = tidy(store_of(tmp_path, LOSSES)).to_dicts()
    assert len(rows) == 10
    row = next(r for r in rows if r["data"] == "c4" and r["measured"] == "docs:text")
    assert (row["method"], row["target"], row["seed"], row["n"], row["unit"]) == ("wanda", "0.5", 0, 12, "nats/token")
    dense = next(r for r in rows if r["method"] == "none" and r["measured"] == "docs:text")
    assert row["dense"] == dense["value"]
    assert row["kept"] == pytest.approx(math.exp(dense["value"] - row["value"]))
    assert dense["kept"] == 1
    assert not row["stale"]


def test_scores_that_stand_beside_have_rows_too(tmp_path: Path):
    store, cells = store_of(tmp_path, LOSSES), []
    for cell in store.cells():
        beside = Score("quiz", "acc", 0.75 if cell.method == "none" else 0.5, 0.1, 4, "share", "higher", 0.25)
        found = replace(measured([1, 2, 3, 4], [1] * 4, "quiz"), beside=(beside,))
        cells.append(replace(cell, measures={"task": store.add_measurement(cell.run, {"spec": "task"}, found)}))
    store.write_cells(cells)
    rows = [r for r in tidy(store).to_dicts() if r["data"] == "c4"]
    assert [(r["metric"], r["better"]) for r in rows] == [("loss", "lower"), ("acc", "higher")]
    assert (rows[1]["dense"], rows[1]["kept"], rows[1]["chance"]) == (0.75, 0.5, 0.25)


def test_without_a_dense_model_nothing_is_kept_of_it(tmp_path: Path):
    table = tidy(store_of(tmp_path, {"c4": LOSSES["c4"]}))
    assert table["dense"].null_count() == table["kept"].null_count() == table.height == 2


def test_runs_of_an_older_revision_are_marked(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    store.write_cells(store.cells(), revisions={"method wanda": 2})
    assert {(r["method"], r["stale"]) for r in tidy(store).to_dicts()} == {("none", False), ("magnitude", False), ("wanda", True)}


def test_measurements_of_an_older_revision_are_marked(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    store.write_cells(store.cells(), revisions={"evaluator loss": 2})
    assert tidy(store)["stale"].all()


def test_an_empty_store_has_an_empty_table_with_its_columns(tmp_path: Path):
    table = tidy(Store(tmp_path))
    assert table.is_empty()
    assert table.columns[:6] == ["model", "data", "method", "target", "propagate", "seed"]
