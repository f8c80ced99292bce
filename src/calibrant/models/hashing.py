"""The digest of a model that was given as an object: that of its file where both hold the same
numbers, else a hash of its configuration and of every tensor.

Nothing is copied whole. A file is read block by block; tensors are hashed where they lie, several
at a time, and one that is on another device or isn't contiguous is copied meanwhile.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models.changing import place_of, tied
from calibrant.models.compact import digest
from calibrant.models.opening import located, open_model
from calibrant.models.rounded_inputs import rounding_facts
from calibrant.numerics import type_name
from calibrant.spec import identity
from calibrant.system.durable import plain_data

OF_TENSORS: Final = "tensors:"
"""How the digest of numbers begins that are in no file."""
WITHOUT_EFFECT: Final = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Entries of a configuration that change nothing of what the model computes; the type of its
numbers is hashed with each tensor.
"""


def digest_of(model: PreTrainedModel) -> str:
    """Return the digest of `model`.

    If the folder that it says it was loaded from is on this machine, and holds the same
    configuration and numbers, that is the folder's digest, as `open_model` has it. Else it is
    `tensors:` and a SHA-256.
    """
    return _digest_of_folder(model) or _digest_of_tensors(model)


def _digest_of_folder(model: PreTrainedModel) -> str | None:
    """The digest of the folder that a model was loaded from, if that holds this very model."""
    dtype = type_name(model.dtype)
    try:
        # Nothing is downloaded, and only one block of the folder is in memory at a time.
        place = located(model.name_or_path or "")
        stored = open_model(str(place), dtype, "cpu", on_disk=True)
    except ModelError:
        return None
    if _facts(model) != _facts(stored.model) or tied(model) != tied(stored.model):
        return None
    given = _tensors(model)
    outside = _tensors(stored.model)
    if given.keys() != outside.keys():
        return None
    for names in stored.residence.absent().values():
        for name in names:
            outside.pop(name)
    if not _equal(given, outside):
        return None
    for index, names in stored.residence.absent().items():
        with stored.residence.held(index):
            inside = {name: stored.model.get_parameter(name) for name in names}
            if not _equal(given, inside):
                return None
    return stored.digest


def _digest_of_tensors(model: PreTrainedModel) -> str:
    tensors = _tensors(model)
    # Numbers that have several names are hashed once.
    distinct = {_memory(tensor): tensor for tensor in tensors.values()}
    with ThreadPoolExecutor() as threads:
        hashed = threads.map(digest, distinct.values())
        digests = dict(zip(distinct, hashed, strict=True))
    described: list[list[Any]] = []
    for name, tensor in tensors.items():
        facts = [name, str(tensor.dtype), list(tensor.shape), digests[_memory(tensor)]]
        described.append(facts)
    return OF_TENSORS + identity([_facts(model), described]).removeprefix("sha256:")


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """What is the same for two tensors that are the same numbers in the same memory."""
    return place_of(tensor), tensor.dtype, tensor.shape, tensor.stride()


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """All parameters and buffers by name, also those that a file doesn't hold, such as rotary
    frequencies: their type decides what is computed.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    return tensors


def _facts(model: PreTrainedModel) -> list[str]:
    """What a model computes by, beside its numbers: its class, its configuration, the way to
    compute attention, and how it rounds inputs, if it does.
    """
    kind = type(model)
    configuration = model.config.to_dict()
    for name in WITHOUT_EFFECT:
        configuration.pop(name, None)
    plain = plain_data(configuration)
    text = json.dumps(plain, sort_keys=True, default=str, allow_nan=False)
    name = f"{kind.__module__}.{kind.__qualname__}"
    facts = [name, text, str(model.config._attn_implementation)]
    rounding = rounding_facts(model)
    if rounding:
        facts.append(json.dumps(rounding, sort_keys=True, allow_nan=False))
    return facts


def _equal(given: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> bool:
    """Whether these stored tensors are what was given under their names, bit for bit."""
    return all(_is_same(given[name], tensor) for name, tensor in stored.items())


def _is_same(given: Tensor, stored: Tensor) -> bool:
    if given.dtype != stored.dtype or given.shape != stored.shape:
        return False
    return torch.equal(_bytes(given), _bytes(stored.to(given.device)))


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor; of one that is contiguous, those in the model's own memory."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)
