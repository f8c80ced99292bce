"""A short training on the calibration tokens after parts of a model were taken away, and the edit
that is made of it, so that a kill loses one at most.
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
from calibrant.methods._base import six_digits
from calibrant.models import ModelView, overwrite
from calibrant.models.changing import will_change

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
    windows = _windows(batch)
    # Steps are far smaller than what bfloat16 rounds to, so they are added up in float32.
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
            if not order:
                order = torch.randperm(len(windows), generator=chance).tolist()
            window = windows[order.pop()]
            with torch.enable_grad():
                nats = _nats(view, window) * window.share
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
def _copy(masters: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    for master, parameter in zip(masters, parameters, strict=True):
        parameter.copy_(master)


class _Window(NamedTuple):
    """Some tokens of a step; `share` is how much one of them counts beside one of another part."""

    share: float
    ids: Int[Tensor, "sample position"]
    mask: Bool[Tensor, "sample position"]
    weights: Float[Tensor, "sample position"]


def _windows(batch: TokenBatch) -> list[_Window]:
    """The micro-batches of every part."""
    parts = batch.mixed or ((1.0, batch),)
    whole = sum(share for share, _ in parts)
    cut = [list(micro_batches(part, WINDOWS)) for _, part in parts]
    total = sum(map(len, cut))
    windows: list[_Window] = []
    for (share, _), several in zip(parts, cut, strict=True):
        weighed = share / whole * total / len(several)
        windows += [_Window(weighed, *tensors) for tensors in several]
    return windows


def _nats(view: ModelView, window: _Window) -> Float[Tensor, ""]:
    """What the model loses on some windows, in nats a token."""
    device = next(view.model.parameters()).device
    ids = window.ids.to(device)
    mask = window.mask.to(device)
    weights = window.weights.to(device)
    padding: dict[str, Tensor] = {}
    if not bool(mask.all()):
        padding["attention_mask"] = mask.long()
    logits = view.model(input_ids=ids, use_cache=False, **padding).logits
    # A prediction counts by the weight of the token that is predicted, from a real one.
    counted = (weights[:, 1:] * mask[:, :-1]).flatten().float()
    predicted = logits[:, :-1].flatten(0, 1).float()
    nats = cross_entropy(predicted, ids[:, 1:].flatten(), reduction="none")
    return (nats * counted).sum() / counted.sum().clamp_min(1e-9)


@dataclass(frozen=True)
class Tuned(Edit):
    """Parameters get other numbers, of the same shapes. `notes` say how they came about."""

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
        # Names of parameters have dots, and a kept edit's tensors are named by number, so that they
        # can't be mistaken for others.
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
    """Train all parameters for `steps`, as `train` does, and return what became of them; the model
    is left as it was.

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
