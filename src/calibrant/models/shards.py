"""Saving a model whose blocks are on disk: the files that transformers would write, byte by byte,
one block in memory at a time.

A safetensors file begins with a table of all its tensors, which needs names, types and shapes
alone. So the table is written first, and every tensor to its place when its block is there.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from math import prod
from pathlib import Path
from typing import IO, Any, Final, final

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from calibrant.models.folder import INDEX, WEIGHTS
from calibrant.models.residence import Residence

_WORDS: Final = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Types in the order in which a file has their tensors, with the format's words."""


def write_shards(model: PreTrainedModel, residence: Residence, folder: Path) -> None:
    """Write configuration and weights of `model` into `folder` as its `save_pretrained` would,
    had it all numbers in memory.
    """
    model.save_pretrained(folder, state_dict={})  # everything but the weights
    described = saved_state(model, model.state_dict())
    most = signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default
    split = split_state_dict_into_shards_factory(
        described,
        max_shard_size=most,
        filename_pattern="model{suffix}.safetensors",
        get_storage_size=lambda tensor: tensor.untyped_storage().nbytes(),
        get_storage_id=lambda tensor: (
            tensor.untyped_storage()._cdata
        ),  # the library's own id is an address, and what has no numbers has none
    )
    if split.is_sharded:
        (folder / WEIGHTS).unlink(missing_ok=True)
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True, allow_nan=False)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    shards = {
        name: Shard.of({one: described[one] for one in names}, folder / name)
        for name, names in split.filename_to_tensors.items()
    }
    for shard in shards.values():
        shard.begin()
    for tensors in _in_turn(model, residence):
        for file, names in _by_file(tensors, split.tensor_to_filename).items():
            shards[file].write({name: tensors[name] for name in names})


def saved_state(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a part of a model's state as it is saved: without what is there under another name,
    under the names that its files have.
    """
    kept = {
        name: tensor
        for name, tensor in state.items()
        if name not in (model._keys_to_ignore_on_save or ())
    }
    return revert_weight_conversion(model, remove_tied_weights_from_state_dict(kept, model))


def _in_turn(model: PreTrainedModel, residence: Residence) -> Iterator[dict[str, Tensor]]:
    """The numbers to be saved: those outside the blocks, then those of each block while it is
    held.
    """
    state = model.state_dict()
    absent = {name: index for index, names in residence.absent().items() for name in names}
    yield saved_state(model, {name: tensor for name, tensor in state.items() if name not in absent})
    for index, names in residence.absent().items():
        with residence.held(index):
            yield revert_weight_conversion(
                model, {name: model.get_parameter(name).detach() for name in names}
            )


def _by_file(tensors: Mapping[str, Tensor], files: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in tensors:
        found.setdefault(files[name], []).append(name)
    return found


@final
@dataclass(frozen=True)
class Shard:
    """One safetensors file that is written in pieces: the text of its table, and at which byte
    each tensor begins.
    """

    path: Path
    table: bytes
    places: Mapping[str, int]
    size: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], path: Path) -> "Shard":
        """Lay out a file as the library does: by type, widest first, then by name; the table
        filled up with spaces to whole words.
        """
        order = list(_WORDS)
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        places, end = dict[str, int](), 0
        for name in sorted(
            tensors, key=lambda name: (order.index(tensors[name].dtype), name.encode())
        ):
            begin, end = end, end + prod(tensors[name].shape) * tensors[name].dtype.itemsize
            table[name] = {
                "dtype": _WORDS[tensors[name].dtype],
                "shape": list(tensors[name].shape),
                "data_offsets": [begin, end],
            }
            places[name] = begin
        written = json.dumps(table, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text = written.encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<Q", len(text)) + text
        return cls(
            path, head, {name: len(head) + begin for name, begin in places.items()}, len(head) + end
        )

    def begin(self) -> None:
        """Write the table, and make the file as long as it will be."""
        with self.path.open("wb") as file:
            file.write(self.table)
            file.truncate(self.size)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write some of its tensors."""
        with self.path.open("r+b") as file:
            for name, tensor in tensors.items():
                file.seek(self.places[name])
                _put(file, tensor)


def _put(file: IO[bytes], tensor: Tensor) -> None:
    file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
