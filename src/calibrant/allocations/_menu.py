"""A short menu of targets, and the exact search for one of them for each of many parts: their mean
stays what was asked, and what it costs is least.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

import numpy as np
from jaxtyping import Float

from calibrant.errors import TargetError
from calibrant.targets import Grid, NofM, Sparsity, Target
from calibrant.targets.grid import FEWEST
from calibrant.targets.grid import MOST as MOST_BITS

MOST: Final = 400_000_000
"""Comparisons that a search may take: some seconds."""


def menu(target: Target, step: float, reach: int) -> Mapping[int, Target]:
    """Return `target` and those up to `reach` steps to either side of it, as far as there are any;
    the sums of steps are those of amounts.

    A step is `step` for a sparsity, one weight of every M more for N:M, and one bit more for a
    grid. Raises `TargetError` for other targets.

    >>> {steps: str(target) for steps, target in menu(Sparsity(0.9), 0.05, 2).items()}
    {-2: '0.8', -1: '0.85', 0: '0.9', 1: '0.95'}
    >>> [str(target) for target in menu(NofM(2, 4), 0.05, 3).values()]
    ['3:4', '2:4', '1:4']
    """
    targets: dict[int, Target] = {}
    for steps in range(-reach, reach + 1):
        neighbour = _neighbour(target, steps, step)
        if neighbour is not None:
            targets[steps] = neighbour
    return targets


def _neighbour(target: Target, steps: int, step: float) -> Target | None:
    """The target so many steps above this one; None where there is none."""
    if steps == 0 and isinstance(target, Sparsity | NofM | Grid):
        return target
    match target:
        case Sparsity(fraction=fraction):
            # Exact, since sums of decimals are decimals, and sums of floats aren't.
            share = Fraction(str(fraction)) + steps * Fraction(str(step))
            return Sparsity(float(share)) if 0 <= share < 1 else None
        case NofM(n=kept, m=group):
            kept -= steps
            return NofM(kept, group) if 1 <= kept < group else None
        case Grid(bits=bits):
            bits += steps
            return replace(target, bits=bits) if FEWEST <= bits <= MOST_BITS else None
        case _:
            message = f"{target} has no targets next to it that could be shared out"
            remedy = "ask for a sparsity, N:M or a grid, or leave the allocation out"
            raise TargetError(f"{message}; {remedy}", subject=str(target))


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
    # Sums are counted in the common divisor of all sizes, from the least to the greatest.
    unit = math.gcd(*sizes)
    below = -min(steps) * sum(sizes) // unit
    above = max(steps) * sum(sizes) // unit
    if (below + above) * len(sizes) * len(steps) > MOST:
        common = f"sizes with no larger common divisor than {unit}"
        raise TargetError(f"{common} make too many sums to search through; {advice}")
    nearest = sorted(range(len(steps)), key=lambda choice: (abs(steps[choice]), steps[choice]))
    least = np.full(below + above + 1, np.inf)
    least[below] = 0.0
    taken = np.zeros((len(sizes), len(least)), dtype=np.int16)
    for part, size in enumerate(sizes):
        sums = np.full_like(least, np.inf)
        for choice in nearest:
            shift = steps[choice] * (size // unit)
            after = slice(max(shift, 0), len(least) + min(shift, 0))
            before = slice(max(-shift, 0), len(least) + min(-shift, 0))
            cost = least[before] + costs[part, choice]
            is_better = cost < sums[after]
            sums[after] = np.where(is_better, cost, sums[after])
            taken[part, after] = np.where(is_better, choice, taken[part, after])
        least = sums
    # Back from the sum 0, which stands at `below`: what was taken last of each part.
    choices: list[int] = []
    place = below
    for part in reversed(range(len(sizes))):
        choice = int(taken[part, place])
        choices.append(choice)
        place -= steps[choice] * (sizes[part] // unit)
    return choices[::-1]
