"""A model of a folder of safetensors whose blocks stay on disk, but for the one that is worked on.

Embedding, norms outside the blocks and head are read when it is opened, as transformers reads them.
A block's parameters are on the meta device until it is held: then its tensors are read, converted
as transformers converts a whole checkpoint, and changed as it was changed before. Files are read
and never mapped into memory, so a limit on addresses holds too.

Such a model is saved as the files that transformers would write, byte by byte, one block in memory
at a time. A safetensors file begins with a table of all its tensors, which needs names, types and
shapes alone. So the table is written first, and every tensor to its place when its block is there.
"""

import json
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from math import prod
from pathlib import Path
from typing import IO, Any, ClassVar, Final, final

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig, remove_tied_weights_from_state_dict

from calibrant.errors import ModelError
from calibrant.models.complete import StoredTensor, check_complete, from_state, outline
from calibrant.models.configuring import opening_by_transformers
from calibrant.models.folder import INDEX, WEIGHTS
from calibrant.models.quiet import Refusal, quiet
from calibrant.models.viewing import Residence, block_list

_WORDS: Final = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types in the order in which a file has their tensors, with the format's words."""
_INSTEAD: Final = "leave memory out, or allow more of it, so that it is opened whole"


def open_on_disk(
    folder: Path,
    weights: Sequence[Path],
    stored: Mapping[str, StoredTensor],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    ref: str,
) -> tuple[PreTrainedModel, Any, "OnDisk"]:
    """Return the model without the numbers of its blocks, what transformers says of its loading,
    and where the blocks are.

    Raises `ModelError` for a model that code of its own makes, for parameters that several blocks
    share, and for files that don't fit it.
    """
    empty = outline(config, dtype)
    if empty is None:
        raise ModelError(
            f"{ref} is made by code of its own, so its blocks can't be left on disk; {_INSTEAD}",
            subject=ref,
        )
    parts = Parts.of(empty, weights, stored, dtype, ref)
    # Blocks are given zeros that take no memory: one number, seen as a whole matrix. So
    # transformers makes everything else as it always does.
    absent: dict[str, Tensor] = {}
    for name, parameter in parts.inside(empty):
        absent[name] = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    with parts.slices(parts.outside) as outside:
        model, loaded = from_state(type(empty), {**outside, **absent}, folder, config, dtype)
    model._weight_conversions = parts.conversions
    return model, loaded, OnDisk(model, parts)


@final
@dataclass(frozen=True)
class Parts:
    """Which tensors of which files each block of a model is made of, and how."""

    ref: str
    layers: str
    """The name of the list of blocks."""
    files: Mapping[str, Path]
    by_block: Sequence[Sequence[str]]
    outside: Sequence[str]
    loading: LoadStateDictConfig
    conversions: Any
    """What transformers converted when it read the names and shapes: it is what saving has to
    turn back.
    """

    @classmethod
    def of(
        cls,
        empty: PreTrainedModel,
        weights: Sequence[Path],
        stored: Mapping[str, StoredTensor],
        dtype: torch.dtype,
        ref: str,
    ) -> "Parts":
        """Read off names and shapes what belongs where; `empty`, without numbers, becomes of the
        types that the model will have.
        """
        layers = block_list(empty)
        described = dict(empty.state_dict())
        mapping: list[Any] = list(get_model_conversion_mapping(empty))
        loading = LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=empty._get_dtype_plan(dtype),
            weight_mapping=mapping,
            device_map={"": "cpu"},
        )
        parameters = dict(empty.named_parameters(remove_duplicate=False))
        by_block: list[list[str]] = [[] for _ in empty.get_submodule(layers).children()]
        outside: list[str] = []
        for name in stored:
            target = _target(name, mapping, empty.base_model_prefix, described)
            if target.startswith(f"{layers}.") and target in parameters:
                by_block[_index(target, layers)].append(name)
            else:
                outside.append(name)
        # Shapes alone are converted, once: what comes of it says what every block will be.
        shapes: dict[str, Tensor] = {}
        for name, tensor in stored.items():
            shapes[name] = torch.empty(tensor.shape, dtype=dtype, device="meta")
        with quiet(), opening_by_transformers(ref):
            loaded, _ = convert_and_load_state_dict_in_model(
                empty, shapes, replace(loading, device_map={"": "meta"})
            )
        paths = {path.name: path for path in weights}
        files = {name: paths[tensor.file] for name, tensor in stored.items()}
        conversions = empty._weight_conversions
        parts = cls(ref, layers, files, by_block, outside, loading, conversions)
        parts._check(loaded, {name for name, _ in parts.inside(empty)})
        return parts

    def inside(self, model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the blocks. Raises `ModelError` for one that has another name
        too.
        """
        places = list(model.named_parameters(remove_duplicate=False))
        names = Counter(id(parameter) for _, parameter in places)
        for name, parameter in places:
            if not name.startswith(f"{self.layers}."):
                continue
            if names[id(parameter)] > 1:
                raise ModelError(
                    f"{self.ref}: {name} is shared with another part, so its block can't be left "
                    f"on disk; {_INSTEAD}",
                    subject=name,
                )
            yield name, parameter

    def load(self, model: PreTrainedModel, index: int, wanted: Iterable[str]) -> None:
        """Read the block `index` into `model`. Raises `ModelError` for files that lack any of
        the parameters that are `wanted`.
        """
        # Loading a part of the model would have saving turn back only that part's conversions.
        known = model._weight_conversions
        with quiet(), self.slices(self.by_block[index]) as tensors:
            loaded, _ = convert_and_load_state_dict_in_model(model, dict(tensors), self.loading)
        model._weight_conversions = known
        self._check(loaded, set(wanted))

    @contextmanager
    def slices(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield tensors that are read when they are indexed, while the context lasts."""
        opened: dict[Path, Any] = {}
        slices: dict[str, Any] = {}
        remedy = "; check that all its files are there"
        with Refusal(f"{self.ref} can't be read any more", remedy, self.ref), ExitStack() as stack:
            for name in names:
                path = self.files[name]
                if path not in opened:
                    file = safe_open(path, framework="pt", backend="pread")
                    opened[path] = stack.enter_context(file)
                slices[name] = opened[path].get_slice(name)
            yield slices

    def _check(self, loaded: Any, wanted: set[str]) -> None:
        """Raise `ModelError` unless all that is wanted was there, in its shape."""
        if loaded.conversion_errors:
            name = min(loaded.conversion_errors)
            raise ModelError(
                f"{self.ref}: {name} can't be made of what its files hold; check config.json",
                subject=name,
            )
        report = {
            "mismatched_keys": [key for key in loaded.mismatched_keys if key[0] in wanted],
            "missing_keys": loaded.missing_keys & wanted,
            "unexpected_keys": (),
        }
        check_complete(report, self.ref)


def _target(name: str, mapping: Sequence[Any], prefix: str, described: dict[str, Tensor]) -> str:
    """The parameter that a tensor of a file becomes, or the first of those it becomes a part of,
    as transformers finds it.
    """
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    renamed, _ = rename_source_key(name, renamings, converters, prefix, described)
    if renamed not in described and name in described:
        renamed, _ = rename_source_key(name, [], [], prefix, described)
    return renamed


def _index(name: str, layers: str) -> int:
    """The number of the block that a parameter is in."""
    return int(name.removeprefix(f"{layers}.").partition(".")[0])


def read_when_run(model: PreTrainedModel, residence: Residence) -> None:
    """Have the numbers of each block read when its forward is called, and let go when that ends:
    so whatever runs the model gets along.
    """
    for index, block in enumerate(model.get_submodule(block_list(model)).children()):
        block.forward = _holding(residence, index, block.forward)


def _holding(residence: Residence, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)  # transformers reads names of parameters off a block's forward
    def held_forward(*args: Any, **kwargs: Any) -> Any:
        with residence.held(index):
            return forward(*args, **kwargs)

    return held_forward


@final
class OnDisk(Residence):
    """The blocks of a model are in the files of its folder while they aren't held."""

    on_disk: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel, parts: Parts) -> None:
        self._model = model
        self._parts = parts
        self._held: Counter[int] = Counter()
        self._changes: dict[int, list[Callable[[], None]]] = {}
        self._absent: list[dict[str, nn.Parameter]] = [{} for _ in parts.by_block]
        for name, parameter in list(parts.inside(model)):
            numbers = torch.empty_like(parameter, device="meta")
            empty = nn.Parameter(numbers, requires_grad=parameter.requires_grad)
            self._absent[_index(name, parts.layers)][name] = empty
        for index in range(len(self._absent)):
            self._let_go(index)

    @contextmanager
    def held(self, index: int) -> Iterator[None]:
        self._held[index] += 1
        try:
            if self._held[index] == 1:
                self._parts.load(self._model, index, self._absent[index])
                for change in self._changes.get(index, ()):
                    change()
            yield
        finally:
            self._held[index] -= 1
            if not self._held[index]:  # a walk and an edit may hold the same block
                self._let_go(index)

    def absent(self) -> Mapping[int, Collection[str]]:
        return {index: tuple(names) for index, names in enumerate(self._absent)}

    def changed(self, index: int, change: Callable[[], None]) -> None:
        self._changes.setdefault(index, []).append(change)

    def _let_go(self, index: int) -> None:
        for name, parameter in self._absent[index].items():
            path, _, key = name.rpartition(".")
            self._model.get_submodule(path).register_parameter(key, parameter)


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
        get_storage_size=_storage_size,
        get_storage_id=_storage_id,
    )
    if split.is_sharded:
        (folder / WEIGHTS).unlink(missing_ok=True)
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True, allow_nan=False)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    shards: dict[str, Shard] = {}
    for file, names in split.filename_to_tensors.items():
        shards[file] = Shard.of({name: described[name] for name in names}, folder / file)
        shards[file].begin()  # with holes, which tensors fill in any order
    for tensors in _in_turn(model, residence):
        by_file: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            by_file.setdefault(split.tensor_to_filename[name], {})[name] = tensor
        for file, of_file in by_file.items():
            shards[file].write(of_file)


def _storage_size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _storage_id(tensor: Tensor) -> int:
    # The library's own id is an address, and what has no numbers has none.
    return tensor.untyped_storage()._cdata


def saved_state(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a part of a model's state as it is saved: without what is there under another name,
    under the names that its files have.
    """
    ignored = model._keys_to_ignore_on_save or ()
    kept = {name: tensor for name, tensor in state.items() if name not in ignored}
    return revert_weight_conversion(model, remove_tied_weights_from_state_dict(kept, model))


def _in_turn(model: PreTrainedModel, residence: Residence) -> Iterator[dict[str, Tensor]]:
    """The numbers to be saved: those outside the blocks, then those of each block while it is
    held.
    """
    outside = model.state_dict()
    for names in residence.absent().values():
        for name in names:
            outside.pop(name, None)
    yield saved_state(model, outside)
    for index, names in residence.absent().items():
        with residence.held(index):
            inside = {name: model.get_parameter(name).detach() for name in names}
            yield revert_weight_conversion(model, inside)


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
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for dtype, word in _WORDS.items():
            names = [name for name, tensor in tensors.items() if tensor.dtype == dtype]
            for name in sorted(names, key=str.encode):
                shape = list(tensors[name].shape)
                start = end
                end += prod(shape) * dtype.itemsize
                table[name] = {"dtype": word, "shape": shape, "data_offsets": [start, end]}
        written = json.dumps(table, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text = written.encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<Q", len(text)) + text
        places = {name: len(head) + table[name]["data_offsets"][0] for name in tensors}
        return cls(path, head, places, len(head) + end)

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
