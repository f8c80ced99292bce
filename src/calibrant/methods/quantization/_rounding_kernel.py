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
    removed: Any,
    codes: Any,
    scales: Any,
    zeros: Any,
    pivot: Any,
    lowest: int,
    highest: int,
    rows: int,
) -> None:
    """Round a column to the nearest codes; what is `removed` gets the code of zero, and `errors`
    what that costs the columns behind it.
    """
    for r in range(rows):
        scale = scales[r]
        zero = zeros[r]
        nearest = min(max(np.rint(column[r] / scale + zero), lowest), highest)
        codes[r] = zero if removed[r] else nearest
        value = (codes[r] - zero) * scale
        errors[r] = (column[r] - value) / pivot
        column[r] = value


@inlined
def _nearest(quotient: Any, fraction: Any, least: Any, largest: Any) -> Any:
    """Return the nearest floating-point number of few bits, as `Element.nearest` does; `fraction`
    is the step between two of them over the power of two below them.
    """
    magnitude = min(abs(quotient), largest)
    # The bits of the exponent alone are the power of two; from a subnormal float32 it is zero.
    exponent = np.float32(magnitude).view(np.uint32) & np.uint32(0x7F800000)
    step = max(np.uint32(exponent).view(np.float32), least) * fraction
    return np.copysign(np.rint(magnitude / step) * step, quotient)


@compiled
def _round_floats(
    column: Any,
    errors: Any,
    values: Any,
    scales: Any,
    pivot: Any,
    fraction: Any,
    least: Any,
    largest: Any,
    rows: int,
) -> None:
    """Round a column to the nearest numbers of few bits times its scales; `errors` is what that
    costs the columns behind it.
    """
    for r in range(rows):
        values[r] = _nearest(column[r] / scales[r], fraction, least, largest)
        value = values[r] * scales[r]
        errors[r] = (column[r] - value) / pivot
        column[r] = value


@compiled
def round_columns(
    current: Any,
    inverse: Any,
    saliency: Any,
    removed: Any,
    codes: Any,
    scales: Any,
    zeros: Any,
    groups: Any,
    lowest: int,
    highest: int,
    fraction: float,
    least: float,
    largest: float,
    group: int,
    drop: int,
    first: int,
    last: int,
) -> None:
    """Round the columns of a block in rows `first` to `last`, in place; what is `removed` gets the
    code of zero. See `_quantizing.Step`.

    `scales` and `zeros` are [group, out], `groups` says which of them is a column's; `group` and
    `drop` are those of N:M, 0 for none. `fraction`, `least` and `largest` are those of a float
    grid's element, 0 where steps are even; then `codes` are its values, and nothing is removed.
    """
    columns = current.shape[1]
    width = max(group, 1)
    tile = np.zeros((columns, TILE), current.dtype)
    tile_errors = np.zeros((columns, TILE), current.dtype)
    tile_removed = np.zeros((columns, TILE), np.bool_)
    tile_codes = np.zeros((columns, TILE), current.dtype)
    for tile_start in range(first, last, TILE):
        rows = min(TILE, last - tile_start)
        for i in range(columns):
            for r in range(rows):
                tile[i, r] = current[tile_start + r, i]
                tile_removed[i, r] = removed[tile_start + r, i]
        for i in range(0, columns, width):
            for j in range(i, i + width):
                correct(tile[j], tile_errors, inverse, j, 0, i)
            if group > 0:
                choose(tile, tile_removed, saliency, i, group, drop)
            for j in range(i, i + width):
                correct(tile[j], tile_errors, inverse, j, i, j)
                its_group = groups[j]
                if fraction > 0:
                    _round_floats(
                        tile[j],
                        tile_errors[j],
                        tile_codes[j],
                        scales[its_group, tile_start:last],
                        inverse[j, j],
                        fraction,
                        least,
                        largest,
                        rows,
                    )
                    continue
                _round(
                    tile[j],
                    tile_errors[j],
                    tile_removed[j],
                    tile_codes[j],
                    scales[its_group, tile_start:last],
                    zeros[its_group, tile_start:last],
                    inverse[j, j],
                    lowest,
                    highest,
                    rows,
                )
        for r in range(rows):
            for i in range(columns):
                current[tile_start + r, i] = tile[i, r]
                codes[tile_start + r, i] = tile_codes[i, r]
                removed[tile_start + r, i] = tile_removed[i, r]


@inlined
def _to_bfloat16(number: Any) -> Any:
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
    # A little more than error², since its root is divided by.
    x = error * error + np.float32(1e-30)
    bits = np.float32(np.float32(x).view(np.int32))
    # A float32's bits grow about as its logarithm: a fifth of them, and four fifths of 1.0's.
    root = np.int32(np.float32(0.2) * bits + np.float32(852282573.0)).view(np.float32)
    for _ in range(3):
        root = np.float32(0.8) * root + np.float32(0.2) * x / ((root * root) * (root * root))
    return x * root


@compiled
def _search(
    tile: Any,
    smallest: Any,
    largest: Any,
    shares: Any,
    error_weights: Any,
    cubed: bool,
    symmetric: bool,
    lowest: Any,
    highest: Any,
    bfloat16: bool,
    epsilon: Any,
    best: Any,
) -> None:
    """Write into `best` which share makes the sum of a group's errors least, of equal ones the
    first.

    `tile` is [in, row], `shares` [share] and `error_weights` [in]; `smallest`, `largest` and `best`
    are [row].
    """
    rows = len(smallest)
    # Numbers that are not of arrays are float32 here too: float64 would make the sums so.
    half = (highest - lowest) / np.float32(2)
    scale = np.ones(TILE, np.float32)
    zero = np.zeros(TILE, np.float32)
    error = np.zeros(TILE, np.float32)
    least_error = np.full(TILE, np.inf, np.float32)
    for number in range(len(shares)):
        for r in range(rows):
            bottom = smallest[r] * shares[number]
            top = largest[r] * shares[number]
            step = (top - bottom) / (highest - lowest)
            if symmetric:
                step = max(top, -bottom) / half
            if bfloat16:
                step = _to_bfloat16(step)
            scale[r] = step if step != 0 else epsilon
            zero[r] = np.float32(0)
            if not symmetric:
                zero[r] = np.rint(min(max(lowest - bottom / scale[r], lowest), highest))
        error[:] = 0
        for i in range(len(tile)):
            _add(error, tile[i], scale, zero, error_weights[i], cubed, lowest, highest, bfloat16)
        for r in range(rows):
            if error[r] < least_error[r]:
                least_error[r] = error[r]
                best[r] = number


@compiled
def _add(
    error: Any,
    column: Any,
    scale: Any,
    zero: Any,
    error_weight: Any,
    cubed: bool,
    lowest: Any,
    highest: Any,
    bfloat16: bool,
) -> None:
    """Add to `error` what rounding a column to the grids `scale` and `zero` costs."""
    for r in range(TILE):
        code = min(max(np.rint(column[r] / scale[r] + zero[r]), lowest), highest)
        value = (code - zero[r]) * scale[r]
        if bfloat16:
            value = _to_bfloat16(value)
        error[r] += _power(value - column[r], cubed) * error_weight


@compiled
def best_reach(
    weight: Any,
    smallest: Any,
    largest: Any,
    shares: Any,
    error_weights: Any,
    cubed: bool,
    symmetric: bool,
    lowest: int,
    highest: int,
    bfloat16: bool,
    epsilon: Any,
    best: Any,
    first: int,
    last: int,
) -> None:
    """Write into `best` [out, group], for rows `first` to `last`, which of `shares` of a group's
    reach makes the sum of its errors least.

    `weight` is float32, and `bfloat16` says that scales and values are rounded to bfloat16.
    `error_weights` [in] say how much an error in each input counts, `epsilon` is the scale of a
    group whose own would be zero. The grid at each share is that of `_rounding.scales_reaching`.
    """
    width = weight.shape[1] // smallest.shape[1]
    tile = np.zeros((width, TILE), np.float32)
    for tile_start in range(first, last, TILE):
        rows = slice(tile_start, min(tile_start + TILE, last))
        for group in range(smallest.shape[1]):
            columns = slice(group * width, (group + 1) * width)
            tile[:, : rows.stop - tile_start] = weight[rows, columns].T
            _search(
                tile,
                smallest[rows, group],
                largest[rows, group],
                shares,
                error_weights[columns],
                cubed,
                symmetric,
                np.float32(lowest),
                np.float32(highest),
                bfloat16,
                epsilon,
                best[rows, group],
            )
