"""What safetensors files say that they hold, before any of it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import final

from safetensors import safe_open

from calibrant.errors import ModelError
from calibrant.foreign import brief
from calibrant.models.quiet import Refusal


@final
@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file's header describes it; `dtype` is the file format's own word, such as `BF16`."""

    shape: tuple[int, ...]
    dtype: str
    file: str

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


def stored_tensors(files: Sequence[Path]) -> Mapping[str, StoredTensor]:
    """Return every tensor of some safetensors files by name. Raises `ModelError` for a damaged file, and for a tensor that is in two."""
    stored: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in _tensors(path):
            if name in stored:
                raise ModelError(
                    f"{path} holds {brief(name)}, and so does {stored[name].file}; copy or download the model again, one file at a time", subject=name
                )
            stored[name] = tensor
    return stored


def _tensors(path: Path) -> list[tuple[str, StoredTensor]]:
    with Refusal(f"{path} is no sound safetensors file", "; copy or download it again", str(path)), safe_open(path, framework="pt") as file:
        slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118  # no mapping
        return [(name, StoredTensor(tuple(part.get_shape()), str(part.get_dtype()), path.name)) for name, part in slices]
