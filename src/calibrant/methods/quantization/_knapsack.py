"""One alternative for each item, so that their sizes stay within a budget and their costs together
are least: the multiple-choice knapsack.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from calibrant.numerics import ceil_div

MOST_STEPS: Final = 500_000
"""The most steps that the room above the smallest sizes is divided into: enough for models of a few
billion numbers. Where sizes aren't whole multiples of a step, they count as the next larger ones.
"""


class Alternative(NamedTuple):
    """What an item may become: how large it is then, in bytes, and what it costs."""

    size: int
    cost: float


class Choice(NamedTuple):
    """The number of the alternative that each item gets, their `size` and `cost` together, and a
    `bound` that no choice within the budget costs less than.
    """

    picks: tuple[int, ...]
    size: int
    cost: float
    bound: float


def least_size(items: Sequence[Sequence[Alternative]]) -> int:
    """Return the size of all items together where each is as small as it can be."""
    return sum(_smallest(alternatives) for alternatives in items)


def cheapest_within(items: Sequence[Sequence[Alternative]], budget: int) -> Choice:
    """Return the choice of the least cost whose size is within `budget`, which is at least that of
    `least_size`.

    It is found by dynamic programming over the bytes above the smallest sizes, in steps of their
    greatest common divisor. The choice is the cheapest of all, unless there were more than
    `MOST_STEPS` of them: then it may cost a little more, and `bound` says how much at most. Of
    equally cheap alternatives the first is taken.
    """
    extras: list[list[int]] = []
    for alternatives in items:
        least = _smallest(alternatives)
        extras.append([alternative.size - least for alternative in alternatives])
    # More room than the largest alternatives take is of no use.
    most = sum(max(item_extras) for item_extras in extras)
    room = min(budget - least_size(items), most)
    step = _step(extras, room)
    best = np.zeros(room // step + 1)
    steps_of_items: list[list[int]] = []
    picked_at: list[np.ndarray] = []
    for alternatives, item_extras in zip(items, extras, strict=True):
        costs = [alternative.cost for alternative in alternatives]
        # Rounded up, so that the budget is kept.
        steps = [ceil_div(extra, step) for extra in item_extras]
        best, picked = _with_another(best, costs, steps)
        steps_of_items.append(steps)
        picked_at.append(picked)
    # From the last item back to the first: what it was given tells where the one before it ended.
    place = len(best) - 1
    picks = [0] * len(items)
    for item in reversed(range(len(items))):
        picks[item] = int(picked_at[item][place])
        place -= steps_of_items[item][picks[item]]
    chosen: list[Alternative] = []
    for alternatives, pick in zip(items, picks, strict=True):
        chosen.append(alternatives[pick])
    size = sum(alternative.size for alternative in chosen)
    cost = math.fsum(alternative.cost for alternative in chosen)
    return Choice(tuple(picks), size, cost, _bound(items, budget))


def _smallest(alternatives: Sequence[Alternative]) -> int:
    return min(alternative.size for alternative in alternatives)


def _step(extras: Sequence[Sequence[int]], room: int) -> int:
    """How many bytes a step has: the greatest common divisor of all that sizes differ by, or more
    where that would be too many steps.
    """
    divisors = [math.gcd(*item_extras) for item_extras in extras]
    return max(math.gcd(*divisors), ceil_div(room, MOST_STEPS), 1)


def _with_another(
    best: Float[np.ndarray, "step"], costs: Sequence[float], steps: Sequence[int]
) -> tuple[Float[np.ndarray, "step"], UInt8[np.ndarray, "step"]]:
    """Return the least cost at each number of steps with one more item, and the number of the
    alternative that the item gets there. Its alternatives have these `costs`, and take so many
    `steps`.
    """
    least = np.full(len(best), np.inf)
    picked = np.zeros(len(best), dtype=np.uint8)
    for number, (cost, taken) in enumerate(zip(costs, steps, strict=True)):
        if taken >= len(best):
            continue
        reached = best[: len(best) - taken] + cost
        # Views: what is written into them is written into `least` and `picked`.
        least_there = least[taken:]
        picked_there = picked[taken:]
        better = reached < least_there
        least_there[better] = reached[better]
        picked_there[better] = number
    return least, picked


def _bound(items: Sequence[Sequence[Alternative]], budget: int) -> float:
    """The least cost if items could be divided between two alternatives: what saves most for a byte
    comes first, as far as there is room.
    """
    costs: list[float] = []
    upgrades: list[tuple[float, int]] = []
    room = budget
    for alternatives in items:
        hull = _hull(alternatives)
        room -= hull[0].size
        costs.append(hull[0].cost)
        for before, after in pairwise(hull):
            saved_a_byte = -_slope(before, after)
            upgrades.append((saved_a_byte, after.size - before.size))
    for saved_a_byte, size in sorted(upgrades, reverse=True):
        taken = min(size, room)
        costs.append(-saved_a_byte * taken)
        room -= taken
    # Costs aren't negative, but what is left of them after rounding may be.
    return max(0.0, math.fsum(costs))


def _hull(alternatives: Sequence[Alternative]) -> list[Alternative]:
    """The alternatives that lie on the lower convex hull of cost over size, from the smallest to
    the cheapest.
    """
    hull: list[Alternative] = []
    for alternative in sorted(alternatives):
        if hull and alternative.cost >= hull[-1].cost:
            continue
        while len(hull) > 1:
            before, last = hull[-2:]
            lies_above = _slope(before, last) >= _slope(last, alternative)
            if not lies_above:
                break
            hull.pop()
        hull.append(alternative)
    return hull


def _slope(before: Alternative, after: Alternative) -> float:
    return (after.cost - before.cost) / (after.size - before.size)
