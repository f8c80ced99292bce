"""What `refined` and `robust` share: their parameters, and swaps between two rounds of
gradients.
"""

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, Statistic
from calibrant.errors import SpecError
from calibrant.methods._base import MOST_DAMP, Compressed, MatrixMethod, StandIn, observed
from calibrant.methods.pruning._gradients import Masked, descend
from calibrant.methods.pruning._swaps import swap
from calibrant.methods.pruning.wanda import Wanda
from calibrant.spec import MOST_STEPS, check_most, text_of
from calibrant.targets import NofM, Removal, Target


@dataclass(frozen=True, repr=False)
class Refining(MatrixMethod, ABC):
    """Starts from the mask of another method, `start`, and goes on with swaps and gradients."""

    updates: ClassVar[bool] = True

    start: Any = Wanda()  # noqa: RUF009  # frozen; a MatrixMethod, anything else is refused in a sentence
    swaps: int = 50
    steps: int = 10
    rounds: int = 2
    damp: float = 0.01
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        name, start = self.spec_name(), self.start
        if not _removes(start):
            message = f"{name}(start={text_of(start)}): start is a method that removes weights matrix by matrix; write wanda, sparsegpt or magnitude"
            raise SpecError(message, subject="start")
        for parameter, value in (("swaps", self.swaps), ("steps", self.steps)):
            if value < 0:
                raise SpecError(
                    f"{name}({parameter}={value}): {parameter} must be 0 or more; 0 leaves that part out",
                    subject=parameter,
                )
        if self.rounds < 1:
            raise SpecError(
                f"{name}(rounds={self.rounds}): rounds must be 1 or more", subject="rounds"
            )
        if not (self.damp > 0 and math.isfinite(self.damp)):
            raise SpecError(
                f"{name}(damp={self.damp}): damp must be above 0; 0.01 is usual", subject="damp"
            )
        if not 0 <= self.tolerance < 1:
            message = f"{name}(tolerance={self.tolerance}): tolerance is a share of the loss, from 0 up to 1; 0 never ends early"
            raise SpecError(message, subject="tolerance")
        check_most(self, swaps=MOST_STEPS, steps=MOST_STEPS, rounds=MOST_STEPS, damp=MOST_DAMP)

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        # The default comes first, as a comparison that lists can read without importing torch.
        return (
            (Gram,)
            if self.start == Wanda()
            else (Gram,)
            if self._of_gram
            else tuple(dict.fromkeys((*self.start.observes, Gram)))
        )

    @property
    def _of_gram(self) -> bool:
        """Whether the Gram tells `start` all that it looks at: norms are its diagonal."""
        return {Gram, FeatureNorms} >= set(self.start.observes)

    def stand_in(self, target: Target) -> StandIn | None:
        # For mixtures statistics of one kind are added.
        if self._of_gram:
            return StandIn(self, target)
        return StandIn(
            replace(self, start=Wanda()),
            target,
            f"it starts from the mask of wanda, not of {self.start}",
        )

    def check(self, target: Target) -> None:
        super().check(target)
        self.start.check(target)

    def begun(self, dense: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Return what `start` makes of the matrix."""
        return self.start.compress(
            dense, Seen.of_gram(observed(seen, Gram)) if self._of_gram else seen, target
        )


def refine(
    at: Masked,
    hessian: Float[Tensor, "in in"],
    target: Target,
    swaps: int,
    steps: int,
    rounds: int,
    tolerance: float,
) -> tuple[Masked, Mapping[str, float]]:
    """Fit what is kept and swap, `rounds` times by turns, and fit again: `swaps` of each row and
    `steps` of all are divided among the rounds.

    As many weights stay in each row, and for N:M in each group. With the matrix go the shares of
    its loss that steps (`fitted`) and swaps (`swapped`) took off, and how many `swaps` there were
    in the mean row.
    """
    group, turns = target.m if isinstance(target, NofM) else 0, min(rounds, swaps)
    whole, fitted, swapped, count = _total(at), 0.0, 0.0, 0.0
    for turn in range(turns + 1):
        before = _total(at)
        at = descend(
            at, hessian, share_of_round(steps, turns + 1, turn), tolerance, in_place=turn > 0
        )
        between = _total(at)
        fitted += before - between
        if turn < turns:
            at, counts = swap(
                at, hessian, share_of_round(swaps, turns, turn), tolerance, group, in_place=True
            )
            swapped, count = swapped + between - _total(at), count + float(counts.double().mean())
    shares = (
        {"fitted": fitted / whole, "swapped": swapped / whole}
        if whole > 0
        else {"fitted": 0.0, "swapped": 0.0}
    )
    return at, {
        **{part: float(f"{share:.6g}") for part, share in shares.items()},
        "swaps": round(count, 2),
    }


def share_of_round(count: int, parts: int, number: int) -> int:
    """Return how much of `count` the part `number` (from 0) gets of so many: as equal as can be.

    >>> [share_of_round(10, 4, number) for number in range(4)]
    [2, 3, 2, 3]
    """
    return count * (number + 1) // parts - count * number // parts


def _total(at: Masked) -> float:
    return float(at.loss.double().sum())


def _removes(start: object) -> bool:
    """Whether it is a method that removes weights, and does so matrix by matrix and in no other
    way.
    """
    if (
        not isinstance(start, MatrixMethod)
        or not start.prunes
        or not any(issubclass(kind, Removal) for kind in start.accepts)
    ):
        return False
    return type(start).arrivals is MatrixMethod.arrivals and type(start).edits is MatrixMethod.edits
