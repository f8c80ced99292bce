"""A short training of some of a model's parameters on the calibration tokens, after parts of it
were taken away.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from calibrant.data import TokenBatch, micro_batches
from calibrant.models import ModelView

WINDOWS: Final = 1024
"""Tokens of a step, as whole windows; one that is longer is a step of its own."""
CLIPPED: Final = 1.0
"""The norm above which gradients are scaled down."""


def train(
    view: ModelView,
    batch: TokenBatch,
    parameters: Sequence[nn.Parameter],
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Train `parameters` in place, for `steps` of AdamW with a rate that falls to 0 as a cosine, on
    the loss of the batch's windows.

    Windows come in an order drawn by `seed`, all of them before any a second time. Padding isn't
    predicted, and a token counts by its weight; of a mix, the tokens of a part count by its share.
    Sums and steps are in float32 also where the numbers are not. The rest of the model gets no
    gradients. The parameters must be new, or announced by `will_change`.
    """
    parts = _windows(batch)
    masters = [parameter.detach().float().clone().requires_grad_() for parameter in parameters]
    needed = {parameter: parameter.requires_grad for parameter in view.model.parameters()}
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(masters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order: list[int] = []
    try:
        for parameter in needed:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for _ in range(steps):
            order = order or torch.randperm(len(parts), generator=chance).tolist()
            share, ids, mask, weights = parts[order.pop()]
            with torch.enable_grad():
                nats = _nats(view, ids, mask, weights) * share
                gradients = torch.autograd.grad(nats, list(parameters), allow_unused=True)
            for master, gradient in zip(masters, gradients, strict=True):
                master.grad = torch.zeros_like(master) if gradient is None else gradient.float()
            nn.utils.clip_grad_norm_(masters, CLIPPED)
            optimizer.step()
            schedule.step()
            _copy(masters, parameters)
    finally:
        for parameter, before in needed.items():
            parameter.requires_grad_(before)


@torch.no_grad()
def _copy(numbers: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    for one, parameter in zip(numbers, parameters, strict=True):
        parameter.copy_(one)


def _windows(batch: TokenBatch) -> list[tuple[float, Tensor, Tensor, Tensor]]:
    """The micro-batches of every part, with how much a token of it counts beside one of another
    part.
    """
    parts = batch.mixed or ((1.0, batch),)
    whole = sum(share for share, _ in parts)
    sizes = [list(micro_batches(part, WINDOWS)) for _, part in parts]
    total = sum(map(len, sizes))
    return [
        (share / whole * total / len(of), *few)
        for (share, _), of in zip(parts, sizes, strict=True)
        for few in of
    ]


def _nats(view: ModelView, ids: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """What the model loses on some windows, in nats a token."""
    device = next(view.model.parameters()).device
    ids, mask, weights = ids.to(device), mask.to(device), weights.to(device)
    padding = {} if bool(mask.all()) else {"attention_mask": mask.long()}
    logits = view.model(input_ids=ids, use_cache=False, **padding).logits
    counted = (weights[:, 1:] * mask[:, :-1]).flatten().float()
    nats = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    return (nats * counted).sum() / counted.sum().clamp_min(1e-9)
