"""What the head of a dense model is given for each batch of windows, kept in the user's cache.

A command that compares models with a dense one needs the dense model's predictions. So does the
next command, and so does each worker of a study. The inputs of its head are a tenth to a hundredth
as large, and the head alone makes the predictions again, bit for bit. So its other layers run once
on a machine.

Only models count that Calibrant opened by name, on the processor, in memory. Of an object nobody
knows what it computes: anybody may have given it another activation, or a hook. On a GPU a forward
takes less time than reading its result.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from calibrant.compress.costs import processor
from calibrant.models import Opened
from calibrant.models.cache import cache_folder
from calibrant.numerics import type_name
from calibrant.spec import identity
from calibrant.system import sealed_tensors
from calibrant.system.durable import short
from calibrant.system.seals import BrokenSealError, Purpose, tell_made_again

REVISION: Final = 0
"""Raised where the same model would compute other inputs: by other padding, or other products."""
MOST_BYTES: Final = 2 * 10**9
"""Bytes that may be kept, of all models together."""
FOLDER: Final = "head_inputs"
"""Where they lie in the user's cache."""


@final
@dataclass(frozen=True)
class HeadInputs:
    """The inputs of one model's head, by the id of a batch. `facts` are what decides them and how
    they are rounded.
    """

    facts: Purpose
    used: set[Path] = field(default_factory=set[Path])
    """The files that were written or read here: they make no room for others."""

    @classmethod
    def of(cls, opened: Opened) -> "HeadInputs | None":
        """Return the inputs of the model's head; None where they can't be kept.

        A class of transformers that a program has changed isn't seen.
        """
        by_name = isinstance(opened.hashed, str)
        in_memory = not (opened.residence.on_disk or opened.residence.elsewhere)
        on_processor = opened.model.device.type == "cpu"
        if not (by_name and in_memory and on_processor):
            return None
        if cache_folder() == Path(os.devnull) or torch.is_autocast_enabled("cpu"):
            return None
        config: Any = opened.model.config
        facts: dict[str, str | int] = {
            "kind": "head inputs",
            "revision": REVISION,
            "model": opened.digest,
            "dtype": type_name(opened.dtype),
            "attention": str(config._attn_implementation),
            "experts": str(getattr(config, "_experts_implementation", None)),
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads(),
        }
        for package in ("calibrant", "torch", "transformers"):
            facts[package] = version(package)
        return cls(facts)

    def read(self, batch_id: str) -> Tensor | None:
        """Return the head's input for a batch; None where it isn't kept, or was damaged."""
        path = self._path(batch_id)
        try:
            stored = sealed_tensors.read(path, self._purpose(batch_id), mapped=False)
        except OSError:
            return None
        except BrokenSealError:
            tell_made_again("what a dense model's head was given", short(path))
            return None
        self.used.add(path)
        with suppress(OSError):
            os.utime(path)
        return stored.tensors["head_input"]

    def write(self, batch_id: str, head_input: Tensor) -> None:
        """Keep the head's input for a batch, where the cache can be written and has room."""
        path = self._path(batch_id)
        purpose = self._purpose(batch_id)
        with suppress(OSError):
            if self._make_room(head_input.nbytes):
                tensors = {"head_input": head_input}
                sealed_tensors.write(path, purpose, {}, tensors, flushed=False)
                self.used.add(path)

    def _purpose(self, batch_id: str) -> Purpose:
        return {**self.facts, "batch": batch_id}

    def _path(self, batch_id: str) -> Path:
        digits = identity(self._purpose(batch_id)).rpartition(":")[2][:32]
        return cache_folder() / FOLDER / f"{digits}.safetensors"

    def _make_room(self, size: int) -> bool:
        """Remove what wasn't used for the longest time until `size` bytes more are within
        `MOST_BYTES`; return whether they are.
        """
        files = [(path, path.stat()) for path in (cache_folder() / FOLDER).glob("*")]
        files.sort(key=lambda file: file[1].st_mtime_ns)
        total = size + sum(facts.st_size for _, facts in files)
        for path, facts in files:
            if total <= MOST_BYTES:
                break
            if path not in self.used:
                path.unlink()
                total -= facts.st_size
        return total <= MOST_BYTES
