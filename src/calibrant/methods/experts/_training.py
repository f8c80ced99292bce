"""A short training on the calibration tokens, after parts of a model were taken away. What it comes
to is an edit, so that a killed job loses one training at most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from calibrant.data import TokenBatch, micro_batches
from calibrant.edits import Edit, StoredEdit
from calibrant.job import Job
from calibrant.models import ModelView, overwrite
from calibrant.models.changing import will_change
from calibrant.numerics import six_digits

TOKENS_PER_STEP: Final = 1024
"""How many tokens a step has at most, in whole windows; a longer window is a step of its own."""
LARGEST_NORM: Final = 1.0
"""Gradients with a larger norm, over all parameters, are scaled down to it."""


def train(
    view: ModelView,
    batch: TokenBatch,
    parameters: Sequence[nn.Parameter],
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Train `parameters` in place on the loss of a batch: `steps` of AdamW, with a rate that falls
    to 0 as a cosine.

    A step takes some windows of the batch. Their order is drawn by `seed`, and all are taken before
    any a second time. Padding isn't predicted, and a token counts by its weight; of a mix, the
    tokens of a part count by its share. Steps are added up in float32 also where the parameters are
    bfloat16. The rest of the model gets no gradients. The parameters must be new, or announced by
    `will_change`.
    """
    batches = _step_batches(batch)
    # Steps are far smaller than what bfloat16 rounds to, so they are added up in float32.
    masters = [parameter.detach().float().clone().requires_grad_() for parameter in parameters]
    required_before = {parameter: parameter.requires_grad for parameter in view.model.parameters()}
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(masters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order: list[int] = []
    try:
        for parameter in required_before:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for _ in range(steps):
            if not order:
                order = torch.randperm(len(batches), generator=generator).tolist()
            step_batch = batches[order.pop()]
            with torch.enable_grad():
                loss = _loss(view, step_batch) * step_batch.share
                gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
            for master, gradient in zip(masters, gradients, strict=True):
                master.grad = torch.zeros_like(master) if gradient is None else gradient.float()
            nn.utils.clip_grad_norm_(masters, LARGEST_NORM)
            optimizer.step()
            schedule.step()
            _copy_rounded(masters, parameters)
    finally:
        for parameter, before in required_before.items():
            parameter.requires_grad_(before)


@torch.no_grad()
def _copy_rounded(masters: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    for master, parameter in zip(masters, parameters, strict=True):
        parameter.copy_(master)


class _StepBatch(NamedTuple):
    """The tokens of a step; its loss is multiplied with `share`, so that each part of a mix counts
    by its share, however many steps it has.
    """

    share: float
    ids: Int[Tensor, "sample position"]
    mask: Bool[Tensor, "sample position"]
    weights: Float[Tensor, "sample position"]


def _step_batches(batch: TokenBatch) -> list[_StepBatch]:
    """The micro-batches of every set of a mix."""
    sets = batch.sets
    by_set = [list(micro_batches(part, TOKENS_PER_STEP)) for _, part in sets]
    count = sum(map(len, by_set))
    batches: list[_StepBatch] = []
    for (share, _), of_set in zip(sets, by_set, strict=True):
        scale = share * count / len(of_set)
        batches += [_StepBatch(scale, *tensors) for tensors in of_set]
    return batches


def _loss(view: ModelView, batch: _StepBatch) -> Float[Tensor, ""]:
    """The loss of the model on the tokens of a step, in nats a token."""
    device = view.device
    ids = batch.ids.to(device)
    mask = batch.mask.to(device)
    weights = batch.weights.to(device)
    padding: dict[str, Tensor] = {}
    if not bool(mask.all()):
        padding["attention_mask"] = mask.long()
    logits = view.model(input_ids=ids, use_cache=False, **padding).logits
    # A prediction counts by the weight of the token that is predicted, from a real one.
    prediction_weights = (weights[:, 1:] * mask[:, :-1]).flatten().float()
    predicted = logits[:, :-1].flatten(0, 1).float()
    nats = cross_entropy(predicted, ids[:, 1:].flatten(), reduction="none")
    return (nats * prediction_weights).sum() / prediction_weights.sum().clamp_min(1e-9)


@dataclass(frozen=True)
class Tuned(Edit):
    """Parameters get other `numbers` of the same shapes, by name. `notes` say how they came
    about.
    """

    kind: ClassVar[str] = "tuned"

    numbers: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def apply(self, view: ModelView) -> None:
        for name, numbers in self.numbers.items():
            overwrite(view.model.get_parameter(name).detach(), numbers)

    def undo(self, view: ModelView) -> Callable[[], None]:
        numbers = {name: view.model.get_parameter(name).detach().clone() for name in self.numbers}
        return partial(Tuned(numbers).apply, view)

    def report(self, view: ModelView) -> dict[str, Any]:
        return {
            "edit": self.kind,
            "parameters": sum(numbers.numel() for numbers in self.numbers.values()),
            "notes": dict(self.notes),
        }

    def stored(self) -> StoredEdit:
        # Tensors are stored by number: names of parameters have dots, by which those of several
        # edits in one file are told apart.
        facts = {"names": list(self.numbers), "notes": dict(self.notes)}
        tensors = {str(number): tensor for number, tensor in enumerate(self.numbers.values())}
        return StoredEdit(self.kind, facts, tensors)

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Tuned":
        numbers: dict[str, Tensor] = {}
        for number, name in enumerate(stored.facts["names"]):
            numbers[name] = stored.tensors[str(number)]
        return cls(numbers, stored.facts["notes"])


def trained(job: Job, steps: int, rate: float, seed: int) -> Tuned:
    """Train all parameters for `steps`, as `train` does, and return the edit that gives them their
    new numbers; the model is left as it was.

    The notes say what the model loses on the calibration tokens before and after.
    """
    parameters = dict(job.view.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    losses = [job.loss()]
    for parameter in parameters.values():
        will_change(parameter)
    try:
        train(job.view, job.tokens(), list(parameters.values()), steps, rate, seed)
        numbers = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        losses.append(job.loss())
    finally:
        for name, parameter in parameters.items():
            overwrite(parameter.detach(), before[name])
    rounded = [six_digits(loss) for loss in losses]
    return Tuned(numbers, {"steps": steps, "rate": rate, "seed": seed, "loss": rounded})
