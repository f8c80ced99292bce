"""Basis Sharing: matrices of one kind in neighbouring blocks share a basis, and each has dense
coefficients (Wang et al. 2024, arXiv 2410.03765).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from calibrant.activations import Gram, Statistic
from calibrant.methods._base import MOST_PARTS, check_least
from calibrant.methods.factors._factors import Factored, Member, truncated
from calibrant.methods.factors._sharing import (
    Budget,
    FactorSizes,
    Sharer,
    Sharing,
    grouped,
    networks,
)
from calibrant.models import ModelView
from calibrant.spec import check_most


@dataclass(frozen=True, repr=False)
class BasisSharing(Sharing):
    """Replaces matrices of one kind in the feed-forward networks of `group` neighbouring blocks by
    products of a shared basis and dense coefficients.

    `numbers 0.2`, or 0.2, lets a fifth fewer numbers remain, and the rank follows. The basis is
    that of a truncated singular value decomposition of the matrices side by side, weighed by their
    inputs.

    From the paper's abstract: shared basis vectors and coefficients of each layer, found by a
    singular value decomposition. Inferred, since its code wasn't read: that Grams of the group are
    summed (with `damp` · mean diagonal added). Differs from it: only feed-forward networks, all of
    their matrices; these read or write the residual stream, and it is the stream's side that is
    shared; coefficients are then fitted to each matrix's own inputs.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    updates: ClassVar[bool] = True

    group: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, group=1)
        check_most(self, group=MOST_PARTS)

    def sets(self, view: ModelView) -> Sequence[Sequence[Sharer]]:
        sharers = networks(view)
        sets: list[list[Sharer]] = []
        for blocks in grouped(len(view.blocks), self.group, "basis_sharing"):
            kinds: dict[tuple[str, tuple[int, int]], list[Sharer]] = {}
            for sharer in sharers:
                if sharer.weight.block in blocks:
                    block = view.blocks[sharer.weight.block]
                    kind = sharer.weight.name.removeprefix(f"{block.name}.")
                    kinds.setdefault((kind, sharer.shape), []).append(sharer)
            sets += kinds.values()
        return sets

    def can_group_more(self, view: ModelView) -> bool:
        return self.group < len(view.blocks)

    def plan(self, budget: Budget) -> FactorSizes:
        return budget.with_density(1.0)

    def factored(
        self, members: Sequence[Member], plan: FactorSizes, dtype: torch.dtype
    ) -> Factored:
        return truncated(members, plan.rank, aware=True, dtype=dtype)
