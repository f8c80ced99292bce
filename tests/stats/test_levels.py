"""The crossed model against known truth: simulated items and draws, analysed as a textbook
would, and the rates that were promised.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from calibrant.lab.stats.crossed import Side, Spread, combination

from tests.stats.stores import rarely, values

TIMES = 6000
ITEMS = 24

MIXES = {
    "items dominate": (1.0, (0.02, 0.02), 0.2),
    "draws dominate": (0.1, (1.0, 1.0), 0.1),
    "no draw variance": (1.0, (0.0, 0.0), 1.0),
    "interaction alone": (0.0, (0.0, 0.0), 1.0),
    "alike": (0.5, (0.1, 0.1), 0.5),
    "one set's draws vary": (0.3, (0.5, 0.05), 0.3),
    "draws vary twice as items": (1.0, (0.4, 0.4), 0.1),
}


@dataclass(frozen=True)
class Simulated:
    """Estimates of a contrast whose truth is zero, and the mean squares of its analysis of
    variance, many times over.
    """

    values: np.ndarray
    spread: Spread


def simulated(
    draws: int, mix: str, coefs: Sequence[float], rng: np.random.Generator, times: int = TIMES
) -> Simulated:
    """Σ c·(μ + Iᵢ + D_d + ε_id), item by item: A, B and C as a balanced two-way analysis of
    variance has them, in float64.
    """
    items_sd, draws_sd, inner_sd = MIXES[mix]
    values, per_item, over, inner = np.zeros(times), np.zeros((times, ITEMS)), [], np.zeros(times)
    for c, sd in zip(coefs, draws_sd, strict=False):
        y = (
            rng.normal(0, items_sd, (times, 1, ITEMS))
            + rng.normal(0, sd, (times, draws, 1))
            + rng.normal(0, inner_sd, (times, draws, ITEMS))
        )
        rows, columns, grand = y.mean(2), y.mean(1), y.mean((1, 2))
        residuals = y - rows[:, :, None] - columns[:, None, :] + grand[:, None, None]
        values += c * grand
        per_item += c * columns
        over.append(c**2 * rows.var(1, ddof=1) / draws)
        inner += c**2 * (residuals**2).sum((1, 2)) / ((ITEMS - 1) * (draws - 1)) / (ITEMS * draws)
    table = np.stack(over, axis=-1)
    items = per_item.var(1, ddof=1) / ITEMS
    return Simulated(
        values,
        Spread.of(
            items, np.full(times, ITEMS - 1.0), table, np.full(table.shape, draws - 1.0), inner
        ),
    )


def at_most(rate: float, times: int) -> float:
    """The most that a rate may be found as, three binomial standard errors above."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / times)


@pytest.mark.parametrize(
    "coefs", [(1.0,), (1.0, -1.0)], ids=["a set and the dense model", "two sets"]
)
@pytest.mark.parametrize("draws", [3, *rarely(5, 10)])
@pytest.mark.parametrize("mix", MIXES)
def test_under_the_null_false_positives_are_at_most_nominal(
    mix: str, draws: int, coefs: tuple[float, ...]
):
    found = simulated(draws, mix, coefs, np.random.default_rng(draws))
    for level in (0.90, 0.95):
        wrong = float((np.abs(found.values) > found.spread.half(1 - (1 - level) / 2)).mean())
        # Half a point of room: what the module says of its worst case.
        assert wrong <= at_most(1 - level + 0.005, TIMES)


@pytest.mark.parametrize("draws", [3, *rarely(5, 10)])
def test_intervals_are_not_wide_for_nothing(draws: int):
    """Where one component has it all, the form is the textbook's t, and its level exact."""
    for mix in ("draws dominate", "items dominate"):
        found = simulated(draws, mix, (1.0,), np.random.default_rng(7))
        wrong = float((np.abs(found.values) > found.spread.half(0.975)).mean())
        assert wrong >= 0.025
    assert wrong == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / TIMES) + 0.005)


def test_a_negative_estimate_never_narrows_an_interval():
    rng = np.random.default_rng(1)
    for mix in MIXES:
        found = simulated(3, mix, (1.0, -1.0), rng, 500)
        assert (found.spread.variance > 0).all()
        assert np.isfinite(found.spread.half(0.975)).all()
    # A below C, and B alone: what is left is never less than A, nor than B.
    one = Spread.of(np.array(1.0), np.array(20.0), np.array([0.5]), np.array([2.0]), np.array(3.0))
    assert float(one.variance) == 1.0
    other = Spread.of(
        np.array(1.0), np.array(20.0), np.array([4.0]), np.array([2.0]), np.array(3.0)
    )
    assert float(other.variance) == 4.0


@pytest.mark.parametrize("draws", [3, *rarely(5, 10)])
def test_of_several_null_contrasts_holm_calls_one_wrongly_in_at_most_five_per_cent_of_studies(
    draws: int,
):
    """Four sets against the dense model: Holm rejects anything if and only if the smallest p is
    below 5 % / 4.
    """
    rng = np.random.default_rng(draws)
    any_wrong = np.zeros(TIMES, dtype=bool)
    for mix in ("alike", "draws vary twice as items", "no draw variance", "draws dominate"):
        found = simulated(draws, mix, (1.0,), rng)
        any_wrong |= np.abs(found.values) > found.spread.half(1 - 0.05 / 4 / 2)
    assert any_wrong.mean() <= at_most(0.05, TIMES)


@pytest.mark.parametrize("draws", [3, *rarely(10)])
def test_intervals_of_what_was_measured_cover_a_known_effect(draws: int):
    """All of it at once, from outcomes to interval: documents of different lengths, draws, and a
    true difference of 0.2.
    """
    rng, times, hits = np.random.default_rng(draws), 200, 0
    for _ in range(times):
        lengths, hard = rng.integers(100, 500, 20).astype(float), rng.normal(3, 0.5, 20)
        sides = [
            [
                values(
                    lengths * (hard + effect + rng.normal(0, 0.05) + rng.normal(0, 0.1, 20)),
                    lengths,
                )
                for _ in range(draws)
            ]
            for effect in (0.2, 0.0)
        ]
        low, high = combination(
            [({"x": Side.of(sides[0])}, {"x": 1.0}), ({"x": Side.of(sides[1])}, {"x": -1.0})]
        ).interval() or (0, 0)
        hits += low <= 0.2 <= high
    assert hits / times >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / times) - 0.005
