"""One alternative for each item within a budget: as cheap as the best of all choices."""

from itertools import product

import numpy as np
import pytest

from calibrant.methods.quantization import _knapsack
from calibrant.methods.quantization._knapsack import Alternative, cheapest_within, least_size


def some_items(seed: int) -> list[list[Alternative]]:
    """Items of one to four alternatives, of which some are larger and no cheaper than another."""
    generator = np.random.default_rng(seed)
    items: list[list[Alternative]] = []
    for _ in range(5):
        count = int(generator.integers(1, 5))
        sizes = generator.integers(1, 12, count) * 6
        costs = generator.integers(0, 10, count) / 7
        items.append([Alternative(int(s), float(c)) for s, c in zip(sizes, costs, strict=True)])
    return items


def least_cost(items: list[list[Alternative]], budget: int) -> float:
    """Look at every choice there is."""
    costs: list[float] = []
    for choice in product(*items):
        if sum(alternative.size for alternative in choice) <= budget:
            costs.append(sum(alternative.cost for alternative in choice))
    return min(costs)


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_within_the_budget_is_cheaper(seed: int) -> None:
    items = some_items(seed)
    least = least_size(items)
    for budget in (least, least + 5, least + 13, least + 60, 10**9):
        choice = cheapest_within(items, budget)
        chosen = [
            alternatives[pick] for alternatives, pick in zip(items, choice.picks, strict=True)
        ]
        assert sum(alternative.size for alternative in chosen) == choice.size <= budget
        assert sum(alternative.cost for alternative in chosen) == pytest.approx(choice.cost)
        optimum = least_cost(items, budget)
        assert choice.cost == pytest.approx(optimum)
        assert choice.bound <= optimum + 1e-12


@pytest.mark.parametrize("seed", range(12))
def test_coarse_steps_stay_within_the_budget_and_near_the_bound(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_knapsack, "MOST_STEPS", 20)
    items = some_items(seed)
    least = least_size(items)
    for budget in (least, least + 31, least + 97):
        choice = cheapest_within(items, budget)
        assert choice.size <= budget
        assert choice.bound - 1e-12 <= choice.cost
        # Each item may waste less than a step, and so may the room.
        wasted = (len(items) + 1) * -(-(budget - least) // 20)
        assert choice.cost <= least_cost(items, max(least, budget - wasted)) + 1e-12
