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
    for lane in range(LANES):
        low[lane] = NEVER
        low[LANES + lane] = 0


@compiled
def fold(low: Any, width: int) -> None:
    """Let each of the first `width` lanes have the lower of its own value and that of the lane
    so far behind it; of equal ones the first column's.
    """
    for lane in range(width):
        value, column = low[lane], low[LANES + lane]
        other, there = low[lane + width], low[LANES + lane + width]
        lower = (other < value) | ((other == value) & (there < column))
        low[lane] = other if lower else value
        low[LANES + lane] = there if lower else column


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
        if low[lane] < low[best] or (
            low[lane] == low[best] and low[LANES + lane] < low[LANES + best]
        ):
            best = lane
    return int(low[LANES + best]), low[best]


@compiled
def move(row: Any, by: Any, across_k: Any, across_p: Any) -> None:
    """Add `by[0]`·`across_k` + `by[1]`·`across_p` to the pull, and find out what it costs to remove
    each weight.

    Numbers that are not of arrays would be float64, and make the sums so.
    """
    by_k, by_p = by[0], by[1]
    for block in range(len(across_k) // LANES):
        at, first = block * BLOCK, block * LANES
        for lane in range(LANES):
            pull = (
                row[at + Q + lane] + by_k * across_k[first + lane] + by_p * across_p[first + lane]
            )
            row[at + Q + lane] = pull
            weight = row[at + W + lane]
            row[at + COST + lane] = (
                weight * (pull + pull + weight * row[at + H + lane]) + row[at + GONE + lane]
            )


@compiled
def cheapest(row: Any, starts: Any, low: Any) -> Any:
    """Return which weight it costs least to remove, and that cost."""
    forget(low)
    for block in range(len(starts)):
        start, at = starts[block], block * BLOCK
        for lane in range(LANES):
            cost = row[at + COST + lane]
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
        start, at, first = starts[block], block * BLOCK, block * LANES
        for lane in range(LANES):
            to = row[at + Q + lane] + removed * across[first + lane]
            change = row[at + STAYS + lane] - to * to * row[at + INVERSE + lane]
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
        start, at, first = starts[block], block * BLOCK, block * LANES
        for lane in range(LANES):
            to = pull + row[at + W + lane] * across[first + lane]
            change = row[at + COST + lane] - to * to * inverse
            lower = change < low[lane]
            low[lane] = change if lower else low[lane]
            low[LANES + lane] = start if lower else low[LANES + lane]
    return lowest(low)


@compiled
def best_pair(row: Any, hessian: Any, turns: int, none: Any, starts: Any, low: Any) -> Any:
    """Return which weight should go, which should come back, and how much that changes the loss.

    Of all pairs only these are compared: the cheapest weight to remove with every one that may come
    back, the best one to come back with every one that may go, and from the better of the two on,
    in `turns`, a better partner for either. So the change is exact, and the pair nearly the best.
    `none` holds a zero.
    """
    k, cost = cheapest(row, starts, low)
    p, change = best_return(row, row[place(k) + W], hessian[k], starts, low)
    best = cost + change
    if not best < NEVER / 2:
        return k, p, best  # all or nothing is kept
    other, _ = best_return(row, none[0], hessian[k], starts, low)
    at, found = best_removal(
        row, row[place(other) + Q], row[place(other) + INVERSE], hessian[other], starts, low
    )
    next_is_k = not found < best
    if not next_is_k:
        k, p, best = at, other, found
    for _ in range(turns):
        if next_is_k:
            at, found = best_removal(
                row, row[place(p) + Q], row[place(p) + INVERSE], hessian[p], starts, low
            )
        else:
            at, change = best_return(row, row[place(k) + W], hessian[k], starts, low)
            found = row[place(k) + COST] + change
        if not found < best:
            break
        best = found
        if next_is_k:
            k = at
        else:
            p = at
        next_is_k = not next_is_k
    return k, p, best


@compiled
def best_in_a_group(row: Any, kept: Any, near: Any, group: int) -> Any:
    """Return the same for N:M, of all pairs within a group of `group` columns; `near[j, b]` is H
    of column j and the b-th one of its group.
    """
    k, p, best = 0, 0, 0.0
    for j in range(len(kept)):
        if not kept[j]:
            continue
        start, at = j - j % group, place(j)
        for b in range(group):
            partner = place(start + b)
            to = row[partner + Q] + row[at + W] * near[j, b]
            change = row[at + COST] - to * to * row[partner + INVERSE]
            if not kept[start + b] and change < best:
                k, p, best = j, start + b, change
    return k, p, best


@compiled
def swap(
    weight: Any,
    pull: Any,
    kept: Any,
    hessian: Any,
    inverse: Any,
    near: Any,
    group: int,
    least: Any,
    gained: Any,
    counts: Any,
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
    n, blocks, dtype = len(hessian), hessian.shape[1] // LANES, weight.dtype
    row, low, by, none = (
        np.zeros(blocks * BLOCK, dtype),
        np.zeros(2 * LANES, dtype),
        np.zeros(2, dtype),
        np.zeros(1, dtype),
    )
    starts = (np.arange(blocks) * LANES).astype(dtype)
    for j in range(blocks * LANES):
        row[place(j) + GONE], row[place(j) + STAYS] = NEVER, NEVER
    for r in range(first, last):
        for j in range(n):
            at = place(j)
            row[at + W], row[at + Q], row[at + H], row[at + INVERSE] = (
                weight[r, j],
                pull[r, j],
                hessian[j, j],
                inverse[j],
            )
            row[at + GONE] = 0 if kept[r, j] else NEVER
            row[at + STAYS] = NEVER if kept[r, j] or inverse[j] == 0 else 0
        by[:] = 0
        move(row, by, hessian[0], hessian[0])
        while counts[r] < most:
            if group > 0:
                k, p, change = best_in_a_group(row, kept[r], near, group)
            else:
                k, p, change = best_pair(row, hessian, turns, none, starts, low)
            if not change < -least[r]:
                break
            out, back = place(k), place(p)
            by[0] = row[out + W]
            by[1] = -(row[back + Q] + row[out + W] * hessian[p, k]) * row[back + INVERSE]
            row[out + W], row[back + W] = 0, -by[1]
            row[out + GONE], row[out + STAYS], row[back + GONE], row[back + STAYS] = (
                NEVER,
                (NEVER if inverse[k] == 0 else 0),
                0,
                NEVER,
            )
            kept[r, k], kept[r, p] = False, True
            move(row, by, hessian[k], hessian[p])
            gained[r] -= change
            counts[r] += 1
        for j in range(n):
            weight[r, j], pull[r, j] = row[place(j) + W], row[place(j) + Q]
