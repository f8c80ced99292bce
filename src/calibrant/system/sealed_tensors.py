"""Tensors in a safetensors file that is read again: whole or not at all, flushed, and under a
seal of what they were written for.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calibrant.system.durable import from_json, line_of_json, replacing
from calibrant.system.seals import BrokenSealError, NoSealError, Purpose, seal_of
from calibrant.system.shards import Shard

ENTRY: Final = "calibrant"
"""The entry of a file's metadata in which its facts and its seal stand."""


@dataclass(frozen=True)
class SealedTensors:
    """What such a file holds: facts, which are plain JSON data, and tensors by name."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write(
    path: Path,
    purpose: Purpose,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    flushed: bool = True,
) -> None:
    """Write one file in place of an older one. What isn't `flushed` may be lost in a power failure.
    Raises `OSError`, also for a full disk, and `OutputError` for a type of numbers that safetensors
    files of ours don't have.
    """
    on_cpu = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    metadata = {ENTRY: line_of_json({"facts": facts, "seal": _seal(purpose, facts, on_cpu)})}
    with replacing(path, flushed=flushed) as half:
        shard = Shard.of(on_cpu, half, metadata)
        shard.begin()
        shard.write(on_cpu)


def read(path: Path, purpose: Purpose, mapped: bool = True) -> SealedTensors:
    """Return what was written for this purpose. What isn't `mapped` into memory is read.

    Raises `OSError` where it can't be read, `FileNotFoundError` where it isn't there, and
    `BrokenSealError` for what isn't what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    # Opened and closed: a file that may not be read raises here. Safetensors tells it from a
    # damaged one by its message only.
    with path.open("rb"):
        pass
    backend: Any = {"backend": "mmap" if mapped else "pread"}
    try:
        with safe_open(path, framework="pt", **backend) as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        entry = from_json(metadata[ENTRY])
        if not {"facts", "seal"} & entry.keys():
            raise NoSealError
        facts = entry["facts"]
        seal = entry["seal"]
    except (NoSealError, FileNotFoundError):
        # The first is a `ValueError` too, which is caught below. The second is a file that another
        # process has just removed.
        raise
    except (SafetensorError, OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise BrokenSealError from error
    if seal != _seal(purpose, facts, tensors):
        raise BrokenSealError
    return SealedTensors(facts, tensors)


def _seal(purpose: Purpose, facts: Any, tensors: Mapping[str, Tensor]) -> str:
    """The seal of the facts and of every tensor: its name, type, shape and bytes."""
    contents: list[bytes | memoryview] = [line_of_json(facts).encode()]
    for name in sorted(tensors):
        tensor = tensors[name]
        contents.append(line_of_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        contents.append(_bytes_of(tensor))
    return seal_of(purpose, *contents)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, which aren't copied."""
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data
