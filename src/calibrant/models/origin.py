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


def remember(model: PreTrainedModel, origin: Origin) -> None:
    """Remember where a model came from, as long as it lives."""
    _ORIGINS[model] = origin


def origin_of(model: object) -> Origin | None:
    """Return what is remembered of a model object; None for a name, and for one that Calibrant
    neither opened nor changed.
    """
    given = model.model if isinstance(model, Opened) else model
    return _ORIGINS.get(given) if isinstance(given, PreTrainedModel) else None
