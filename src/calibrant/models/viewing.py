"""Where a model keeps its blocks and matrices, whatever its architecture.

The blocks are the one list of modules that is as long as the configuration has layers. Inside them
every two-dimensional `weight` is a matrix to compress, and every slice of a fused three-dimensional
expert tensor too; each is shown as `[out, in]`, also where it is stored the other way round. Every
other parameter is listed as left dense, with the reason: nothing is passed over in silence.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from calibrant.errors import ModelError, NumericsError
from calibrant.models.changing import Structure, overwrite
from calibrant.models.dropping import drop
from calibrant.models.residence import IN_MEMORY, Residence, place_of
from calibrant.models.ties import tied, untie

EXPERT_COUNTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
SMALL: Final = "norm or bias (one-dimensional)"
TRANSPOSED: Final = ("Llama4TextExperts",)
"""Classes that keep each expert's matrix as `[in, out]` and don't say so."""
CROSS: Final = ("crossattention", "cross_attn", "encoder_attn")
"""What a part that looks at another model's states is called, in a block that can be handed such
states.
"""


@final
@dataclass(frozen=True)
class Weight:
    """One matrix of a block, `[out, in]`. It holds no numbers: it looks them up where the model
    keeps them.
    """

    name: str
    block: int
    shape: tuple[int, int]
    transposed: bool
    expert: int | None
    owner: nn.Module = field(repr=False, compare=False)
    key: str = field(repr=False, compare=False)

    @property
    def stored(self) -> Tensor:
        """The numbers as the model keeps them, without their history of gradients; `[in, out]`
        if `transposed`.
        """
        parameter = getattr(self.owner, self.key).detach()
        return parameter if self.expert is None else parameter[self.expert]

    @property
    def address(self) -> int:
        """Where `stored` begins in memory: how a product in a forward is recognised as this
        matrix's.
        """
        return self.stored.data_ptr()

    def get(self) -> Float[Tensor, "out in"]:
        """Return the matrix: a view of the model's own numbers, so to be left as it is."""
        return self.stored.T if self.transposed else self.stored

    def set(self, matrix: Float[Tensor, "out in"]) -> None:
        """Copy `matrix` over the model's own numbers; another shape is a `ModelError`."""
        if tuple(matrix.shape) != self.shape:
            raise ModelError(
                f"{self.name} is {list(self.shape)}, and can't be set to a matrix of shape {list(matrix.shape)}",
                subject=self.name,
            )
        overwrite(self.get(), matrix)


@final
@dataclass(frozen=True)
class Block:
    """One of the model's equal parts, and its matrices in the order in which it declares them."""

    index: int
    name: str
    module: nn.Module = field(repr=False, compare=False)
    weights: tuple[Weight, ...]


@final
@dataclass(frozen=True)
class Dense:
    """A parameter that is left as it is, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@final
class ModelView:
    """A causal language model as blocks and matrices. Made by `view`."""

    blocks: tuple[Block, ...]
    dense: tuple[Dense, ...]
    offload: Path | None
    """A folder whose disk takes what passes from block to block in a walk; None where it stays
    in memory.
    """

    def __init__(
        self, model: PreTrainedModel, layers: str, residence: Residence = IN_MEMORY
    ) -> None:
        self.model = model
        self.residence = residence
        self.offload = None
        self._layers = layers
        self._read()

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every matrix that is compressed, block by block."""
        return tuple(weight for block in self.blocks for weight in block.weights)

    @property
    def named(self) -> Mapping[str, Weight]:
        """Every matrix that is compressed, by name."""
        return {weight.name: weight for weight in self.weights}

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(
            parameter.device for parameter in self.model.parameters() if not parameter.is_meta
        )

    def held(self, block: Block) -> AbstractContextManager[None]:
        """Return a context in which the numbers of `block` are in memory, wherever they are
        otherwise.
        """
        return self.residence.held(block.index)

    @property
    def base(self) -> nn.Module:
        """The module that runs the blocks and not the head: `base(input_ids=…, attention_mask=…,
        use_cache=False)`.
        """
        head, layers = self.model.get_output_embeddings(), self.model.get_submodule(self._layers)
        parts = self._layers.split(".")
        around = [self.model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
        for candidate in (
            self.model.base_model,
            self.model.get_decoder(),
            *(m for m in around if isinstance(m, PreTrainedModel)),
        ):
            inside = list(candidate.modules())
            if any(m is layers for m in inside) and (
                head is None or not any(m is head for m in inside)
            ):
                return candidate
        raise ModelError(
            f"{type(self.model).__name__} has no part that runs {self._layers} without the head",
            subject=self._layers,
        )

    def drop_blocks(self, indices: Sequence[int]) -> None:
        """Remove blocks, and say so in the configuration: saved, the model opens with plain
        transformers and gives the same logits.

        The blocks that stay are numbered anew. An index that doesn't exist, nothing left, or a
        configuration that can't describe what is left is a `ModelError`, and changes nothing.
        """
        drop(self.model, self._layers, indices)
        self._read()

    def remembered(self) -> Callable[[], None]:
        """Give what will put back the blocks, modules and configuration that are there now;
        their weights are not copied.
        """
        structure = Structure.of(self.model)

        def undo() -> None:
            structure.put_back()
            self._read()

        return undo

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """The names of parameters that share their numbers, a tuple for each memory that has
        several names: a head and its embedding.
        """
        return tied(self.model)

    def untie(self) -> bool:
        """Give the head numbers of its own, in the configuration too; False, and nothing is
        changed, where it has them. See `ties.untie`.
        """
        changed = untie(self.model)
        self._read()
        return changed

    def refresh(self) -> None:
        """Read the model anew: for whoever changed what it is made of."""
        self._read()

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of every matrix that is compressed, by name. `Snapshot` keeps everything
        else too, and copies only what is overwritten.
        """
        return {weight.name: weight.stored.clone() for weight in self.weights}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Put back what `snapshot` kept; a snapshot of other matrices is a `ModelError`."""
        strangers = {w.name for w in self.weights} ^ set(snapshot)
        if strangers:
            raise ModelError(
                f"the snapshot is of another model: only one of the two has {min(strangers)}",
                subject=min(strangers),
            )
        for weight in self.weights:
            overwrite(weight.stored, snapshot[weight.name])

    def _read(self) -> None:
        layers = self.model.get_submodule(self._layers)
        weights: dict[int, list[Weight]] = {i: [] for i in range(len(list(layers.children())))}
        dense: list[Dense] = []
        for parameter in _parameters(self.model, self._layers):
            reason = parameter.reason(self.model)
            if reason is None and parameter.block is not None:
                weights[parameter.block] += parameter.weights()
            elif reason is not None:
                dense.append(Dense(parameter.name, tuple(parameter.tensor.shape), reason))
        _refuse_overlaps([w for matrices in weights.values() for w in matrices])
        modules = [(f"{self._layers}.{i}", module) for i, module in enumerate(layers.children())]
        self.blocks = tuple(
            Block(i, name, module, tuple(weights[i])) for i, (name, module) in enumerate(modules)
        )
        self.dense = tuple(dense)
        self.rehearsed: Any = None
        """What `calibrant.walk.rehearsal` found of a forward through these blocks."""


def view(model: PreTrainedModel, residence: Residence = IN_MEMORY) -> ModelView:
    """Find the blocks and matrices of a causal language model of transformers, whose numbers are
    where `residence` says (`Opened.residence`).

    Experts are switched to the eager implementation, one product an expert. Raises `ModelError`, by
    name, for what can't be seen as plain matrices: compiled blocks, weights on the meta device,
    quantized layers, no list of blocks or more than one.
    """
    refuse(model, residence)
    layers = block_list(model)
    if any(p.dim() == 3 for p in model.get_submodule(layers).parameters()):
        model.set_experts_implementation("eager")
    return ModelView(model, layers, residence)


def check_finite(view: ModelView) -> None:
    """Raise `NumericsError`, naming the matrix, if any weight of the model is NaN or infinite.
    One block is in memory at a time.
    """
    inside = {id(parameter) for block in view.blocks for parameter in block.module.parameters()}
    _check_parameters(
        ((name, p) for name, p in view.model.named_parameters() if id(p) not in inside), ()
    )
    for block in view.blocks:
        with view.held(block):
            _check_parameters(block.module.named_parameters(prefix=block.name), block.weights)


def _check_parameters(parameters: Iterable[tuple[str, Tensor]], weights: Sequence[Weight]) -> None:
    for name, parameter in parameters:
        if bool(torch.isfinite(parameter).all()):
            continue
        broken = [w.name for w in weights if not bool(torch.isfinite(w.stored).all())]
        what = broken[0] if broken else name
        raise NumericsError(
            f"the weights of {what} hold NaN or infinity; open the model from a sound file, or in a wider dtype",
            subject=what,
        )


@final
@dataclass(frozen=True)
class _Parameter:
    """One parameter, and what decides whether it is a matrix to compress."""

    name: str
    tensor: Tensor
    owner: nn.Module
    block: int | None
    twin: str
    """The parameter outside the blocks, or seen before, that is the same memory; empty if there
    is none.
    """

    @property
    def key(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def path(self) -> str:
        """The name of the module it belongs to; for a tensor that isn't its module's `weight`,
        its own.
        """
        return self.name.rpartition(".")[0] if self.key == "weight" else self.name

    def reason(self, model: PreTrainedModel) -> str | None:
        """Why it is left dense; None for what is compressed."""
        if self.owner is model.get_output_embeddings() and self.key == "weight":
            return "head, tied to the embedding" if self.twin else "head"
        if self.tensor.dim() < 2:
            return SMALL
        if isinstance(self.owner, nn.Embedding):
            return "embedding"
        if self.block is None:
            return "outside the blocks"
        if any(part in CROSS for part in self.path.split(".")) and _takes_others(model, self.path):
            return "cross attention, which isn't used without an encoder"
        return (
            f"the same memory as {self.twin}"
            if self.twin
            else self._reason_inside(_experts(self.owner, model))
        )

    def _reason_inside(self, experts: set[int]) -> str | None:
        last = self.path.rpartition(".")[2]
        if self.key.endswith("bias"):
            return "bias of the experts"
        if self.key == "weight" and self.tensor.dim() == 2:
            routes = last.endswith(("gate", "router")) or type(self.owner).__name__.endswith(
                ("Router", "Gate")
            )
            return "router" if routes and self.tensor.shape[0] in experts | {1} else None
        if self.tensor.dim() == 3 and self.tensor.shape[0] in experts:
            return None
        return f"not used as one matrix ({self.tensor.dim()} dimensions, in a {type(self.owner).__name__})"

    def weights(self) -> list[Weight]:
        """Return the matrix, or one for each expert."""
        assert self.block is not None
        transposed = (
            isinstance(self.owner, Conv1D)
            or bool(getattr(self.owner, "is_transposed", False))
            or type(self.owner).__name__ in TRANSPOSED
        )
        *_, a, b = self.tensor.shape
        shape = (b, a) if transposed else (a, b)
        if self.tensor.dim() == 2:
            return [Weight(self.path, self.block, shape, transposed, None, self.owner, self.key)]
        return [
            Weight(f"{self.path}[{e}]", self.block, shape, transposed, e, self.owner, self.key)
            for e in range(self.tensor.shape[0])
        ]


def _parameters(model: PreTrainedModel, layers: str) -> Iterator[_Parameter]:
    """Every parameter, in order; one that repeats another's memory inside the blocks appears
    once.
    """
    outside: dict[int, str] = {}
    inside: dict[int, str] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    for name, tensor in [n for n in named if not n[0].startswith(f"{layers}.")]:
        owner = model.get_submodule(name.rpartition(".")[0])
        yield _Parameter(name, tensor, owner, None, outside.get(place_of(tensor), ""))
        outside.setdefault(place_of(tensor), name)
    for name, tensor in [n for n in named if n[0].startswith(f"{layers}.")]:
        if place_of(tensor) in inside and tensor.dim() >= 2:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        block = int(name.removeprefix(f"{layers}.").partition(".")[0])
        yield _Parameter(name, tensor, owner, block, outside.get(place_of(tensor), ""))
        inside.setdefault(place_of(tensor), name)


def _experts(owner: nn.Module, model: PreTrainedModel) -> set[int]:
    """How many experts there are, by the module that owns a parameter and by the configuration."""
    config: Any = model.config.get_text_config()
    counts = [
        getattr(owner, "num_experts", None),
        *(getattr(config, name, None) for name in EXPERT_COUNTS),
    ]
    return {n for n in counts if isinstance(n, int)}


def _takes_others(model: PreTrainedModel, path: str) -> bool:
    """Whether a module around `path` can be handed the states of an encoder, or of an image."""
    parts = path.split(".")
    around = (model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts)))
    return any(
        name in signature(module.forward).parameters
        for module in around
        for name in ("encoder_hidden_states", "cross_attention_states")
    )


def block_list(model: PreTrainedModel) -> str:
    """Return the name of the one list of modules that is as long as the model has layers, of
    several the one in the decoder of text.

    Lists inside such a list don't count.
    """
    config: Any = model.config.get_text_config(decoder=True)
    depths = [
        depth
        for depth in (getattr(config, name, None) for name in ("num_hidden_layers", "num_layers"))
        if isinstance(depth, int)
    ]
    names, depth = list[str](), depths[0] if depths else "(it doesn't say how many)"
    for depth in depths:
        lists = [
            name
            for name, m in model.named_modules()
            if isinstance(m, nn.ModuleList) and len(m) == depth
        ]
        names = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        if names:
            break
    if len(names) > 1 and (decoder := model.get_decoder()) is not model:
        inside = {id(module) for module in decoder.modules()}
        names = [name for name in names if id(model.get_submodule(name)) in inside] or names
    if len(names) != 1:
        what = (
            f"has several lists of {depth} modules ({', '.join(names)})"
            if names
            else f"has no list of {depth} modules"
        )
        raise ModelError(
            f"{type(model).__name__} {what}, so its blocks can't be told; it needs a view of its own",
            subject=type(model).__name__,
        )
    return names[0]


def _refuse_overlaps(weights: list[Weight]) -> None:
    """Matrices that share part of their memory can't be compressed one by one."""
    there = [(w.stored, w.name) for w in weights if not w.stored.is_meta]
    spans = sorted(
        (stored.data_ptr(), stored.data_ptr() + stored.numel() * stored.element_size(), name)
        for stored, name in there
    )
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:
            raise ModelError(
                f"{second} shares part of its memory with {first}; give each a memory of its own first",
                subject=second,
            )


PLAIN: Final = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def refuse(model: PreTrainedModel, residence: Residence = IN_MEMORY) -> None:
    """Raise `ModelError` if a module is compiled, or a weight is quantized or has no numbers;
    the message names it.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise ModelError(
                f"{name or 'the model'} is compiled, so its products can't be followed; open the model without torch.compile",
                subject=name,
            )
        if _quantized(module):
            raise ModelError(
                f"{name} is quantized ({type(module).__name__}); give the model before its quantization",
                subject=name,
            )
        for key, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{key}" if name else key
            if parameter.is_meta and not residence.on_disk:
                raise ModelError(
                    f"{full} is on the meta device and has no numbers; load the model whole (no offloading, no empty weights)",
                    subject=full,
                )
            if parameter.dtype not in PLAIN:
                raise ModelError(
                    f"{full} is quantized ({parameter.dtype}); give the model before its quantization",
                    subject=full,
                )
            if type(parameter.data) is not Tensor:
                raise ModelError(
                    f"{full} is a {type(parameter.data).__name__} and no plain tensor; give the model before its quantization",
                    subject=full,
                )


def _quantized(module: nn.Module) -> bool:
    """Packed integers kept in place of weights: GPTQ and its relatives keep them in buffers,
    torch.ao in modules of its own.
    """
    packed = any(
        b.dim() >= 2 and not b.is_floating_point() and b.dtype != torch.bool
        for b in module.buffers(recurse=False)
    )
    linear = not any(True for _ in module.children())
    return type(module).__module__.startswith("torch.ao.nn") or (packed and linear)
