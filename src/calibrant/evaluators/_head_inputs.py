"""What the head of a dense model was given for each batch of windows, kept in the user's cache.

A command that compares models with a dense one needs the dense model's predictions, and so does the
next command, and each worker of a study. The inputs of its head are a hundredth of them, and the
head alone makes them again, bit for bit. So the other layers run once on a machine.

The inputs count for the numbers that the model has in memory, for this processor, this number of
threads and these versions. They are kept only of a model on the processor: to hash its numbers
there takes as long as a forward of a hundred tokens. On a GPU a forward is faster than that.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibrant.compress.costs import processor
from calibrant.models.cache import cache_folder
from calibrant.models.hashing import digest_of_tensors
from calibrant.models.on_disk import brings_blocks_in
from calibrant.spec import identity
from calibrant.system import sealed_tensors
from calibrant.system.durable import short
from calibrant.system.seals import BrokenSealError, Purpose, tell_made_again

MOST: Final = 2 * 10**9
"""Bytes that may be kept, of all models together. Of more, what wasn't used for the longest time is
removed.
"""
FOLDER: Final = "head_inputs"
"""Where they lie in the user's cache."""
ENDING: Final = ".safetensors"
_PACKAGES: Final = ("calibrant", "torch", "transformers")


def can_be_cached(model: PreTrainedModel) -> bool:
    """Return whether there is a cache, and what `model` computes follows from its numbers, all of
    them in memory on the processor. A hook, or a forward of one module's own, may compute anything.
    """
    if cache_folder() == Path(os.devnull):
        return False
    if model.device.type != "cpu" or brings_blocks_in(model):
        return False
    return not any(map(_was_changed, model.modules()))


def _was_changed(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(hooked) or "forward" in module.__dict__


@final
@dataclass(frozen=True)
class HeadInputs:
    """The inputs that the head of one model was given, by the id of a batch."""

    model: str
    """The digest of its numbers."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "HeadInputs":
        """Return those of the model with the numbers that it has now."""
        return cls(digest_of_tensors(model))

    @cached_property
    def _made_by(self) -> dict[str, str | int]:
        """What decides how the inputs are rounded, beside the numbers."""
        facts: dict[str, str | int] = {name: version(name) for name in _PACKAGES}
        facts["processor"] = processor()
        facts["threads"] = torch.get_num_threads()
        return facts

    def _purpose(self, batch_id: str) -> Purpose:
        return {"kind": "head inputs", "model": self.model, "batch": batch_id, **self._made_by}

    def _path(self, batch_id: str) -> Path:
        digits = identity(self._purpose(batch_id)).rpartition(":")[2][:32]
        return _folder() / f"{digits}{ENDING}"

    def read(self, batch_id: str) -> Tensor | None:
        """Return what the head was given for a batch; None where it isn't kept, or was damaged."""
        path = self._path(batch_id)
        try:
            kept = sealed_tensors.read(path, self._purpose(batch_id), mapped=False)
        except OSError:
            return None
        except BrokenSealError:
            tell_made_again("what a dense model's head was given", short(path))
            return None
        with suppress(OSError):
            os.utime(path)
        return kept.tensors["inputs"]

    def write(self, batch_id: str, inputs: Tensor) -> None:
        """Keep what the head was given for a batch, where the cache can be written."""
        with suppress(OSError):
            _make_room(inputs.nbytes)
            purpose = self._purpose(batch_id)
            sealed_tensors.write(self._path(batch_id), purpose, {}, {"inputs": inputs})


def _folder() -> Path:
    return cache_folder() / FOLDER


def _make_room(size: int) -> None:
    """Remove what wasn't used for the longest time, until `size` bytes more are within `MOST`."""
    files = sorted(_files(), key=lambda file: file.used)
    total = size + sum(file.size for file in files)
    for file in files:
        if total <= MOST:
            return
        file.path.unlink(missing_ok=True)
        total -= file.size


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    used: int


def _files() -> Iterator[_File]:
    for path in _folder().glob(f"*{ENDING}"):
        # Another process may have removed it.
        with suppress(FileNotFoundError):
            facts = path.stat()
            yield _File(path, facts.st_size, facts.st_mtime_ns)
