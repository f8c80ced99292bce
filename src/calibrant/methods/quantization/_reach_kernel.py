"""The search for how far each group's grid should reach, compiled.

Importing this imports numba. As in `_kernel`, neighbours in memory are rows, so every inner loop
runs over a whole tile of them without a branch.
"""

from typing import Any

import numpy as np

from calibrant.methods._kernel import TILE
from calibrant.system.compiling import compiled, inlined


@inlined
def _short(number: Any) -> Any:
    """Round a float32 to the nearest bfloat16, half way to the even one. Not for NaN and
    infinity.
    """
    bits = np.float32(number).view(np.uint32)
    return np.uint32(
        (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        & np.uint32(0xFFFF0000)
    ).view(np.float32)


@inlined
def _power(error: Any, cubed: bool) -> Any:
    """Return |error|³, or |error|^2.4 as x·x^(1/5) of x = error²: an estimate from the
    exponent's bits, then three of Newton's steps.
    """
    if cubed:
        return abs(error) * error * error
    x = error * error + np.float32(1e-30)  # Its root must not divide by zero.
    root = np.int32(
        np.float32(0.2) * np.float32(np.float32(x).view(np.int32)) + np.float32(852282573.0)
    ).view(np.float32)
    for _ in range(3):
        root = np.float32(0.8) * root + np.float32(0.2) * x / ((root * root) * (root * root))
    return x * root


@compiled
def _search(
    tile: Any,
    least: Any,
    most: Any,
    shares: Any,
    counts: Any,
    cubed: bool,
    symmetric: bool,
    low: Any,
    high: Any,
    short: bool,
    epsilon: Any,
    best: Any,
) -> None:
    """Write into `best` which share makes the sum of a group's errors least, of equal ones the
    first: `tile` is [in, row], the others [row].
    """
    rows, half = len(least), (high - low) / np.float32(2)
    scale, zero = np.ones(TILE, np.float32), np.zeros(TILE, np.float32)
    error, fewest = np.zeros(TILE, np.float32), np.full(TILE, np.inf, np.float32)
    for at in range(len(shares)):
        for r in range(rows):
            bottom, top = least[r] * shares[at], most[r] * shares[at]
            s = max(top, -bottom) / half if symmetric else (top - bottom) / (high - low)
            s = _short(s) if short else s
            scale[r] = s if s != 0 else epsilon
            zero[r] = (
                np.float32(0)
                if symmetric
                else np.rint(min(max(low - bottom / scale[r], low), high))
            )
        error[:] = 0
        for i in range(len(tile)):
            _add(error, tile[i], scale, zero, counts[i], cubed, low, high, short)
        for r in range(rows):
            if error[r] < fewest[r]:
                fewest[r], best[r] = error[r], at


@compiled
def _add(
    error: Any,
    column: Any,
    scale: Any,
    zero: Any,
    count: Any,
    cubed: bool,
    low: Any,
    high: Any,
    short: bool,
) -> None:
    """Add to `error` what rounding a column to the grids `scale` and `zero` costs."""
    for r in range(TILE):
        code = min(max(np.rint(column[r] / scale[r] + zero[r]), low), high)
        value = (code - zero[r]) * scale[r]
        value = _short(value) if short else value
        error[r] += _power(value - column[r], cubed) * count


@compiled
def best_reach(
    weight: Any,
    least: Any,
    most: Any,
    shares: Any,
    counts: Any,
    cubed: bool,
    symmetric: bool,
    lowest: int,
    highest: int,
    short: bool,
    epsilon: Any,
    best: Any,
    first: int,
    last: int,
) -> None:
    """Write into `best` [out, group], for rows `first` to `last`, which of `shares` of a group's
    reach makes the sum of its errors least.

    `weight` is float32, `short` says that scales and values are rounded to bfloat16, `counts` is
    what an error in each input counts, `epsilon` the scale of a group whose own would be zero. What
    a grid is at a share is what `_rounding.reaching` says.
    """
    width = weight.shape[1] // least.shape[1]
    tile = np.zeros((width, TILE), np.float32)
    for row in range(first, last, TILE):
        rows = slice(row, min(row + TILE, last))
        for g in range(least.shape[1]):
            here = slice(g * width, (g + 1) * width)
            tile[:, : rows.stop - row] = weight[rows, here].T
            _search(
                tile,
                least[rows, g],
                most[rows, g],
                shares,
                counts[here],
                cubed,
                symmetric,
                np.float32(lowest),
                np.float32(highest),
                short,
                epsilon,
                best[rows, g],
            )
