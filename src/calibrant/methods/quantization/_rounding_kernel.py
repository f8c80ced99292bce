"""The elimination that rounds: each column becomes codes of its group's grid, and those behind it
take the corrections. Compiled.

Importing this imports numba. Tiles and order of work are those of `_kernel`.
"""

from typing import Any

import numpy as np

from calibrant.methods._kernel import TILE, choose, correct
from calibrant.system.compiling import compiled


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
        s, z = scales[r], zeros[r]
        near = min(max(np.rint(column[r] / s + z), lowest), highest)
        codes[r] = z if out[r] else near
        value = (codes[r] - z) * s
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
    first: int,
    last: int,
    start: int,
    stop: int,
    group: int,
    drop: int,
) -> None:
    """Round columns `start` to `stop` of rows `first` to `last`, in place; what is `removed` gets
    the code of zero. See `_quantizing.Step`.

    `scales` and `zeros` are [group, out], `groups` says which of them is a column's; `group` and
    `drop` are those of N:M, 0 for none.
    """
    n, width = stop - start, max(group, 1)
    tile, lost = np.zeros((n, TILE), weight.dtype), np.zeros((n, TILE), weight.dtype)
    out, chosen = np.zeros((n, TILE), np.bool_), np.zeros((n, TILE), weight.dtype)
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
                of = groups[start + j]
                _round(
                    tile[j],
                    lost[j],
                    out[j],
                    chosen[j],
                    scales[of, top:last],
                    zeros[of, top:last],
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
