"""How alike several draws of several calibration sets came out: within a set, between sets, and
the difference with its interval over draws.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from calibrant.lab.stats import t_quantile

T = TypeVar("T")
Draws = Mapping[str, Sequence[T]]
"""What each draw of each set left."""
Alike = Callable[[T, T], float]
"""How alike two of them are, 1 where they are the same."""


def within(sets: Draws[T], alike: Alike[T]) -> float:
    """The mean over two draws of one set."""
    return statistics.mean(
        statistics.mean(alike(a, b) for a, b in itertools.combinations(draws, 2))
        for draws in sets.values()
    )


def between(sets: Draws[T], alike: Alike[T]) -> float:
    """The mean over draws of two sets."""
    return statistics.mean(
        against([one], other, alike) for one, other in itertools.combinations(sets.values(), 2)
    )


def against(sets: Sequence[Sequence[T]], other: Sequence[T], alike: Alike[T]) -> float:
    """The mean over a draw of each of `sets` and one of `other`."""
    return statistics.mean(alike(a, b) for draws in sets for a in draws for b in other)


def part_of_the_set(sets: Draws[T], alike: Alike[T], digits: int = 2) -> str:
    """How much more alike two draws of one set are than draws of two, with its interval; bold
    where zero is left out.
    """
    return told(*jackknifed(sets, lambda each: within(each, alike) - between(each, alike)), digits)


def told(value: float, half: float, digits: int = 2) -> str:
    """A value and its interval, half of whose width is given; bold where zero is left out."""
    text = f"{value:+.{digits}f}" + (
        f" ({value - half:+.{digits}f} to {value + half:+.{digits}f})" if half == half else ""
    )
    return f"**{text}**" if abs(value) > half else text


def jackknifed(sets: Draws[T], of: Callable[[Draws[T]], float]) -> tuple[float, float]:
    """What `of` gives, and half the width of its 95 % interval over draws: each of three draws or
    more of each set is left out in turn.

    NaN where no draw differs, or with fewer draws.

    Degrees of freedom after Satterthwaite; the largest of a few variances counts 1 + 2/df times, as
    in `calibrant.lab.stats`.
    """
    if min(map(len, sets.values())) < 3:  # without one of two no pair is left
        return of(sets), math.nan
    parts: list[tuple[float, int]] = []
    for name in sets:
        count = len(sets[name])
        without = [
            of({**sets, name: [one for at, one in enumerate(sets[name]) if at != left]})
            for left in range(count)
        ]
        parts.append(
            (
                (count - 1)
                / count
                * sum((value - statistics.mean(without)) ** 2 for value in without),
                count - 1,
            )
        )
    parts.sort()
    counted = [*parts[:-1], (parts[-1][0] * (1 + 2 / parts[-1][1]), parts[-1][1])]
    if parts[-1][0] == 0:
        return of(sets), math.nan
    degrees = sum(one for one, _ in counted) ** 2 / sum(one**2 / df for one, df in counted)
    return of(sets), t_quantile(0.975, degrees) * sum(one for one, _ in parts) ** 0.5
