"""A model and its files must be each other's: what the files lack would be random, what the
model doesn't use would be lost in silence.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights

from calibrant.errors import ModelError
from calibrant.models.quiet import Refusal
from calibrant.spec.foreign import brief

FLOATS: Final = ("F64", "F32", "F16", "BF16")
SPARE: Final = 2**24
"""Numbers that a model may ask for beyond twice what is stored: a head may be tied, and what
little is missing is named when it is loaded.
"""
BUFFERS: Final = 2**28
"""Numbers in buffers, which no file holds, that may be asked for whatever the files hold."""


@final
@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file's header describes it; `dtype` is the file format's own word, such as
    `BF16`.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


def stored_tensors(files: Sequence[Path]) -> Mapping[str, StoredTensor]:
    """Return every tensor of some safetensors files by name. Raises `ModelError` for a damaged
    file, and for a tensor that is in two.
    """
    stored: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in _header_of(path):
            if name in stored:
                raise ModelError(
                    f"{path} holds {brief(name)}, and so does {stored[name].file}; copy or download the model again, one file at a time",
                    subject=name,
                )
            stored[name] = tensor
    return stored


def _header_of(path: Path) -> list[tuple[str, StoredTensor]]:
    with (
        Refusal(f"{path} is no sound safetensors file", "; copy or download it again", str(path)),
        safe_open(path, framework="pt", backend="pread") as file,
    ):
        slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118  # no mapping
        return [
            (name, StoredTensor(tuple(part.get_shape()), str(part.get_dtype()), path.name))
            for name, part in slices
        ]


def check_complete(loaded: Any, ref: str) -> None:
    """Raise `ModelError`, naming a parameter, if transformers' loading report has one that is
    missing, of another shape, or that nobody uses.
    """
    if loaded["mismatched_keys"]:
        name, stored, configured = min(loaded["mismatched_keys"])
        raise ModelError(
            f"{ref}: {name} is {list(stored)}, but the configuration asks for {list(configured)}; check config.json",
            subject=name,
        )
    if loaded["missing_keys"]:
        name = min(loaded["missing_keys"])
        raise ModelError(
            f"{ref} has no numbers for {name}, which would be random; give a complete model with its head",
            subject=name,
        )
    if loaded["unexpected_keys"]:
        refuse_unused(min(loaded["unexpected_keys"]), ref)


def refuse_unused(name: str, ref: str) -> None:
    """Raise `ModelError` for a tensor that the files hold and the model has no place for."""
    raise ModelError(
        f"{ref} holds {brief(name)}, which a model of this configuration has no place for; check the number of layers and the architecture",
        subject=name,
    )


def outline(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel | None:
    """Return the model that a configuration describes, without numbers, in `dtype`; None for one
    that code beside it makes.
    """
    if not type(config).__module__.startswith("transformers."):
        return None
    with torch.device("meta"), no_init_weights(), meta_device_safe_creation_ops():
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=False, dtype=dtype
        )


def check_fits(model: nn.Module, numbers: int, ref: str) -> None:
    """Raise `ModelError` for a model without numbers that would take far more of them than the
    files hold: it isn't built then.
    """
    sizes = {name: prod(p.shape) for name, p in model.named_parameters()}
    extra = {name: prod(b.shape) for name, b in model.named_buffers()}
    for part, most in ((sizes, 2 * numbers + SPARE), (extra, max(numbers, BUFFERS))):
        if sum(part.values()) > most:
            name = max(part, key=part.__getitem__)
            raise ModelError(
                f"{ref} holds {numbers:,} numbers, but its configuration asks for {sum(part.values()):,}, {part[name]:,} of them in {name}; check it",
                subject=name,
            )


def check_types(model: PreTrainedModel, stored: Mapping[str, StoredTensor], ref: str) -> None:
    """Raise `ModelError` for a parameter whose stored numbers are no plain floats. Buffers,
    which some old files hold, may be anything.
    """
    buffers = tuple(name for name, _ in model.named_buffers())
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    for name, tensor in stored.items():
        if tensor.dtype in FLOATS or is_among(name, buffers):
            continue
        if not any(pattern.search(name) for pattern in ignored):
            raise ModelError(
                f"{ref} holds {brief(name)} as {tensor.dtype}, and weights are {', '.join(FLOATS)}; give the model before its quantization",
                subject=name,
            )


def is_among(name: str, parts: Sequence[str]) -> bool:
    """Whether a stored tensor is one of these parts of a model; either name may lack the prefix
    of the whole model.
    """
    return any(
        part == name or part.endswith(f".{name}") or name.endswith(f".{part}") for part in parts
    )
