"""Swaps: a kept weight and a removed one of a row change places where that makes the row's outputs
better (SparseSwaps, arXiv 2512.10922).

A row's loss is (w - v)ᵀH(w - v), as in `_gradients`. With its pull q = (w - v)H, removing v_k and
putting p back at its best value changes it by

    v_k(2q_k + v_k·H_kk) - (q_p + v_k·H_pk)² / H_pp,

which is exact. The paper puts the dense weight back. A swap changes the pull by two rows of H, so a
row is searched again at once.
"""

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.methods._elimination import by_rows
from calibrant.methods.pruning._gradients import Masked

ROWS_PER_THREAD: Final = 64
"""Rows worth another thread: a row takes about a tenth of a millisecond."""

TURNS: Final = 4
"""How often a better partner is sought, for one weight of a pair and then for the other."""

Search = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]
"""Swaps in place: (weight, pull, keep, hessian, least_gain [out], most, group) -> (gained [out],
counts [out]).

A row ends after `most` swaps, or when one would take off less than `least_gain` of its loss.
`gained` is what all of its swaps took off, `counts` how many they were.
"""


def swap(
    state: Masked,
    hessian: Float[Tensor, "in in"],
    most: int,
    tolerance: float,
    group: int = 0,
    search: Search | None = None,
    in_place: bool = False,
) -> tuple[Masked, Int[Tensor, "out"]]:
    """Return `state` after up to `most` swaps in each row, and how many each row took [out].

    A row ends where a swap would take off less than `tolerance` of the loss that it had. Rows keep
    as many weights as they have; with a `group` of columns (N:M) so does each group. `search`
    overrides the device's own. `state` is left as it was, or with `in_place` its weights and pull
    are written over.
    """
    if search is None:
        search = _in_rows if state.weight.device.type == "cpu" else _all_rows
    weight = state.weight.contiguous()
    pull = state.pull.contiguous()
    if not in_place:
        weight = weight.clone()
        pull = pull.clone()
    # Always a copy: a mask of the caller's mustn't change.
    keep = state.keep.clone(memory_format=torch.contiguous_format)
    # Below this the claimed change is as large as its rounding.
    rounding = 8 * torch.finfo(state.loss.dtype).eps
    least_gain = state.loss.clamp_min(0) * max(tolerance, rounding)
    gained, counts = search(weight, pull, keep, hessian.contiguous(), least_gain, most, group)
    return Masked(weight, keep, pull, state.loss - gained), counts


def _in_rows(
    weight: Tensor,
    pull: Tensor,
    keep: Tensor,
    hessian: Tensor,
    least_gain: Tensor,
    most: int,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Search on the CPU, in float32 or float64, row after row in a compiled kernel: a `Search`."""
    # The kernel adds up in float64 what many swaps take off.
    gained = torch.zeros_like(least_gain, dtype=torch.float64)
    counts = torch.zeros(len(weight), dtype=torch.int64)
    inverse = _inverse(hessian)
    group_hessian = hessian.new_zeros(1, 1)
    if group:
        # Of each column the numbers of H with those of its group, side by side [in, group].
        columns = torch.arange(len(hessian))
        group_starts = columns - columns % group
        members = group_starts[:, None] + torch.arange(group)
        group_hessian = hessian[columns[:, None], members].contiguous()
    kernel, lanes = _kernel()
    if len(hessian) % lanes:
        hessian = torch.nn.functional.pad(hessian, (0, -len(hessian) % lanes))
    parts = (weight, pull, keep, hessian, inverse, group_hessian, least_gain, gained, counts)
    arrays = [part.numpy() for part in parts]
    by_rows(kernel, len(weight), [*arrays, group, most, TURNS], ROWS_PER_THREAD)
    return gained.to(least_gain.dtype), counts


def _all_rows(
    weight: Tensor,
    pull: Tensor,
    keep: Tensor,
    hessian: Tensor,
    least_gain: Tensor,
    most: int,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Search on any device, one swap of all rows at a time: a `Search`. It compares the same
    pairs as the kernel, to the last turn.
    """
    gained = torch.zeros_like(least_gain)
    counts = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
    inverse = _inverse(hessian)
    for _ in range(most):
        if group:
            k, p, change = _group_pairs(weight, pull, keep, hessian, inverse, group)
        else:
            k, p, change = _pairs(weight, pull, keep, hessian, inverse)
        better = change < -least_gain
        if not bool(better.any()):
            break
        rows = better.nonzero()[:, 0]
        k = k[better]
        p = p[better]
        # The best value once k is gone, where the paper takes the dense one.
        value = (pull[rows, p] + weight[rows, k] * hessian[p, k]) * inverse[p]
        pull[rows] += weight[rows, k, None] * hessian[k] - value[:, None] * hessian[p]
        weight[rows, k] = 0
        weight[rows, p] = value
        keep[rows, k] = False
        keep[rows, p] = True
        gained[rows] -= change[better]
        counts[rows] += 1
    return gained, counts


def _pairs(
    weight: Tensor, pull: Tensor, keep: Tensor, hessian: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each row the weight to remove, the weight to put back, and the change of its loss,
    all [out]: the kernel's `best_pair` for all rows at once.
    """
    cost = _costs_of_going(weight, pull, keep, hessian)
    barred = keep | (inverse == 0)

    def best_to_come_back(k: Tensor) -> tuple[Tensor, Tensor]:
        """The change of the loss and the p that makes it least, with k gone."""
        removed = weight.gather(1, k[:, None])
        force = pull + removed * hessian[k]
        changes = -force.square() * inverse
        change, p = changes.masked_fill(barred, torch.inf).min(1)
        cost_of_k = cost.gather(1, k[:, None])[:, 0]
        return cost_of_k + change, p

    def best_to_go(p: Tensor) -> tuple[Tensor, Tensor]:
        """The change of the loss and the k that makes it least, with p back."""
        force = pull.gather(1, p[:, None]) + weight * hessian[p]
        changes = cost - force.square() * inverse[p, None]
        change, k = changes.min(1)
        return change, k

    k = cost.argmin(1)
    best, p = best_to_come_back(k)
    # In a row of which all or nothing is kept there is no pair.
    exists = best.isfinite()
    returning = (-pull.square() * inverse).masked_fill(barred, torch.inf).argmin(1)
    new_change, partner = best_to_go(returning)
    better = new_change < best
    # From the better of the two pairs on, a better partner is sought for either weight in turn.
    k = partner.where(better, k)
    p = returning.where(better, p)
    best = new_change.where(better, best)
    improving = torch.ones_like(better)
    next_is_k = ~better
    for _ in range(TURNS):
        by_coming_back, p_of_k = best_to_come_back(k)
        by_going, k_of_p = best_to_go(p)
        new_change = by_going.where(next_is_k, by_coming_back)
        improving = improving & (new_change < best)
        k = k_of_p.where(improving & next_is_k, k)
        p = p_of_k.where(improving & ~next_is_k, p)
        best = new_change.where(improving, best)
        next_is_k = ~next_is_k
    return k, p, best.where(exists, 0)


def _group_pairs(
    weight: Tensor, pull: Tensor, keep: Tensor, hessian: Tensor, inverse: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same within groups of columns: the kernel's `best_in_a_group` for all rows.

    All pairs are compared, those of one distance at a time; a distance goes round in its group.
    """
    columns = torch.arange(len(hessian), device=hessian.device)
    cost = _costs_of_going(weight, pull, keep, hessian)
    group_starts = columns - columns % group
    best = torch.zeros_like(cost[:, 0])
    k = torch.zeros(len(cost), dtype=torch.int64, device=cost.device)
    p = torch.zeros_like(k)
    for distance in range(1, group):
        partner = group_starts + (columns + distance) % group
        force = pull[:, partner] + weight * hessian[columns, partner]
        changes = cost - force.square() * inverse[partner]
        new_change, column = changes.masked_fill(keep[:, partner], torch.inf).min(1)
        better = new_change < best
        best = new_change.where(better, best)
        k = column.where(better, k)
        p = partner[column].where(better, p)
    return k, p, best


def _costs_of_going(weight: Tensor, pull: Tensor, keep: Tensor, hessian: Tensor) -> Tensor:
    """Return what it costs to remove each weight alone; infinity for one that is gone already."""
    costs = weight * (2 * pull + weight * hessian.diagonal())
    return costs.masked_fill(~keep, torch.inf)


def _inverse(hessian: Tensor) -> Tensor:
    diagonal = hessian.diagonal()
    # Zero for inputs that were never used: they would come back for nothing.
    return (1 / diagonal).where(diagonal > 0, 0).contiguous()


@cache
def _kernel() -> tuple[Callable[..., None], int]:
    """The kernel, and what widths it takes are multiples of. Imported at the first use: numba
    takes longer to import than listing methods may.
    """
    from calibrant.methods.pruning._swaps_kernel import LANES
    from calibrant.methods.pruning._swaps_kernel import swap as kernel

    return kernel, LANES
