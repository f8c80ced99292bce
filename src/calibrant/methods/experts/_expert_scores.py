"""The criteria of MC-Suite (Jaiswal et al. 2025, arXiv 2504.05586) by which experts of a layer are
ranked, and REAP's (Lasby et al. 2025).

Each gives a number for every expert, or for every pair of experts. The paper defines most of its
criteria in one sentence; where that leaves a choice, the function here says which one was made.
Some look at gradients: `expert_gradients` computes them, in one pass forwards and backwards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from calibrant.system.products import exact, exact_type, where_exact
from calibrant.walk import TOKENS_PER_PASS
from calibrant.walk.block_statistics import ExpertOutputs, TokenKinds

Matrices = Sequence[Sequence[Tensor]]
"""For each expert its matrices `[out, in]`, or the gradients of these."""

ParameterKey = tuple[int, str]
"""What a parameter is found by: the id of its module, and its name there."""

ROWS_AT_ONCE: Final = 256
"""Rows of each expert's matrix that are compared at a time, in float64."""
SMALLEST_VARIANCE: Final = 1e-30
"""What a smaller variance is raised to, so that 0 has a logarithm."""
OUTLIER_DEVIATIONS: Final = 3.0
"""How many standard deviations from the mean an outlier is."""


@final
@dataclass(frozen=True)
class LayerEvidence:
    """What a criterion may look at in one layer: the layer, what its router and experts did, and
    the gradients of the experts' matrices.

    `vocabulary` is the number of token ids, `chance` the seed for random scores. What no
    criterion of this run looks at is empty.
    """

    layer: ExpertLayer
    seen: Seen
    gradients: Matrices
    vocabulary: int
    chance: int

    @property
    def weights(self) -> Matrices:
        """Each expert's own matrices."""
        matrices: list[list[Tensor]] = []
        for expert in self.layer.experts:
            matrices.append([weight.get() for weight in expert])
        return matrices


@final
@dataclass(frozen=True)
class Criterion:
    """One of the criteria: how it scores, which statistics it `observes`, whether it scores `pairs`
    of experts, and whether it needs `gradients`.
    """

    score: Callable[[LayerEvidence], Tensor] = field(repr=False)
    observes: tuple[type[Statistic], ...] = ()
    pairs: bool = False
    gradients: bool = False


def cosines_to_others(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return, for each expert, the sum of its cosines with the others, all of an expert's numbers
    being one vector; 0 for an expert that is all zeros.
    """
    count = len(matrices)
    device = matrices[0][0].device
    gram = torch.zeros(count, count, dtype=exact_type(device), device=device)
    for same in zip(*matrices, strict=True):
        for start in range(0, len(same[0]), ROWS_AT_ONCE):
            rows = [matrix[start : start + ROWS_AT_ONCE].flatten() for matrix in same]
            # In float64, since millions of products are added.
            stacked = exact(torch.stack(rows))
            gram += stacked @ stacked.T
    return _cosines(gram)


def stable_ranks(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return Σσ²/σ₁² of an expert's matrices as the model keeps them, on average; 0 for zeros."""

    def stable_rank(expert: Sequence[Tensor]) -> float:
        return sum(_stable_rank(matrix.float()) for matrix in expert) / len(expert)

    return _score_each(matrices, stable_rank)


def norms(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the norm of all numbers of an expert."""

    def norm(expert: Sequence[Tensor]) -> float:
        squares = sum(float(exact(matrix).square().sum()) for matrix in expert)
        return squares**0.5

    return _score_each(matrices, norm)


def row_norms(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the norms of an expert's rows (one for each output), summed."""

    def row_norm_sum(expert: Sequence[Tensor]) -> float:
        return sum(float(exact(matrix).norm(dim=1).sum()) for matrix in expert)

    return _score_each(matrices, row_norm_sum)


def row_spreads(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return the logarithms of the standard deviations of an expert's rows (one for each
    output), summed.
    """

    def spread_sum(expert: Sequence[Tensor]) -> float:
        variances = [exact(matrix).var(dim=1, correction=0) for matrix in expert]
        return sum(float(_logs(variance).sum()) for variance in variances)

    return _score_each(matrices, spread_sum)


def far_numbers(matrices: Matrices) -> Float[Tensor, "expert"]:
    """Return how many numbers of an expert are farther from the mean of all of them than three
    standard deviations.
    """

    def count(expert: Sequence[Tensor]) -> float:
        entries = sum(matrix.numel() for matrix in expert)
        # The mean and deviation are those of all numbers of the expert, not of each matrix.
        mean = sum(float(exact(matrix).sum()) for matrix in expert) / entries
        squares = sum(float((exact(matrix) - mean).square().sum()) for matrix in expert)
        deviation = (squares / entries) ** 0.5
        farthest = OUTLIER_DEVIATIONS * deviation
        outliers = 0
        for matrix in expert:
            distances = (exact(matrix) - mean).abs()
            outliers += int((distances > farthest).sum())
        return float(outliers)

    return _score_each(matrices, count)


def output_norms(evidence: LayerEvidence) -> Float[Tensor, "expert"]:
    """Return, for each expert, √Σy² over its tokens, summed over the features of its output y."""
    return evidence.seen[ExpertOutputs].squares.sqrt().sum(1)


def output_spreads(evidence: LayerEvidence) -> Float[Tensor, "expert"]:
    """Return the logarithms of the standard deviations of an expert's output features, summed."""
    return _logs(evidence.seen[ExpertOutputs].variances()).sum(1)


def mean_outputs_alike(evidence: LayerEvidence) -> Float[Tensor, "expert"]:
    """Return the mean cosine between an expert's mean output and those of the others. Means are
    compared, since two experts seldom get the same token.
    """
    means = evidence.seen[ExpertOutputs].means()
    others = max(1, len(means) - 1)
    return _cosines(means @ means.T) / others


def gradients_alike(evidence: LayerEvidence) -> Float[Tensor, "expert"]:
    """Return the mean cosine between an expert's gradients and those of the others."""
    others = max(1, evidence.layer.count - 1)
    return cosines_to_others(evidence.gradients) / others


def router_weighted(evidence: LayerEvidence) -> Float[Tensor, "expert"]:
    """Return the mean of g·‖y‖ over an expert's tokens, with its gate g and its output y (REAP,
    arXiv 2510.13999, eq. 9); 0 for an expert that got none.
    """
    outputs = evidence.seen[ExpertOutputs]
    return torch.where(outputs.counts > 0, outputs.gated / outputs.counts, 0)


def by_chance(evidence: LayerEvidence) -> Float[Tensor, "expert"]:
    """Return random numbers: what a criterion must be better than."""
    # Torch takes seeds of 64 bits.
    generator = torch.Generator().manual_seed(evidence.chance % 2**64)
    return torch.rand(evidence.layer.count, generator=generator, dtype=torch.float64)


CRITERIA: Final = MappingProxyType(
    {
        "ews": Criterion(lambda evidence: cosines_to_others(evidence.weights)),
        "rwn": Criterion(lambda evidence: exact(evidence.layer.matrix.get()).norm(dim=1)),
        "wsr": Criterion(lambda evidence: stable_ranks(evidence.weights)),
        "ewn": Criterion(lambda evidence: norms(evidence.weights)),
        "euf": Criterion(lambda evidence: evidence.seen[Routing].counts, (Routing,)),
        "ecc": Criterion(lambda evidence: evidence.seen[Routing].together, (Routing,), pairs=True),
        "evtc": Criterion(
            lambda evidence: exact(evidence.seen[TokenKinds].counts()) / evidence.vocabulary,
            (Routing, TokenKinds),
        ),
        # Tokens that two experts are both sent are what `ecc` counts, so here it is the kinds of
        # tokens that both of them get.
        "ets": Criterion(
            lambda evidence: exact(evidence.seen[TokenKinds].shared()),
            (Routing, TokenKinds),
            pairs=True,
        ),
        "eas": Criterion(mean_outputs_alike, (Routing, ExpertOutputs)),
        "eae": Criterion(output_spreads, (Routing, ExpertOutputs)),
        "eao": Criterion(
            lambda evidence: evidence.seen[ExpertOutputs].outliers(OUTLIER_DEVIATIONS),
            (Routing, ExpertOutputs),
        ),
        "ean": Criterion(output_norms, (Routing, ExpertOutputs)),
        "egs": Criterion(gradients_alike, (Routing,), gradients=True),
        "ege": Criterion(
            lambda evidence: row_spreads(evidence.gradients), (Routing,), gradients=True
        ),
        "ego": Criterion(
            lambda evidence: far_numbers(evidence.gradients), (Routing,), gradients=True
        ),
        "egn": Criterion(
            lambda evidence: row_norms(evidence.gradients), (Routing,), gradients=True
        ),
        "reap": Criterion(router_weighted, (Routing, ExpertOutputs)),
        "random": Criterion(by_chance),
    }
)
"""The criteria by name: MC-Suite's by weights, by what the router does, by what experts give, and
by gradients; then REAP's, and a random one.
"""


def first_by_score(scores: Float[Tensor, "expert"], count: int, largest: bool) -> tuple[int, ...]:
    """Return the `count` experts with the smallest or, if `largest`, the largest scores, in that
    order; of equal ones the lowest number goes first.
    """
    if largest:
        scores = -scores
    values = scores.tolist()
    # Sorting leaves equal ones in the order of their numbers.
    order = sorted(range(len(values)), key=values.__getitem__)
    return tuple(order[:count])


def first_of_pairs(
    pairs: Float[Tensor, "expert expert"], used: Float[Tensor, "expert"], count: int, largest: bool
) -> tuple[int, ...]:
    """Return `count` experts: again and again, of the pair with the smallest or, if `largest`, the
    largest score, the expert that is used less goes.

    Of equal pairs the one of the first experts is taken; of two experts that are used alike the one
    with the higher number goes.
    """
    if largest:
        pairs = -pairs
    scores = pairs.tolist()
    uses = used.tolist()
    remaining = list(range(len(uses)))
    dropped: list[int] = []
    while len(dropped) < count:
        candidates: list[tuple[float, int, int]] = []
        for first, second in combinations(remaining, 2):
            candidates.append((scores[first][second], first, second))
        _, first, second = min(candidates)
        if uses[first] < uses[second]:
            dropped.append(first)
            remaining.remove(first)
        else:
            dropped.append(second)
            remaining.remove(second)
    return tuple(dropped)


def _cosines(gram: Float[Tensor, "expert expert"]) -> Float[Tensor, "expert"]:
    """The sum of each vector's cosines with the others, from the products of all with all."""
    # Rounding may leave the square of a length of 0 below zero.
    lengths = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0)
    cosines = gram * scale[:, None] * scale
    return cosines.sum(1) - cosines.diagonal()


def _stable_rank(matrix: Float[Tensor, "out in"]) -> float:
    largest = float(torch.linalg.matrix_norm(matrix.to(where_exact(matrix.device)), 2))
    if largest == 0:
        return 0.0
    return float(exact(matrix).square().sum()) / largest**2


def _logs(variances: Tensor) -> Tensor:
    return exact(variances).clamp_min(SMALLEST_VARIANCE).log() / 2


def _score_each(matrices: Matrices, score: Callable[[Sequence[Tensor]], float]) -> Tensor:
    return torch.tensor([score(expert) for expert in matrices], dtype=torch.float64)


def expert_gradients(job: Job, layers: Sequence[ExpertLayer]) -> Mapping[int, Matrices]:
    """Return, by block, the gradient of every matrix of every expert, `[out, in]`; zeros for an
    expert that no token was sent to.

    The loss is that of `job.loss`: a token counts by its weight, a part of a mix by its share. Sums
    over micro-batches are float32, or float64 for a float64 model. With several ranks each goes
    through all tokens, so that all come to the same numbers.
    """
    parameters: dict[ParameterKey, nn.Parameter] = {}
    sums: dict[ParameterKey, Tensor] = {}
    for layer in layers:
        for weight in chain(*layer.experts):
            parameter = getattr(weight.owner, weight.key)
            key = _parameter_key(weight)
            parameters[key] = parameter
            # In float32 at least, also where the gradients are bfloat16.
            dtype = wide(parameter.dtype)
            sums[key] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    with _only_these_require_gradients(job.view.model, parameters.values()):
        for share, part in job.tokens().sets:
            _add_gradients(job, part, share, parameters, sums)
    gradients: dict[int, Matrices] = {}
    for layer in layers:
        by_expert: list[list[Tensor]] = []
        for expert in layer.experts:
            matrices: list[Tensor] = []
            for weight in expert:
                gradient = sums[_parameter_key(weight)]
                matrices.append(_gradient_of_matrix(weight, gradient))
            by_expert.append(matrices)
        gradients[layer.block] = by_expert
    return gradients


@contextmanager
def _only_these_require_gradients(
    model: nn.Module, parameters: Iterable[nn.Parameter]
) -> Iterator[None]:
    """While it lasts, these parameters of a model require gradients, and no others do."""
    required_before: dict[nn.Parameter, bool] = {}
    for parameter in model.parameters():
        required_before[parameter] = parameter.requires_grad
    try:
        for parameter in required_before:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in required_before.items():
            parameter.requires_grad_(required)


def _add_gradients(
    job: Job,
    part: TokenBatch,
    share: float,
    parameters: Mapping[ParameterKey, nn.Parameter],
    sums: Mapping[ParameterKey, Tensor],
) -> None:
    """Add to `sums` the gradients of the loss on a part, in nats a token, times its share."""
    device = job.view.device
    batches = list(micro_batches(part, TOKENS_PER_PASS))
    # The total is known before the first gradient, so that a micro-batch counts by its tokens.
    masses: list[float] = []
    for _, mask, weights in batches:
        masses.append(float(exact(_prediction_weights(mask, weights)).sum()))
    total = sum(masses)
    for number, (ids, mask, weights) in enumerate(batches, 1):
        ids = ids.to(device)
        mask = mask.to(device)
        padding: dict[str, Any] = {}
        if not bool(mask.all()):
            padding["attention_mask"] = mask.long()
        counts = _prediction_weights(mask, weights.to(device)).flatten()
        with torch.enable_grad():
            logits = job.view.model(input_ids=ids, use_cache=False, **padding).logits
            # Each token predicts the one after it.
            predictions = logits[:, :-1].flatten(0, 1)
            predictions = predictions.to(wide(predictions.dtype))
            followers = ids[:, 1:].flatten()
            nats = cross_entropy(predictions, followers, reduction="none")
            lost = (nats * counts).sum() * (share / total)
            gradients = torch.autograd.grad(lost, list(parameters.values()), allow_unused=True)
        for key, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[key].add_(gradient)
        job.progress("gradients of the experts", number, len(batches))


def _prediction_weights(mask: Tensor, weights: Tensor) -> Tensor:
    """How much the prediction of each token counts, from the second token of a sequence on."""
    # By the weight of the token that is predicted, and only from a real token.
    return weights[:, 1:] * mask[:, :-1]


def _parameter_key(weight: Weight) -> ParameterKey:
    return id(weight.owner), weight.key


def _gradient_of_matrix(weight: Weight, gradient: Tensor) -> Float[Tensor, "out in"]:
    """The gradient of one matrix, out of that of the parameter that holds it."""
    if weight.expert is not None:
        gradient = gradient[weight.expert]
    if weight.transposed:
        gradient = gradient.T
    return gradient
