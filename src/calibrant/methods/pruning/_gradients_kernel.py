"""A step of conjugate gradients on a mask, compiled: what follows the product with the Hessian, row
by row. Importing this imports numba.

In torch each of the dozen sums and products of a step goes through memory; a row fits the nearest
cache, where all of them cost less than one.
"""

from typing import Any, Final

import numpy as np

from calibrant.system.compiling import compiled

LANES: Final = 64
"""Sums that are kept side by side, since a single one has to wait for itself."""


@compiled
def dot(a: Any, b: Any, sums: Any) -> float:
    """Return Σ a·b; `sums` is scratch of `LANES` numbers."""
    whole = len(a) // LANES * LANES
    for lane in range(LANES):
        sums[lane] = 0
    for at in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] += a[at + lane] * b[at + lane]
    for j in range(whole, len(a)):
        sums[0] += a[j] * b[j]
    total = 0.0
    for lane in range(LANES):
        total += sums[lane]
    return total


@compiled
def add(to: Any, by: Any, along: Any) -> None:
    """Add `by[0]` times `along`: a number of an array, because a number alone would be float64
    and make the sums so.
    """
    length = by[0]
    for j in range(len(along)):
        to[j] += length * along[j]


@compiled
def turn(direction: Any, by: Any, residual: Any) -> None:
    length = by[0]
    for j in range(len(residual)):
        direction[j] = direction[j] * length + residual[j]


@compiled
def precondition(pull: Any, scale: Any, kept: Any, none: Any, out: Any) -> None:
    """Set `out` to pull·scale where a weight is kept, and to zero elsewhere; `none` holds a
    zero.
    """
    zero = none[0]
    for j in range(len(pull)):
        out[j] = pull[j] * scale[j] if kept[j] else zero


@compiled
def step(
    weight: Any,
    pull: Any,
    direction: Any,
    bent: Any,
    keep: Any,
    scale: Any,
    force: Any,
    floor: Any,
    gain: Any,
    first: int,
    last: int,
) -> None:
    """Take a step in rows `first` to `last`, in place, and turn their directions; `bent` is
    direction·H. See `_gradients.Advance`.
    """
    dtype, n = pull.dtype, pull.shape[1]
    sums, residual, by, none = (
        np.zeros(LANES, dtype),
        np.zeros(n, dtype),
        np.zeros(1, dtype),
        np.zeros(1, dtype),
    )
    for r in range(first, last):
        curvature = dot(direction[r], bent[r], sums)
        moving = curvature > 0 and force[r] > floor[r]
        gain[r] = 0
        if moving:
            along = dot(pull[r], direction[r], sums)
            gain[r] = along * along / curvature
            by[0] = along / curvature
            add(weight[r], by, direction[r])
            by[0] = -along / curvature
            add(pull[r], by, bent[r])
        precondition(pull[r], scale, keep[r], none, residual)
        after = dot(pull[r], residual, sums)
        by[0] = after / force[r] if moving else 0
        turn(direction[r], by, residual)
        force[r] = after
