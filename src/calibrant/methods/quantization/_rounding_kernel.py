"""What rounds weights to grids, compiled: the elimination in which each column becomes codes of its
group's grid, and those behind it take the corrections (`round_columns`); and the search for how far
each group's grid should reach (`best_reach`).

Importing this imports numba. As in `_kernel`, neighbours in memory are rows, so every inner loop
runs over a whole tile of them without a branch.
"""

from typing import Any

import numpy as np

from calibrant.methods._kernel import TILE, choose, correct
from calibrant.system.compiling import compiled, inlined


@compiled
def _round(
    column: Any,
    errors: Any,
    out: Any,
    codes: Any,
    scales: Any,
    zeros: Any,
    pivot: Any,
    lowest: int,
    highest: int,
    rows: int,
) -> None:
    """Round a column to the nearest codes; what is `out` gets the code of zero, and `errors`
    what that costs the columns behind it.
    """
    for r in range(rows):
        scale = scales[r]
        zero = zeros[r]
        near = min(max(np.rint(column[r] / scale + zero), lowest), highest)
        codes[r] = zero if out[r] else near
        value = (codes[r] - zero) * scale
        errors[r] = (column[r] - value) / pivot
        column[r] = value


@compiled
def round_columns(
    weight: Any,
    upper: Any,
    saliency: Any,
    removed: Any,
    errors: Any,
    codes: Any,
    scales: Any,
    zeros: Any,
    groups: Any,
    lowest: int,
    highest: int,
    start: int,
    stop: int,
    group: int,
    drop: int,
    first: int,
    last: int,
) -> None:
    """Round columns `start` to `stop` of rows `first` to `last`, in place; what is `removed` gets
    the code of zero. See `_quantizing.Step`.

    `scales` and `zeros` are [group, out], `groups` says which of them is a column's; `group` and
    `drop` are those of N:M, 0 for none.
    """
    n = stop - start
    width = max(group, 1)
    tile = np.zeros((n, TILE), weight.dtype)
    lost = np.zeros((n, TILE), weight.dtype)
    out = np.zeros((n, TILE), np.bool_)
    chosen = np.zeros((n, TILE), weight.dtype)
    for top in range(first, last, TILE):
        rows = min(TILE, last - top)
        for i in range(n):
            for r in range(rows):
                tile[i, r] = weight[top + r, start + i]
                out[i, r] = removed[top + r, i]
        for i in range(0, n, width):
            for j in range(i, i + width):
                correct(tile[j], lost, upper, start, j, 0, i)
            if group > 0:
                choose(tile, out, saliency, start, i, group, drop)
            for j in range(i, i + width):
                correct(tile[j], lost, upper, start, j, i, j)
                place = groups[start + j]
                _round(
                    tile[j],
                    lost[j],
                    out[j],
                    chosen[j],
                    scales[place, top:last],
                    zeros[place, top:last],
                    upper[start + j, start + j],
                    lowest,
                    highest,
                    rows,
                )
        for r in range(rows):
            for i in range(n):
                weight[top + r, start + i] = tile[i, r]
                errors[top + r, i] = lost[i, r]
                codes[top + r, start + i] = np.int8(chosen[i, r])
                removed[top + r, i] = out[i, r]


@inlined
def _short(number: Any) -> Any:
    """Round a float32 to the nearest bfloat16, half way to the even one. Not for NaN and
    infinity.
    """
    bits = np.float32(number).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)
    return np.uint32(rounded).view(np.float32)


@inlined
def _power(error: Any, cubed: bool) -> Any:
    """Return |error|³, or |error|^2.4 as x·x^(1/5) of x = error²: an estimate from the
    exponent's bits, then three of Newton's steps.
    """
    if cubed:
        return abs(error) * error * error
    x = error * error + np.float32(1e-30)  # its root must not divide by zero
    bits = np.float32(np.float32(x).view(np.int32))
    root = np.int32(np.float32(0.2) * bits + np.float32(852282573.0)).view(np.float32)
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
    rows = len(least)
    half = (high - low) / np.float32(2)
    scale = np.ones(TILE, np.float32)
    zero = np.zeros(TILE, np.float32)
    error = np.zeros(TILE, np.float32)
    fewest = np.full(TILE, np.inf, np.float32)
    for number in range(len(shares)):
        for r in range(rows):
            bottom = least[r] * shares[number]
            top = most[r] * shares[number]
            step = (top - bottom) / (high - low)
            if symmetric:
                step = max(top, -bottom) / half
            if short:
                step = _short(step)
            scale[r] = step if step != 0 else epsilon
            zero[r] = np.float32(0)
            if not symmetric:
                zero[r] = np.rint(min(max(low - bottom / scale[r], low), high))
        error[:] = 0
        for i in range(len(tile)):
            _add(error, tile[i], scale, zero, counts[i], cubed, low, high, short)
        for r in range(rows):
            if error[r] < fewest[r]:
                fewest[r] = error[r]
                best[r] = number


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
