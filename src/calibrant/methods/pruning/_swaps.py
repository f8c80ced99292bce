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
"""Swaps in place: (weight, pull, keep, hessian, least [out], most, group) -> (gained [out],
counts [out]).
"""


def swap(
    at: Masked,
    hessian: Float[Tensor, "in in"],
    most: int,
    tolerance: float,
    group: int = 0,
    search: Search | None = None,
    in_place: bool = False,
) -> tuple[Masked, Int[Tensor, "out"]]:
    """Swap up to `most` times in each row, and no more where a swap would take off less than
    `tolerance` of the loss that the row had.

    Rows keep as many weights as they have; with a `group` of columns (N:M) so does each group.
    `search` overrides the device's own. Returned are the matrix after it, and how many swaps each
    row had; `at` is left as it was, or with `in_place` its weights and pull are written over.
    """
    search = search or (_in_rows if at.weight.device.type == "cpu" else _all_rows)
    weight, pull, keep = (
        t.contiguous() if in_place else t.clone(memory_format=torch.contiguous_format)
        for t in (at.weight, at.pull, at.keep)
    )
    keep = keep.clone() if in_place else keep
    # Below this the claimed change is as large as its rounding.
    least = at.loss.clamp_min(0) * max(tolerance, 8 * torch.finfo(at.loss.dtype).eps)
    gained, counts = search(weight, pull, keep, hessian.contiguous(), least, most, group)
    return Masked(weight, keep, pull, at.loss - gained), counts


def _in_rows(
    weight: Tensor,
    pull: Tensor,
    keep: Tensor,
    hessian: Tensor,
    least: Tensor,
    most: int,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Search on the CPU, in float32 or float64, row after row in a compiled kernel: a `Search`."""
    gained, counts = (
        torch.zeros_like(least, dtype=torch.float64),
        torch.zeros(len(weight), dtype=torch.int64),
    )
    inverse = _inverse(hessian)
    near = hessian.new_zeros(1, 1)
    if group:
        columns = torch.arange(len(hessian))
        near = hessian[columns[:, None], (columns - columns % group)[:, None] + torch.arange(group)]
    kernel, lanes = _kernel()
    padded = (
        torch.nn.functional.pad(hessian, (0, -len(hessian) % lanes))
        if len(hessian) % lanes
        else hessian
    )
    arrays = [t.numpy() for t in (weight, pull, keep, padded, inverse, near.contiguous())]
    results = [t.numpy() for t in (least, gained, counts)]
    by_rows(
        len(weight),
        lambda first, last: kernel(*arrays, group, *results, most, TURNS, first, last),
        ROWS_PER_THREAD,
    )
    return gained.to(least.dtype), counts


def _all_rows(
    weight: Tensor,
    pull: Tensor,
    keep: Tensor,
    hessian: Tensor,
    least: Tensor,
    most: int,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Search on any device, one swap of all rows at a time: a `Search`. It compares the same
    pairs as the kernel, to the last turn.
    """
    gained, counts = (
        torch.zeros_like(least),
        torch.zeros(len(weight), dtype=torch.int64, device=weight.device),
    )
    rows, inverse = torch.arange(len(weight), device=weight.device), _inverse(hessian)
    for _ in range(most):
        k, p, change = (
            _group_pairs(weight, pull, keep, hessian, inverse, group)
            if group
            else _pairs(weight, pull, keep, hessian, inverse)
        )
        better = change < -least
        if not bool(better.any()):
            break
        r, k, p = rows[better], k[better], p[better]
        value = (pull[r, p] + weight[r, k] * hessian[p, k]) * inverse[p]
        pull[r] += weight[r, k, None] * hessian[k] - value[:, None] * hessian[p]
        weight[r, k], weight[r, p] = 0, value
        keep[r, k], keep[r, p] = False, True
        gained[r] -= change[better]
        counts[r] += 1
    return gained, counts


def _pairs(
    weight: Tensor, pull: Tensor, keep: Tensor, hessian: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's weight to remove, weight to put back, and the change of its loss: the kernel's
    `best_pair` for all rows at once.
    """
    cost = (weight * (2 * pull + weight * hessian.diagonal())).masked_fill(~keep, torch.inf)
    shut = keep | (inverse == 0)

    def for_k(k: Tensor) -> tuple[Tensor, Tensor]:
        removed = weight.gather(1, k[:, None])
        changes = -(pull + removed * hessian[k]).square() * inverse
        change, p = changes.masked_fill(shut, torch.inf).min(1)
        return cost.gather(1, k[:, None])[:, 0] + change, p

    def for_p(p: Tensor) -> tuple[Tensor, Tensor]:
        changes = (
            cost - (pull.gather(1, p[:, None]) + weight * hessian[p]).square() * inverse[p, None]
        )
        change, k = changes.min(1)
        return change, k

    k = cost.argmin(1)
    best, p = for_k(k)
    exists = best.isfinite()  # of a row of which all or nothing is kept there is no pair
    other = (-pull.square() * inverse).masked_fill(shut, torch.inf).argmin(1)
    found, at = for_p(other)
    first = found < best
    k, p, best = at.where(first, k), other.where(first, p), found.where(first, best)
    going, next_is_k = torch.ones_like(first), ~first
    for _ in range(TURNS):
        (by_k, p_of_k), (by_p, k_of_p) = for_k(k), for_p(p)
        found = by_p.where(next_is_k, by_k)
        going = going & (found < best)
        k, p = k_of_p.where(going & next_is_k, k), p_of_k.where(going & ~next_is_k, p)
        best, next_is_k = found.where(going, best), ~next_is_k
    return k, p, best.where(exists, 0)


def _group_pairs(
    weight: Tensor, pull: Tensor, keep: Tensor, hessian: Tensor, inverse: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same within groups of columns: all pairs are compared, those of a distance at a time."""
    columns = torch.arange(len(hessian), device=hessian.device)
    cost = (weight * (2 * pull + weight * hessian.diagonal())).masked_fill(~keep, torch.inf)
    best, k, p = (
        torch.zeros_like(cost[:, 0]),
        *torch.zeros(2, len(cost), dtype=torch.int64, device=cost.device),
    )
    for distance in range(1, group):
        partner = columns - columns % group + (columns + distance) % group
        changes = (
            cost
            - (pull[:, partner] + weight * hessian[columns, partner]).square() * inverse[partner]
        )
        found, at = changes.masked_fill(keep[:, partner], torch.inf).min(1)
        better = found < best
        best, k, p = found.where(better, best), at.where(better, k), partner[at].where(better, p)
    return k, p, best


def _inverse(hessian: Tensor) -> Tensor:
    diagonal = hessian.diagonal()
    return (1 / diagonal).where(diagonal > 0, 0).contiguous()


@cache
def _kernel() -> tuple[Callable[..., None], int]:
    """The kernel, and what widths it takes are multiples of. Imported at the first use: numba
    takes longer to import than listing methods may.
    """
    from calibrant.methods.pruning._swaps_kernel import LANES
    from calibrant.methods.pruning._swaps_kernel import swap as kernel

    return kernel, LANES
