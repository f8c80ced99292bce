"""The noise floor of KL: how far apart two computations of the same numbers are.

Whatever runs a model rounds in a way of its own: bfloat16 keeps eight bits of every activation,
llama.cpp rounds activations to 8 bits before it multiplies them with quantized weights. The next
version of a runtime, or another machine, rounds otherwise. So two models whose divergences from the
dense one differ by less than what rounding alone does can't be distinguished where they run.

The floor is the divergence KL(exact ‖ as it runs) per token between two computations of the same
numbers, over the first windows of what is measured. In torch the numbers are the dense model's,
computed in its own type and in one twice as wide. In llama.cpp they are those of the file, since
its arithmetic depends on how the file is quantized, computed there and by torch in float32. Where
there is no second computation (no wider type, no room for it in memory, blocks on disk, a file that
transformers can't open), there is no floor, and nothing is claimed.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from calibrant.data import by_length
from calibrant.errors import NumericsError
from calibrant.evaluators._dense import state
from calibrant.evaluators._engines import RunByLlamaCpp
from calibrant.evaluators._room import room
from calibrant.evaluators._windows import ScoredWindow
from calibrant.spec import identity

TOKENS: Final = 512
"""Tokens that the floor is measured on: it is wanted to one digit."""
WIDER: Final = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
}

Compare = Callable[[PreTrainedModel, PreTrainedModel, list[ScoredWindow]], Sequence[Sequence[Any]]]
"""The summed nats of divergence of a model from a reference, first of what is said of each
window.
"""

_KNOWN: Final = WeakKeyDictionary[PreTrainedModel, dict[str, "NoiseFloor | None"]]()
"""What was found already, by the model that runs: a study compares hundreds of models with one
dense one.
"""


@dataclass(frozen=True)
class NoiseFloor:
    """A divergence in nats per token, over so many tokens, and between which two computations of
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
    run = model if isinstance(model, RunByLlamaCpp) else reference
    first = _first(windows)
    about = identity([state(run), *([w.name, w.unscored, *w.ids] for w in first)])
    known = _KNOWN.setdefault(run, {})
    if about not in known:
        known[about] = _measured(run, first, compare)
    return known[about]


def _first(windows: Sequence[ScoredWindow]) -> list[ScoredWindow]:
    chosen, scored = list[ScoredWindow](), 0
    for window in windows:
        chosen.append(window)
        scored += window.scored
        if scored >= TOKENS:
            break
    return chosen


def _measured(
    run: PreTrainedModel, windows: Sequence[ScoredWindow], compare: Compare
) -> NoiseFloor | None:
    nats = 0.0
    try:
        exact, between = _twin(run)
        if exact is None:
            return None
        for places in by_length([len(window.ids) for window in windows], TOKENS):
            nats += sum(
                found[0] for found in compare(run, exact, [windows[place] for place in places])
            )
    except (
        RuntimeError,
        NumericsError,
    ):  # a model that insists on its type, or too little memory after all
        return None
    tokens = sum(window.scored for window in windows)
    return NoiseFloor(nats / tokens, tokens, between)


def _twin(run: PreTrainedModel) -> tuple[PreTrainedModel | None, str]:
    """A model that computes the same numbers more exactly, and between which computations a
    difference is then.
    """
    if isinstance(run, RunByLlamaCpp):
        return run.in_torch(room("cpu")), "llama.cpp and torch in float32"
    kind = run.dtype
    wider, size = WIDER.get(kind), sum(p.numel() for p in run.parameters())
    on_disk = any(p.is_meta for p in run.parameters())
    if (
        wider is None
        or on_disk
        or run.device.type == "mps"
        or size * wider.itemsize > room(run.device)
    ):
        return None, ""
    names = [str(one).removeprefix("torch.") for one in (kind, wider)]
    return copy.deepcopy(run).to(wider), f"torch in {names[0]} and in {names[1]}"  # pyright: ignore[reportArgumentType]  # `to` is decorated
