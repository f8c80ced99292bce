"""What surrounds the products with a Hessian, compiled: a step of conjugate gradients on a mask
(`step`), and one of alternating directions (`prepare`). Importing this imports numba.

In torch each of the dozen sums and products of a step goes through memory; a row fits the nearest
cache, where all of them cost less than one.

Factors are handed over as numbers of an array: a number alone would be float64, and make the sums
so.
"""

from typing import Any, Final

import numpy as np

from calibrant.system.compiling import compiled

LANES: Final = 64
"""Sums that are kept side by side, since a single one has to wait for itself."""


@compiled
def dot(a: Any, b: Any, sums: Any) -> float:
    """Return Σ a·b; `sums` is scratch of `LANES` numbers."""
    in_lanes = len(a) // LANES * LANES
    for lane in range(LANES):
        sums[lane] = 0
    for start in range(0, in_lanes, LANES):
        for lane in range(LANES):
            sums[lane] += a[start + lane] * b[start + lane]
    for j in range(in_lanes, len(a)):
        sums[0] += a[j] * b[j]
    total = 0.0
    for lane in range(LANES):
        total += sums[lane]
    return total


@compiled
def add(total: Any, factors: Any, addend: Any) -> None:
    """Add `factors[0]` times `addend` to `total`, in place."""
    factor = factors[0]
    for j in range(len(addend)):
        total[j] += factor * addend[j]


@compiled
def turn(direction: Any, factors: Any, residual: Any) -> None:
    """Multiply the direction by `factors[0]`, and add the residual, in place."""
    factor = factors[0]
    for j in range(len(residual)):
        direction[j] = direction[j] * factor + residual[j]


@compiled
def precondition(pull: Any, scale: Any, kept: Any, zeros: Any, residual: Any) -> None:
    """Set `residual` to pull·scale where a weight is kept, and to zero elsewhere."""
    zero = zeros[0]
    for j in range(len(pull)):
        residual[j] = pull[j] * scale[j] if kept[j] else zero


@compiled
def step(
    weight: Any,
    pull: Any,
    direction: Any,
    product: Any,
    keep: Any,
    scale: Any,
    slope: Any,
    least_slope: Any,
    gain: Any,
    first: int,
    last: int,
) -> None:
    """Take a step in rows `first` to `last`, in place, and turn their directions: an
    `_gradients.Advance`, but `gain` [out] is written into.
    """
    dtype = pull.dtype
    sums = np.zeros(LANES, dtype)
    residual = np.zeros(pull.shape[1], dtype)
    factors = np.zeros(1, dtype)
    zeros = np.zeros(1, dtype)
    for r in range(first, last):
        curvature = dot(direction[r], product[r], sums)
        moving = curvature > 0 and slope[r] > least_slope[r]
        gain[r] = 0
        if moving:
            # Not `slope`, which it is in exact arithmetic: this is what the step really takes off.
            measured_slope = dot(pull[r], direction[r], sums)
            gain[r] = measured_slope * measured_slope / curvature
            factors[0] = measured_slope / curvature
            add(weight[r], factors, direction[r])
            factors[0] = -measured_slope / curvature
            add(pull[r], factors, product[r])
        precondition(pull[r], scale, keep[r], zeros, residual)
        next_slope = dot(pull[r], residual, sums)
        factors[0] = 0
        if moving:
            factors[0] = next_slope / slope[r]
        turn(direction[r], factors, residual)
        slope[r] = next_slope


@compiled
def prepare(
    pulled: Any, dense: Any, keep: Any, rest: Any, sparse: Any, halves: Any, first: int, last: int
) -> None:
    """With S = W̃ + Z + U, set `rest` to S - Z and `sparse` to Z - S/2 in rows `first` to `last`;
    `halves` holds 0 and 1/2.
    """
    zero = halves[0]
    half = halves[1]
    for r in range(first, last):
        for j in range(pulled.shape[1]):
            stays = pulled[r, j] if keep[r, j] else zero
            total = pulled[r, j] + dense[r, j]
            rest[r, j] = total - stays
            sparse[r, j] = stays - total * half
