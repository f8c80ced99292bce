"""A model and its files must be each other's: what the files lack would be random, what the
model doesn't use would be lost in silence.

Where the files have another type of numbers, they are converted here, tensor by tensor:
transformers maps the whole file and keeps all of it in memory until it has converted it.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, cast, final

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights

from calibrant.errors import ModelError
from calibrant.models.quiet import Refusal
from calibrant.spec.foreign import brief

WORDS: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""The file format's words for the types of numbers."""
FLOATS: Final = tuple(WORDS.values())
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
                    f"{path} holds {brief(name)}, and so does {stored[name].file}; copy or "
                    "download the model again, one file at a time",
                    subject=name,
                )
            stored[name] = tensor
    return stored


def _header_of(path: Path) -> list[tuple[str, StoredTensor]]:
    tensors: list[tuple[str, StoredTensor]] = []
    with (
        Refusal(f"{path} is no sound safetensors file", "; copy or download it again", str(path)),
        safe_open(path, framework="pt", backend="pread") as file,
    ):
        for name in file.keys():  # noqa: SIM118  # no mapping
            part = file.get_slice(name)
            shape = tuple(part.get_shape())
            tensors.append((name, StoredTensor(shape, str(part.get_dtype()), path.name)))
    return tensors


def check_complete(loaded: Any, ref: str) -> None:
    """Raise `ModelError`, naming a parameter, if transformers' loading report has one that is
    missing, of another shape, or that nobody uses.
    """
    if loaded["mismatched_keys"]:
        name, stored, configured = min(loaded["mismatched_keys"])
        raise ModelError(
            f"{ref}: {name} is {list(stored)}, but the configuration asks for "
            f"{list(configured)}; check config.json",
            subject=name,
        )
    if loaded["missing_keys"]:
        name = min(loaded["missing_keys"])
        raise ModelError(
            f"{ref} has no numbers for {name}, which would be random; give a complete model with "
            "its head",
            subject=name,
        )
    if loaded["unexpected_keys"]:
        refuse_unused(min(loaded["unexpected_keys"]), ref)


def refuse_unused(name: str, ref: str) -> None:
    """Raise `ModelError` for a tensor that the files hold and the model has no place for."""
    raise ModelError(
        f"{ref} holds {brief(name)}, which a model of this configuration has no place for; check "
        "the number of layers and the architecture",
        subject=name,
    )


def outline(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel | None:
    """Return the model that a configuration describes, without numbers, in `dtype`; None for one
    that code beside it makes.
    """
    if not type(config).__module__.startswith("transformers."):
        return None
    # `from_config` writes into the configuration it is given.
    with torch.device("meta"), no_init_weights(), meta_device_safe_creation_ops():
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=False, dtype=dtype
        )


def check_fits(model: nn.Module, numbers: int, ref: str) -> None:
    """Raise `ModelError` for a model without numbers that would take far more of them than the
    files hold: it isn't built then.
    """
    _check_room(dict(model.named_parameters()), 2 * numbers + SPARE, numbers, ref)
    _check_room(dict(model.named_buffers()), max(numbers, BUFFERS), numbers, ref)


def _check_room(tensors: Mapping[str, Tensor], most: int, numbers: int, ref: str) -> None:
    sizes = {name: prod(tensor.shape) for name, tensor in tensors.items()}
    total = sum(sizes.values())
    if total > most:
        name = max(sizes, key=sizes.__getitem__)
        raise ModelError(
            f"{ref} holds {numbers:,} numbers, but its configuration asks for {total:,}, "
            f"{sizes[name]:,} of them in {name}; check it",
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
                f"{ref} holds {brief(name)} as {tensor.dtype}, and weights are "
                f"{', '.join(FLOATS)}; give the model before its quantization",
                subject=name,
            )


def is_among(name: str, parts: Sequence[str]) -> bool:
    """Whether a stored tensor is one of these parts of a model; either name may lack the prefix
    of the whole model.
    """
    return any(f".{part}".endswith(f".{name}") or name.endswith(f".{part}") for part in parts)


def converts(
    empty: PreTrainedModel, stored: Mapping[str, StoredTensor], dtype: torch.dtype
) -> bool:
    """Whether the files of the model `empty` hold another type than `dtype`, and every tensor under
    the name that the model has for it.

    Where transformers gives tensors other names, such as those of experts that it puts together, it
    converts them too.
    """
    if all(tensor.dtype == WORDS.get(dtype) for tensor in stored.values()):
        return False
    names = dict(empty.named_parameters(remove_duplicate=False)).keys()
    names |= dict(empty.named_buffers()).keys()
    parts = list(names)
    return all(name in names or is_among(name, parts) for name in stored)


def converted(
    empty: PreTrainedModel, files: Sequence[Path], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor by its name, in `dtype` unless it is a buffer or one that the model
    `empty`, made in `dtype`, has in another type.

    No file stays mapped: what was read of one would count as memory in use.
    """
    others = [name for name, _ in empty.named_buffers()]
    for name, parameter in empty.named_parameters():
        if parameter.dtype != dtype:
            others.append(name)
    patterns = [re.compile(pattern) for pattern in empty._keep_in_fp32_modules_strict or ()]
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = tuple(file.keys())
        for name in names:
            # Opened anew for each tensor: closing it takes the pages that were read out of memory.
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name)
                left = is_among(name, others) or any(pattern.search(name) for pattern in patterns)
                yield name, tensor.clone() if left else tensor.to(dtype, copy=True)


def from_state(
    kind: type[PreTrainedModel],
    state: Mapping[str, Any],
    folder: Path,
    config: PreTrainedConfig,
    dtype: torch.dtype,
) -> Any:
    """Return the model that has the tensors of a checkpoint, as if they stood in `folder`, and what
    transformers says of its loading.

    `state` has tensors, or slices of safetensors, which are read where transformers takes them.
    """
    options: dict[str, Any] = {
        "config": config,
        "state_dict": state,
        "dtype": dtype,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    model, loaded = cast(Any, kind.from_pretrained(cast(Any, None), **options))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.config.name_or_path = model.name_or_path = str(folder)
    return model, loaded
