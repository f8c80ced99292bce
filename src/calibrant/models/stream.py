"""The residual stream of a model: which matrices read it, through which norm, and which write to
it; and which rows and columns make one hidden unit.

    stream = Stream.of(view)
    for norm in stream.norms:
        # The norm times the factors, its readers' columns divided by them: the logits stay.
        stream.rescale(norm, factors)

All this is found by a forward of a few tokens (`tracing`), not from names. The blocks of a model
may only add to the stream what their matrices made of it. Any other model is refused, and the
message names the operation that isn't understood.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calibrant.activations import wide
from calibrant.errors import ModelError
from calibrant.models.changing import overwrite
from calibrant.models.tracing import ELSEWHERE, Flow, Label, Rows, TracedProduct, norms_of, strides
from calibrant.models.viewing import Block, ModelView, Weight

PROBE: Final = 8
"""Tokens that are run to see where numbers flow."""
OUTSIDE: Final = -1
"""The block of a matrix that is in none: an embedding, the head."""


@final
@dataclass(frozen=True)
class Norm:
    """A norm that something reads the stream through, or that what is written to it goes
    through.
    """

    name: str
    offset: float
    """What its weight lacks of the scale: 1 where it multiplies by 1 + weight, as Gemma's do."""
    centres: bool
    """True where it subtracts the mean of its input: a LayerNorm, no RMSNorm."""
    others: tuple[str, ...]
    """What its output goes into besides products with matrices. If there is anything, the norm's
    scale can't be moved into the matrices.
    """
    module: nn.Module = field(repr=False, compare=False)

    @property
    def scale(self) -> Float[Tensor, "hidden"] | None:
        """What it multiplies each feature by, in float32 or wider; None where it has no weight."""
        weight = getattr(self.module, "weight", None)
        if weight is None:
            return None
        return weight.detach().to(wide(weight.dtype)) + self.offset

    def multiply(self, factors: Float[Tensor, "hidden"]) -> None:
        """Multiply what it gives, feature by feature. Raises `ModelError` where it has no
        weight.
        """
        scale = self.scale
        bias = getattr(self.module, "bias", None)
        if scale is None:
            raise ModelError(
                f"{self.name} has no weight, so its scale can't be changed", subject=self.name
            )
        overwrite(self.module.weight, scale * factors - self.offset)  # pyright: ignore[reportArgumentType]  # a parameter
        if isinstance(bias, Tensor):
            overwrite(bias, bias.detach() * factors)


@final
@dataclass(frozen=True)
class Reader:
    """A matrix whose inputs are the stream, or what `norm` makes of it."""

    weight: Weight
    norm: Norm | None


@final
@dataclass(frozen=True)
class Writer:
    """What is added to the stream: the outputs of `weight`, through `norm` where there is one;
    of an embedding, `[token, hidden]`, its rows.
    """

    weight: Weight
    norm: Norm | None


class UnitRows(NamedTuple):
    """The rows of hidden units in a matrix `[out, in]` or in its bias `[out]`: unit u is row
    `first + step · u`.
    """

    stored: Tensor
    first: int
    step: int

    def places(self, units: int) -> Int[Tensor, "unit"]:
        """Return the numbers of the rows of so many units."""
        return torch.arange(units, device=self.stored.device) * self.step + self.first


@final
@dataclass(frozen=True)
class Hidden:
    """The hidden units of a feed-forward layer, or of one expert: each has a row in each of `rows`,
    which are those of matrices and, where they have such, of their biases; unit u is column u of
    `down`.
    """

    block: int
    units: int
    rows: tuple[UnitRows, ...] = field(repr=False, compare=False)
    up: tuple[Weight, ...]
    down: Weight

    def permute(self, order: Int[Tensor, "unit"]) -> None:
        """Put the units in another order, which changes nothing of what the layer computes but
        the order in which it adds.
        """
        for rows in self.rows:
            places = rows.places(self.units)
            old_places = places[order.to(places.device)]
            stored = rows.stored.detach()
            changed = stored.clone()
            changed[places] = stored[old_places]
            overwrite(rows.stored, changed)
        columns = order.to(self.down.stored.device)
        self.down.set(self.down.get()[:, columns])


@final
@dataclass(frozen=True)
class Stream:
    """Who reads a model's residual stream and who writes to it. Made by `Stream.of`."""

    readers: tuple[Reader, ...]
    """In the order of the model; the head is the last."""
    writers: tuple[Writer, ...]
    """The embeddings are the first."""
    vectors: tuple[tuple[str, Tensor], ...] = field(repr=False)
    """One-dimensional parameters that are added to the stream: biases of writers, and what a
    block adds of its own.
    """
    hidden: tuple[Hidden, ...]
    norms: tuple[Norm, ...]
    """Those that something reads the stream through, the last one before the head among them."""

    @classmethod
    def of(cls, view: ModelView) -> "Stream":
        """Run a few tokens through the model and return where its numbers flow. Its numbers stay as
        they are.

        Raises `ModelError`, naming the operation, for a model whose stream isn't understood.
        """
        return _TracedStream(view).stream()

    def readers_of(self, norm: Norm) -> tuple[Reader, ...]:
        """Return every matrix that reads the stream through `norm`."""
        return tuple(reader for reader in self.readers if reader.norm == norm)

    def rescale(self, norm: Norm, factors: Float[Tensor, "hidden"]) -> None:
        """Multiply what `norm` gives by `factors`, and divide by them the columns of all that read
        it: the logits stay what they were.

        Raises `ModelError`, and changes nothing, where something else than matrices reads it, and
        where a matrix that does is an embedding too.
        """
        if norm.others:
            raise ModelError(
                f"what {norm.name} gives also goes into {norm.others[0]}, so its scale can't be "
                "moved into matrices",
                subject=norm.name,
            )
        addresses = {writer.weight.address for writer in self.writers}
        readers = self.readers_of(norm)
        for reader in readers:
            if reader.weight.address in addresses:
                raise ModelError(
                    f"{reader.weight.name}, which reads {norm.name}, is an embedding too; untie "
                    "them first",
                    subject=reader.weight.name,
                )
        norm.multiply(factors)
        for reader in readers:
            reader.weight.set(reader.weight.get() / factors)


@final
class _TracedStream:
    """Traces a model, and puts together what that shows."""

    def __init__(self, view: ModelView) -> None:
        self._view = view
        self._kind = type(view.model).__name__
        self._norms = norms_of(view.model)
        self._width = 0
        weights = [*_outside(view), *view.weights, *_dense_inside(view)]
        self._weights = {weight.name: weight for weight in weights}
        self._vectors = dict(_vectors(view))
        self._flow = Flow()
        self._locate()

    def _locate(self) -> None:
        """Tell the flow where the numbers are now."""
        products: dict[int, TracedProduct] = {}
        holders: dict[int, tuple[TracedProduct, ...]] = {}
        vectors: dict[int, str] = {}
        for name, tensor in _vectors(self._view):
            if not tensor.is_meta:
                vectors[tensor.data_ptr()] = name
        for name, weight in self._weights.items():
            # The numbers of a block that is on disk are nowhere in memory.
            if weight.stored.is_meta:
                continue
            product = TracedProduct(name, weight.shape, strides(weight.get()))
            # An embedding is a table of vectors that tokens pick, and no factor of a product.
            if isinstance(weight.owner, nn.Embedding):
                vectors[weight.address] = name
            else:
                products[weight.address] = product
            if weight.expert is not None:
                whole = getattr(weight.owner, weight.key).data_ptr()
                holders[whole] = (*holders.get(whole, ()), product)
        self._flow.locate(products, holders, vectors)

    def stream(self) -> Stream:
        self._trace()
        self._refuse_unknown()
        writes = self._flow.writes
        reads: dict[str, set[str]] = {}
        for matrix, sources in self._flow.inputs.items():
            reads[matrix] = sources - {ELSEWHERE}
        norms: dict[str, Norm] = {}
        for norm_names in (*reads.values(), *writes.values()):
            for name in norm_names:
                # No name stands for no norm.
                if name and name not in norms:
                    norms[name] = self._norm(name)
        inside: list[Reader] = []
        outside: list[Reader] = []
        writers: list[Writer] = []
        for name, weight in self._weights.items():
            readers = outside if weight.block == OUTSIDE else inside
            for norm_name in sorted(_sources_of(reads, name)):
                readers.append(Reader(weight, norms.get(norm_name)))
            for norm_name in sorted(_sources_of(writes, name)):
                writers.append(Writer(weight, norms.get(norm_name)))
        # The head comes last.
        readers = [*inside, *outside]
        read_through = {reader.norm.name for reader in readers if reader.norm}
        vectors = [(name, vector) for name, vector in self._vectors.items() if name in writes]
        return Stream(
            readers=tuple(readers),
            writers=tuple(writers),
            vectors=tuple(vectors),
            hidden=tuple(self._hidden()),
            norms=tuple(norm for name, norm in norms.items() if name in read_through),
        )

    def _trace(self) -> None:
        model = self._view.model
        blocks = self._view.blocks
        flow = self._flow
        vocabulary = self._view.config.vocab_size
        # Tokens that differ, so that experts get some of them at least.
        ids = torch.arange(PROBE, device=self._view.device)[None] % vocabulary
        with ExitStack() as stack:
            for name, norm in self._norms.items():
                enter = norm.register_forward_pre_hook(self._enter_norm)
                leave = norm.register_forward_hook(partial(self._leave_norm, name))
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            for block in blocks:
                if self._view.residence.elsewhere:
                    held = stack.enter_context(ExitStack())
                    bring = partial(self._bring, block, held)
                    let_go = partial(self._let_go, held)
                    stack.callback(block.module.register_forward_pre_hook(bring).remove)
                    stack.callback(block.module.register_forward_hook(let_go).remove)
                enter = partial(self._enter_block, block.name)
                handle = block.module.register_forward_pre_hook(enter, with_kwargs=True)
                stack.callback(handle.remove)
            stack.callback(blocks[-1].module.register_forward_hook(self._leave_blocks).remove)
            with torch.no_grad(), flow:
                model(input_ids=ids, use_cache=False)

    def _bring(self, block: Block, held: ExitStack, *_: Any) -> None:
        """Hold a block that is about to run, and learn where its numbers are meanwhile."""
        with self._flow.looking_away():
            held.enter_context(self._view.held(block))
        self._locate()

    def _let_go(self, held: ExitStack, *_: Any) -> None:
        with self._flow.looking_away():
            held.close()
        self._locate()

    def _enter_norm(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._flow.into_norm()

    def _leave_norm(self, name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._flow.out_of_norm(name, args, output)

    def _leave_blocks(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._flow.place = "what follows the blocks"

    def _enter_block(
        self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Note that a block is called. Its input must be the stream; for the first block it is what
        the embeddings made, and is the stream from now on.
        """
        flow = self._flow
        hidden: Tensor | None = None
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                hidden = value
                break
        label = flow.label(hidden)
        is_first = flow.place == "before the blocks"
        if is_first and hidden is not None and label.made:
            for matrix, norm in label.made:
                flow.writes.setdefault(matrix, set()).add(norm)
            flow.put(hidden, Label(stream=True))
        elif not label.stream:
            why = f"what arrives at {name} is not its stream"
            if is_first:
                why = f"what the embeddings made arrives at {name} changed"
            other = self._first_other()
            if other:
                why = f"{why} (see {other})"
            raise self._not_understood(why, name)
        flow.place = name
        self._width = 0
        if hidden is not None:
            self._width = hidden.shape[-1]

    def _first_other(self) -> str:
        """The first operation besides sums and products that the stream itself goes into."""
        return min(self._flow.others.get("", ()), default="")

    def _not_understood(self, why: str, subject: str) -> ModelError:
        return ModelError(
            f"the residual stream of a {self._kind} isn't understood: {why}", subject=subject
        )

    def _refuse_unknown(self) -> None:
        other = self._first_other()
        if other:
            raise self._not_understood(f"it goes into {other}", other)
        used = {_twin(name) for name in self._flow.inputs}
        for weight in self._view.weights:
            if _twin(weight.name) not in used:
                why = f"no product with {weight.name} was seen"
                raise self._not_understood(why, weight.name)
        spilled = self._flow.spilled
        for name in self._flow.writes:
            if name in spilled:
                why = f"what {name} makes is added to it and goes into {spilled[name]} too"
                raise self._not_understood(why, name)

    def _norm(self, name: str) -> Norm:
        module = self._norms[name]
        with self._numbers_of(name):
            offset, centres = _measured(module, self._width)
        others = set(self._flow.others.get(name, ()))
        # The scale of one norm can't be moved into a matrix that reads something else too.
        for matrix, sources in self._flow.inputs.items():
            if name in sources and len(sources) > 1:
                others.add(f"{matrix}, which reads something else too")
        if offset is None:
            others.add(f"a {type(module).__name__}, whose weight is no scale")
        return Norm(name, offset or 0.0, centres, tuple(sorted(others)), module)

    def _numbers_of(self, norm: str) -> AbstractContextManager[None]:
        """A context in which the numbers of a norm are in memory."""
        if self._view.residence.on_disk:
            for block in self._view.blocks:
                if norm.startswith(f"{block.name}."):
                    return self._view.held(block)
        return nullcontext()

    def _hidden(self) -> Iterator[Hidden]:
        """The hidden units of every matrix whose inputs are functions of rows which no other
        matrix's inputs are functions of.
        """
        rows_of: dict[str, frozenset[Rows]] = {}
        users: Counter[str] = Counter()
        for name, weight in self._weights.items():
            rows = self._input_rows(name, weight)
            if rows:
                rows_of[name] = rows
                users.update({part.matrix for part in rows})
        mixed = {_twin(name) for name in self._flow.mixed}
        for name, rows in rows_of.items():
            matrices = {part.matrix for part in rows}
            shared = any(users[matrix] > 1 for matrix in matrices)
            if shared or any(_twin(matrix) in mixed for matrix in matrices):
                continue
            hidden = self._hidden_of(self._weights[name], rows)
            if hidden is not None:
                yield hidden

    def _input_rows(self, name: str, down: Weight) -> frozenset[Rows]:
        """The rows that the inputs of a matrix are functions of; none where they are no such
        functions, or were different ones in different products.
        """
        pairs = self._flow.pairs.get(name, set())
        if not pairs and down.expert is not None:
            # An expert that no token of the probe reached has the rows that another has.
            for other, other_pairs in self._flow.pairs.items():
                if "[" in other and _twin(other) == _twin(name):
                    pairs = {_of_expert(rows, down.expert) for rows in other_pairs}
                    break
        if len(pairs) != 1:
            return frozenset()
        (rows,) = pairs
        if down.expert is None:
            return rows
        # Outputs of all experts in one tensor have the rows of all of them.
        expert = f"[{down.expert}]"
        return frozenset(part for part in rows if part.matrix.endswith(expert))

    def _hidden_of(self, down: Weight, rows: frozenset[Rows]) -> Hidden | None:
        units = down.shape[1]
        unit_rows: list[UnitRows] = []
        up: dict[str, Weight] = {}
        for part in sorted(rows, key=_by_place):
            if part.matrix in self._weights:
                weight = self._weights[part.matrix]
                up[part.matrix] = weight
                stored = weight.get()
            else:
                stored = self._vectors[part.matrix]
            last = part.first + part.step * (units - 1)
            if last >= len(stored):
                return None
            unit_rows.append(UnitRows(stored, part.first, part.step))
        if not up:
            return None
        return Hidden(down.block, units, tuple(unit_rows), tuple(up.values()), down)


def _by_place(rows: Rows) -> tuple[str, int]:
    return rows.matrix, rows.first


def _outside(view: ModelView) -> Iterator[Weight]:
    """Embeddings, the head and projections outside the blocks, each as a matrix as it is stored."""
    inside = tuple(f"{block.name}." for block in view.blocks)
    for name, parameter in view.model.named_parameters(remove_duplicate=False):
        plain = parameter.dim() == 2 and name.endswith(".weight")
        if plain and not name.startswith(inside):
            yield _as_stored(view, name, parameter.shape, OUTSIDE)


def _dense_inside(view: ModelView) -> Iterator[Weight]:
    """Matrices of blocks that aren't compressed, such as a router's: they read the stream all
    the same.
    """
    for dense in view.dense:
        if len(dense.shape) != 2 or not dense.name.endswith(".weight"):
            continue
        for block in view.blocks:
            if dense.name.startswith(f"{block.name}."):
                yield _as_stored(view, dense.name, dense.shape, block.index)


def _as_stored(view: ModelView, name: str, shape: tuple[int, ...], block: int) -> Weight:
    path = name.removesuffix(".weight")
    rows, columns = shape
    owner = view.model.get_submodule(path)
    return Weight(path, block, (rows, columns), False, None, owner, "weight")


def _vectors(view: ModelView) -> Iterator[tuple[str, Tensor]]:
    """Parameters of one dimension, and the rows of experts' biases."""
    for name, parameter in view.model.named_parameters():
        if parameter.dim() == 1:
            yield name, parameter
        elif parameter.dim() == 2 and name.endswith("bias"):
            for expert, bias in enumerate(parameter.detach()):
                yield f"{name}[{expert}]", bias


def _sources_of(sources: dict[str, set[str]], name: str) -> set[str]:
    """Return the sources of a matrix's inputs; for an expert that no token of the probe reached,
    those of the others.
    """
    if name in sources or "[" not in name:
        return sources.get(name, set())
    found: set[str] = set()
    for other, other_sources in sources.items():
        if "[" in other and _twin(other) == _twin(name):
            found |= other_sources
    return found


def _twin(name: str) -> str:
    """A matrix's name without the number of its expert."""
    return name.partition("[")[0]


def _of_expert(rows: frozenset[Rows], expert: int) -> frozenset[Rows]:
    """The same rows of another expert's matrices."""
    found: set[Rows] = set()
    for part in rows:
        if "[" in part.matrix:
            part = Rows(f"{_twin(part.matrix)}[{expert}]", part.first, part.step)
        found.add(part)
    return frozenset(found)


def _measured(module: nn.Module, width: int) -> tuple[float | None, bool]:
    """What a norm's weight lacks of its scale (None where it is no scale), and whether the norm
    subtracts the mean: both by trying.
    """
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    # An input with numbers of many sizes, whose mean isn't zero.
    x = torch.linspace(-1.0, 2.0, width).square()[None]
    if not isinstance(weight, Tensor):
        centres = torch.allclose(module(x), module(x + 3.0), atol=0.05)
        return 0.0, centres
    if weight.shape != (width,):
        return None, False
    x = x.to(weight)
    shift = torch.zeros_like(weight)
    if isinstance(bias, Tensor):
        shift = bias.detach()

    def output(scale: float, moved: float = 0.0) -> Tensor:
        parameters = {"weight": torch.full_like(weight, scale)}
        result = torch.func.functional_call(module, parameters, (x + moved,))
        return (result - shift).float()

    with torch.no_grad():
        none = output(0.0)
        once = output(1.0)
        twice = output(2.0)
        # One that subtracts the mean gives the same for an input that is larger throughout.
        centres = torch.allclose(output(1.0, 3.0), once, atol=0.05)
        # A weight is a scale where each step of it adds the same, and something. The bounds are
        # wide, since the norm may compute in two bytes.
        step = once - none
        same_steps = torch.allclose(twice - once, step, atol=0.05)
        adds_something = bool(step.abs().max() > 0.1)
        # A weight of nothing gives nothing, but with Gemma's 1 + weight.
        gives_nothing = torch.allclose(none, torch.zeros_like(none), atol=1e-3)
        offset = 0.0 if gives_nothing else 1.0
        fits_offset = torch.allclose(once, (1 + offset) * step, atol=0.05)
        if same_steps and adds_something and fits_offset:
            return offset, centres
        return None, centres
