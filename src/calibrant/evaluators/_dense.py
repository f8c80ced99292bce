"""What is known of the dense model that others are compared with: its predictions, where they are
kept, what else was found of it, and the noise floor of KL.

The noise floor is how far apart two computations of the same numbers are. Whatever runs a model
rounds in a way of its own: bfloat16 keeps eight bits of every activation, llama.cpp rounds
activations to 8 bits before it multiplies them with quantized weights. The next version of a
runtime, or another machine, rounds otherwise. So if the divergences of two models from the dense
one differ by less than what rounding alone does, the models can't be distinguished where they run.

The floor is the divergence KL(exact ‖ as it runs) per token, over the first windows of what is
measured. In torch the numbers are the dense model's, computed in its own type and in one twice as
wide. In llama.cpp they are those of the file, since its arithmetic depends on how the file is
quantized, computed there and by torch in float32. Where there is no second computation (no wider
type, no room for it in memory, blocks on disk, a file that transformers can't open), there is no
floor, and nothing is claimed.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from calibrant.data import by_length
from calibrant.errors import NumericsError
from calibrant.evaluators._base import Evaluator
from calibrant.evaluators._engines import RunByLlamaCpp
from calibrant.evaluators._head_inputs import HeadInputs
from calibrant.evaluators._windows import (
    ScoredWindow,
    batch_logits,
    first_windows,
    predictions,
    scored_logits,
)
from calibrant.models import ModelOutline, Opened
from calibrant.models.devices import free_on
from calibrant.models.on_disk import brings_blocks_in
from calibrant.models.rounded_inputs import rounding_facts
from calibrant.numerics import type_name
from calibrant.spec import canonical, identity
from calibrant.system.products import exact_type

KEPT_PART: Final = 4
"""Predictions that are kept may take a fourth of the room that there is for a second model when
they are made.
"""
ROOM: Final = 0.5
"""The share of the free memory that a second copy of a model may take."""
TOKENS: Final = 512
"""Tokens that the floor is measured on: it is wanted to one digit."""
WIDER: Final = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
}

Found = TypeVar("Found")
Compare = Callable[[PreTrainedModel, PreTrainedModel, list[ScoredWindow]], Sequence[Sequence[Any]]]
"""Compares a model with a reference. What it gives of each window begins with the summed nats of
divergence.
"""


@dataclass
class _Remembered:
    """What a dense model in one `state` predicts, by batch of windows, and the bytes it takes.

    Of most models it is the input of the head, a tenth to a hundredth of the logits. Where the head
    alone doesn't give the logits, since they are scaled or capped behind it, it is the logits of
    the scored tokens.

    What isn't held `in_memory` may still be in the `cache`, which has inputs of heads only.
    """

    state: list[Any]
    in_memory: bool
    cache: HeadInputs | None
    head_inputs: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    logits: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    taken: int = 0

    def up_to_date(self, model: PreTrainedModel) -> "_Remembered":
        """Return this, or an empty one where the model was changed since."""
        state_now = state(model)
        if self.state == state_now:
            return self
        # The cache is about the numbers that the model was opened with.
        return _Remembered(state_now, self.in_memory, cache=None)

    def head_input(self, batch_id: str) -> Tensor | None:
        """Return the head's input for a batch, from memory or from the cache; None where it is in
        neither.
        """
        if batch_id in self.head_inputs:
            return self.head_inputs[batch_id]
        if self.cache is None:
            return None
        head_input = self.cache.read(batch_id)
        if head_input is not None:
            self._hold(batch_id, head_input)
        return head_input

    def add_head_input(self, batch_id: str, head_input: Tensor) -> None:
        """Remember the head's input for a batch."""
        self._hold(batch_id, head_input)
        if self.cache is not None:
            self.cache.write(batch_id, head_input)

    def add_logits(self, batch_id: str, scored: Sequence[Tensor]) -> None:
        """Remember the logits of a batch's scored tokens: the head's input isn't enough."""
        self.cache = None
        size = sum(rows.nbytes for rows in scored)
        if self._reserve(size, scored[0].device):
            # Cloned, or a view would keep the logits of unscored tokens and of padding too.
            self.logits[batch_id] = [rows.clone() for rows in scored]

    def _hold(self, batch_id: str, head_input: Tensor) -> None:
        if self._reserve(head_input.nbytes, head_input.device):
            self.head_inputs[batch_id] = head_input

    def _reserve(self, size: int, device: torch.device) -> bool:
        """Count so many more bytes as taken where there is room for them; return whether there
        is.
        """
        if not self.in_memory or self.taken + size > room(device) // KEPT_PART:
            return False
        self.taken += size
        return True


# All by the model, weakly: what is known of it goes when it goes.
_REMEMBERED: Final = WeakKeyDictionary[PreTrainedModel, _Remembered]()
_FOUND: Final = WeakKeyDictionary[PreTrainedModel, dict[str, tuple[str, Any]]]()
_FLOORS: Final = WeakKeyDictionary[PreTrainedModel, dict[str, "NoiseFloor | None"]]()


def state(model: PreTrainedModel) -> list[Any]:
    """Return where a model's numbers are, their types, how often they were written to, and how it
    rounds inputs and its KV cache: what changes when the model does.

    A write through `.data` isn't seen, nor a hook that comes or goes. Nor is a write to a buffer
    that no file holds: some models write their rotary frequencies in every forward.
    """
    stamps: list[Any] = []
    for tensor in model.state_dict(keep_vars=True).values():
        # A tensor that was made in inference mode has no version.
        version = 0 if tensor.is_inference() else tensor._version
        stamps.append([tensor.data_ptr(), str(tensor.dtype), version])
    return [*stamps, rounding_facts(model)]


def keep_predictions(model: PreTrainedModel, cache: HeadInputs | None = None) -> None:
    """Keep what a model predicts from now on, as long as it lives: other models will be compared
    with it on the same windows. With a `cache` it is kept there too.
    """
    _REMEMBERED[model] = _Remembered(state(model), in_memory=True, cache=cache)


def forget_predictions(model: PreTrainedModel) -> None:
    """Keep no predictions of the model any more."""
    _REMEMBERED.pop(model, None)


@contextmanager
def cached_predictions(dense: Opened | None) -> Iterator[None]:
    """Keep what a dense model predicts in the user's cache meanwhile, where that can be done."""
    cache = None
    if dense is not None:
        cache = HeadInputs.of(dense)
    if dense is None or cache is None:
        yield
        return
    _REMEMBERED[dense.model] = _Remembered(state(dense.model), in_memory=False, cache=cache)
    try:
        yield
    finally:
        forget_predictions(dense.model)


@torch.no_grad()
def dense_predictions(
    reference: PreTrainedModel, batch: Sequence[ScoredWindow]
) -> list[Float[Tensor, "token word"]]:
    """Return for each window the dense model's logits, as `predictions` does, without a forward
    where they are remembered.
    """
    remembered = _REMEMBERED.get(reference)
    if remembered is None:
        return list(predictions(reference, batch))
    remembered = remembered.up_to_date(reference)
    _REMEMBERED[reference] = remembered
    if not remembered.in_memory and remembered.cache is None:
        return list(predictions(reference, batch))
    batch_id = identity([[window.unscored, window.places, window.ids] for window in batch])
    if batch_id in remembered.logits:
        return remembered.logits[batch_id]
    head_input = remembered.head_input(batch_id)
    if head_input is not None:
        head: Any = reference.get_output_embeddings()
        return list(scored_logits(head(head_input), batch))
    logits, head_input = _logits_and_head_input(reference, batch)
    scored = list(scored_logits(logits, batch))
    if head_input is None:
        remembered.add_logits(batch_id, scored)
    else:
        remembered.add_head_input(batch_id, head_input)
    return scored


def _logits_and_head_input(
    reference: PreTrainedModel, batch: Sequence[ScoredWindow]
) -> tuple[Tensor, Tensor | None]:
    """Return the logits of a batch, and the last hidden states of which the head alone makes them
    again, bit for bit; None where it doesn't.
    """
    head = reference.get_output_embeddings()
    if head is None:
        return batch_logits(reference, batch), None
    given: list[list[Any]] = []

    def note(module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append([*arguments, *named.values()])

    hook = head.register_forward_pre_hook(note, with_kwargs=True)
    try:
        logits = batch_logits(reference, batch)
    finally:
        hook.remove()
    # It may be called in parts, or be given more than hidden states.
    if len(given) != 1 or len(given[0]) != 1:
        return logits, None
    # Cloned, or a view would keep the positions that no token is predicted from too.
    head_input = given[0][0].clone()
    again = head(head_input)
    if again.dtype != logits.dtype or not torch.equal(again, logits):
        return logits, None
    return logits, head_input


def found_once(
    model: PreTrainedModel, evaluator: Evaluator, data: list[Any], find: Callable[[], Found]
) -> Found:
    """Return what `find` finds of a dense model for an evaluator that reads `data`.

    It is kept for the last evaluator of each kind that asked, and not found again for the same
    one: a study compares hundreds of models with one.
    """
    finding_id = identity([state(model), canonical(evaluator), evaluator.digest(), data])
    by_kind = _FOUND.setdefault(model, {})
    kind = evaluator.spec_name()
    known_id, found = by_kind.get(kind, ("", None))
    if known_id != finding_id:
        found = find()
        by_kind[kind] = (finding_id, found)
    return found


@dataclass(frozen=True)
class NoiseFloor:
    """A divergence in nats per token, the number of tokens, and between which two computations of
    the same numbers it is.
    """

    nats: float
    tokens: int
    between: str

    def facts(self) -> dict[str, Any]:
        """Return it as facts of a score."""
        return {"floor": self.nats, "floor_tokens": self.tokens, "floor_between": self.between}


def noise_floor(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    windows: Sequence[ScoredWindow],
    compare: Compare,
) -> NoiseFloor | None:
    """Return the floor of whatever runs `model`, whose divergence from the dense `reference` is
    measured on `windows`; None where none can be had.
    """
    inexact = model if isinstance(model, RunByLlamaCpp) else reference
    floor_windows = first_windows(windows, TOKENS)
    shown = [[window.name, window.unscored, *window.ids] for window in floor_windows]
    floor_id = identity([state(inexact), *shown])
    floors = _FLOORS.setdefault(inexact, {})
    if floor_id not in floors:
        floors[floor_id] = _measured(inexact, floor_windows, compare)
    return floors[floor_id]


def _measured(
    inexact: PreTrainedModel, windows: Sequence[ScoredWindow], compare: Compare
) -> NoiseFloor | None:
    nats = 0.0
    lengths = [len(window.ids) for window in windows]
    try:
        exact, between = _exact(inexact)
        if exact is None:
            return None
        # The same numbers on the same windows, so any divergence is rounding.
        for places in by_length(lengths, TOKENS):
            batch = [windows[place] for place in places]
            compared = compare(inexact, exact, batch)
            nats += sum(window_sums[0] for window_sums in compared)
    except (RuntimeError, NumericsError):
        # A model that insists on its type, or too little memory after all.
        return None
    tokens = sum(window.scored for window in windows)
    return NoiseFloor(nats / tokens, tokens, between)


def _exact(inexact: PreTrainedModel) -> tuple[PreTrainedModel | None, str]:
    """Return a model that computes the same numbers more exactly, and between which computations
    a difference is then.
    """
    if isinstance(inexact, RunByLlamaCpp):
        return inexact.in_torch(room("cpu")), "llama.cpp and torch in float32"
    numbers = sum(parameter.numel() for parameter in inexact.parameters())
    wider = _wider(inexact.dtype, inexact.device, numbers)
    if wider is None or brings_blocks_in(inexact):
        return None, ""
    narrow_name = type_name(inexact.dtype)
    wide_name = type_name(wider)
    exact = copy.deepcopy(inexact).to(wider)  # pyright: ignore[reportArgumentType]  # `to` is decorated
    return exact, f"torch in {narrow_name} and in {wide_name}"


def _wider(
    dtype: torch.dtype, device: torch.device, numbers: int, added: int = 0
) -> torch.dtype | None:
    """The type in which a model of so many `numbers` is computed more exactly; None where there is
    none, or no room for it once `added` bytes are held there besides.
    """
    wider = WIDER.get(dtype)
    # The device may lack it.
    if wider is None or (wider == torch.float64 and exact_type(device) != wider):
        return None
    if numbers * wider.itemsize > room(device, added):
        return None
    return wider


def floor_bytes(outlines: Sequence[ModelOutline]) -> int:
    """Return how many bytes the wider copy of the dense model, the last one, takes that its noise
    floor is found with; 0 where none is made.
    """
    dense = outlines[-1]
    # It is made once all of them are open, of what is left then.
    added = sum(each.added for each in outlines)
    wider = _wider(dense.dtype, dense.device, dense.shape.numbers, added)
    if wider is None:
        return 0
    return dense.shape.numbers * wider.itemsize


def room(device: torch.device | str, added: int = 0) -> int:
    """Return the bytes that a second copy of a model may take on a device, once `added` bytes are
    held there besides.
    """
    return int(ROOM * (free_on(torch.device(device)) - added))
