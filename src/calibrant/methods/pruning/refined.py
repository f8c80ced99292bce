"""Refined: swaps weights of wanda's mask and fits those that stay; the least loss for its effort
(SparseSwaps, arXiv 2512.10922).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, Statistic, wide
from calibrant.errors import SpecError
from calibrant.methods._base import (
    MOST_DAMP,
    Compressed,
    MatrixMethod,
    StandIn,
    check_least,
    check_positive,
    finite,
    observed,
    removes,
)
from calibrant.methods.pruning._gradients import Masked, damped, descend, masked
from calibrant.methods.pruning._swaps import swap
from calibrant.methods.pruning.wanda import Wanda
from calibrant.numerics import six_digits
from calibrant.spec import MOST_STEPS, check_most, text_of
from calibrant.system.products import exact
from calibrant.targets import NofM, Target


@dataclass(frozen=True, repr=False)
class Refined(MatrixMethod):
    """Takes another method's mask, swaps weights where that brings the outputs nearer to the dense
    ones, and fits those that are kept.

    A row's loss is (w - v)ᵀH(w - v), with H = Gram/mass + λI, λ = `damp` · mean diagonal. In each
    of `rounds` conjugate gradients fit the kept weights; then a kept weight and a removed one of a
    row change places, again and again, the pair that takes most off the loss, exactly computed. In
    the end the weights are fitted once more. `swaps` of each row and `steps` of the gradients are
    those of all rounds together. Swaps stay within a row, and for N:M within a group, so counts are
    those of `start`. They end early when one takes off less than `tolerance` of the row's loss.
    Steps end when one takes off so little of the loss of the rows that step together: 192 on a
    processor, all on a device.

    Differs from SparseSwaps in: a weight comes back at its best value instead of the dense one;
    weights are fitted before and after; of all pairs only the most promising are compared
    (`_swaps_kernel.best_pair`), for N:M all. From sparsegpt's mask (`start=sparsegpt`) errors of
    matrices end smaller, and the loss of the model larger.

    >>> Refined(swaps=25)
    refined(swaps=25)
    """

    copies_elsewhere: ClassVar[int] = 13
    updates: ClassVar[bool] = True

    start: Any = Wanda()  # noqa: RUF009  # frozen; `__post_init__` refuses what is no MatrixMethod
    swaps: int = 50
    steps: int = 10
    rounds: int = 2
    damp: float = 0.01
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        name = self.spec_name()
        if not removes(self.start):
            needs = "start is a method that removes weights matrix by matrix"
            message = f"{name}(start={text_of(self.start)}): {needs}"
            raise SpecError(f"{message}; write wanda, sparsegpt or magnitude", subject="start")
        check_least(self, swaps=0, steps=0, rounds=1)
        check_positive(self, damp="0.01 is usual")
        if not 0 <= self.tolerance < 1:
            allowed = "tolerance is a share of the loss, from 0 up to 1; 0 never ends early"
            message = f"{name}(tolerance={self.tolerance}): {allowed}"
            raise SpecError(message, subject="tolerance")
        check_most(self, swaps=MOST_STEPS, steps=MOST_STEPS, rounds=MOST_STEPS, damp=MOST_DAMP)

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        # The default comes first, as a comparison that lists can read without importing torch.
        if self.start == Wanda() or self._of_gram:
            return (Gram,)
        return tuple(dict.fromkeys((*self.start.observes, Gram)))

    @property
    def _of_gram(self) -> bool:
        """Whether the Gram tells `start` all that it looks at: norms are its diagonal."""
        return {Gram, FeatureNorms} >= set(self.start.observes)

    def stand_in(self, target: Target) -> StandIn | None:
        # A prediction adds the Grams of a mixture's sets, so all must follow from a Gram.
        if self._of_gram:
            return StandIn(self, target)
        differs = f"it starts from the mask of wanda, not of {self.start}"
        return StandIn(replace(self, start=Wanda()), target, differs)

    def check(self, target: Target) -> None:
        super().check(target)
        self.start.check(target)

    def started(self, dense: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Return what `start` makes of the matrix."""
        if self._of_gram:
            seen = Seen.of_gram(observed(seen, Gram))
        return self.start.compress(dense, seen, target)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: those of `start`, and the shares of its loss that gradients (`fitted`) and swaps
        (`swapped`) took off; `swaps` of the mean row.

        Raises `NumericsError` for a weight or Gram that isn't finite, or if no token arrived;
        `TargetError` for a target that `start` doesn't accept or that doesn't fit the shape.
        """
        self.check(target)
        gram = observed(seen, Gram)
        dense = finite(weight, "the weight").to(wide(weight.dtype))
        started = self.started(dense, seen, target)
        hessian = damped(gram, self.damp).to(dense.dtype)
        state = masked(dense, started.weight, started.weight != 0, hessian)
        refined, notes = refine(
            state, hessian, target, self.swaps, self.steps, self.rounds, self.tolerance
        )
        result = finite(refined.weight.to(weight.dtype), "the refined weight")
        return Compressed(result, {**started.notes, **notes})


def refine(
    state: Masked,
    hessian: Float[Tensor, "in in"],
    target: Target,
    swaps: int,
    steps: int,
    rounds: int,
    tolerance: float,
) -> tuple[Masked, Mapping[str, float]]:
    """Fit what is kept and swap, `rounds` times by turns, and fit again: `swaps` of each row and
    `steps` of all are divided among the rounds.

    As many weights stay in each row, and for N:M in each group. Returned are the matrix, and notes:
    the shares of its loss that steps (`fitted`) and swaps (`swapped`) took off, and how many
    `swaps` there were in the mean row.
    """
    group = target.m if isinstance(target, NofM) else 0
    # A round without a swap would be steps alone.
    turns = min(rounds, swaps)
    initial_loss = _total(state)
    fitted = 0.0
    swapped = 0.0
    swaps_of_mean_row = 0.0
    # Gradients come first and last: swaps are judged by fitted weights.
    for turn in range(turns + 1):
        before = _total(state)
        round_steps = count_of_round(steps, turns + 1, turn)
        # Only the first call must leave the caller's matrices alone.
        state = descend(state, hessian, round_steps, tolerance, in_place=turn > 0)
        between = _total(state)
        fitted += before - between
        if turn < turns:
            round_swaps = count_of_round(swaps, turns, turn)
            state, counts = swap(state, hessian, round_swaps, tolerance, group, in_place=True)
            swapped = swapped + between - _total(state)
            swaps_of_mean_row += float(exact(counts).mean())
    notes = {"fitted": 0.0, "swapped": 0.0, "swaps": round(swaps_of_mean_row, 2)}
    if initial_loss > 0:
        notes["fitted"] = six_digits(fitted / initial_loss)
        notes["swapped"] = six_digits(swapped / initial_loss)
    return state, notes


def count_of_round(count: int, parts: int, number: int) -> int:
    """Return how much of `count` the part `number`, from 0, gets of so many: as equal as can be.

    >>> [count_of_round(10, 4, number) for number in range(4)]
    [2, 3, 2, 3]
    """
    return count * (number + 1) // parts - count * number // parts


def _total(state: Masked) -> float:
    return float(exact(state.loss).sum())
