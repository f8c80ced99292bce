"""The swaps of a row, compiled. Importing this imports numba, which takes longer than listing methods may.

A row is its weights, which of them are kept, and its pull (w - v)H, the way in which the loss wants each weight to go. Removing a kept weight v_k
costs v_k(2·pull_k + v_k·H_kk). Putting back p at its best value then takes off (pull_p + v_k·H_pk)²/H_pp. Every loop over a row's columns is in
lanes of neighbours, without a branch, so that a pass takes a few hundred nanoseconds.
"""

from typing import Any, Final

import numpy as np

from calibrant.compiling import compiled

LANES: Final = 64
"""Columns that are compared at once; rows are padded to a multiple of it."""

NEVER: Final = 1e30
"""What a choice costs that must not be made."""


@compiled
def lowest(values: Any, low: Any, where: Any) -> int:
    """Return where the lowest value is, the first of equal ones; `low` and `where` are scratch of `LANES` numbers."""
    for lane in range(LANES):
        low[lane] = values[lane]
        where[lane] = 0
    for at in range(LANES, len(values), LANES):
        for lane in range(LANES):
            lower = values[at + lane] < low[lane]
            low[lane] = values[at + lane] if lower else low[lane]
            where[lane] = at if lower else where[lane]
    best = 0
    for lane in range(1, LANES):
        if low[lane] < low[best] or (low[lane] == low[best] and where[lane] + lane < where[best] + best):
            best = lane
    return where[best] + best


@compiled
def costs(weight: Any, pull: Any, barred: Any, diagonal: Any, out: Any) -> None:
    """What it costs to remove each kept weight."""
    for j in range(len(pull)):
        out[j] = weight[j] * (2 * pull[j] + weight[j] * diagonal[j]) + barred[j]


@compiled
def returns(pull: Any, inverse: Any, barred: Any, out: Any) -> None:
    """What the loss changes by when a removed weight comes back at its best value."""
    for j in range(len(pull)):
        out[j] = barred[j] - pull[j] * pull[j] * inverse[j]


@compiled
def returns_after(pull: Any, inverse: Any, barred: Any, removed: float, across: Any, out: Any) -> None:
    """The same, once a weight of value `removed` is gone whose row of H is `across`."""
    for j in range(len(across)):
        to = pull[j] + removed * across[j]
        out[j] = barred[j] - to * to * inverse[j]


@compiled
def changes(cost: Any, weight: Any, pull: float, inverse: float, across: Any, out: Any) -> None:
    """What the loss changes by when each kept weight goes and one comes back that is pulled by `pull`; `across` is its row of H."""
    for j in range(len(across)):
        to = pull + weight[j] * across[j]
        out[j] = cost[j] - to * to * inverse


@compiled
def move(pull: Any, by: float, across: Any) -> None:
    for j in range(len(across)):
        pull[j] += by * across[j]


@compiled
def best_pair(
    weight: Any,
    pull: Any,
    gone: Any,
    stays: Any,
    diagonal: Any,
    inverse: Any,
    hessian: Any,
    turns: int,
    cost: Any,
    change: Any,
    low: Any,
    where: Any,
) -> Any:
    """Return which weight should go, which should come back, and how much that changes the loss.

    Of all pairs only these are compared: the cheapest weight to remove with every one that may come back, the best one to come back with every
    one that may go, and from the better of the two on, in `turns`, a better partner for either. So the change is exact, and the pair nearly the best.
    """
    costs(weight, pull, gone, diagonal, cost)
    k = lowest(cost, low, where)
    returns_after(pull, inverse, stays, weight[k], hessian[k], change)
    p = lowest(change, low, where)
    best = cost[k] + change[p]
    if not best < NEVER / 2:
        return k, p, best  # all or nothing is kept
    returns(pull, inverse, stays, change)
    other = lowest(change, low, where)
    changes(cost, weight, pull[other], inverse[other], hessian[other], change)
    at = lowest(change, low, where)
    next_is_k = not change[at] < best
    if not next_is_k:
        k, p, best = at, other, change[at]
    for _ in range(turns):
        if next_is_k:
            changes(cost, weight, pull[p], inverse[p], hessian[p], change)
            at = lowest(change, low, where)
            found = change[at]
        else:
            returns_after(pull, inverse, stays, weight[k], hessian[k], change)
            at = lowest(change, low, where)
            found = cost[k] + change[at]
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
def best_in_a_group(weight: Any, pull: Any, kept: Any, diagonal: Any, inverse: Any, near: Any, group: int) -> Any:
    """Return the same for N:M, of all pairs within a group of `group` columns; `near[j, b]` is H of column j and the b-th one of its group."""
    k, p, best = 0, 0, 0.0
    for j in range(len(kept)):
        if not kept[j]:
            continue
        start = j - j % group
        cost = weight[j] * (2 * pull[j] + weight[j] * diagonal[j])
        for b in range(group):
            to = pull[start + b] + weight[j] * near[j, b]
            change = cost - to * to * inverse[start + b]
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
    """Swap in rows `first` to `last`, in place, up to `most` times a row or until a swap takes off less than `least`; arrays are C-contiguous.

    `group` is 0 where any two weights of a row may change places, and M for N:M. `gained` and `counts` get what was taken off and how many swaps
    it took. Inputs with an `inverse` of zero never come back.
    """
    n = len(hessian)
    padded = (n + LANES - 1) // LANES * LANES
    dtype = weight.dtype
    w, q, h, inv = np.zeros(padded, dtype), np.zeros(padded, dtype), np.zeros(padded, dtype), np.zeros(padded, dtype)
    gone, stays = np.full(padded, NEVER, dtype), np.full(padded, NEVER, dtype)
    cost, change, low, where = np.full(padded, NEVER, dtype), np.full(padded, NEVER, dtype), np.zeros(LANES, dtype), np.zeros(LANES, np.int32)
    for j in range(n):
        h[j], inv[j] = hessian[j, j], inverse[j]
    for r in range(first, last):
        for j in range(n):
            w[j], q[j] = weight[r, j], pull[r, j]
            gone[j] = 0 if kept[r, j] else NEVER
            stays[j] = NEVER if kept[r, j] or inv[j] == 0 else 0
        while counts[r] < most:
            if group > 0:
                k, p, by = best_in_a_group(w, q, kept[r], h, inv, near, group)
            else:
                k, p, by = best_pair(w, q, gone, stays, h, inv, hessian, turns, cost, change, low, where)
            if not by < -least[r]:
                break
            value = (q[p] + w[k] * hessian[p, k]) * inv[p]
            move(q, w[k], hessian[k])
            move(q, -value, hessian[p])
            w[k], w[p] = 0, value
            gone[k], stays[k], gone[p], stays[p] = NEVER, (NEVER if inv[k] == 0 else 0), 0, NEVER
            kept[r, k], kept[r, p] = False, True
            gained[r] -= by
            counts[r] += 1
        for j in range(n):
            weight[r, j], pull[r, j] = w[j], q[j]
