"""Where a model keeps its blocks and matrices, whatever its architecture, and whether their numbers
are in memory.

The blocks are the one list of modules whose length is the configuration's number of layers. Inside
them every two-dimensional `weight` is a matrix to compress, and so is every slice of a fused
three-dimensional expert tensor. Each is shown as `[out, in]`, also where it is stored the other way
round. Every other parameter is listed as left dense, with the reason: none is ignored in silence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from calibrant.errors import ModelError, NumericsError
from calibrant.models.changing import Structure, drop, overwrite, place_of, tied, untie

EXPERT_COUNTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What modules and configurations call the number of experts."""
SMALL: Final = "norm or bias (one-dimensional)"
TRANSPOSED: Final = ("Llama4TextExperts",)
"""Classes that keep each expert's matrix as `[in, out]` and don't say so."""
CROSS: Final = ("crossattention", "cross_attn", "encoder_attn")
"""Names of parts of a block that attend to another model's states."""
PLAIN_DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Residence(ABC):
    """Says where the numbers of blocks are. While a block is `held` they are where the model
    computes; the embedding, norms outside the blocks and the head always are.
    """

    on_disk: bool
    """Whether the numbers of a block that isn't held are on disk."""
    elsewhere: bool
    """Whether a block that isn't held has its numbers elsewhere: on disk, or beside the device that
    computes.
    """

    @abstractmethod
    def held(self, index: int) -> AbstractContextManager[None]:
        """Return a context in which the numbers of the block `index` are where the model computes.
        What is written to blocks on disk is lost afterwards, unless `changed` is told how to write
        it again.
        """

    def absent(self) -> Mapping[int, Collection[str]]:
        """Return the names of the parameters that are on disk while their block isn't held, by
        the block's index.
        """
        return {}

    def changed(self, index: int, change: Callable[[], None]) -> None:  # noqa: B027
        """Call `change` whenever the numbers of the block `index` are read from disk again, after
        the changes before it.
        """


@final
class InMemory(Residence):
    """All numbers are in memory."""

    on_disk = False
    elsewhere = False

    def held(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()


IN_MEMORY = InMemory()


@final
class WithoutNumbers(Residence):
    """There are no numbers: only names and shapes of a model's outline are looked at."""

    on_disk = True
    elsewhere = True

    def held(self, index: int) -> AbstractContextManager[None]:
        raise ModelError(
            f"block {index} is asked for its numbers, and the model was opened for its shapes "
            "alone",
            subject=str(index),
        )


WITHOUT_NUMBERS = WithoutNumbers()


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
    def tensor_name(self) -> str:
        """Its name without the number of its expert: that of the tensor which all experts share."""
        return self.name.partition("[")[0]

    @property
    def stored(self) -> Tensor:
        """The numbers as the model keeps them, detached; `[in, out]` if `transposed`."""
        parameter = getattr(self.owner, self.key).detach()
        return parameter if self.expert is None else parameter[self.expert]

    @property
    def address(self) -> int:
        """Where `stored` begins in memory. By this a product in a forward is recognised as one with
        this matrix.
        """
        return self.stored.data_ptr()

    def get(self) -> Float[Tensor, "out in"]:
        """Return the matrix: a view of the model's own numbers, which must not be changed."""
        return self.stored.T if self.transposed else self.stored

    def set(self, matrix: Float[Tensor, "out in"]) -> None:
        """Copy `matrix` over the model's own numbers. Raises `ModelError` for another shape."""
        if tuple(matrix.shape) != self.shape:
            raise ModelError(
                f"{self.name} is {list(self.shape)}, and can't be set to a matrix of shape "
                f"{list(matrix.shape)}",
                subject=self.name,
            )
        overwrite(self.get(), matrix)


@final
@dataclass(frozen=True)
class Block:
    """A decoder layer, and its matrices in the order in which it declares them."""

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
    offload: Path | Literal["memory"] | None
    """A folder whose disk takes what passes from block to block in a walk, or the machine's memory,
    beside a device; None where it stays where it is.
    """
    rehearsed: Any
    """What `calibrant.walk.rehearsal` found of a forward through these blocks."""

    def __init__(
        self, model: PreTrainedModel, layers: str, residence: Residence = IN_MEMORY
    ) -> None:
        self.model = model
        self.residence = residence
        self.offload = None
        self._layers = layers
        self.refresh()

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every matrix that is compressed, block by block."""
        return tuple(chain.from_iterable(block.weights for block in self.blocks))

    @property
    def named(self) -> Mapping[str, Weight]:
        """Every matrix that is compressed, by name."""
        return {weight.name: weight for weight in self.weights}

    @property
    def config(self) -> Any:
        """What the model's configuration says of the part that reads and writes text."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(
            parameter.device for parameter in self.model.parameters() if not parameter.is_meta
        )

    def held(self, block: Block) -> AbstractContextManager[None]:
        """Return a context in which the numbers of `block` are where the model computes, wherever
        they are otherwise.
        """
        return self.residence.held(block.index)

    @property
    def base(self) -> nn.Module:
        """The module that runs the blocks and not the head: `base(input_ids=…, attention_mask=…,
        use_cache=False)`.
        """
        model = self.model
        head = model.get_output_embeddings()
        layers = model.get_submodule(self._layers)
        candidates: list[nn.Module] = [model.base_model, model.get_decoder()]
        for module in _around(model, self._layers):
            if isinstance(module, PreTrainedModel):
                candidates.append(module)
        # Models differ in which of these is the one without the head.
        for candidate in candidates:
            inside = set(candidate.modules())
            if layers in inside and head not in inside:
                return candidate
        raise ModelError(
            f"{type(model).__name__} has no part that runs {self._layers} without the head",
            subject=self._layers,
        )

    def drop_blocks(self, indices: Sequence[int]) -> None:
        """Remove blocks, and say so in the configuration: saved, the model opens with plain
        transformers and gives the same logits.

        The blocks that stay are numbered anew. An index that doesn't exist, nothing left, or a
        configuration that can't describe what is left is a `ModelError`, and changes nothing.
        """
        drop(self.model, self._layers, indices)
        self.refresh()

    def remembered(self) -> Callable[[], None]:
        """Return a function that restores the blocks, modules and configuration that are there now.
        Weights aren't copied.
        """
        structure = Structure.of(self.model)

        def undo() -> None:
            structure.put_back()
            self.refresh()

        return undo

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """The names of parameters that share their numbers, a tuple for each memory that has
        several names: a head and its embedding.
        """
        return tied(self.model)

    def untie(self) -> bool:
        """Give the head numbers of its own, and say so in the configuration. Returns False, and
        changes nothing, where it has them already. See `changing.untie`.
        """
        changed = untie(self.model)
        self.refresh()
        return changed

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of every matrix that is compressed, by name. `Snapshot` keeps everything
        else too, and copies only what is overwritten.
        """
        return {weight.name: weight.stored.clone() for weight in self.weights}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Put back what `snapshot` kept; a snapshot of other matrices is a `ModelError`."""
        strangers = self.named.keys() ^ snapshot.keys()
        if strangers:
            name = min(strangers)
            raise ModelError(
                f"the snapshot is of another model: only one of the two has {name}", subject=name
            )
        for weight in self.weights:
            overwrite(weight.stored, snapshot[weight.name])

    def refresh(self) -> None:
        """Read the model anew: for whoever changed what it is made of."""
        layers = self.model.get_submodule(self._layers)
        modules = list(layers.children())
        weights: list[list[Weight]] = [[] for _ in modules]
        dense: list[Dense] = []
        for parameter in _parameters(self.model, self._layers):
            reason = parameter.reason(self.model)
            if reason is not None:
                dense.append(Dense(parameter.name, tuple(parameter.tensor.shape), reason))
            elif parameter.block is not None:
                weights[parameter.block] += parameter.weights()
        _refuse_overlaps(chain.from_iterable(weights))
        blocks: list[Block] = []
        for index, module in enumerate(modules):
            name = f"{self._layers}.{index}"
            blocks.append(Block(index, name, module, tuple(weights[index])))
        self.blocks = tuple(blocks)
        self.dense = tuple(dense)
        self.rehearsed = None


def view(model: PreTrainedModel, residence: Residence = IN_MEMORY) -> ModelView:
    """Find the blocks and matrices of a causal language model of transformers, whose numbers are
    where `residence` says (`Opened.residence`).

    Experts are switched to the eager implementation, one product an expert. Raises `ModelError`, by
    name, for what can't be seen as plain matrices: compiled blocks, weights on the meta device,
    quantized layers, no list of blocks or more than one.
    """
    refuse(model, residence)
    layers = block_list(model)
    # In one fused product of all experts no forward could stop at a single expert.
    if any(parameter.dim() == 3 for parameter in model.get_submodule(layers).parameters()):
        model.set_experts_implementation("eager")
    return ModelView(model, layers, residence)


def check_finite(view: ModelView) -> None:
    """Raise `NumericsError`, naming the matrix, if any weight of the model is NaN or infinite.
    One block is in memory at a time.
    """
    inside: set[int] = set()
    for block in view.blocks:
        inside.update(map(id, block.module.parameters()))
    named = view.model.named_parameters()
    outside = [(name, parameter) for name, parameter in named if id(parameter) not in inside]
    _check_parameters(outside, ())
    for block in view.blocks:
        with view.held(block):
            _check_parameters(block.module.named_parameters(prefix=block.name), block.weights)


def _check_parameters(parameters: Iterable[tuple[str, Tensor]], weights: Sequence[Weight]) -> None:
    for name, parameter in parameters:
        if is_finite(parameter):
            continue
        # In a tensor of all experts, the matrix's name says which of them it is.
        broken = [weight.name for weight in weights if not is_finite(weight.stored)]
        subject = broken[0] if broken else name
        raise NumericsError(
            f"the weights of {subject} hold NaN or infinity; open the model from a sound file, or "
            "in a wider dtype",
            subject=subject,
        )


def is_finite(tensor: Tensor) -> bool:
    """Return whether no number of a tensor is NaN or infinite."""
    if tensor.numel() == 0:
        return True
    # The extremes show NaN and infinity without a copy, which of an embedding may take a gigabyte.
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


@final
@dataclass(frozen=True)
class _Parameter:
    """One parameter, and what decides whether it is a matrix to compress."""

    name: str
    tensor: Tensor
    owner: nn.Module
    block: int | None
    twin: str
    """A parameter outside the blocks that is the same memory; empty if there is none."""

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
        # From the outside in: the first reason that holds is the one that a reader looks for.
        if self.owner is model.get_output_embeddings() and self.key == "weight":
            return "head, tied to the embedding" if self.twin else "head"
        if self.tensor.dim() < 2:
            return SMALL
        if isinstance(self.owner, nn.Embedding):
            return "embedding"
        if self.block is None:
            return "outside the blocks"
        if _attends_to_others(model, self.path):
            return "cross attention, which isn't used without an encoder"
        if self.twin:
            return f"the same memory as {self.twin}"
        if self.key.endswith("bias"):
            return "bias of the experts"
        experts = _expert_counts(self.owner, model)
        is_matrix = self.key == "weight" and self.tensor.dim() == 2
        if is_matrix and self._routes_among(experts):
            return "router"
        holds_experts = self.tensor.dim() == 3 and self.tensor.shape[0] in experts
        if is_matrix or holds_experts:
            return None
        owner = type(self.owner).__name__
        return f"not used as one matrix ({self.tensor.dim()} dimensions, in a {owner})"

    def _routes_among(self, experts: set[int]) -> bool:
        """Whether it chooses some of so many experts: it is called so, and has a row for each."""
        named = self.path.rpartition(".")[2].endswith(("gate", "router"))
        owner = type(self.owner).__name__
        # A gate with one row is that of a shared expert.
        has_rows = self.tensor.shape[0] in experts | {1}
        return has_rows and (named or owner.endswith(("Router", "Gate")))

    def weights(self) -> list[Weight]:
        """Return the matrix, or one for each expert."""
        assert self.block is not None
        owner = self.owner
        transposed = (
            isinstance(owner, Conv1D)
            or bool(getattr(owner, "is_transposed", False))
            or type(owner).__name__ in TRANSPOSED
        )
        *_, rows, columns = self.tensor.shape
        shape = (columns, rows) if transposed else (rows, columns)
        if self.tensor.dim() == 2:
            return [Weight(self.path, self.block, shape, transposed, None, owner, self.key)]
        weights: list[Weight] = []
        for expert in range(self.tensor.shape[0]):
            name = f"{self.path}[{expert}]"
            weights.append(Weight(name, self.block, shape, transposed, expert, owner, self.key))
        return weights


def _parameters(model: PreTrainedModel, layers: str) -> Iterator[_Parameter]:
    """Every parameter, those outside the blocks first. Of matrices inside the blocks that are the
    same memory, only the first one.
    """
    outside: dict[int, str] = {}
    seen: set[int] = set()
    inside: list[tuple[str, Tensor]] = []
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name.startswith(f"{layers}."):
            inside.append((name, tensor))
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        yield _Parameter(name, tensor, owner, None, outside.get(place_of(tensor), ""))
        outside.setdefault(place_of(tensor), name)
    for name, tensor in inside:
        # Norms and biases are listed under each name: nobody compresses them twice.
        if place_of(tensor) in seen and tensor.dim() >= 2:
            continue
        seen.add(place_of(tensor))
        owner = model.get_submodule(name.rpartition(".")[0])
        block = int(name.removeprefix(f"{layers}.").partition(".")[0])
        yield _Parameter(name, tensor, owner, block, outside.get(place_of(tensor), ""))


def _expert_counts(owner: nn.Module, model: PreTrainedModel) -> set[int]:
    """How many experts there are, by the module that owns a parameter and by the configuration."""
    config: Any = model.config.get_text_config()
    counts = [getattr(config, name, None) for name in EXPERT_COUNTS]
    counts.append(getattr(owner, "num_experts", None))
    return {count for count in counts if isinstance(count, int)}


def _around(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules that `path` lies in, the model itself first."""
    parts = path.split(".")
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]


def _attends_to_others(model: PreTrainedModel, path: str) -> bool:
    """Whether `path` is in a part that attends to the states of an encoder, or of an image, and a
    module around it can be handed these.
    """
    if not any(part in CROSS for part in path.split(".")):
        return False
    for module in _around(model, path)[1:]:
        names = signature(module.forward).parameters
        if "encoder_hidden_states" in names or "cross_attention_states" in names:
            return True
    return False


def block_list(model: PreTrainedModel) -> str:
    """Return the name of the one list of modules whose length is the model's number of layers; of
    several, that in the decoder of text. Lists inside such a list don't count.

    Raises `ModelError` if there is no such list, or more than one.
    """
    config: Any = model.config.get_text_config(decoder=True)
    names: list[str] = []
    layers: Any = "(it doesn't say how many)"
    for entry in ("num_hidden_layers", "num_layers"):
        depth = getattr(config, entry, None)
        if isinstance(depth, int):
            layers = depth
            names = _lists(model, depth)
            if names:
                break
    # A model of pictures and text may have as many layers for both.
    decoder = model.get_decoder()
    if len(names) > 1 and decoder is not model:
        inside = set(decoder.modules())
        names = [name for name in names if model.get_submodule(name) in inside] or names
    if len(names) == 1:
        return names[0]
    kind = type(model).__name__
    lists = f"no list of {layers} modules"
    if names:
        lists = f"several lists of {layers} modules ({', '.join(names)})"
    raise ModelError(
        f"{kind} has {lists}, so its blocks can't be told; it needs a view of its own", subject=kind
    )


def _lists(model: nn.Module, length: int) -> list[str]:
    """The names of all lists of so many modules that are in no other of them."""
    names: list[str] = []
    for name, module in model.named_modules():
        # A module comes after the one that it is in.
        inside = any(name.startswith(f"{other}.") for other in names)
        if isinstance(module, nn.ModuleList) and len(module) == length and not inside:
            names.append(name)
    return names


def _refuse_overlaps(weights: Iterable[Weight]) -> None:
    """Raise `ModelError` for matrices that share part of their memory: they can't be compressed one
    by one.
    """
    spans: list[tuple[int, int, str]] = []
    for weight in weights:
        stored = weight.stored
        if not stored.is_meta:
            start = stored.data_ptr()
            spans.append((start, start + stored.numel() * stored.element_size(), weight.name))
    for (_, end, first), (start, _, second) in pairwise(sorted(spans)):
        if start < end:
            raise ModelError(
                f"{second} shares part of its memory with {first}; give each a memory of its own "
                "first",
                subject=second,
            )


def refuse(model: PreTrainedModel, residence: Residence = IN_MEMORY) -> None:
    """Raise `ModelError` if a module is compiled, or a weight is quantized or has no numbers;
    the message names it.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise ModelError(
                f"{name or 'the model'} is compiled, so its products can't be followed; open the "
                "model without torch.compile",
                subject=name,
            )
        if _is_quantized(module):
            raise _quantized(name, type(module).__name__)
        for key, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{key}" if name else key
            if parameter.is_meta and not residence.on_disk:
                raise ModelError(
                    f"{full} is on the meta device and has no numbers; load the model whole (no "
                    "offloading, no empty weights)",
                    subject=full,
                )
            if parameter.dtype not in PLAIN_DTYPES:
                raise _quantized(full, str(parameter.dtype))
            if not _is_plain(parameter.data):
                raise ModelError(
                    f"{full} is a {type(parameter.data).__name__} and no plain tensor; give the "
                    "model before its quantization",
                    subject=full,
                )


def _quantized(name: str, kind: str) -> ModelError:
    return ModelError(
        f"{name} is quantized ({kind}); give the model before its quantization", subject=name
    )


def _is_plain(numbers: Tensor) -> bool:
    """Whether a tensor holds its numbers as they are. A class of its own may pack them, unless it
    says that it doesn't, as that of `calibrant.testing.device` does.
    """
    kind = type(numbers)
    return kind is Tensor or getattr(kind, "holds_plain_numbers", False)


def _is_quantized(module: nn.Module) -> bool:
    """Whether a module has packed integers in the place of weights. GPTQ and its relatives keep
    them in buffers, torch.ao in modules of its own.
    """
    if type(module).__module__.startswith("torch.ao.nn"):
        return True
    if any(True for _ in module.children()):
        return False
    return any(_holds_codes(buffer) for buffer in module.buffers(recurse=False))


def _holds_codes(buffer: Tensor) -> bool:
    return buffer.dim() >= 2 and not buffer.is_floating_point() and buffer.dtype != torch.bool
