"""How alike draws are within a set and between sets, against numbers worked out by hand."""

import math
import statistics

import pytest
from studies.overlaps import against, between, jackknifed, part_of_the_set, within

from calibrant.lab.stats import t_quantile


def alike(one: float, other: float) -> float:
    return 1 - abs(one - other)


SETS = {"a": [0.0, 0.1, 0.2], "b": [0.5, 0.5, 0.5]}


def test_means_over_pairs():
    assert within(SETS, alike) == pytest.approx(((0.9 + 0.8 + 0.9) / 3 + 1) / 2)
    assert between(SETS, alike) == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    assert against([SETS["a"]], [1.0], alike) == pytest.approx((0.0 + 0.1 + 0.2) / 3)


def test_an_interval_over_draws_of_a_mean_is_that_of_the_mean():
    """The jackknife of a mean gives its standard error; of two sets alike the variances add up,
    with the degrees of freedom of Satterthwaite.
    """
    one, other = [1.0, 2.0, 4.0, 5.0], [0.0, 3.0, 3.0, 6.0]
    variances = [sum((x - 3.0) ** 2 for x in draws) / 3 / 4 for draws in (one, other)]
    counted = [variances[0], variances[1] * (1 + 2 / 3)]
    assert variances[0] < variances[1]
    degrees = sum(counted) ** 2 / sum(part**2 / 3 for part in counted)
    for sets in ({"a": one, "b": other}, {"a": other, "b": one}):
        value, half = jackknifed(
            sets, lambda sets: statistics.mean(sets["a"]) - statistics.mean(sets["b"])
        )
        assert value == pytest.approx(0.0)
        assert half == pytest.approx(t_quantile(0.975, degrees) * sum(variances) ** 0.5)


def test_where_no_draw_differs_or_two_are_all_there_is_no_interval():
    assert math.isnan(
        jackknifed({"a": [1.0] * 3, "b": [2.0] * 3}, lambda sets: between(sets, alike))[1]
    )
    assert part_of_the_set({name: draws[:2] for name, draws in SETS.items()}, alike) == "+0.40"
    assert part_of_the_set({"a": [0.0, 0.0, 0.01], "b": [1.0, 1.0, 0.99]}, alike).startswith(
        "**+0.9"
    )
