"""A set on the held-out sibling of a target: each measured row by the run that was calibrated on
the half of the file that it isn't of.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calibrant.lab.choose.halves import Halves
from calibrant.lab.stats.crossed import ItemValues, Side
from calibrant.lab.stats.results import GroupResults, Results
from calibrant.results import Cell


def held_out_side(
    cells: Sequence[Cell],
    results: Results,
    group: GroupResults,
    twins: tuple[str, str],
    halves: Sequence[Halves],
) -> dict[str, Side] | None:
    """Return the side, by what was measured, of the set whose `twins` are calibrated on the first
    and on the second halves; None if one lacks.

    Draw by draw, rows of the first half are taken from the second twin and rows of the second half
    from the first; rows of neither, such as those of another target, are the mean of both.
    """
    if any(twin not in group.sides for twin in twins):
        return None
    first, second = (
        {cell.seed: cell for cell in cells if cell.data == twin and cell.run in group.runs[twin]}
        for twin in twins
    )
    owned = [frozenset().union(*(each.items[side] for each in halves)) for side in (0, 1)]
    overlapping = any(twin in group.overlapping for twin in twins)
    sides: dict[str, Side] = {}
    for text, name in group.names.items():
        one, other = (
            {seed: results.items[cell.run][cell.measures[text]] for seed, cell in of.items()}
            for of in (first, second)
        )
        draws = [
            crossed(one[seed], other[seed], owned) for seed in sorted(one.keys() & other.keys())
        ]
        if not draws:
            return None
        sides[name] = Side.of(draws, "overlapping" if overlapping else "independent")
    return sides


def crossed(first: ItemValues, second: ItemValues, owned: Sequence[frozenset[str]]) -> ItemValues:
    """Return one measurement of two: `first` was calibrated on the rows `owned[0]` and the like,
    so it gives the values of those in `owned[1]`.
    """
    of_first = np.array([item in owned[0] for item in first.items])
    of_second = np.array([item in owned[1] for item in first.items])
    values = np.where(
        of_first,
        second.values,
        np.where(of_second, first.values, (first.values + second.values) / 2),
    )
    return replace(first, values=values)
