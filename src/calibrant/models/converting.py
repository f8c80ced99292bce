"""A folder's numbers in another type, tensor by tensor: transformers maps the whole file and
keeps all of it in memory until it has converted it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from calibrant.models.complete import StoredTensor, is_among

WORDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
"""The file format's words for the types of numbers."""


def converts(
    empty: PreTrainedModel, stored: Mapping[str, StoredTensor], dtype: torch.dtype
) -> bool:
    """Whether the files of the model `empty` hold another type than `dtype`, and every tensor under
    the name that the model has for it.

    Where transformers gives tensors other names, such as those of experts that it puts together, it
    converts them too.
    """
    names = dict.fromkeys(
        name
        for name, _ in chain(empty.named_parameters(remove_duplicate=False), empty.named_buffers())
    )
    plainly = (name in names or is_among(name, list(names)) for name in stored)
    return any(tensor.dtype != WORDS.get(dtype) for tensor in stored.values()) and all(plainly)


def converted(
    empty: PreTrainedModel, files: Sequence[Path], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor by its name, in `dtype` unless it is a buffer or one that the model
    `empty`, made in `dtype`, has in another type.

    No file stays mapped: what was read of one would count as memory in use.
    """
    others = [name for name, _ in empty.named_buffers()] + [
        name for name, parameter in empty.named_parameters() if parameter.dtype != dtype
    ]
    patterns = [re.compile(pattern) for pattern in empty._keep_in_fp32_modules_strict or ()]
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = tuple(file.keys())
        for name in names:
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
        "dtype": dtype,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    model, loaded = cast(
        Any,
        kind.from_pretrained(
            cast(Any, None), config=config, state_dict=cast(Any, state), **options
        ),
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.config.name_or_path = model.name_or_path = str(folder)
    return model, loaded
