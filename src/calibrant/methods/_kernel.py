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
"""Rows that are eliminated together."""


@compiled
def correct(column: Any, errors: Any, inverse: Any, j: int, done: int, until: int) -> None:
    """Correct column `j` of the block for the `errors` of its columns `done` to `until`."""
    # Four columns in one pass: a number is loaded and stored once for all four. The brackets keep
    # the order of one after the other, to the last bit.
    p = done
    while p + 4 <= until:
        u0 = inverse[p, j]
        u1 = inverse[p + 1, j]
        u2 = inverse[p + 2, j]
        u3 = inverse[p + 3, j]
        e0 = errors[p]
        e1 = errors[p + 1]
        e2 = errors[p + 2]
        e3 = errors[p + 3]
        for r in range(TILE):
            column[r] = (((column[r] - e0[r] * u0) - e1[r] * u1) - e2[r] * u2) - e3[r] * u3
        p += 4
    while p < until:
        u0 = inverse[p, j]
        e0 = errors[p]
        for r in range(TILE):
            column[r] -= e0[r] * u0
        p += 1


@compiled
def choose(tile: Any, removed: Any, saliency: Any, i: int, group: int, drop: int) -> None:
    """Of the `group` columns from `i`, mark as `removed` the `drop` with the lowest scores in each
    row; of equal scores the first.
    """
    # A rank by counting, since sorting would branch: a column goes if fewer than `drop` of its
    # group stand before it.
    before = np.zeros(TILE, np.int32)
    for member in range(i, i + group):
        before[:] = 0
        for rival in range(i, i + group):
            saliency_of_member = saliency[member]
            saliency_of_rival = saliency[rival]
            for r in range(TILE):
                score = abs(tile[member, r]) * saliency_of_member
                rival_score = abs(tile[rival, r]) * saliency_of_rival
                before[r] += (rival_score < score) | ((rival_score == score) & (rival < member))
        for r in range(TILE):
            removed[member, r] = before[r] < drop


@compiled
def _remove(column: Any, errors: Any, removed: Any, pivot: Any) -> None:
    """Set to zero what is `removed` of a column; `errors` gets what the columns behind it are
    corrected for.
    """
    for r in range(TILE):
        errors[r] = column[r] / pivot if removed[r] else 0
        column[r] = 0 if removed[r] else column[r]


@compiled
def eliminate(
    current: Any,
    inverse: Any,
    saliency: Any,
    removed: Any,
    group: int,
    drop: int,
    first: int,
    last: int,
) -> None:
    """Eliminate the columns of a block in rows `first` to `last`, in place; arrays are
    C-contiguous. See `_elimination.Step`.
    """
    columns = current.shape[1]
    width = max(group, 1)
    tile = np.zeros((columns, TILE), current.dtype)
    tile_errors = np.zeros((columns, TILE), current.dtype)
    tile_removed = np.zeros((columns, TILE), np.bool_)
    for tile_start in range(first, last, TILE):
        # The last tile may have fewer rows. The rest of it still holds numbers of the tile before:
        # they are eliminated once more, and not written back.
        rows = min(TILE, last - tile_start)
        for i in range(columns):
            for r in range(rows):
                tile[i, r] = current[tile_start + r, i]
                tile_removed[i, r] = removed[tile_start + r, i]
        # Left-looking: a column takes the corrections of all before it when its turn comes, so each
        # is written once. Of N:M the whole group is brought up to date first, because its columns
        # are compared with each other.
        for i in range(0, columns, width):
            for j in range(i, i + width):
                correct(tile[j], tile_errors, inverse, j, 0, i)
            if group > 0:
                choose(tile, tile_removed, saliency, i, group, drop)
            for j in range(i, i + width):
                correct(tile[j], tile_errors, inverse, j, i, j)
                _remove(tile[j], tile_errors[j], tile_removed[j], inverse[j, j])
        for r in range(rows):
            for i in range(columns):
                current[tile_start + r, i] = tile[i, r]
                removed[tile_start + r, i] = tile_removed[i, r]
