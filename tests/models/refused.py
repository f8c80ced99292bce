"""What is refused, and what is damaged for it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from calibrant.errors import CalibrantError, ModelError

REFUSED_BY: Final[Mapping[str, Sequence[str]]] = json.loads(
    Path(__file__).with_name("refused.json").read_text()
)
"""By transform, and for a rounded KV cache, the families of models that it refuses."""


def refusal_of(
    act: Callable[..., object],
    *given: object,
    kind: type[CalibrantError] = ModelError,
    **options: object,
) -> CalibrantError:
    """What is raised, in one sentence, when `act` is asked for something."""
    with pytest.raises(kind) as caught:
        act(*given, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def edit(folder: Path, name: str = "config.json", **entries: object) -> None:
    """Write some entries of a JSON file anew."""
    held = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**held, **entries}))
