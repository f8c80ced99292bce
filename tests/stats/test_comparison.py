import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from calibrant.lab.stats import compare, rankings
from calibrant.lab.stats.comparison import regret, tau_b, tau_interval
from calibrant.lab.stats.crossed import Pairs, Spread
from calibrant.results import Cell

from tests.report.made import entry, ranking
from tests.stats.stores import DRAWN, results_of, with_cells


def table(values: np.ndarray, variance: float, df: float = 40.0) -> Pairs:
    """Differences of `values` that each have an error of the same variance over items."""
    count = len(values)
    full = np.full((count, count), 1.0)
    spread = Spread(2 * variance * full, 0 * full, df * full, full)
    no = np.zeros(count, dtype=bool)
    return Pairs(tuple("abcdefgh"[:count]), values[:, None] - values, spread, 30, no, no)


def test_tau_is_kendalls_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.integers(0, 4, 6).astype(float), rng.integers(0, 4, 6).astype(float)
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert tau_b(a[:, None] - a, b[:, None] - b) == pytest.approx(
                kendalltau(a, b).statistic
            )
    assert tau_b(np.zeros((3, 3)), np.ones((3, 3))) == 0


def test_what_is_told_apart_narrows_the_interval_and_the_rest_may_be_anything():
    a, b = np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 1.0])
    assert tau_interval(table(a, 1e-6), table(b, 1e-6), 0.95) == pytest.approx((1 / 3, 1 / 3))
    assert tau_interval(table(a, 100.0), table(b, 1e-6), 0.95) == (-1, 1)
    near = np.array([0.0, 0.001, 2.0])
    assert tau_interval(table(near, 0.01), table(near, 0.01), 0.95) == pytest.approx((1 / 3, 1))
    assert tau_interval(table(a, math.nan), table(a, 1.0), 0.95) is None, (
        "without errors there is no interval"
    )


@pytest.mark.parametrize("size", [0.02, 0.5, 1.5, 6.0])
@pytest.mark.parametrize("truth", ["same", "reverse", "other"])
def test_the_interval_covers_the_true_tau(size: float, truth: str):
    """Five sets, effects from far below to far above their errors; the truth is τ of the true
    effects.
    """
    rng, times, hits, width = np.random.default_rng(int(size * 100)), 150, 0, 0.0
    effects = size * np.arange(5.0)
    other = {"same": effects, "reverse": -effects, "other": effects[[1, 3, 0, 4, 2]]}[truth]
    true = kendalltau(effects, other).statistic
    for _ in range(times):
        low, high = tau_interval(
            *(table(x + rng.normal(0, 1, 5), rng.chisquare(40) / 40) for x in (effects, other)),
            0.95,
        ) or (0, 0)
        hits += low - 1e-9 <= true <= high + 1e-9
        width += (high - low) / times
    assert hits / times >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / times)
    assert size < 6 or width < 0.5


def test_rankings_are_compared_along_one_thing_at_a_time():
    results = results_of(DRAWN)
    more = [
        replace(c, method=m, target=t)
        for c in results.cells
        if c.data
        for m, t in (("wanda", "2:4"), ("sparsegpt", "0.5"))
    ]
    found = compare(with_cells(results, *more)).agreements
    across = [a for a in found if a.along != "measured"]
    assert [(a.along, a.a, a.b, a.within) for a in across] == [
        ("method", "sparsegpt", "wanda", "0.5"),
        ("target", "0.5", "2:4", "wanda"),
    ]
    assert all((a.tau, a.sets, a.model) == (1.0, 3, "tiny") for a in across)
    assert [(a.a, a.b) for a in found if a.along == "measured"] == [("docs:text", "code:text")] * 3
    assert all(
        a.interval is not None and -1 <= a.interval[0] <= a.tau <= a.interval[1] <= 1 for a in found
    )


def test_methods_are_compared_as_they_were_used():
    """Each in its own propagation; of a method that was used in two, like is compared with like."""
    results = results_of(DRAWN)
    sets = [cell for cell in results.cells if cell.data]
    other = [replace(cell, method="sparsegpt", propagate="arrival") for cell in sets]
    both = [replace(cell, propagate="arrival") for cell in sets]

    def compared(*more: Cell) -> list[tuple[str, str]]:
        found = compare(with_cells(results, *more)).agreements
        return [(each.a, each.b) for each in found if each.along == "method"]

    assert compared(*other) == [("sparsegpt", "wanda")]
    assert len(compared(*other, *both)) == 1


def test_controls_and_twos_are_no_agreement():
    fewer = {k: v for k, v in DRAWN.items() if k != "c4"} | {
        "full_stops": [[6.0, 6.0]],
        "random_tokens:text": [[7.0, 7.0]],
    }
    assert compare(results_of(fewer)).agreements == ()


LOSSES = {
    "dense": [[3.0, 2.0]],
    "c4": [[3.5, 2.9]],
    "gsm8k:cot": [[3.9, 2.1]],
    "c4 + gsm8k:cot": [[3.6, 2.2]],
}


def test_each_column_is_counted_from_its_own_best():
    (found,) = rankings(results_of(LOSSES))
    table = regret(found)
    assert table.sets == ("c4 + gsm8k:cot", "gsm8k:cot", "c4")
    assert table.measured == ("docs:text", "code:text")
    assert table.best == ("c4", "gsm8k:cot")
    by = dict(zip(table.sets, table.by.tolist(), strict=True))
    assert by["c4"] == pytest.approx([0.0, 0.8], abs=0.005)
    assert by["gsm8k:cot"] == pytest.approx([0.4, 0.0], abs=0.005)
    assert by["c4 + gsm8k:cot"] == pytest.approx([0.1, 0.1], abs=0.005)
    assert table.worst.tolist() == pytest.approx([0.1, 0.4, 0.8], abs=0.005)
    told = table.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["sets"]["c4"]["code:text"] == {
        "regret": pytest.approx(0.8, abs=0.005),
        "significant": True,
    }
    assert told["sets"]["c4"]["docs:text"] == {"regret": 0.0, "significant": False}


def test_what_is_better_when_higher_is_turned_round():
    made = ranking(
        entry("a", (0.1, 0.2), None),
        entry("b", (0.2, 0.1), 0.1),
        better={"docs:text": "higher", "code:text": "lower"},
    )
    table = regret(made)
    assert table.best == ("b", "b")
    assert table.by[table.sets.index("a")].tolist() == pytest.approx([0.1, 0.1])


def test_the_same_hole_of_two_methods_is_two():
    results = results_of(LOSSES, missing=["c4/code"])
    others = [replace(cell, method="sparsegpt") for cell in results.cells if cell.data]
    assert compare(with_cells(results, *others)).missing == (
        "tiny, sparsegpt 0.5: c4 (draw 0) on loss(source='code'): not computed yet",
        "tiny, wanda 0.5: c4 (draw 0) on loss(source='code'): not computed yet",
    )
