"""What a study of this size can find: the smallest p, the smallest difference, and what it would take to find a given one."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from calibrant.compare.estimate import LEVEL, Estimate

POWER: Final = 0.8
MOST: Final = 10**7
"""More draws or items than that are no advice."""


def smallest_p(draws: int, against: int) -> tuple[float, str] | None:
    """The least two-sided p that a test over draws alone can give, and the name of that test; None where neither side has draws.

    Draws against draws: a permutation between the sides. Draws against what takes none (the dense model): a flip of their signs. Student's t
    has no such floor; it pays by taking the draws' errors for normal.
    """
    if not draws and not against:
        return None
    if draws and against:
        return min(1.0, 2 / math.comb(draws + against, draws)), f"a permutation of {draws} and {against} draws"
    return 2.0 ** (1 - draws - against), f"a flip of the signs of {draws + against} draws"


def detectable(estimate: Estimate, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest true difference that an estimate of this uncertainty finds with `power` in a two-sided test at `level`; None without an error."""
    if estimate.stderr is None:
        return None
    return (estimate.quantile(1 - (1 - level) / 2) + estimate.quantile(power)) * estimate.stderr


def draws_needed(estimate: Estimate, draws: int, effect: float, level: float = LEVEL) -> int | None:
    """How many draws a set it takes to detect `effect`, of the same items; `draws` are those behind the estimate. None if none would do."""
    return None if draws < 2 or not estimate.over_draws else _fewest(lambda n: _with_draws(estimate, draws, n), effect, level)


def items_needed(estimate: Estimate, effect: float, level: float = LEVEL) -> int | None:
    """How many items it takes to detect `effect`, of the same draws. None if none would do."""
    return _fewest(lambda n: _with_items(estimate, n), effect, level)


def needs(estimate: Estimate, draws: int, unit: str, level: float = LEVEL) -> str:
    """In a sentence, what it would take to detect the difference that was seen: more of whichever, draws or items, holds it up."""
    seen, least = abs(estimate.value), detectable(estimate, level)
    if least is None or seen == 0:
        return ""
    shown = f"the difference that was seen ({seen:.2g}{f' {unit}' if unit else ''})"
    if least <= seen:
        return f"What is here suffices to detect {shown} four times in five."
    by_draws = (draws_needed(estimate, draws, seen, level), f"draws a set instead of {draws}")
    by_items = (items_needed(estimate, seen, level), f"items instead of {estimate.items}")
    for count, what in (by_draws, by_items) if estimate.draws_share > 0.5 else (by_items, by_draws):
        if count is not None:
            return f"To detect {shown} four times in five, it would take {count:,} {what}."
    return f"To detect {shown} four times in five, it would take more items and more draws: neither alone suffices."


def _with_draws(estimate: Estimate, before: int, draws: int) -> Estimate:
    assert estimate.stderr is not None
    ratio = before / draws
    over = estimate.draws_share * ratio
    total = 1 - estimate.draws_share + over
    dfs = None if estimate.dfs is None else (estimate.dfs[0], estimate.dfs[1] * (draws - 1) / (before - 1))
    return replace(estimate, stderr=estimate.stderr * math.sqrt(total), draws_share=over / total, dfs=dfs)


def _with_items(estimate: Estimate, items: int) -> Estimate:
    assert estimate.stderr is not None
    ratio = estimate.items / items
    alone = (1 - estimate.draws_share) * ratio
    total = alone + estimate.draws_share
    dfs = None if estimate.dfs is None else (max(1.0, estimate.dfs[0] / ratio), estimate.dfs[1])
    df = estimate.df if dfs else max(1.0, estimate.df / ratio)
    return replace(estimate, stderr=estimate.stderr * math.sqrt(total), draws_share=estimate.draws_share / total, df=df, dfs=dfs)


def _fewest(made: Callable[[int], Estimate], effect: float, level: float) -> int | None:
    """The smallest number from 2 on with which `effect` is detectable: doubled until it is, then halved in."""

    def enough(count: int) -> bool:
        least = detectable(made(count), level)
        return least is not None and least <= abs(effect)

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
