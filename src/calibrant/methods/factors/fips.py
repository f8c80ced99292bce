"""FiPS: feed-forward networks of neighbouring blocks share a dense factor, and each matrix has a
sparse one (Üyük et al. 2024, arXiv 2411.09816).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from calibrant.activations import Gram, Statistic
from calibrant.errors import SpecError
from calibrant.methods._base import MOST_PARTS, check_least
from calibrant.methods.factors._factors import Factored, Member, alternated
from calibrant.methods.factors._sharing import (
    Budget,
    FactorSizes,
    Sharer,
    Sharing,
    grouped,
    networks,
)
from calibrant.models import ModelView
from calibrant.spec import MOST_STEPS, check_most
from calibrant.spec.foreign import brief

MOST_RANK: Final = 1_000_000
"""No model is as wide."""


@dataclass(frozen=True, repr=False)
class FiPS(Sharing):
    """Replaces the matrices of the feed-forward networks of `group` neighbouring blocks by products
    UV: U is dense and shared by all of them, each has a sparse V. Both are fitted to what the
    matrices give on the calibration data.

    `numbers 0.2`, or 0.2, lets the numbers of all U and V together be a fifth fewer than those of
    the matrices. The `rank` is that of U, by default the width of the stream; what U leaves of the
    budget are the numbers of the V, as large a share of each. With a `density` in place of a rank,
    that is the share of each V that stays, and the rank follows. `indices` lets the budget count
    where the numbers of V are, a bit for each place; else it counts numbers alone. The notes say
    what remains either way (`left`, `left_with_indices`).

    From the paper: the concatenation of a group's matrices, U from their truncated singular value
    decomposition, the error of outputs Σ‖(W - UV)X‖², gradual sparsity on V alone. Inferred, since
    the paper's code wasn't read: that matrices which read the residual stream share transposed.
    Differs from it: instead of gradient descent on kept activations, U and the V take turns of
    conjugate gradients (`rounds` of `steps`) on the exact error, from Grams with `damp` · mean
    diagonal added; numbers of V go by what they are worth to the outputs, not by size, and may come
    back; errors count as a share of each matrix's outputs; all V of a group are as sparse; there is
    no fine-tuning. `aware=false` fits the weights themselves, without data. `distant` groups blocks
    that lie as far apart as they can, to see what neighbourhood is worth.
    """

    updates: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    group: int = 2
    rank: int | None = None
    density: float | int | None = None
    indices: bool = False
    distant: bool = False
    aware: bool = True
    rounds: int = 8
    steps: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, group=1, rank=1, rounds=1, steps=1)
        if self.density is not None and not 0 < self.density <= 1:
            allowed = "a share above 0 and at most 1 of each own factor stays"
            message = f"fips(density={brief(self.density)}): {allowed}"
            raise SpecError(message, subject="density")
        if self.rank is not None and self.density is not None:
            given = f"fips(rank={self.rank}, density={self.density})"
            advice = "leave rank or density out"
            message = f"{given}: the budget decides one of them; {advice}"
            raise SpecError(message, subject="density")
        check_most(self, group=MOST_PARTS, rank=MOST_RANK, rounds=MOST_STEPS, steps=MOST_STEPS)

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return (Gram,) if self.aware else ()

    @property
    def indices_count(self) -> bool:
        return self.indices

    def sets(self, view: ModelView) -> Sequence[Sequence[Sharer]]:
        sharers = networks(view)
        sets: list[list[Sharer]] = []
        for blocks in grouped(len(view.blocks), self.group, "fips", self.distant):
            inside = [sharer for sharer in sharers if sharer.weight.block in blocks]
            if inside:
                sets.append(inside)
        return sets

    def can_group_more(self, view: ModelView) -> bool:
        return self.group < len(view.blocks)

    def plan(self, budget: Budget) -> FactorSizes:
        if self.density is None:
            return budget.with_rank(self.rank)
        return budget.with_density(self.density)

    def factored(
        self, members: Sequence[Member], plan: FactorSizes, dtype: torch.dtype
    ) -> Factored:
        return alternated(members, plan.rank, plan.kept, self.rounds, self.steps, dtype)
