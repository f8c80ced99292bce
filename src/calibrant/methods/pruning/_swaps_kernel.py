"""The swaps of a row, compiled. Importing this imports numba, which takes longer than listing
methods may.

A row is its weights, which of them are kept, and its pull (w - v)H, the way in which the loss wants
each weight to go. Removing a kept weight v_k costs v_k(2·pull_k + v_k·H_kk). Putting back p at its
best value then takes off (pull_p + v_k·H_pk)²/H_pp. Every loop over a row's columns is in lanes of
neighbours, without a branch, and does all that it can while a column is at hand. A swap takes four
or five such loops.
"""

from typing import Any, Final

import numpy as np

from calibrant.system.compiling import compiled

LANES: Final = 64
"""Columns that are compared at once; rows are padded to a multiple of it."""

WEIGHT, PULL, DIAGONAL, INVERSE, NO_REMOVAL, NO_RETURN, COST = range(0, 7 * LANES, LANES)
"""Where a block of `LANES` columns has its numbers in a row's scratch: weights, pulls, the diagonal
of H and 1/H; `NEVER` or 0 for the removal of each, and for its return; and what it costs to remove.

`NO_REMOVAL` is `NEVER` for a weight that is gone, `NO_RETURN` for one that is there or whose input
was never used: added to a cost, it keeps the column from being chosen.
"""
BLOCK: Final = 7 * LANES
"""Numbers of a block. They lie in one array at fixed distances: so the compiler sees that they
don't overlap, and uses vectors.
"""

NEVER: Final = 1e30
"""What a choice costs that must not be made."""


@compiled
def place(column: int) -> int:
    """Return where a column's numbers begin."""
    return column // LANES * BLOCK + column % LANES


@compiled
def reset(minima: Any) -> None:
    """Begin a search: no lane has found anything. `minima` has each lane's lowest value, and behind
    all of them the first column of the block where it was.
    """
    for lane in range(LANES):
        minima[lane] = NEVER
        minima[LANES + lane] = 0


@compiled
def reduce_lanes(minima: Any, width: int) -> None:
    """Let each of the first `width` lanes have the lower of its own value and that of the lane
    so far behind it; of equal ones the first column's.
    """
    for lane in range(width):
        value = minima[lane]
        column = minima[LANES + lane]
        other = minima[lane + width]
        other_column = minima[LANES + lane + width]
        lower = (other < value) | ((other == value) & (other_column < column))
        minima[lane] = other if lower else value
        minima[LANES + lane] = other_column if lower else column


@compiled
def lowest(minima: Any) -> Any:
    """Return the column of the lowest value, the first of equal ones, and the value."""
    # From where a block begins to the column itself.
    for lane in range(LANES):
        minima[LANES + lane] += lane
    reduce_lanes(minima, LANES // 2)
    reduce_lanes(minima, LANES // 4)
    reduce_lanes(minima, LANES // 8)
    best = 0
    for lane in range(1, LANES // 8):
        equal = minima[lane] == minima[best] and minima[LANES + lane] < minima[LANES + best]
        if equal or minima[lane] < minima[best]:
            best = lane
    return int(minima[LANES + best]), minima[best]


@compiled
def move(row: Any, factors: Any, row_of_k: Any, row_of_p: Any) -> None:
    """Add `factors[0]` times H's `row_of_k` and `factors[1]` times its `row_of_p` to the pull; then
    set what it costs to remove each weight.

    Numbers that are not of arrays would be float64, and make the sums so.
    """
    by_k = factors[0]
    by_p = factors[1]
    for block in range(len(row_of_k) // LANES):
        base = block * BLOCK
        first = block * LANES
        for lane in range(LANES):
            here = base + lane
            column = first + lane
            pull = row[here + PULL] + by_k * row_of_k[column] + by_p * row_of_p[column]
            row[here + PULL] = pull
            weight = row[here + WEIGHT]
            row[here + COST] = (
                weight * (pull + pull + weight * row[here + DIAGONAL]) + row[here + NO_REMOVAL]
            )


@compiled
def cheapest(row: Any, starts: Any, minima: Any) -> Any:
    """Return which weight it costs least to remove, and that cost."""
    reset(minima)
    for block in range(len(starts)):
        start = starts[block]
        base = block * BLOCK
        for lane in range(LANES):
            cost = row[base + COST + lane]
            lower = cost < minima[lane]
            minima[lane] = cost if lower else minima[lane]
            minima[LANES + lane] = start if lower else minima[LANES + lane]
    return lowest(minima)


@compiled
def best_return(row: Any, removed: Any, hessian_row: Any, starts: Any, minima: Any) -> Any:
    """Return which weight should come back, at its best value, once one of value `removed` is
    gone whose row of H is `hessian_row`; and by how much.
    """
    reset(minima)
    for block in range(len(starts)):
        start = starts[block]
        base = block * BLOCK
        first = block * LANES
        for lane in range(LANES):
            force = row[base + PULL + lane] + removed * hessian_row[first + lane]
            change = row[base + NO_RETURN + lane] - force * force * row[base + INVERSE + lane]
            lower = change < minima[lane]
            minima[lane] = change if lower else minima[lane]
            minima[LANES + lane] = start if lower else minima[LANES + lane]
    return lowest(minima)


@compiled
def best_removal(
    row: Any, pull: Any, inverse: Any, hessian_row: Any, starts: Any, minima: Any
) -> Any:
    """Return which weight should go where one comes back that is pulled by `pull`, and what both
    change; of the other, `hessian_row` is its row of H and `inverse` its 1/H.
    """
    reset(minima)
    for block in range(len(starts)):
        start = starts[block]
        base = block * BLOCK
        first = block * LANES
        for lane in range(LANES):
            force = pull + row[base + WEIGHT + lane] * hessian_row[first + lane]
            change = row[base + COST + lane] - force * force * inverse
            lower = change < minima[lane]
            minima[lane] = change if lower else minima[lane]
            minima[LANES + lane] = start if lower else minima[LANES + lane]
    return lowest(minima)


@compiled
def best_pair(row: Any, hessian: Any, turns: int, zeros: Any, starts: Any, minima: Any) -> Any:
    """Return which weight should go, which should come back, and how much that changes the loss.

    Of all pairs only these are compared: the cheapest weight to remove with every one that may come
    back, the best one to come back with every one that may go, and from the better of the two on,
    in `turns`, a better partner for either. So the change is exact, and the pair nearly the best.
    `zeros` holds a zero.
    """
    k, cost = cheapest(row, starts, minima)
    p, change = best_return(row, row[place(k) + WEIGHT], hessian[k], starts, minima)
    best = cost + change
    if not best < NEVER / 2:
        # All or nothing of the row is kept.
        return k, p, best
    # The best one to come back by itself: with zero removed, the row of H doesn't count.
    returning, _ = best_return(row, zeros[0], hessian[k], starts, minima)
    position = place(returning)
    partner, new_change = best_removal(
        row, row[position + PULL], row[position + INVERSE], hessian[returning], starts, minima
    )
    next_is_k = not new_change < best
    if not next_is_k:
        k = partner
        p = returning
        best = new_change
    for _ in range(turns):
        if next_is_k:
            position = place(p)
            partner, new_change = best_removal(
                row, row[position + PULL], row[position + INVERSE], hessian[p], starts, minima
            )
        else:
            position = place(k)
            partner, change = best_return(row, row[position + WEIGHT], hessian[k], starts, minima)
            new_change = row[position + COST] + change
        if not new_change < best:
            break
        best = new_change
        if next_is_k:
            k = partner
        else:
            p = partner
        next_is_k = not next_is_k
    return k, p, best


@compiled
def best_in_a_group(row: Any, kept: Any, group_hessian: Any, group: int) -> Any:
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
            force = row[partner + PULL] + row[here + WEIGHT] * group_hessian[j, b]
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
    group_hessian: Any,
    least_gains: Any,
    gains: Any,
    counts: Any,
    group: int,
    most_swaps: int,
    turns: int,
    first: int,
    last: int,
) -> None:
    """Swap in rows `first` to `last`, in place, up to `most_swaps` times a row or until a swap
    takes off less than its `least_gains`. Arrays are C-contiguous, and rows of `hessian` are padded
    with zeros to whole blocks.

    `group` is 0 where any two weights of a row may change places, and M for N:M. `gains` and
    `counts` get what was taken off and how many swaps it took. Inputs with an `inverse` of zero
    never come back.
    """
    width = len(hessian)
    blocks = hessian.shape[1] // LANES
    dtype = weight.dtype
    row = np.zeros(blocks * BLOCK, dtype)
    minima = np.zeros(2 * LANES, dtype)
    factors = np.zeros(2, dtype)
    zeros = np.zeros(1, dtype)
    starts = (np.arange(blocks) * LANES).astype(dtype)
    # Columns that are there for the padding alone never go and never come back.
    for j in range(blocks * LANES):
        row[place(j) + NO_REMOVAL] = NEVER
        row[place(j) + NO_RETURN] = NEVER
    for r in range(first, last):
        for j in range(width):
            here = place(j)
            row[here + WEIGHT] = weight[r, j]
            row[here + PULL] = pull[r, j]
            row[here + DIAGONAL] = hessian[j, j]
            row[here + INVERSE] = inverse[j]
            row[here + NO_REMOVAL] = 0 if kept[r, j] else NEVER
            row[here + NO_RETURN] = NEVER if kept[r, j] or inverse[j] == 0 else 0
        factors[:] = 0
        move(row, factors, hessian[0], hessian[0])
        while counts[r] < most_swaps:
            if group > 0:
                k, p, change = best_in_a_group(row, kept[r], group_hessian, group)
            else:
                k, p, change = best_pair(row, hessian, turns, zeros, starts, minima)
            if not change < -least_gains[r]:
                break
            gone = place(k)
            back = place(p)
            factors[0] = row[gone + WEIGHT]
            factors[1] = (
                -(row[back + PULL] + row[gone + WEIGHT] * hessian[p, k]) * row[back + INVERSE]
            )
            row[gone + WEIGHT] = 0
            row[back + WEIGHT] = -factors[1]
            row[gone + NO_REMOVAL] = NEVER
            row[gone + NO_RETURN] = NEVER if inverse[k] == 0 else 0
            row[back + NO_REMOVAL] = 0
            row[back + NO_RETURN] = NEVER
            kept[r, k] = False
            kept[r, p] = True
            move(row, factors, hessian[k], hessian[p])
            gains[r] -= change
            counts[r] += 1
        for j in range(width):
            weight[r, j] = row[place(j) + WEIGHT]
            pull[r, j] = row[place(j) + PULL]
