"""The column elimination of a block, compiled. Importing this imports numba, which takes longer
than listing methods may.

Rows are taken in tiles, transposed so that neighbours in memory are rows: every inner loop then
runs over a whole tile without a branch. That does the work of kept columns too (their error is
zero) and is still five times as fast as skipping them row by row.
"""

from typing import Any, Final

import numpy as np

from calibrant.system.compiling import compiled

TILE: Final = 64


@compiled
def correct(
    column: Any, errors: Any, upper: Any, start: int, j: int, done: int, until: int
) -> None:
    """Take from column `j` of the block what the elimination of columns `done` to `until` costs
    it.
    """
    # Four columns in one pass: a number is loaded and stored once for all four. The brackets keep
    # the order of one after the other, to the last bit.
    p = done
    while p + 4 <= until:
        u0 = upper[start + p, start + j]
        u1 = upper[start + p + 1, start + j]
        u2 = upper[start + p + 2, start + j]
        u3 = upper[start + p + 3, start + j]
        e0 = errors[p]
        e1 = errors[p + 1]
        e2 = errors[p + 2]
        e3 = errors[p + 3]
        for r in range(TILE):
            column[r] = (((column[r] - e0[r] * u0) - e1[r] * u1) - e2[r] * u2) - e3[r] * u3
        p += 4
    while p < until:
        u0 = upper[start + p, start + j]
        e0 = errors[p]
        for r in range(TILE):
            column[r] -= e0[r] * u0
        p += 1


@compiled
def choose(tile: Any, out: Any, saliency: Any, start: int, i: int, group: int, drop: int) -> None:
    """Of the `group` columns from `i`, mark the `drop` with the lowest scores in each row; of
    equal scores the first.
    """
    # A rank by counting, since sorting would branch: a column goes if fewer than `drop` of its
    # group stand before it.
    before = np.zeros(TILE, np.int32)
    for a in range(i, i + group):
        before[:] = 0
        for b in range(i, i + group):
            mine = saliency[start + a]
            other = saliency[start + b]
            for r in range(TILE):
                x = abs(tile[a, r]) * mine
                y = abs(tile[b, r]) * other
                before[r] += (y < x) | ((y == x) & (b < a))
        for r in range(TILE):
            out[a, r] = before[r] < drop


@compiled
def _remove(column: Any, errors: Any, out: Any, pivot: Any) -> None:
    """Set to zero what is `out` of a column; `errors` gets what that costs the columns behind
    it.
    """
    for r in range(TILE):
        errors[r] = column[r] / pivot if out[r] else 0
        column[r] = 0 if out[r] else column[r]


@compiled
def eliminate(
    weight: Any,
    upper: Any,
    saliency: Any,
    removed: Any,
    errors: Any,
    start: int,
    stop: int,
    group: int,
    drop: int,
    first: int,
    last: int,
) -> None:
    """Eliminate columns `start` to `stop` of rows `first` to `last`, in place; arrays are
    C-contiguous. See `_elimination.Step`.
    """
    n = stop - start
    width = max(group, 1)
    tile = np.zeros((n, TILE), weight.dtype)
    lost = np.zeros((n, TILE), weight.dtype)
    out = np.zeros((n, TILE), np.bool_)
    for top in range(first, last, TILE):
        # Of the last tile the rest is computed too, from numbers of before, and thrown away.
        rows = min(TILE, last - top)
        for i in range(n):
            for r in range(rows):
                tile[i, r] = weight[top + r, start + i]
                out[i, r] = removed[top + r, i]
        # Left-looking: a column takes the corrections of all before it when its turn comes, so each
        # is written once. Of N:M the whole group is brought up to date first, because its columns
        # are compared with each other.
        for i in range(0, n, width):
            for j in range(i, i + width):
                correct(tile[j], lost, upper, start, j, 0, i)
            if group > 0:
                choose(tile, out, saliency, start, i, group, drop)
            for j in range(i, i + width):
                correct(tile[j], lost, upper, start, j, i, j)
                _remove(tile[j], lost[j], out[j], upper[start + j, start + j])
        for r in range(rows):
            for i in range(n):
                weight[top + r, start + i] = tile[i, r]
                errors[top + r, i] = lost[i, r]
                removed[top + r, i] = out[i, r]
