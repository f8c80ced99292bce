"""DSnoT: another mask with the mean of each output put right, weights unchanged, for wide
matrices (Zhang et al. 2023, arXiv 2310.08915).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calibrant.activations import FeatureMoments, FeatureNorms, Seen, Statistic, wide
from calibrant.errors import SpecError
from calibrant.methods._base import (
    MOST_DAMP,
    Compressed,
    MatrixMethod,
    StandIn,
    check_least,
    finite,
    observed,
    prune,
    standing_in,
)
from calibrant.methods.pruning.wanda import Wanda
from calibrant.numerics import six_digits
from calibrant.spec import MOST_STEPS, check_most, text_of
from calibrant.system.products import exact
from calibrant.targets import NofM, Removal, Target

ROWS: Final = 512
"""Rows that are ordered at a time: an order takes eight bytes a weight, and there are four
orders.
"""


@dataclass(frozen=True, repr=False)
class DSnoT(MatrixMethod):
    """Swaps weights of another method's mask until the mean of each output is what it was; changes
    no weight that stays, and costs next to nothing.

    What an output loses on average is ε = Σ W_oi·μ_i over its removed weights, with μ the mean of
    an input and v its variance. While |ε| is above `tolerance`, at most `swaps` times a row: the
    removed weight with the largest W_oi·μ_i/v_i of the sign of ε comes back, and of the kept ones
    with W_oi·μ_i of the other sign that with the least |W_oi|·‖x_i‖₂ goes. Each weight is swapped
    once at most. For N:M the one that goes is the least of the same group, of either sign, and a
    row ends before ε would change its sign. `start` makes the first mask: a method that looks at
    nothing but the sizes of inputs.

    Differs from the paper's code in: ε is that of a token, where the code sums over a sequence, so
    its 0.1 is 5e-5 for 2,048 tokens; all matrices are refined, where the code leaves feed-forward
    networks alone by default; a row ends when nothing of the right sign is left to swap.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms, FeatureMoments)
    copies_elsewhere: ClassVar[int] = 9

    start: Any = Wanda()  # noqa: RUF009  # frozen; `__post_init__` refuses what is no MatrixMethod
    swaps: int = 50
    tolerance: float = 5e-5

    def __post_init__(self) -> None:
        start = self.start
        removes = isinstance(start, MatrixMethod) and start.prunes and Removal in start.accepts
        if not removes or start.updates or not {FeatureNorms} >= set(start.observes):
            needs = "it starts from a mask that needs no more than the sizes of inputs"
            message = f"dsnot(start={text_of(start)}): {needs}; write wanda, ria or magnitude"
            raise SpecError(message, subject="start")
        check_least(self, swaps=0)
        if not (self.tolerance >= 0 and math.isfinite(self.tolerance)):
            allowed = "tolerance must be 0 or more; 5e-5 is the paper's"
            raise SpecError(f"dsnot(tolerance={self.tolerance}): {allowed}", subject="tolerance")
        check_most(self, swaps=MOST_STEPS, tolerance=MOST_DAMP)

    def stand_in(self, target: Target) -> StandIn | None:
        # A start that looks at nothing says nothing about mixtures.
        if not self.start.looks:
            return None
        return standing_in(self.start, target, f"{self.start}, without the swaps")

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: how many `swaps` there were a row, and the mean |ε| `before` and `after` them.

        Raises `NumericsError` for a weight or statistic that isn't finite or if no token arrived,
        `TargetError` if `target` doesn't fit.
        """
        self.check(target)
        dtype = wide(weight.dtype)
        moments = observed(seen, FeatureMoments)
        norms = finite(observed(seen, FeatureNorms).norms(), "the squared norms of the inputs")
        # In float32 or better: the terms of ε cancel each other.
        checked = finite(weight, "the weight").to(dtype).contiguous()
        keep = self.start.compress(weight, seen, target).weight != 0
        means = checked * moments.means().to(dtype)
        gains = means / moments.variances().to(dtype)
        effects = Effects(means, gains, checked.abs() * norms.sqrt().to(dtype))
        group = target.m if isinstance(target, NofM) else 0
        mask, counts = swapped(effects, keep, self.swaps, self.tolerance, group)
        notes = {
            "swaps": _mean(counts),
            "before": _mean_loss(means, keep),
            "after": _mean_loss(means, mask),
        }
        return Compressed(prune(weight, mask), notes, only_removes=True)


def _mean_loss(means: Float[Tensor, "out in"], keep: Bool[Tensor, "out in"]) -> float:
    """Return the mean over outputs of |ε|, what each loses on average."""
    return _mean(exact(means.masked_fill(keep, 0)).sum(1).abs())


def _mean(numbers: Tensor) -> float:
    return six_digits(float(exact(numbers).mean()))


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
        """Return the candidates of each row in the order of their keys, the lowest first; `most` of
        them are enough.
        """
        candidates_first = keys.where(candidates, torch.inf).argsort(dim=1, stable=True)
        order = candidates_first[:, :most]
        length = candidates.sum(1).clamp_max(order.shape[1])
        return cls(order, length, torch.zeros_like(length))

    def next(self) -> tuple[Int[Tensor, "row"], Bool[Tensor, "row"]]:
        """Return whose turn it is in each row, and in which rows there is still one."""
        turn = self.turn.clamp_max(self.order.shape[1] - 1)
        return _at(self.order, turn), self.turn < self.length


def swapped(
    effects: Effects, keep: Bool[Tensor, "out in"], swaps: int, tolerance: float, group: int = 0
) -> tuple[Bool[Tensor, "out in"], Int[Tensor, "out"]]:
    """Return the mask after at most `swaps` swaps a row, and how many each row took; `group` is
    M of N:M, whose groups keep their counts.
    """
    mask = keep.clone()
    counts = torch.zeros(len(keep), dtype=torch.int64, device=keep.device)
    if not swaps:
        return mask, counts
    for first in range(0, len(keep), ROWS):
        rows = slice(first, first + ROWS)
        part = Effects(effects.means[rows], effects.gains[rows], effects.scores[rows])
        counts[rows] = _swap(part, mask[rows], swaps, tolerance, group)
    return mask, counts


def _swap(effects: Effects, mask: Tensor, swaps: int, tolerance: float, group: int) -> Tensor:
    """Swap in the `mask` of these rows, in place, and return how often in each [row]."""
    means = effects.means
    losing = means > 0
    gaining = means < 0
    # While a row has lost too much, a removed weight that was losing comes back, and a kept one
    # that is gaining goes; the other way round where it has lost too little.
    returning_above = _Queue.of(-effects.gains, ~mask & losing, swaps)
    returning_below = _Queue.of(effects.gains, ~mask & gaining, swaps)
    # Of N:M the least of the group goes, whether it is gaining or losing.
    leaving_queues: tuple[_Queue, _Queue] | None = None
    if not group:
        leaving_queues = (
            _Queue.of(effects.scores, mask & gaining, swaps),
            _Queue.of(effects.scores, mask & losing, swaps),
        )
    unswapped = mask.clone()
    lost = means.masked_fill(mask, 0).sum(1)
    active = torch.ones_like(lost, dtype=torch.bool)
    counts = torch.zeros_like(lost, dtype=torch.int64)
    for _ in range(swaps):
        above = lost > 0
        active &= lost.abs() > tolerance
        if not bool(active.any()):
            break
        returning, can_return = _either(above, returning_above, returning_below)
        if leaving_queues is None:
            leaving, can_leave = _least_of_group(effects.scores, unswapped, returning, group)
        else:
            leaving, can_leave = _either(above, *leaving_queues)
        # Not summed anew: by a swap, what a row lost changes by two weights.
        after = lost + _at(means, leaving) - _at(means, returning)
        can_swap = can_return & can_leave
        if group:
            # Where no weight of the group can leave, the next one's turn comes; a change of sign
            # ends the row.
            changes_sign = after * lost <= 0
            ends = ~can_return | (can_leave & changes_sign)
        else:
            ends = ~can_swap
        swap = active & can_swap & ~ends
        _put(mask, returning, swap, True)
        _put(mask, leaving, swap, False)
        _put(unswapped, leaving, swap, False)
        lost = after.where(swap, lost)
        counts += swap
        active &= ~ends
    return counts


def _either(first: Tensor, queue: _Queue, other: _Queue) -> tuple[Tensor, Tensor]:
    """Return whose turn it is, and where there is one: in the rows of `first` from `queue`, in all
    others from the `other`. The turn is over then.
    """
    index, available = queue.next()
    other_index, other_available = other.next()
    # Rows that ended go on in their queues too, which changes nothing in them.
    queue.turn += first
    other.turn += ~first
    return index.where(first, other_index), available.where(first, other_available)


def _least_of_group(
    scores: Tensor, unswapped: Tensor, index: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """Return of each row the weight of the lowest score in the group of `index` that is kept and
    was never swapped, and whether there is one.
    """
    group_starts = index // group * group
    members = group_starts[:, None] + torch.arange(group, device=index.device)
    can_leave = unswapped.gather(1, members)
    member_scores = scores.gather(1, members).where(can_leave, torch.inf)
    # Sorted, since of equal scores `min` may give any.
    least = member_scores.argsort(dim=1, stable=True)[:, 0]
    return _at(members, least), can_leave.any(1)


def _at(numbers: Tensor, index: Tensor) -> Tensor:
    """Return the number of each row in the column that `index` [row] has for it."""
    return numbers.gather(1, index[:, None])[:, 0]


def _put(mask: Tensor, index: Tensor, rows: Tensor, value: bool) -> None:
    """Set the column that `index` has for it in each of these rows, in place."""
    places = index[:, None]
    values = mask.gather(1, places).masked_fill(rows[:, None], value)
    mask.scatter_(1, places, values)
