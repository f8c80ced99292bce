from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.compare import Estimate, contrast, draws
from calibrant.errors import DataError, SpecError

from tests.compare.stores import DRAWN, store_of


def test_the_draws_of_a_set_come_by_what_was_measured_in_the_order_of_their_seeds(tmp_path: Path):
    store = store_of(tmp_path, {**DRAWN, "c4": [[3.0, 2.0], [4.0, 3.0], [5.0, 4.0]]})
    store.write_cells(store.cells()[::-1])
    found = draws(store, data="c4")
    assert found.keys() == {"docs:text", "code:text"}
    for kept in found.values():
        assert [m.score.value - kept[0].score.value for m in kept] == pytest.approx([0, 1, 2], abs=0.01)
    assert [len(kept) for kept in draws(store, data="c4", seed=1).values()] == [1, 1]
    assert [len(kept) for kept in draws(store, data="").values()] == [1, 1]
    assert contrast(draws(store, data="gsm8k:icl"), found).value == pytest.approx(-0.1, abs=0.02)


def test_what_one_of_the_draws_lacks_is_left_out(tmp_path: Path):
    store = store_of(tmp_path, DRAWN, missing=["c4/docs"])
    assert draws(store, data="c4").keys() == {"code:text"}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"data": "c5"}, "data 'c5' fits no cell of the store"),
        ({"seed": 0}, "seed 0 fits cells that differ in data and method and target; say which"),
        ({}, "no label fits cells that differ in data and method and target; say which"),
    ],
)
def test_labels_must_fit_one_set(tmp_path: Path, labels: dict[str, str | int], said: str):
    with pytest.raises(DataError, match=f"^{said}$"):
        draws(store_of(tmp_path, DRAWN), **labels)


def test_an_unknown_label_is_refused_with_those_that_there_are(tmp_path: Path):
    with pytest.raises(SpecError, match="no label 'set'; its labels are model, data, method, target, seed, propagate"):
        draws(store_of(tmp_path, DRAWN), set="c4")


def test_two_evaluators_that_say_the_same_of_what_they_measured_are_not_mixed_up(tmp_path: Path):
    store = store_of(tmp_path, DRAWN)
    store.write_cells([replace(cell, measures={**cell.measures, "again": next(iter(cell.measures.values()))}) for cell in store.cells()])
    with pytest.raises(DataError, match="two evaluators call what they measured 'docs:text'"):
        draws(store, data="c4")


def test_an_estimate_writes_itself_with_its_error():
    assert f"{Estimate(0.1234, 0.0456, 5.0, 12):+.3f}" == "+0.123 ± 0.046"
    assert f"{Estimate(-1.5, None, 0.0, 1):.1f}" == "-1.5"
