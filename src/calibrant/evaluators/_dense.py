"""What is known of the dense model already: a study compares hundreds of models with one. Its predictions are kept where there is room.

Nothing is kept the first time that windows are asked for, so that whoever measures one model pays no memory for others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import PreTrainedModel

from calibrant.evaluators._room import room
from calibrant.evaluators._windows import ScoredWindow, predictions
from calibrant.spec import identity

PART: Final = 4
"""Of the room that there is for a second model, one in so many may be taken."""


@dataclass
class _Kept:
    """The predictions that are kept of a dense model after so many `changes`, the batches that were asked for, and how many bytes are `left`."""

    changes: int
    left: int
    asked: set[str] = field(default_factory=set[str])
    logits: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])


_KNOWN: Final = WeakKeyDictionary[PreTrainedModel, _Kept]()


def changes(model: PreTrainedModel) -> int:
    """Return how often a model's parameters were changed in place: what is known of the model holds while that stays as it is."""
    return sum(p._version for p in model.parameters() if not p.is_inference())


def dense_predictions(reference: PreTrainedModel, batch: Sequence[ScoredWindow]) -> list[Tensor]:
    """For each window the dense model's logits `[scored token, vocabulary]`, as `predictions` has them; from the third time on without a forward."""
    now = changes(reference)
    kept = _KNOWN.get(reference)
    if kept is None or kept.changes != now:
        _KNOWN[reference] = kept = _Kept(now, room(reference.device) // PART)
    name = identity([[window.unscored, *window.ids] for window in batch])
    if name in kept.logits:
        return kept.logits[name]
    logits = list(predictions(reference, batch))
    size = sum(row.nbytes for row in logits)
    if name in kept.asked and size <= kept.left:
        kept.logits[name] = logits = [row.clone() for row in logits]  # without what else the batch had
        kept.left -= size
    kept.asked.add(name)
    return logits
