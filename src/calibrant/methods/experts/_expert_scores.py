"""The criteria of MC-Suite (Jaiswal et al. 2025, arXiv 2504.05586) by which experts of a layer are
ranked, and REAP's (Lasby et al. 2025).

Each gives a number for every expert, or for every two of them. The paper names its criteria and
gives most in a sentence; where that leaves a choice, the function here says which one was made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Routing, Seen, Statistic
from calibrant.models import ExpertLayer
from calibrant.walk.block_statistics import ExpertOutputs, TokenKinds

Matrices = Sequence[Sequence[Tensor]]
"""For each expert its matrices `[out, in]`, or the gradients of these."""

ROWS: Final = 256
"""Rows of each expert's matrix that are compared at a time, in float64."""
SMALLEST: Final = 1e-30
"""What stands for a variance of nothing, so that it has a logarithm."""
DEVIATIONS: Final = 3.0


@final
@dataclass(frozen=True)
class LookedAt:
    """What a criterion may look at in one layer: the layer, what the router and the experts did,
    and the gradients of the experts' matrices.

    `vocabulary` is how many token ids there are, `chance` the seed of what is drawn.
    """

    layer: ExpertLayer
    seen: Seen
    gradients: Matrices
    vocabulary: int
    chance: int

    @property
    def weights(self) -> Matrices:
        """Each expert's own matrices."""
        return [[weight.get() for weight in expert] for expert in self.layer.experts]


@final
@dataclass(frozen=True)
class Criterion:
    """One of the criteria: what it `observes`, whether it is of two experts at a time (`pairs`),
    and whether it takes a backward pass.
    """

    of: Callable[[LookedAt], Tensor] = field(repr=False)
    observes: tuple[type[Statistic], ...] = ()
    pairs: bool = False
    gradients: bool = False


def alike(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the sum of the cosines between all numbers of an expert and those of each other; 0
    for one that is all zeros.
    """
    count = len(matrices)
    gram = torch.zeros(count, count, dtype=torch.float64, device=matrices[0][0].device)
    for same in zip(*matrices, strict=True):
        for at in range(0, len(same[0]), ROWS):
            rows = torch.stack([matrix[at : at + ROWS].flatten() for matrix in same]).double()
            gram += rows @ rows.T
    return _cosines(gram)


def stable_ranks(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return Σσ²/σ₁² of an expert's matrices as the model keeps them, on average; 0 for zeros."""
    return _each(
        matrices, lambda own: sum(_stable_rank(matrix.float()) for matrix in own) / len(own)
    )


def sizes(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the norm of all numbers of an expert."""
    return _each(
        matrices, lambda own: sum(float(matrix.double().square().sum()) for matrix in own) ** 0.5
    )


def row_norms(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the norms of an expert's rows (one for each output), summed."""
    return _each(
        matrices, lambda own: sum(float(matrix.double().norm(dim=1).sum()) for matrix in own)
    )


def row_spreads(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the logarithms of the standard deviations of an expert's rows (one for each
    output), summed.
    """
    return _each(
        matrices,
        lambda own: sum(
            float(_logs(matrix.double().var(dim=1, correction=0)).sum()) for matrix in own
        ),
    )


def far_numbers(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return how many numbers of an expert are farther from the mean of all of them than three
    standard deviations.
    """

    def count(own: Sequence[Tensor]) -> float:
        entries = sum(matrix.numel() for matrix in own)
        mean = sum(float(matrix.double().sum()) for matrix in own) / entries
        spread = (
            sum(float((matrix.double() - mean).square().sum()) for matrix in own) / entries
        ) ** 0.5
        return float(
            sum(int(((matrix.double() - mean).abs() > DEVIATIONS * spread).sum()) for matrix in own)
        )

    return _each(matrices, count)


def output_norms(looked: LookedAt) -> Float[Tensor, "expert"]:
    """Return √Σy² over an expert's tokens for each feature, summed over features."""
    return looked.seen[ExpertOutputs].squares.sqrt().sum(1)


def output_spreads(looked: LookedAt) -> Float[Tensor, "expert"]:
    """Return the logarithms of the standard deviations of an expert's output features, summed."""
    return _logs(looked.seen[ExpertOutputs].variances()).sum(1)


def mean_outputs_alike(looked: LookedAt) -> Float[Tensor, "expert"]:
    """Return the mean cosine between an expert's mean output and that of each other. Two experts
    seldom get the same token, so means are compared.
    """
    means = looked.seen[ExpertOutputs].means()
    return _cosines(means @ means.T) / max(1, len(means) - 1)


def router_weighted(looked: LookedAt) -> Float[Tensor, "expert"]:
    """Return the mean of g·‖y‖ over an expert's tokens (REAP, arXiv 2510.13999, eq. 9); 0 of one
    that got none.
    """
    outputs = looked.seen[ExpertOutputs]
    return torch.where(outputs.counts > 0, outputs.gated / outputs.counts, 0)


def by_chance(looked: LookedAt) -> Float[Tensor, "expert"]:
    """Return numbers that are drawn: what a criterion must be better than."""
    chance = torch.Generator().manual_seed(looked.chance % 2**64)
    return torch.rand(looked.layer.count, generator=chance, dtype=torch.float64)


CRITERIA: Final = MappingProxyType(
    {
        "ews": Criterion(lambda looked: alike(looked.weights)),
        "rwn": Criterion(lambda looked: looked.layer.matrix.get().double().norm(dim=1)),
        "wsr": Criterion(lambda looked: stable_ranks(looked.weights)),
        "ewn": Criterion(lambda looked: sizes(looked.weights)),
        "euf": Criterion(lambda looked: looked.seen[Routing].counts, (Routing,)),
        "ecc": Criterion(lambda looked: looked.seen[Routing].together, (Routing,), pairs=True),
        "evtc": Criterion(
            lambda looked: looked.seen[TokenKinds].counts().double() / looked.vocabulary,
            (Routing, TokenKinds),
        ),
        # Tokens that two experts are both sent are what `ecc` counts, so here it is the kinds of
        # tokens that both of them get.
        "ets": Criterion(
            lambda looked: looked.seen[TokenKinds].shared().double(),
            (Routing, TokenKinds),
            pairs=True,
        ),
        "eas": Criterion(mean_outputs_alike, (Routing, ExpertOutputs)),
        "eae": Criterion(output_spreads, (Routing, ExpertOutputs)),
        "eao": Criterion(
            lambda looked: looked.seen[ExpertOutputs].outliers(DEVIATIONS), (Routing, ExpertOutputs)
        ),
        "ean": Criterion(output_norms, (Routing, ExpertOutputs)),
        "egs": Criterion(
            lambda looked: alike(looked.gradients) / max(1, looked.layer.count - 1),
            (Routing,),
            gradients=True,
        ),
        "ege": Criterion(lambda looked: row_spreads(looked.gradients), (Routing,), gradients=True),
        "ego": Criterion(lambda looked: far_numbers(looked.gradients), (Routing,), gradients=True),
        "egn": Criterion(lambda looked: row_norms(looked.gradients), (Routing,), gradients=True),
        "reap": Criterion(router_weighted, (Routing, ExpertOutputs)),
        "random": Criterion(by_chance),
    }
)
"""By name. Of MC-Suite by weights, by what the router does, by what experts give, and by
gradients; then REAP's, and chance.
"""


def first(scores: Float[Tensor, "expert"], count: int, largest: bool) -> tuple[int, ...]:
    """Return the `count` experts with the smallest or the largest scores, in that order; of
    equal ones the lowest number goes first.
    """
    signed = [-score if largest else score for score in scores.tolist()]
    return tuple(sorted(range(len(signed)), key=lambda expert: (signed[expert], expert))[:count])


def first_of_pairs(
    pairs: Float[Tensor, "expert expert"], used: Float[Tensor, "expert"], count: int, largest: bool
) -> tuple[int, ...]:
    """Return `count` experts: again and again, of the two with the smallest or the largest number,
    the one that is used less goes.

    Of equal pairs the one with the lowest numbers counts, of two that are used alike the one with
    the higher number goes.
    """
    numbers, uses, left, gone = pairs.tolist(), used.tolist(), list(range(len(used))), list[int]()
    while len(gone) < count:
        every = ((one, other) for at, one in enumerate(left) for other in left[at + 1 :])
        one, other = min(
            every,
            key=lambda pair: (
                -numbers[pair[0]][pair[1]] if largest else numbers[pair[0]][pair[1]],
                pair,
            ),
        )
        gone.append(one if uses[one] < uses[other] else other)
        left.remove(gone[-1])
    return tuple(gone)


def _cosines(gram: Float[Tensor, "expert expert"]) -> Float[Tensor, "expert"]:
    """The sum of each one's cosines with the others, from the products of all with all."""
    lengths = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0)
    cosines = gram * scale[:, None] * scale
    return cosines.sum(1) - cosines.diagonal()


def _stable_rank(matrix: Float[Tensor, "out in"]) -> float:
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    return float(matrix.double().square().sum()) / largest**2 if largest > 0 else 0.0


def _logs(variances: Tensor) -> Tensor:
    return variances.double().clamp_min(SMALLEST).log() / 2


def _each(matrices: Matrices, of: Callable[[Sequence[Tensor]], float]) -> Float[Tensor, "expert"]:
    return torch.tensor([of(own) for own in matrices], dtype=torch.float64)
