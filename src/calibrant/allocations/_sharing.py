"""How a target is shared exactly: the menu of targets next to it, the cheapest choice of them with
the right mean, and sparsities whose counts add up to the last weight.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Float

from calibrant.errors import TargetError
from calibrant.models import Weight
from calibrant.targets import Grid, NofM, Sparsity, Target
from calibrant.targets.grid import FEWEST, MOST

MOST_COMPARISONS: Final = 400_000_000
"""Comparisons that a search may take: some seconds."""


def size_of(weights: Iterable[Weight]) -> int:
    """Return how many numbers matrices have together."""
    return sum(weight.shape[0] * weight.shape[1] for weight in weights)


def menu(target: Target, step: float, reach: int) -> Mapping[int, Target]:
    """Return, by steps, `target` and those up to `reach` steps to either side of it, as far as
    there are any. A step is the same amount everywhere: steps that add up to 0 leave the mean as it
    is.

    A step is `step` for a sparsity, one weight of every M more for N:M, and one bit more for a
    grid. Raises `TargetError` for other targets.

    >>> {steps: str(target) for steps, target in menu(Sparsity(0.9), 0.05, 2).items()}
    {-2: '0.8', -1: '0.85', 0: '0.9', 1: '0.95'}
    >>> [str(target) for target in menu(NofM(2, 4), 0.05, 3).values()]
    ['3:4', '2:4', '1:4']
    """
    targets: dict[int, Target] = {}
    for steps in range(-reach, reach + 1):
        match target:
            case Sparsity(fraction=fraction):
                # To ten digits, so that 0.6 + 0.05 is the same number as 0.65 written by a user.
                share = round(fraction + steps * step, 10)
                if 0 <= share < 1:
                    targets[steps] = Sparsity(share)
            case NofM(n=n, m=m):
                if 1 <= n - steps < m:
                    targets[steps] = NofM(n - steps, m)
            case Grid(bits=bits):
                if FEWEST <= bits + steps <= MOST:
                    targets[steps] = replace(target, bits=bits + steps)
            case _:
                raise TargetError(
                    f"{target} has no targets next to it that could be shared out; "
                    f"ask for a sparsity, N:M or a grid, or leave the allocation out",
                    subject=str(target),
                )
    # Not rounded to ten digits: as it was asked for.
    targets[0] = target
    return targets


def cheapest(
    costs: Float[np.ndarray, "part choice"],
    steps: Sequence[int],
    sizes: Sequence[int],
    advice: str,
) -> list[int]:
    """Return which choice each part gets so that Σ size·step is 0 and the sum of their costs is
    least: an exact search.

    `steps` say how many steps each choice lies above what was asked, or below it; one is 0. A cost
    may be infinite where a part can't have a choice, but not for the step 0. Of choices that cost
    the same the one nearest to 0 is taken. The search goes through the parts, and keeps the
    cheapest way to each sum that they can have so far: a knapsack in which every part takes one
    thing.

    Raises `TargetError` where it would take too long; its message ends with `advice`.

    >>> costs = np.array([[0.0, 4.0, 9.0], [0.0, 4.0, 5.0]])
    >>> cheapest(costs, [-1, 0, 1], [6, 6], "leave the allocation out")
    [0, 2]
    """
    # Sums are counted in this unit, so that there are as few of them as possible.
    unit = math.gcd(*sizes)
    below = -min(steps) * sum(sizes) // unit
    above = max(steps) * sum(sizes) // unit
    if (below + above) * len(sizes) * len(steps) > MOST_COMPARISONS:
        raise TargetError(
            f"sizes with no larger common divisor than {unit} make too many sums to search "
            f"through; {advice}"
        )

    def distance(choice: int) -> tuple[int, int]:
        return abs(steps[choice]), steps[choice]

    nearest = sorted(range(len(steps)), key=distance)
    # The least cost of each sum; the sum 0 stands at the index `below`.
    least = np.full(below + above + 1, np.inf)
    least[below] = 0.0
    taken = np.zeros((len(sizes), len(least)), dtype=np.int16)
    for part, size in enumerate(sizes):
        with_part = np.full_like(least, np.inf)
        # A later choice must be cheaper, so the nearest comes first.
        for choice in nearest:
            shift = steps[choice] * (size // unit)
            # Each sum after this choice lies `shift` above a sum before it; of both, those that
            # are in range.
            in_range = len(least) - abs(shift)
            first_after = max(shift, 0)
            first_before = max(-shift, 0)
            after = slice(first_after, first_after + in_range)
            before = slice(first_before, first_before + in_range)
            cost = least[before] + costs[part, choice]
            better = cost < with_part[after]
            with_part[after] = np.where(better, cost, with_part[after])
            taken[part, after] = np.where(better, choice, taken[part, after])
        least = with_part
    # Back from the sum 0 of all parts, by what the last part took, and so on.
    choices: list[int] = []
    index = below
    for part in reversed(range(len(sizes))):
        choice = int(taken[part, index])
        choices.append(choice)
        index -= steps[choice] * (sizes[part] // unit)
    return choices[::-1]


def to_the_weight(wanted: Mapping[Weight, float], target: Sparsity) -> dict[str, Sparsity]:
    """Return a sparsity for each matrix, near the one that is `wanted` of it, so that of all N
    weights together exactly ⌊N·s⌋ go.

    Each is a whole number of weights of every row, so that a method that chooses within rows
    removes as many as one that chooses within the matrix. What is left then, fewer weights than a
    matrix has rows, goes from one more matrix; a method that chooses within rows keeps these. Where
    the target is wanted of every matrix, each gets it as it was written.

    The mean of `wanted`, each matrix counted by its size, must be the target's fraction, and each
    must be from 0 up to (not including) 1.
    """
    if all(abs(share - target.fraction) <= 1e-12 for share in wanted.values()):
        return {weight.name: target for weight in wanted}
    removed_inputs, left = _whole_inputs(wanted, target.quota(size_of(wanted)))
    counts: dict[Weight, int] = {}
    for weight, removed in removed_inputs.items():
        counts[weight] = _rows(weight) * removed
    can_lose_more = [
        weight for weight in wanted if _can_lose_another(weight, removed_inputs[weight])
    ]
    if left and can_lose_more:
        # The weights left are fewer than the rows of any of these, or a column more would go.
        tallest = max(can_lose_more, key=_rows)
        counts[tallest] += left
    sparsities: dict[str, Sparsity] = {}
    for weight in wanted:
        sparsities[weight.name] = _sparsity(counts[weight], size_of([weight]))
    return sparsities


def _whole_inputs(wanted: Mapping[Weight, float], quota: int) -> tuple[dict[Weight, int], int]:
    """Return how many inputs of every row of each matrix go, so that together they are at most
    `quota` weights, and how many weights are left to go then.
    """
    exact_inputs: dict[Weight, float] = {}
    removed_inputs: dict[Weight, int] = {}
    left = quota
    for weight, share in wanted.items():
        rows, inputs = weight.shape
        exact_inputs[weight] = inputs * share
        whole = math.floor(exact_inputs[weight] + 1e-9)
        removed_inputs[weight] = min(whole, inputs - 1)
        left -= rows * removed_inputs[weight]

    def rounding(weight: Weight) -> float:
        return removed_inputs[weight] - exact_inputs[weight]

    # First those that lost most by rounding down; of equals the first of the model.
    order = sorted(wanted, key=rounding)
    # The 1e-9 above may have rounded up, so that too many go.
    for weight in reversed(order):
        while left < 0 and removed_inputs[weight]:
            removed_inputs[weight] -= 1
            left += _rows(weight)
    raised = True
    while raised:
        raised = False
        for weight in order:
            if _rows(weight) <= left and _can_lose_another(weight, removed_inputs[weight]):
                removed_inputs[weight] += 1
                left -= _rows(weight)
                raised = True
    return removed_inputs, left


def _rows(weight: Weight) -> int:
    return weight.shape[0]


def _can_lose_another(weight: Weight, removed: int) -> bool:
    """Return whether one more input can go of each row of a matrix that loses `removed`."""
    _, inputs = weight.shape
    return removed < inputs - 1


def _sparsity(count: int, size: int) -> Sparsity:
    """Return the sparsity by which exactly `count` of `size` weights go."""
    fraction = count / size
    # A sparsity is the decimal that it is written as, which may lie just below the quotient.
    while Sparsity(fraction).quota(size) < count:
        fraction = math.nextafter(fraction, 1.0)
    return Sparsity(fraction)
