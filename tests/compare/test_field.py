from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.compare import Ranking, rankings, source_name, tidy
from calibrant.store import Cell, Store

from tests.compare.stores import LOSSES, measured, store_of

# Rankings of a store


def only(store: Store) -> Ranking:
    (ranking,) = rankings(store)
    return ranking


def test_a_ranking_orders_sets_by_their_mean_increase(tmp_path: Path):
    ranking = only(store_of(tmp_path, LOSSES))
    assert [e.name for e in ranking.entries] == ["gsm8k:cot", "c4", "full_stops"]
    assert [e.name for e in ranking.baselines] == ["magnitude"]
    assert ranking.measured == ranking.averaged == ("docs:text", "code:text")
    assert ranking.dense is not None
    assert ranking.dense.losses["docs:text"].value == pytest.approx(3.0, abs=0.5)
    best, second, worst = ranking.entries
    assert best.to_best is None
    assert not best.tied
    assert second.to_best is not None
    assert second.to_best.value == pytest.approx(second.mean.value - best.mean.value)
    assert second.tied is not second.to_best.apart(ranking.level, ranking.looks)
    assert worst.control
    assert not best.control
    assert not worst.tied
    assert (best.draws, ranking.baselines[0].draws) == (1, 0)
    assert ranking.looks == 6  # pairs of four
    assert ranking.one_draw
    assert ranking.missing == ()


def test_sets_that_differ_by_noise_are_tied(tmp_path: Path):
    ranking = only(store_of(tmp_path, {"dense": [[3.0, 2.0]], "a": [[3.5, 2.5]], "b": [[3.5005, 2.5005]]}))
    assert ranking.entries[1].tied


def test_without_a_dense_model_the_loss_itself_is_ranked(tmp_path: Path):
    ranking = only(store_of(tmp_path, {k: v for k, v in LOSSES.items() if k != "dense"}))
    assert ranking.dense is None
    assert ranking.best.increases == {}
    assert ranking.best.mean.value == pytest.approx(sum(e.value for e in ranking.best.losses.values()) / 2)


def test_a_set_without_all_its_measures_is_left_out_and_named(tmp_path: Path):
    store = store_of(tmp_path, LOSSES, missing=["c4/code"])
    store.add_failure("sha256:none", {"error": "the loss is nan"})
    ranking = only(store)
    assert [e.name for e in ranking.entries] == ["gsm8k:cot", "full_stops"]
    assert ranking.missing == ("c4 (draw 0) on loss(source='code'): the loss is nan",)


def test_a_failed_run_is_named_by_its_labels(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    store.write_cells([*store.cells(), Cell("tiny", "pile", "wanda", "0.5", 0, "")])
    store.add_failure("sha256:p", {"cell": ["tiny", "pile", "wanda", "0.5", 0], "error": "no such file"})
    assert only(store).missing == tuple(f"pile (draw 0) on loss(source={m!r}): no such file" for m in ("docs", "code"))


def test_a_run_that_answers_several_seeds_is_one_draw(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    again = [replace(c, seed=1) for c in store.cells() if c.data == "full_stops"]
    store.write_cells([*store.cells(), *again])
    assert {e.name: e.draws for e in only(store).entries} == {"gsm8k:cot": 1, "c4": 1, "full_stops": 1}


def test_several_draws_are_averaged(tmp_path: Path):
    ranking = only(
        store_of(tmp_path, {**LOSSES, "c4": [[3.5, 2.6], [3.7, 2.8]], "gsm8k:cot": [[3.9, 2.2], [3.9, 2.3]], "full_stops": [[6, 6], [6, 6.1]]})
    )
    assert [e.draws for e in ranking.entries] == [2, 2, 2]
    assert not ranking.one_draw
    c4 = next(e for e in ranking.entries if e.name == "c4")
    assert c4.mean.value == pytest.approx(((3.6 - 3) + (2.7 - 2)) / 2, abs=0.01)


def test_measures_of_another_unit_are_shown_and_not_averaged(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    cells = []
    for n, cell in enumerate(store.cells()):
        right = measured([1, 0, n % 2, 1], [1] * 4, "quiz", metric="accuracy", unit="share", better="higher")
        cells.append(replace(cell, measures={**cell.measures, "task": store.add_measurement(cell.run, {"spec": "task"}, right)}))
    store.write_cells(cells)
    ranking = only(store)
    assert ranking.measured == ("docs:text", "code:text", "quiz")
    assert ranking.averaged == ("docs:text", "code:text")


def test_the_same_source_measured_twice_keeps_two_columns(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    cells = []
    for cell in store.cells():
        extra = store.add_measurement(cell.run, {"spec": "loss", "length": 64}, measured([40, 50], [10, 10], "docs:text", facts={"length": 64}))
        cells.append(replace(cell, measures={**cell.measures, "loss(length=64)": extra}))
    store.write_cells(cells)
    assert only(store).measured == ("docs:text [loss(source='docs')]", "code:text", "docs:text [loss(length=64)]")


def test_each_method_and_target_has_its_own_ranking(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    other = [replace(c, target="2:4") for c in store.cells() if c.data]
    store.write_cells([*store.cells(), *other])
    assert [(r.method, r.target, [b.name for b in r.baselines]) for r in rankings(store)] == [("wanda", "0.5", ["magnitude"]), ("wanda", "2:4", [])]


def test_an_empty_store_has_no_ranking(tmp_path: Path):
    assert rankings(Store(tmp_path)) == []
    assert tidy(Store(tmp_path)).is_empty()


def test_the_tidy_table_has_a_row_for_each_score(tmp_path: Path):
    rows = tidy(store_of(tmp_path, LOSSES)).to_dicts()
    assert len(rows) == 10
    row = next(r for r in rows if r["data"] == "c4" and r["measured"] == "docs:text")
    assert (row["method"], row["target"], row["seed"], row["n"], row["unit"]) == ("wanda", "0.5", 0, 12, "nats/token")


def test_the_source_of_an_expression():
    assert [source_name(e) for e in ("c4", "gsm8k:cot", "full_stops@one", "gsm8k:cot@many")] == ["c4", "gsm8k", "full_stops", "gsm8k"]
