"""The swaps of a row, compiled. Importing this imports numba, which takes longer than listing
methods may.

A row is its weights, which of them are kept, and its pull (w - v)H, the way in which the loss wants
each weight to go. Removing a kept weight v_k costs v_k(2·pull_k + v_k·H_kk). Putting back p at its
best value then takes off (pull_p + v_k·H_pk)²/H_pp. Every loop over a row's columns is in lanes of
neighbours, without a branch, and does all that it can while a column is at hand; a swap takes four
or five of them.
"""

from typing import Any, Final

import numpy as np

from calibrant.system.compiling import compiled

LANES: Final = 64
"""Columns that are compared at once; rows are padded to a multiple of it."""

W, Q, H, INVERSE, GONE, STAYS, COST = range(0, 7 * LANES, LANES)
"""Where, in a row's scratch, a block of `LANES` columns has its weights, pulls, diagonal of H,
and 1/H; what is added to the cost of a column that is `GONE` or of one that `STAYS`, so that it
isn't chosen; and what it costs to remove each.
"""
BLOCK: Final = 7 * LANES
"""Numbers of a block. All in one array at fixed distances: then the compiler sees that they
don't overlap, and uses vectors.
"""

NEVER: Final = 1e30
"""What a choice costs that must not be made."""


@compiled
def place(column: int) -> int:
    """Return where a column's numbers begin."""
    return column // LANES * BLOCK + column % LANES


@compiled
def forget(low: Any) -> None:
    """Begin a search: no lane has found anything."""
    for lane in range(LANES):
        low[lane] = NEVER
        low[LANES + lane] = 0


@compiled
def fold(low: Any, width: int) -> None:
    """Let each of the first `width` lanes have the lower of its own value and that of the lane
    so far behind it; of equal ones the first column's.
    """
    for lane in range(width):
        value = low[lane]
        column = low[LANES + lane]
        other = low[lane + width]
        other_column = low[LANES + lane + width]
        lower = (other < value) | ((other == value) & (other_column < column))
        low[lane] = other if lower else value
        low[LANES + lane] = other_column if lower else column


@compiled
def lowest(low: Any) -> Any:
    """Return the column of the lowest value, the first of equal ones, and the value; `low` has
    each lane's, then where its block begins.
    """
    for lane in range(LANES):
        low[LANES + lane] += lane
    fold(low, LANES // 2)
    fold(low, LANES // 4)
    fold(low, LANES // 8)
    best = 0
    for lane in range(1, LANES // 8):
        equal = low[lane] == low[best] and low[LANES + lane] < low[LANES + best]
        if equal or low[lane] < low[best]:
            best = lane
    return int(low[LANES + best]), low[best]


@compiled
def move(row: Any, factors: Any, across_k: Any, across_p: Any) -> None:
    """Add `factors[0]`·`across_k` + `factors[1]`·`across_p` to the pull, and find out what it costs
    to remove each weight.

    Numbers that are not of arrays would be float64, and make the sums so.
    """
    by_k = factors[0]
    by_p = factors[1]
    for block in range(len(across_k) // LANES):
        base = block * BLOCK
        first = block * LANES
        for lane in range(LANES):
            here = base + lane
            column = first + lane
            pull = row[here + Q] + by_k * across_k[column] + by_p * across_p[column]
            row[here + Q] = pull
            weight = row[here + W]
            row[here + COST] = weight * (pull + pull + weight * row[here + H]) + row[here + GONE]


@compiled
def cheapest(row: Any, starts: Any, low: Any) -> Any:
    """Return which weight it costs least to remove, and that cost."""
    forget(low)
    for block in range(len(starts)):
        start = starts[block]
        base = block * BLOCK
        for lane in range(LANES):
            cost = row[base + COST + lane]
            lower = cost < low[lane]
            low[lane] = cost if lower else low[lane]
            low[LANES + lane] = start if lower else low[LANES + lane]
    return lowest(low)


@compiled
def best_return(row: Any, removed: Any, across: Any, starts: Any, low: Any) -> Any:
    """Return which weight should come back, at its best value, once one of value `removed` is
    gone whose row of H is `across`; and by how much.
    """
    forget(low)
    for block in range(len(starts)):
        start = starts[block]
        base = block * BLOCK
        first = block * LANES
        for lane in range(LANES):
            force = row[base + Q + lane] + removed * across[first + lane]
            change = row[base + STAYS + lane] - force * force * row[base + INVERSE + lane]
            lower = change < low[lane]
            low[lane] = change if lower else low[lane]
            low[LANES + lane] = start if lower else low[LANES + lane]
    return lowest(low)


@compiled
def best_removal(row: Any, pull: Any, inverse: Any, across: Any, starts: Any, low: Any) -> Any:
    """Return which weight should go where one comes back that is pulled by `pull`, and what both
    change; of the other, `across` is its row of H and `inverse` its 1/H.
    """
    forget(low)
    for block in range(len(starts)):
        start = starts[block]
        base = block * BLOCK
        first = block * LANES
        for lane in range(LANES):
            force = pull + row[base + W + lane] * across[first + lane]
            change = row[base + COST + lane] - force * force * inverse
            lower = change < low[lane]
            low[lane] = change if lower else low[lane]
            low[LANES + lane] = start if lower else low[LANES + lane]
    return lowest(low)


@compiled
def best_pair(row: Any, hessian: Any, turns: int, zeros: Any, starts: Any, low: Any) -> Any:
    """Return which weight should go, which should come back, and how much that changes the loss.

    Of all pairs only these are compared: the cheapest weight to remove with every one that may come
    back, the best one to come back with every one that may go, and from the better of the two on,
    in `turns`, a better partner for either. So the change is exact, and the pair nearly the best.
    `zeros` holds a zero.
    """
    k, cost = cheapest(row, starts, low)
    p, change = best_return(row, row[place(k) + W], hessian[k], starts, low)
    best = cost + change
    if not best < NEVER / 2:
        return k, p, best  # all or nothing is kept
    other, _ = best_return(row, zeros[0], hessian[k], starts, low)
    here = place(other)
    partner, found = best_removal(
        row, row[here + Q], row[here + INVERSE], hessian[other], starts, low
    )
    next_is_k = not found < best
    if not next_is_k:
        k = partner
        p = other
        best = found
    for _ in range(turns):
        if next_is_k:
            here = place(p)
            partner, found = best_removal(
                row, row[here + Q], row[here + INVERSE], hessian[p], starts, low
            )
        else:
            here = place(k)
            partner, change = best_return(row, row[here + W], hessian[k], starts, low)
            found = row[here + COST] + change
        if not found < best:
            break
        best = found
        if next_is_k:
            k = partner
        else:
            p = partner
        next_is_k = not next_is_k
    return k, p, best


@compiled
def best_in_a_group(row: Any, kept: Any, near: Any, group: int) -> Any:
    """Return the same for N:M, of all pairs within a group of `group` columns; `near[j, b]` is H
    of column j and the b-th one of its group.
    """
    k = 0
    p = 0
    best = 0.0
    for j in range(len(kept)):
        if not kept[j]:
            continue
        start = j - j % group
        here = place(j)
        for b in range(group):
            partner = place(start + b)
            force = row[partner + Q] + row[here + W] * near[j, b]
            change = row[here + COST] - force * force * row[partner + INVERSE]
            if not kept[start + b] and change < best:
                k = j
                p = start + b
                best = change
    return k, p, best


@compiled
def swap(
    weight: Any,
    pull: Any,
    kept: Any,
    hessian: Any,
    inverse: Any,
    near: Any,
    least: Any,
    gained: Any,
    counts: Any,
    group: int,
    most: int,
    turns: int,
    first: int,
    last: int,
) -> None:
    """Swap in rows `first` to `last`, in place, up to `most` times a row or until a swap takes off
    less than `least`; arrays are C-contiguous, and rows of `hessian` padded with zeros to whole
    blocks.

    `group` is 0 where any two weights of a row may change places, and M for N:M. `gained` and
    `counts` get what was taken off and how many swaps it took. Inputs with an `inverse` of zero
    never come back.
    """
    width = len(hessian)
    blocks = hessian.shape[1] // LANES
    dtype = weight.dtype
    row = np.zeros(blocks * BLOCK, dtype)
    low = np.zeros(2 * LANES, dtype)
    factors = np.zeros(2, dtype)
    zeros = np.zeros(1, dtype)
    starts = (np.arange(blocks) * LANES).astype(dtype)
    # Columns that are there for the padding alone never go and never come back.
    for j in range(blocks * LANES):
        row[place(j) + GONE] = NEVER
        row[place(j) + STAYS] = NEVER
    for r in range(first, last):
        for j in range(width):
            here = place(j)
            row[here + W] = weight[r, j]
            row[here + Q] = pull[r, j]
            row[here + H] = hessian[j, j]
            row[here + INVERSE] = inverse[j]
            row[here + GONE] = 0 if kept[r, j] else NEVER
            row[here + STAYS] = NEVER if kept[r, j] or inverse[j] == 0 else 0
        factors[:] = 0
        move(row, factors, hessian[0], hessian[0])
        while counts[r] < most:
            if group > 0:
                k, p, change = best_in_a_group(row, kept[r], near, group)
            else:
                k, p, change = best_pair(row, hessian, turns, zeros, starts, low)
            if not change < -least[r]:
                break
            gone = place(k)
            back = place(p)
            factors[0] = row[gone + W]
            factors[1] = -(row[back + Q] + row[gone + W] * hessian[p, k]) * row[back + INVERSE]
            row[gone + W] = 0
            row[back + W] = -factors[1]
            row[gone + GONE] = NEVER
            row[gone + STAYS] = NEVER if inverse[k] == 0 else 0
            row[back + GONE] = 0
            row[back + STAYS] = NEVER
            kept[r, k] = False
            kept[r, p] = True
            move(row, factors, hessian[k], hessian[p])
            gained[r] -= change
            counts[r] += 1
        for j in range(width):
            weight[r, j] = row[place(j) + W]
            pull[r, j] = row[place(j) + Q]
