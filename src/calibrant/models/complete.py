"""Checks that a model and its files fit each other: what the files lack would be random, and what
the model doesn't use would be lost in silence.

Where the files have another type of numbers, they are converted here, tensor by tensor.
transformers would map a whole file and keep it in memory until all of it is converted.
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
"""The safetensors format's names of the types of numbers."""
FLOATS: Final = tuple(WORDS.values())
SPARE: Final = 2**24
"""A model may have twice as many numbers as are stored, since a head may be tied, and so many
more: if only a few tensors are missing, loading names them.
"""
BUFFERS: Final = 2**28
"""How many numbers a model may have in buffers, which no file holds, however few it has in files.
"""


@final
@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file's header describes it; `dtype` is the format's own name, such as
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
    """Return what the headers of safetensors files say, tensor by tensor, by name. Raises
    `ModelError` for a damaged file, and for a tensor that is in two files.
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
    """Return the model that a configuration describes, without numbers, in `dtype`. None where the
    model is made by code that comes with it.
    """
    if not type(config).__module__.startswith("transformers."):
        return None
    # A copy, since `from_config` writes into the configuration that it is given.
    with torch.device("meta"), no_init_weights(), meta_device_safe_creation_ops():
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=False, dtype=dtype
        )


def check_fits(model: nn.Module, numbers: int, ref: str) -> None:
    """Raise `ModelError` for an outline that would need far more numbers than the files hold,
    before the model is built. `numbers` is how many they hold.
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
    """Raise `ModelError` for a parameter whose stored numbers are no plain floats. Buffers may be
    of any type; some old files hold them.
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
    """Return whether a stored tensor is one of these parts of a model. Either name may lack the
    prefix of the whole model (`model.`).
    """
    return any(f".{part}".endswith(f".{name}") or name.endswith(f".{part}") for part in parts)


def converts(
    empty: PreTrainedModel, stored: Mapping[str, StoredTensor], dtype: torch.dtype
) -> bool:
    """Return whether `converted` can read the files of the model `empty`: they hold another type
    than `dtype`, and have every tensor under the name that it has in the model.

    Where transformers gives tensors other names, such as experts that it puts together, it must
    read the files itself.
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
    """Yield every tensor by its name, in `dtype`. Buffers keep their type, and so do parameters
    that the model `empty`, made in `dtype`, has in another type.

    No file stays mapped: what was read of one would count as memory in use.
    """
    unconverted = [name for name, _ in empty.named_buffers()]
    for name, parameter in empty.named_parameters():
        if parameter.dtype != dtype:
            unconverted.append(name)
    patterns = [re.compile(pattern) for pattern in empty._keep_in_fp32_modules_strict or ()]
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = tuple(file.keys())
        for name in names:
            # Opened anew for each tensor, since closing the file frees the pages that were read.
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name)
                by_pattern = any(pattern.search(name) for pattern in patterns)
                if by_pattern or is_among(name, unconverted):
                    yield name, tensor.clone()
                else:
                    yield name, tensor.to(dtype, copy=True)


def from_state(
    kind: type[PreTrainedModel],
    state: Mapping[str, Any],
    folder: Path,
    config: PreTrainedConfig,
    dtype: torch.dtype,
) -> Any:
    """Return the model that transformers makes of the tensors `state`, as if they were read from
    `folder`, and its report on loading them.

    `state` has tensors, or slices of safetensors files, which transformers reads when it needs
    them.
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
