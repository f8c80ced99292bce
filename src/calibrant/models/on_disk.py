"""A model whose blocks stay on disk, in its folder of safetensors, except the one that is worked
on.

Embedding, norms outside the blocks and head are read when it is opened, as transformers reads them.
A block's parameters are on the meta device until the block is held. Then its tensors are read,
converted as transformers converts a whole checkpoint, and all changes of the block so far are made
again. Files are read and never mapped into memory, so a limit on the address space holds too.

Such a model is saved, one block in memory at a time, as the same bytes that transformers would
write. A safetensors file begins with a table of all its tensors, which needs only names, types and
shapes. So the table is written first, and each tensor to its place when its block is in memory.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, Final, final

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
from calibrant.system.shards import Shard

_INSTEAD: Final = "leave memory out, or allow more of it, so that it is opened whole"


def open_on_disk(
    folder: Path,
    weights: Sequence[Path],
    stored: Mapping[str, StoredTensor],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    ref: str,
) -> tuple[PreTrainedModel, Any, "OnDisk"]:
    """Return the model without the numbers of its blocks, transformers' report on loading it, and
    the residence that reads the blocks.

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
    # transformers gets zeros for the blocks that take no memory: one number, expanded to a whole
    # matrix. So it makes everything else as it always does.
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
    """Which tensors of which files make each block of a model, and how they are converted."""

    ref: str
    layers: str
    """The name of the list of blocks."""
    files: Mapping[str, Path]
    by_block: Sequence[Sequence[str]]
    outside: Sequence[str]
    loading: LoadStateDictConfig
    conversions: Any
    """The conversions that transformers found for the names and shapes; saving reverts them."""

    @classmethod
    def of(
        cls,
        empty: PreTrainedModel,
        weights: Sequence[Path],
        stored: Mapping[str, StoredTensor],
        dtype: torch.dtype,
        ref: str,
    ) -> "Parts":
        """Find out from names and shapes which tensor belongs to which block. `empty`, a model
        without numbers, gets the types that the model will have.
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
        # The whole checkpoint is converted once, as shapes alone. That shows whether the files fit,
        # and what every block will be.
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
        """Yield the parameters of the blocks, with their names. Raises `ModelError` for a parameter
        that has another name too.
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
        # Loading sets the conversions to those of this part, but saving must revert all.
        conversions = model._weight_conversions
        with quiet(), self.slices(self.by_block[index]) as tensors:
            loaded, _ = convert_and_load_state_dict_in_model(model, dict(tensors), self.loading)
        model._weight_conversions = conversions
        self._check(loaded, set(wanted))

    @contextmanager
    def slices(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Give these tensors by name. They are read when they are indexed, while the context
        lasts.
        """
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
        """Raise `ModelError` unless loading found all parameters that are `wanted`, in their
        shapes.
        """
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
    """The name of the parameter that a tensor of a file becomes, or becomes a part of, as
    transformers finds it; of several the first.
    """
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    renamed, _ = rename_source_key(name, renamings, converters, prefix, described)
    # A renaming may be meant for older files, and spoil a name that is right already.
    if renamed not in described and name in described:
        renamed, _ = rename_source_key(name, [], [], prefix, described)
    return renamed


def _index(name: str, layers: str) -> int:
    """The number of the block that a parameter is in."""
    return int(name.removeprefix(f"{layers}.").partition(".")[0])


def read_when_run(model: PreTrainedModel, residence: Residence) -> None:
    """Have the numbers of each block brought in when its forward is called, and freed when that
    ends. Then any code can run the model. To ask for it twice is to ask for it once.
    """
    blocks = model.get_submodule(block_list(model))
    for block in blocks.children():
        # Only here a block gets a forward that isn't that of its class.
        if "forward" not in vars(block):
            block.forward = _holding(residence, blocks, block)


def brings_blocks_in(model: PreTrainedModel) -> bool:
    """Return whether `read_when_run` was asked for this model, or another tool does the same. Then
    a copy of it would run the blocks of the model itself.
    """
    return any("forward" in vars(module) for module in model.modules())


def _holding(residence: Residence, blocks: nn.Module, block: nn.Module) -> Callable[..., Any]:
    forward = block.forward

    # transformers looks at the names of a forward's parameters.
    @wraps(forward)
    def held_forward(*args: Any, **kwargs: Any) -> Any:
        # Looked up at each call, since blocks before it may have been dropped.
        index = list(blocks.children()).index(block)
        with residence.held(index):
            return forward(*args, **kwargs)

    return held_forward


@final
class OnDisk(Residence):
    """The numbers of a model's blocks are read from its folder, each while it is held."""

    on_disk = True
    elsewhere = True

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
            # A walk and an edit may hold the same block at once.
            if not self._held[index]:
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
    """Write configuration and weights of `model` into `folder` as its `save_pretrained` would, if
    all numbers were in memory.
    """
    # Without a state it writes everything but the weights.
    model.save_pretrained(folder, state_dict={})
    described = saved_state(model, model.state_dict())
    shard_size = signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default
    split = split_state_dict_into_shards_factory(
        described,
        max_shard_size=shard_size,
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
        shards[file].begin()
    for tensors in _in_turn(model, residence):
        by_file: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            by_file.setdefault(split.tensor_to_filename[name], {})[name] = tensor
        for file, tensors_of_file in by_file.items():
            shards[file].write(tensors_of_file)


def _storage_size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _storage_id(tensor: Tensor) -> int:
    # The library identifies memory by its address, but a tensor on the meta device has none.
    return tensor.untyped_storage()._cdata


def saved_state(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a part of a model's state as it is saved: without what the model never saves, each
    tied tensor once, under the names that files have.
    """
    ignored = model._keys_to_ignore_on_save or ()
    kept = {name: tensor for name, tensor in state.items() if name not in ignored}
    return revert_weight_conversion(model, remove_tied_weights_from_state_dict(kept, model))


def _in_turn(model: PreTrainedModel, residence: Residence) -> Iterator[dict[str, Tensor]]:
    """The tensors to be saved, by name: those outside the blocks, then those of each block, while
    it is held.
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
