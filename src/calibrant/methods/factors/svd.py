"""Each matrix of a feed-forward network becomes a product of two thin ones, by a truncated
singular value decomposition (arXiv 2403.07378).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from calibrant.activations import Gram, Statistic
from calibrant.methods.factors._factors import Factored, Member, truncated
from calibrant.methods.factors._sharing import Budget, FactorSizes, Sharer, Sharing, networks
from calibrant.models import ModelView


@dataclass(frozen=True, repr=False)
class SVD(Sharing):
    """Replaces every matrix of a feed-forward network by the product of rank r that gives the
    nearest outputs, as SVD-LLM does (Wang et al. 2024).

    `numbers 0.2`, or 0.2, lets a fifth fewer numbers remain, from which the rank follows. Inputs
    are whitened: the decomposition is that of WL, with LLᵀ the Gram, to which `damp` · mean
    diagonal is added. `aware=false` decomposes the weights themselves, without data.

    Differs from SVD-LLM in: only feed-forward networks; the second of its two steps, which tunes
    the factors, is left out.
    """

    updates: ClassVar[bool] = True

    aware: bool = True

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return (Gram,) if self.aware else ()

    def sets(self, view: ModelView) -> Sequence[Sequence[Sharer]]:
        return [[sharer] for sharer in networks(view)]

    def plan(self, budget: Budget) -> FactorSizes:
        return budget.with_density(1.0)

    def factored(
        self, members: Sequence[Member], plan: FactorSizes, dtype: torch.dtype
    ) -> Factored:
        return truncated(members, plan.rank, aware=self.aware, dtype=dtype)
