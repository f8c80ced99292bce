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
    means: list[float] = []
    for draws in sets.values():
        pairs = itertools.combinations(draws, 2)
        means.append(statistics.mean(alike(one, other) for one, other in pairs))
    return statistics.mean(means)


def between(sets: Draws[T], alike: Alike[T]) -> float:
    """The mean over draws of two sets."""
    pairs = itertools.combinations(sets.values(), 2)
    return statistics.mean(against([one], other, alike) for one, other in pairs)


def against(sets: Sequence[Sequence[T]], other: Sequence[T], alike: Alike[T]) -> float:
    """The mean over a draw of each of `sets` and one of `other`."""
    every_draw = itertools.chain.from_iterable(sets)
    pairs = itertools.product(every_draw, other)
    return statistics.mean(alike(one, another) for one, another in pairs)


def part_of_the_set(sets: Draws[T], alike: Alike[T], digits: int = 2) -> str:
    """How much more alike two draws of one set are than draws of two, with its interval; bold
    where zero is left out.
    """
    value, half = jackknifed(sets, lambda each: within(each, alike) - between(each, alike))
    return told(value, half, digits)


def told(value: float, half: float, digits: int = 2) -> str:
    """A value and its interval, half of whose width is given (NaN: no interval); bold where zero
    is left out.
    """
    text = f"{value:+.{digits}f}"
    if not math.isnan(half):
        text += f" ({value - half:+.{digits}f} to {value + half:+.{digits}f})"
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
    variances: list[tuple[float, int]] = []
    for name, draws in sets.items():
        count = len(draws)
        without: list[float] = []
        for left_out in range(count):
            others = [*draws[:left_out], *draws[left_out + 1 :]]
            without.append(of({**sets, name: others}))
        mean = statistics.mean(without)
        squares = sum((value - mean) ** 2 for value in without)
        variances.append(((count - 1) / count * squares, count - 1))
    variances.sort()
    *smaller, (largest, df_of_largest) = variances
    if largest == 0:
        return of(sets), math.nan
    counted = [*smaller, (largest * (1 + 2 / df_of_largest), df_of_largest)]
    whole = sum(variance for variance, _ in counted)
    degrees = whole**2 / sum(variance**2 / df for variance, df in counted)
    error = sum(variance for variance, _ in variances) ** 0.5
    return of(sets), t_quantile(0.975, degrees) * error
