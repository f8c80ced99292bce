"""A model of a folder of safetensors whose blocks stay on disk, but for the one that is worked on.

Embedding, norms outside the blocks and head are read when it is opened, as transformers reads them.
A block's parameters are on the meta device until it is held: then its tensors are read, converted
as transformers converts a whole checkpoint, and changed as it was changed before. Files are read
and never mapped into memory, so a limit on addresses holds too.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from calibrant.errors import ModelError
from calibrant.models.complete import StoredTensor, check_complete, outline
from calibrant.models.configuring import opening_by_transformers
from calibrant.models.converting import from_state
from calibrant.models.quiet import Refusal, quiet
from calibrant.models.residence import Residence
from calibrant.models.viewing import block_list

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
    absent = {
        name: torch.zeros((), dtype=p.dtype).expand(p.shape) for name, p in parts.inside(empty)
    }
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
        layers, described = block_list(empty), dict(empty.state_dict())
        mapping, kinds = (
            list[Any](get_model_conversion_mapping(empty)),
            empty._get_dtype_plan(dtype),
        )
        loading = LoadStateDictConfig(
            dtype=dtype, dtype_plan=kinds, weight_mapping=mapping, device_map={"": "cpu"}
        )
        parameters = dict(empty.named_parameters(remove_duplicate=False))
        by_block, outside = (
            [list[str]() for _ in empty.get_submodule(layers).children()],
            list[str](),
        )
        for name in stored:
            target = _target(name, mapping, empty.base_model_prefix, described)
            within = target.startswith(f"{layers}.") and target in parameters
            (by_block[_index(target, layers)] if within else outside).append(name)
        shapes = {
            name: torch.empty(tensor.shape, dtype=dtype, device="meta")
            for name, tensor in stored.items()
        }
        with quiet(), opening_by_transformers(ref):
            loaded, _ = convert_and_load_state_dict_in_model(
                empty, shapes, replace(loading, device_map={"": "meta"})
            )
        files = {path.name: path for path in weights}
        parts = cls(
            ref,
            layers,
            {name: files[one.file] for name, one in stored.items()},
            by_block,
            outside,
            loading,
            empty._weight_conversions,
        )
        parts._check(loaded, {name for name, _ in parts.inside(empty)})
        return parts

    def inside(self, model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the blocks. Raises `ModelError` for one that has another name
        too.
        """
        places = list(model.named_parameters(remove_duplicate=False))
        names = Counter(id(parameter) for _, parameter in places)
        for name, parameter in places:
            if name.startswith(f"{self.layers}."):
                if names[id(parameter)] > 1:
                    raise ModelError(
                        f"{self.ref}: {name} is shared with another part, so its block can't be left on disk; {_INSTEAD}",
                        subject=name,
                    )
                yield name, parameter

    def load(self, model: PreTrainedModel, index: int, wanted: Iterable[str]) -> None:
        """Read the block `index` into `model`. Raises `ModelError` for files that lack any of
        the parameters that are `wanted`.
        """
        known = model._weight_conversions
        with quiet(), self.slices(self.by_block[index]) as tensors:
            loaded, _ = convert_and_load_state_dict_in_model(model, dict(tensors), self.loading)
        model._weight_conversions = known
        self._check(loaded, set(wanted))

    @contextmanager
    def slices(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield tensors that are read when they are indexed, while the context lasts."""
        with (
            Refusal(
                f"{self.ref} can't be read any more",
                "; check that all its files are there",
                self.ref,
            ),
            ExitStack() as stack,
        ):
            opened: dict[Path, Any] = {}
            for path in {self.files[name]: None for name in names}:
                opened[path] = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
            yield {name: opened[self.files[name]].get_slice(name) for name in names}

    def _check(self, loaded: Any, wanted: set[str]) -> None:
        """Raise `ModelError` unless all that is wanted was there, in its shape."""
        if loaded.conversion_errors:
            name = min(loaded.conversion_errors)
            raise ModelError(
                f"{self.ref}: {name} can't be made of what its files hold; check config.json",
                subject=name,
            )
        mismatched = {one for one in loaded.mismatched_keys if one[0] in wanted}
        check_complete(
            {
                "mismatched_keys": mismatched,
                "missing_keys": loaded.missing_keys & wanted,
                "unexpected_keys": (),
            },
            self.ref,
        )


def _target(name: str, mapping: Sequence[Any], prefix: str, described: dict[str, Tensor]) -> str:
    """The parameter that a tensor of a file becomes, or the first of those it becomes a part of,
    as transformers finds it.
    """
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
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
        self._model, self._parts = model, parts
        self._held: Counter[int] = Counter()
        self._changes: dict[int, list[Callable[[], None]]] = {}
        self._absent: list[dict[str, nn.Parameter]] = [{} for _ in parts.by_block]
        for name, parameter in list(parts.inside(model)):
            empty = nn.Parameter(
                torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
            )
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
            if not self._held[index]:
                self._let_go(index)

    def absent(self) -> Mapping[int, Collection[str]]:
        return dict(enumerate(map(tuple, self._absent)))

    def changed(self, index: int, change: Callable[[], None]) -> None:
        self._changes.setdefault(index, []).append(change)

    def _let_go(self, index: int) -> None:
        for name, parameter in self._absent[index].items():
            path, _, key = name.rpartition(".")
            self._model.get_submodule(path).register_parameter(key, parameter)
