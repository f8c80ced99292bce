"""Means with their standard errors. No torch here."""

import math
from collections.abc import Sequence


def ratio(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float | None]:
    """Σ values / Σ weights over independent items, and its standard error; None for a single item.

    The error is that of a ratio of two sums, linearised (the residual of item i is `value - mean *
    weight`), so that long documents count for what they hold and the item, not the token, is the
    unit.
    """
    total = math.fsum(weights)
    mean = math.fsum(values) / total
    n = len(values)
    if n < 2:
        return mean, None
    squares = math.fsum((v - mean * w) ** 2 for v, w in zip(values, weights, strict=True))
    return mean, math.sqrt(squares * n / (n - 1)) / total
