"""One choice of a short menu for each of many parts, so that their mean stays what was asked and
what it costs is least: an exact search.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from calibrant.errors import TargetError

MOST: Final = 400_000_000
"""Comparisons that a search may take: some seconds."""


def cheapest(
    costs: Float[np.ndarray, "part choice"],
    steps: Sequence[int],
    sizes: Sequence[int],
    advice: str,
) -> list[int]:
    """Return which choice each part gets so that Σ size·step is 0 and the sum of their costs is
    least.

    `steps` say how many steps each choice lies above what was asked, or below it; one is 0. A cost
    may be infinite where a part can't have a choice, but for the step 0. Of choices that cost the
    same the one nearest to 0 is taken. The search goes through the parts and keeps the best way to
    each sum so far (a knapsack in which every part takes one thing).

    Raises `TargetError` where it would take too long. `advice` is its last words.

    >>> costs = np.array([[0.0, 4.0, 9.0], [0.0, 4.0, 5.0]])
    >>> cheapest(costs, [-1, 0, 1], [6, 6], "leave the allocation out")
    [0, 2]
    """
    unit = math.gcd(*sizes)
    below, above = -min(steps) * sum(sizes) // unit, max(steps) * sum(sizes) // unit
    if (below + above) * len(sizes) * len(steps) > MOST:
        sums = (
            f"sizes with no larger common divisor than {unit} make too many sums to search through"
        )
        raise TargetError(f"{sums}; {advice}")
    nearest = sorted(range(len(steps)), key=lambda choice: (abs(steps[choice]), steps[choice]))
    best = np.full(below + above + 1, np.inf)
    best[below] = 0.0
    taken = np.zeros((len(sizes), len(best)), dtype=np.int16)
    for part, size in enumerate(sizes):
        sums = np.full_like(best, np.inf)
        for choice in nearest:
            shift = steps[choice] * (size // unit)
            at, before = (
                slice(max(shift, 0), len(best) + min(shift, 0)),
                slice(max(-shift, 0), len(best) + min(-shift, 0)),
            )
            cost = best[before] + costs[part, choice]
            better = cost < sums[at]
            sums[at] = np.where(better, cost, sums[at])
            taken[part, at] = np.where(better, choice, taken[part, at])
        best = sums
    choices, place = list[int](), below
    for part in reversed(range(len(sizes))):
        choices.append(int(taken[part, place]))
        place -= steps[choices[-1]] * (sizes[part] // unit)
    return choices[::-1]
