"""The gradients of what the model loses on the calibration tokens, for the matrices of its
experts: one pass forwards and back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from calibrant.activations import wide
from calibrant.data import TokenBatch, micro_batches
from calibrant.job import Job
from calibrant.methods.experts._expert_scores import Matrices
from calibrant.models import ExpertLayer, Weight
from calibrant.walk.walking import TOKENS_PER_PASS

Place = tuple[int, str]
"""Where a parameter is kept: its module, and its name there."""


def expert_gradients(job: Job, layers: Sequence[ExpertLayer]) -> Mapping[int, Matrices]:
    """Return, by block, the gradient of every matrix of every expert, `[out, in]`; zeros for an
    expert that no token was sent to.

    The loss is that of `job.loss`: a token counts by its weight, a part of a mix by its share. Sums
    over micro-batches are float32, or float64 for a float64 model. With several ranks each goes
    through all tokens, so that all come to the same numbers.
    """
    parameters = {
        _place(weight): getattr(weight.owner, weight.key)
        for layer in layers
        for expert in layer.experts
        for weight in expert
    }
    sums = {
        place: torch.zeros_like(one, dtype=wide(one.dtype), requires_grad=False)
        for place, one in parameters.items()
    }
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
    return {
        layer.block: [
            [_of(weight, sums[_place(weight)]) for weight in expert] for expert in layer.experts
        ]
        for layer in layers
    }


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
    total = sum(float(_counted(mask, weights).double().sum()) for _, mask, weights in several)
    for number, (ids, mask, weights) in enumerate(several, 1):
        ids, mask, weights = ids.to(device), mask.to(device), weights.to(device)
        padding: dict[str, Any] = {} if bool(mask.all()) else {"attention_mask": mask.long()}
        with torch.enable_grad():
            logits = job.view.model(input_ids=ids, use_cache=False, **padding).logits
            flat = logits[:, :-1].flatten(0, 1)
            nats = cross_entropy(flat.to(wide(flat.dtype)), ids[:, 1:].flatten(), reduction="none")
            lost = (nats * _counted(mask, weights).flatten()).sum() * (share / total)
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


def _of(weight: Weight, gradient: Tensor) -> Tensor:
    """The part of a parameter's gradient that is of one matrix."""
    own = gradient if weight.expert is None else gradient[weight.expert]
    return own.T if weight.transposed else own
