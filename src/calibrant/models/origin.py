"""Remembers of a model object what its numbers don't say: where it came from, on what it was
calibrated, where its blocks are, and whether it was changed since. It is forgotten with the object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, final
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from calibrant.models.saving import Opened
from calibrant.models.viewing import IN_MEMORY, Residence


@final
@dataclass(frozen=True)
class Origin:
    """Where a model came from: the name that it was opened by, and the `note` that its results
    repeat. `residence` is that of its blocks.

    Of one that was compressed in memory, `manifest` is what a saved folder's `calibrant.json` would
    say, and `rows` are the `RowFingerprints` of what it was calibrated on.
    """

    name: str
    note: str = ""
    manifest: Mapping[str, Any] | None = None
    rows: Any = None
    residence: Residence = IN_MEMORY


State: TypeAlias = Mapping[str, tuple[Any, ...]]
"""By the name of each parameter, what is another once it was changed."""

_ORIGINS: Final = WeakKeyDictionary[PreTrainedModel, Origin]()
_STATES: Final = WeakKeyDictionary[PreTrainedModel, State]()


def remember(model: PreTrainedModel, origin: Origin) -> None:
    """Remember where a model came from, and its numbers as they are now, as long as it lives."""
    # A residence on disk holds the model, which would live on with what is remembered of it.
    if origin.residence.on_disk:
        origin = replace(origin, residence=IN_MEMORY)
    _ORIGINS[model] = origin
    _STATES[model] = state_of(model)


def remember_copy(copy: PreTrainedModel, model: PreTrainedModel) -> None:
    """Remember of a copy what is remembered of `model`, also that it was changed since."""
    if model not in _ORIGINS:
        return
    _ORIGINS[copy] = _ORIGINS[model]
    if is_as_remembered(model):
        _STATES[copy] = state_of(copy)


def is_as_remembered(model: PreTrainedModel) -> bool:
    """Return whether no parameter was changed since `remember`. Changes that are made through a
    parameter's `.data` aren't noticed.
    """
    return _STATES.get(model) == state_of(model)


def state_of(model: PreTrainedModel) -> State:
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


def origin_of(model: object) -> Origin | None:
    """Return what is remembered of a model object; None for a name, and for one that Calibrant
    neither opened nor changed.
    """
    given = model.model if isinstance(model, Opened) else model
    return _ORIGINS.get(given) if isinstance(given, PreTrainedModel) else None
