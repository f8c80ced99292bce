"""Remembers of a model object what its numbers don't say: where it came from, and on what it was
calibrated. It is forgotten with the object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from calibrant.models.saving import Opened


@final
@dataclass(frozen=True)
class Origin:
    """Where a model came from: the name that it was opened by, and the `note` that its results
    repeat.

    Of one that was compressed in memory, `manifest` is what a saved folder's `calibrant.json` would
    say, and `rows` are the `RowFingerprints` of what it was calibrated on.
    """

    name: str
    note: str = ""
    manifest: Mapping[str, Any] | None = None
    rows: Any = None


_ORIGINS: Final = WeakKeyDictionary[PreTrainedModel, Origin]()
_STATES: Final = WeakKeyDictionary[PreTrainedModel, dict[str, tuple[Any, ...]]]()


def remember(model: PreTrainedModel, origin: Origin) -> None:
    """Remember where a model came from, as long as it lives."""
    _ORIGINS[model] = origin
    _STATES[model] = state_of(model)


def state_of(model: PreTrainedModel) -> dict[str, tuple[Any, ...]]:
    """Return, by name, what is another once a parameter was changed: torch counts changes in
    place.
    """
    state: dict[str, tuple[Any, ...]] = {}
    for name, parameter in model.named_parameters():
        changes = 0
        if not parameter.is_inference():
            changes = parameter._version
        state[name] = (id(parameter), changes, parameter.dtype)
    return state


def is_as_remembered(model: PreTrainedModel) -> bool:
    """Return whether nothing changed the numbers of a model since its origin was remembered.

    Changes that are made through a parameter's `.data` aren't noticed.
    """
    return _STATES.get(model) == state_of(model)


def origin_of(model: object) -> Origin | None:
    """Return what is remembered of a model object; None for a name, and for one that Calibrant
    neither opened nor changed.
    """
    given = model.model if isinstance(model, Opened) else model
    return _ORIGINS.get(given) if isinstance(given, PreTrainedModel) else None
