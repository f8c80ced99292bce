"""What is known of the dense model already: a study compares hundreds of models with one, and
keeps what that predicts where there is room.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import PreTrainedModel

from calibrant.evaluators._room import room
from calibrant.evaluators._windows import ScoredWindow, predictions
from calibrant.spec import identity

SHARE: Final = 4
"""Predictions may take one part in so many of the room for a second model, as it is when they
are made.
"""


@dataclass
class _Kept:
    """The logits of the dense model in the state `of`, by batch of windows, and how many bytes
    they take.
    """

    of: Any
    logits: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    taken: int = 0


_KNOWN: Final = WeakKeyDictionary[PreTrainedModel, _Kept]()


def state(model: PreTrainedModel) -> list[Any]:
    """Return where a model's numbers are and how often they were written to; a write through
    `.data` isn't seen.
    """
    return [
        [p.data_ptr(), str(p.dtype), 0 if p.is_inference() else p._version]
        for p in (*model.parameters(), *model.buffers())
    ]


def keep_predictions(model: PreTrainedModel) -> None:
    """From now on keep what a model predicts, as long as it lives: other models will be compared
    with it on the same windows.
    """
    _KNOWN[model] = _Kept(state(model))


def forget_predictions(model: PreTrainedModel) -> None:
    """Keep nothing more of it."""
    _KNOWN.pop(model, None)


def dense_predictions(reference: PreTrainedModel, batch: Sequence[ScoredWindow]) -> list[Tensor]:
    """For each window the dense model's logits `[scored token, vocabulary]`, as `predictions`
    has them, without a forward where they were kept.
    """
    if (kept := _KNOWN.get(reference)) is None:
        return list(predictions(reference, batch))
    if kept.of != (now := state(reference)):
        _KNOWN[reference] = kept = _Kept(now)
    name = identity([[window.unscored, *window.ids] for window in batch])
    if name not in kept.logits:
        logits = [
            row.clone() for row in predictions(reference, batch)
        ]  # without what else the batch had
        size = sum(row.nbytes for row in logits)
        if kept.taken + size > room(reference.device) // SHARE:
            return logits
        kept.logits[name] = logits
        kept.taken += size
    return kept.logits[name]
