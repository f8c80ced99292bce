"""Swaps of kept and removed weights that bring the mean of each output back to what it was; rows
don't depend on each other. See `dsnot`.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROWS: Final = 512
"""Rows that are ordered at a time: an order takes eight bytes a weight, and there are four."""


@dataclass(frozen=True)
class Effects:
    """Of each weight: `means` is W·μ, what its output loses on average without it; `gains` W·μ/v,
    by which removed ones come back; `scores`, by which kept ones go, the lowest first.
    """

    means: Float[Tensor, "out in"]
    gains: Float[Tensor, "out in"]
    scores: Float[Tensor, "out in"]


@dataclass
class _Queue:
    """Weights of each row in the order in which their turn comes, and whose turn it is."""

    order: Int[Tensor, "row turn"]
    length: Int[Tensor, "row"]
    turn: Int[Tensor, "row"]

    @classmethod
    def of(cls, keys: Tensor, candidates: Tensor, most: int) -> "_Queue":
        """The candidates with the lowest keys first, as many as can be needed."""
        order = keys.where(candidates, torch.inf).argsort(dim=1, stable=True)[:, :most]
        length = candidates.sum(1).clamp_max(order.shape[1])
        return cls(order, length, torch.zeros_like(length))

    def next(self) -> tuple[Int[Tensor, "row"], Bool[Tensor, "row"]]:
        """Return whose turn it is in each row, and whether there is anyone."""
        at = self.turn.clamp_max(self.order.shape[1] - 1)
        return self.order.gather(1, at[:, None])[:, 0], self.turn < self.length

    def advance(self, rows: Bool[Tensor, "row"]) -> None:
        self.turn += rows


def swapped(
    effects: Effects, keep: Bool[Tensor, "out in"], swaps: int, tolerance: float, group: int = 0
) -> tuple[Bool[Tensor, "out in"], Int[Tensor, "out"]]:
    """Return the mask after at most `swaps` swaps a row, and how many each row took; `group` is
    M of N:M, whose groups keep their counts.
    """
    mask, counts = keep.clone(), torch.zeros(len(keep), dtype=torch.int64, device=keep.device)
    for top in range(0, len(keep), ROWS) if swaps else ():
        rows = slice(top, top + ROWS)
        part = Effects(effects.means[rows], effects.gains[rows], effects.scores[rows])
        counts[rows] = _swap(part, mask[rows], swaps, tolerance, group)
    return mask, counts


def _swap(effects: Effects, mask: Tensor, swaps: int, tolerance: float, group: int) -> Tensor:
    """Swap in place in these rows, and return how often."""
    means, scores, removed = effects.means, effects.scores, ~mask
    losing, gaining = means > 0, means < 0
    back = (
        _Queue.of(-effects.gains, removed & losing, swaps),
        _Queue.of(effects.gains, removed & gaining, swaps),
    )
    gone = _Queue.of(scores, mask & gaining, swaps), _Queue.of(scores, mask & losing, swaps)
    stays, lost = mask.clone(), means.masked_fill(mask, 0).sum(1)
    alive, counts = (
        torch.ones_like(lost, dtype=torch.bool),
        torch.zeros_like(lost, dtype=torch.int64),
    )
    for _ in range(swaps):
        above = lost > 0
        alive &= lost.abs() > tolerance
        if not bool(alive.any()):
            break
        grown, there = _either(above, *back)
        if group:
            dropped, free = _least_of_group(scores, stays, grown, group)
            ends = ~there
        else:
            dropped, free = _either(above, *gone)
            ends = ~(there & free)
        after = lost + _at(means, dropped) - _at(means, grown)
        swap = alive & there & free
        if group:
            ends |= free & (after * lost <= 0)
            swap &= ~ends
        _put(mask, grown, swap, True)
        _put(mask, dropped, swap, False)
        _put(stays, dropped, swap, False)
        lost = after.where(swap, lost)
        counts += swap
        for queue, rows in zip((*back, *gone), (above, ~above, above, ~above), strict=True):
            queue.advance(rows)
        alive &= ~ends
    return counts


def _either(first: Tensor, one: _Queue, other: _Queue) -> tuple[Tensor, Tensor]:
    """Whose turn it is, in the rows of `first` in the one queue, in all others in the other."""
    (a, there), (b, there_too) = one.next(), other.next()
    return a.where(first, b), there.where(first, there_too)


def _least_of_group(
    scores: Tensor, stays: Tensor, index: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """The weight of the lowest score in the group of `index` that hasn't been swapped, and
    whether there is one.
    """
    members = (index // group * group)[:, None] + torch.arange(group, device=index.device)
    free = stays.gather(1, members)
    least = scores.gather(1, members).where(free, torch.inf).argsort(dim=1, stable=True)[:, :1]
    return members.gather(1, least)[:, 0], free.any(1)


def _at(numbers: Tensor, index: Tensor) -> Tensor:
    return numbers.gather(1, index[:, None])[:, 0]


def _put(mask: Tensor, index: Tensor, rows: Tensor, value: bool) -> None:
    """Set one weight of each of these rows."""
    at = index[:, None]
    mask.scatter_(1, at, mask.gather(1, at).masked_fill(rows[:, None], value))
