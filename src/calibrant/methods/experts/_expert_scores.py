"""The criteria of MC-Suite (Jaiswal et al. 2025, arXiv 2504.05586) by which experts of a layer are
ranked, and REAP's (Lasby et al. 2025).

Each gives a number for every expert, or for every two of them. The paper names its criteria and
gives most in a sentence; where that leaves a choice, the function here says which one was made.
`expert_gradients` makes what some of them look at: one pass forwards and back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from types import MappingProxyType
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from calibrant.activations import Routing, Seen, Statistic, wide
from calibrant.data import TokenBatch, micro_batches
from calibrant.job import Job
from calibrant.models import ExpertLayer, Weight
from calibrant.walk import TOKENS_PER_PASS
from calibrant.walk.block_statistics import ExpertOutputs, TokenKinds

Matrices = Sequence[Sequence[Tensor]]
"""For each expert its matrices `[out, in]`, or the gradients of these."""

Place = tuple[int, str]
"""Where a parameter is kept: its module, and its name there."""

ROWS: Final = 256
"""Rows of each expert's matrix that are compared at a time, in float64."""
SMALLEST: Final = 1e-30
"""What stands for a variance of nothing, so that it has a logarithm."""
DEVIATIONS: Final = 3.0
"""How many standard deviations from the mean an outlier is."""


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

    score: Callable[[LookedAt], Tensor] = field(repr=False)
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
        for start in range(0, len(same[0]), ROWS):
            some = [matrix[start : start + ROWS].flatten() for matrix in same]
            # In float64: millions of products are added.
            rows = torch.stack(some).double()
            gram += rows @ rows.T
    return _cosines(gram)


def stable_ranks(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return Σσ²/σ₁² of an expert's matrices as the model keeps them, on average; 0 for zeros."""

    def rank(expert: Sequence[Tensor]) -> float:
        return sum(_stable_rank(matrix.float()) for matrix in expert) / len(expert)

    return _each(matrices, rank)


def sizes(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the norm of all numbers of an expert."""

    def size(expert: Sequence[Tensor]) -> float:
        return sum(float(matrix.double().square().sum()) for matrix in expert) ** 0.5

    return _each(matrices, size)


def row_norms(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the norms of an expert's rows (one for each output), summed."""

    def norms(expert: Sequence[Tensor]) -> float:
        return sum(float(matrix.double().norm(dim=1).sum()) for matrix in expert)

    return _each(matrices, norms)


def row_spreads(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the logarithms of the standard deviations of an expert's rows (one for each
    output), summed.
    """

    def spreads(expert: Sequence[Tensor]) -> float:
        variances = [matrix.double().var(dim=1, correction=0) for matrix in expert]
        return sum(float(_logs(variance).sum()) for variance in variances)

    return _each(matrices, spreads)


def far_numbers(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return how many numbers of an expert are farther from the mean of all of them than three
    standard deviations.
    """

    def count(expert: Sequence[Tensor]) -> float:
        entries = sum(matrix.numel() for matrix in expert)
        # Of all numbers of the expert together, not of each matrix.
        mean = sum(float(matrix.double().sum()) for matrix in expert) / entries
        squares = sum(float((matrix.double() - mean).square().sum()) for matrix in expert)
        far = DEVIATIONS * (squares / entries) ** 0.5
        return float(sum(int(((matrix.double() - mean).abs() > far).sum()) for matrix in expert))

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
    signed = (-scores if largest else scores).tolist()
    return tuple(sorted(range(len(signed)), key=signed.__getitem__)[:count])


def first_of_pairs(
    pairs: Float[Tensor, "expert expert"], used: Float[Tensor, "expert"], count: int, largest: bool
) -> tuple[int, ...]:
    """Return `count` experts: again and again, of the two with the smallest or the largest number,
    the one that is used less goes.

    Of equal pairs the one with the lowest numbers counts, of two that are used alike the one with
    the higher number goes.
    """
    numbers = (-pairs if largest else pairs).tolist()
    uses = used.tolist()
    left = list(range(len(uses)))
    gone: list[int] = []
    while len(gone) < count:
        _, lower, higher = min((numbers[i][j], i, j) for i, j in combinations(left, 2))
        gone.append(lower if uses[lower] < uses[higher] else higher)
        left.remove(gone[-1])
    return tuple(gone)


def _cosines(gram: Float[Tensor, "expert expert"]) -> Float[Tensor, "expert"]:
    """The sum of each one's cosines with the others, from the products of all with all."""
    # Rounding may leave a length of nothing below zero.
    lengths = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0)
    cosines = gram * scale[:, None] * scale
    return cosines.sum(1) - cosines.diagonal()


def _stable_rank(matrix: Float[Tensor, "out in"]) -> float:
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    if largest == 0:
        return 0.0
    return float(matrix.double().square().sum()) / largest**2


def _logs(variances: Tensor) -> Tensor:
    return variances.double().clamp_min(SMALLEST).log() / 2


def _each(matrices: Matrices, score: Callable[[Sequence[Tensor]], float]) -> Tensor:
    return torch.tensor([score(expert) for expert in matrices], dtype=torch.float64)


def expert_gradients(job: Job, layers: Sequence[ExpertLayer]) -> Mapping[int, Matrices]:
    """Return, by block, the gradient of every matrix of every expert, `[out, in]`; zeros for an
    expert that no token was sent to.

    The loss is that of `job.loss`: a token counts by its weight, a part of a mix by its share. Sums
    over micro-batches are float32, or float64 for a float64 model. With several ranks each goes
    through all tokens, so that all come to the same numbers.
    """
    parameters: dict[Place, nn.Parameter] = {}
    sums: dict[Place, Tensor] = {}
    for layer in layers:
        for weight in chain(*layer.experts):
            parameter = getattr(weight.owner, weight.key)
            parameters[_place(weight)] = parameter
            kind = wide(parameter.dtype)
            sums[_place(weight)] = torch.zeros_like(parameter, dtype=kind, requires_grad=False)
    needed = {parameter: parameter.requires_grad for parameter in job.view.model.parameters()}
    batch = job.tokens()
    parts = batch.mixed or ((1.0, batch),)
    whole = sum(share for share, _ in parts)
    try:
        for parameter in needed:
            parameter.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for share, part in parts:
            _add(job, part, share / whole, parameters, sums)
    finally:
        for parameter, before in needed.items():
            parameter.requires_grad_(before)
    gradients: dict[int, Matrices] = {}
    for layer in layers:
        each: list[list[Tensor]] = []
        for expert in layer.experts:
            each.append([_matrix_of(weight, sums[_place(weight)]) for weight in expert])
        gradients[layer.block] = each
    return gradients


def _add(
    job: Job,
    part: TokenBatch,
    share: float,
    parameters: Mapping[Place, nn.Parameter],
    sums: Mapping[Place, Tensor],
) -> None:
    """Add the gradients of what is lost on a part, in nats a token, times its share."""
    device = next(job.view.model.parameters()).device
    several = list(micro_batches(part, TOKENS_PER_PASS))
    # Of the whole part before any gradient, so that a micro-batch counts by its tokens.
    total = sum(float(_counted(mask, weights).double().sum()) for _, mask, weights in several)
    for number, (ids, mask, weights) in enumerate(several, 1):
        ids = ids.to(device)
        mask = mask.to(device)
        padding: dict[str, Any] = {}
        if not bool(mask.all()):
            padding["attention_mask"] = mask.long()
        counted = _counted(mask, weights.to(device)).flatten()
        with torch.enable_grad():
            logits = job.view.model(input_ids=ids, use_cache=False, **padding).logits
            flat = logits[:, :-1].flatten(0, 1)
            nats = cross_entropy(flat.to(wide(flat.dtype)), ids[:, 1:].flatten(), reduction="none")
            lost = (nats * counted).sum() * (share / total)
            gradients = torch.autograd.grad(lost, list(parameters.values()), allow_unused=True)
        for place, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[place].add_(gradient)
        job.progress("gradients of the experts", number, len(several))


def _counted(mask: Tensor, weights: Tensor) -> Tensor:
    """How much the prediction of each token but the first of a sequence counts."""
    return weights[:, 1:] * mask[:, :-1]


def _place(weight: Weight) -> Place:
    return id(weight.owner), weight.key


def _matrix_of(weight: Weight, gradient: Tensor) -> Float[Tensor, "out in"]:
    """The part of a parameter's gradient that is of one matrix."""
    if weight.expert is not None:
        gradient = gradient[weight.expert]
    return gradient.T if weight.transposed else gradient
