"""The residual stream of a model: who reads it, through which norm, who writes to it; and which
rows and columns are one hidden unit.

    stream = Stream.of(view)
    for norm in stream.norms:
        stream.rescale(norm, factors)       # the norm times them, its readers' columns divided by them: the logits stay

It is derived from a forward of a few tokens (`tracing`), not from names. A model whose blocks do
anything else than add to a stream what their matrices made of it is refused, with the operation at
which it isn't understood.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calibrant.errors import ModelError
from calibrant.models.changing import overwrite
from calibrant.models.tracing import ELSEWHERE, Flow, Label, Rows, TracedProduct, norms_of, strides
from calibrant.models.viewing import ModelView, Weight

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
    """Operations besides products with matrices that its output goes into: then its scale can't
    be moved into those.
    """
    module: nn.Module = field(repr=False, compare=False)

    @property
    def scale(self) -> Float[Tensor, "hidden"] | None:
        """What it multiplies each feature by; None where it has no weight."""
        weight = getattr(self.module, "weight", None)
        return None if weight is None else weight.detach() + self.offset

    def multiply(self, factors: Float[Tensor, "hidden"]) -> None:
        """Multiply what it gives, feature by feature. Raises `ModelError` where it has no
        weight.
        """
        scale, bias = self.scale, getattr(self.module, "bias", None)
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


@final
@dataclass(frozen=True)
class Hidden:
    """The hidden units of a feed-forward layer, or of one expert: unit u is row `first + step · u`
    of each of `rows`, and column u of `down`.

    `rows` are matrices and, where they have such, their biases.
    """

    block: int
    units: int
    rows: tuple[tuple[Tensor, int, int], ...] = field(repr=False, compare=False)
    """Stored as `[out, in]` or `[out]`, with the first row and the step."""
    up: tuple[Weight, ...]
    down: Weight

    def permute(self, order: Int[Tensor, "unit"]) -> None:
        """Put the units in another order, which changes nothing of what the layer computes but
        the order in which it adds.
        """
        for tensor, first, step in self.rows:
            at = torch.arange(self.units, device=tensor.device) * step + first
            changed = tensor.detach().clone()
            changed[at] = tensor.detach()[at[order.to(tensor.device)]]
            overwrite(tensor, changed)
        self.down.set(self.down.get()[:, order.to(self.down.stored.device)])


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
                f"what {norm.name} gives also goes into {norm.others[0]}, so its scale can't be moved into matrices",
                subject=norm.name,
            )
        addresses = {writer.weight.address for writer in self.writers}
        readers = self.readers_of(norm)
        for reader in readers:
            if reader.weight.address in addresses:
                raise ModelError(
                    f"{reader.weight.name}, which reads {norm.name}, is an embedding too; untie them first",
                    subject=reader.weight.name,
                )
        norm.multiply(factors)
        for reader in readers:
            reader.weight.set(reader.weight.get() / factors)


class _TracedStream:
    """What a trace of a model shows, put together."""

    def __init__(self, view: ModelView) -> None:
        self._view, self._norms, self._width = view, norms_of(view.model), 0
        self._weights = {
            weight.name: weight for weight in (*_outside(view), *view.weights, *_dense_inside(view))
        }
        self._vectors = dict(_vectors(view))
        products = {
            name: TracedProduct(name, w.shape, strides(w.get()))
            for name, w in self._weights.items()
        }
        holders: dict[int, tuple[TracedProduct, ...]] = {}
        for weight in view.weights:
            if weight.expert is not None:
                whole = getattr(weight.owner, weight.key).data_ptr()
                holders[whole] = (*holders.get(whole, ()), products[weight.name])
        vectors = {tensor.data_ptr(): name for name, tensor in self._vectors.items()}
        tables = {
            w.address: name
            for name, w in self._weights.items()
            if isinstance(w.owner, nn.Embedding)
        }
        places = {
            w.address: products[name]
            for name, w in self._weights.items()
            if not isinstance(w.owner, nn.Embedding)
        }
        self._flow = Flow(places, holders, {**vectors, **tables})

    def stream(self) -> Stream:
        self._trace()
        self._refuse_unknown()
        flow, reads = (
            self._flow,
            {name: sources - {ELSEWHERE} for name, sources in self._flow.inputs.items()},
        )
        norms = {
            name: self._norm(name)
            for several in (*reads.values(), *flow.writes.values())
            for name in several
            if name
        }
        readers = [
            Reader(w, norms.get(norm))
            for name, w in self._weights.items()
            for norm in sorted(self._siblings(reads, name))
        ]
        writers = [
            Writer(w, norms.get(norm))
            for name, w in self._weights.items()
            for norm in sorted(self._siblings(flow.writes, name))
        ]
        vectors = tuple(
            (name, tensor) for name, tensor in self._vectors.items() if name in flow.writes
        )
        hidden = tuple(self._hidden())
        read_through = {reader.norm.name for reader in readers if reader.norm}
        last = [r for r in readers if r.weight.block == OUTSIDE]
        ordered = tuple(r for r in readers if r.weight.block != OUTSIDE) + tuple(last)
        return Stream(
            ordered,
            tuple(writers),
            vectors,
            hidden,
            tuple(n for name, n in norms.items() if name in read_through),
        )

    def _trace(self) -> None:
        model, flow = self._view.model, self._flow
        ids = (
            torch.arange(PROBE, device=next(model.parameters()).device)[None]
            % model.config.get_text_config(decoder=True).vocab_size
        )
        handles: list[Any] = []
        try:
            for name, norm in self._norms.items():
                handles.append(norm.register_forward_pre_hook(lambda *_: flow.into_norm()))
                handles.append(
                    norm.register_forward_hook(
                        lambda _, args, out, name=name: flow.out_of_norm(name, args, out)
                    )
                )
            for block in self._view.blocks:
                handles.append(
                    block.module.register_forward_pre_hook(
                        lambda _, args, kwargs, name=block.name: self._enters(
                            name, [*args, *kwargs.values()]
                        ),
                        with_kwargs=True,
                    )
                )
            handles.append(
                self._view.blocks[-1].module.register_forward_hook(
                    lambda *_: setattr(flow, "place", "what follows the blocks")
                )
            )
            with torch.no_grad(), flow:
                model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def _enters(self, name: str, arguments: Sequence[Any]) -> None:
        """A block is called: its input is the stream, or what the embeddings made, from which on
        it is called that.
        """
        flow = self._flow
        hidden = next(
            (x for x in arguments if isinstance(x, Tensor) and x.is_floating_point()), None
        )
        label = flow.label(hidden)
        first = flow.place == "before the blocks"
        if first and hidden is not None and label.made:
            for matrix, norm in label.made:
                flow.writes.setdefault(matrix, set()).add(norm)
            flow.put(hidden, Label(stream=True))
        elif not label.stream:
            what = (
                f"what the embeddings made arrives at {name} changed"
                if first
                else f"what arrives at {name} is not its stream"
            )
            at = f" (see {self._first_other()})" if self._first_other() else ""
            raise ModelError(
                f"the residual stream of a {type(self._view.model).__name__} isn't understood: {what}{at}",
                subject=name,
            )
        flow.place = name
        self._width = hidden.shape[-1] if hidden is not None else 0

    def _first_other(self) -> str:
        return next(iter(sorted(self._flow.others.get("", ()))), "")

    def _refuse_unknown(self) -> None:
        kind = type(self._view.model).__name__
        if self._first_other():
            raise ModelError(
                f"the residual stream of a {kind} isn't understood: it goes into {self._first_other()}",
                subject=self._first_other(),
            )
        used = {_twin(name) for name in self._flow.inputs}
        unseen = [weight.name for weight in self._view.weights if _twin(weight.name) not in used]
        if unseen:
            raise ModelError(
                f"the residual stream of a {kind} isn't understood: no product with {unseen[0]} was seen",
                subject=unseen[0],
            )
        spilled = next((name for name in self._flow.writes if name in self._flow.spilled), None)
        if spilled is not None:
            what = f"what {spilled} makes is added to it and goes into {self._flow.spilled[spilled]} too"
            raise ModelError(
                f"the residual stream of a {kind} isn't understood: {what}", subject=spilled
            )

    def _siblings(self, inputs: dict[str, set[str]], name: str) -> set[str]:
        """Return the sources of a matrix's inputs; for an expert that no token of the probe
        reached, those of the others.
        """
        own = inputs.get(name)
        if own is not None or "[" not in name:
            return own or set()
        return {
            one
            for other, several in inputs.items()
            if "[" in other and _twin(other) == _twin(name)
            for one in several
        }

    def _norm(self, name: str) -> Norm:
        module = self._norms[name]
        offset, centres = _measured(module, self._width)
        mixed = [
            matrix
            for matrix, sources in self._flow.inputs.items()
            if name in sources and len(sources) > 1
        ]
        others = {
            *self._flow.others.get(name, ()),
            *(f"{matrix}, which reads something else too" for matrix in mixed),
        }
        if offset is None:
            others.add(f"a {type(module).__name__}, whose weight is no scale")
        return Norm(name, offset or 0.0, centres, tuple(sorted(others)), module)

    def _hidden(self) -> Iterator[Hidden]:
        """The hidden units of every matrix whose inputs are functions of rows that nothing else
        has.
        """
        own_rows = {
            name: rows
            for name, weight in self._weights.items()
            if (rows := self._own_rows(name, weight))
        }
        users = Counter(
            matrix for rows in own_rows.values() for matrix in {one.matrix for one in rows}
        )
        mixed = {_twin(name) for name in self._flow.mixed}
        for name, rows in own_rows.items():
            if all(users[one.matrix] == 1 and _twin(one.matrix) not in mixed for one in rows):
                one = self._hidden_of(self._weights[name], rows)
                if one is not None:
                    yield one

    def _own_rows(self, name: str, down: Weight) -> frozenset[Rows]:
        """The rows that the inputs of a matrix are functions of; none where it has had several
        kinds of inputs, or others.
        """
        pairs = self._flow.pairs.get(name)
        if pairs is None and down.expert is not None:
            sibling = next(
                (
                    other
                    for other in self._flow.pairs
                    if "[" in other and _twin(other) == _twin(name)
                ),
                None,
            )
            pairs = (
                None
                if sibling is None
                else {
                    frozenset(_of_expert(rows, down.expert) for rows in one)
                    for one in self._flow.pairs[sibling]
                }
            )
        if pairs is None or len(pairs) != 1:
            return frozenset()
        # What is put together of all experts shows the rows of all of them.
        return frozenset(
            one
            for one in next(iter(pairs))
            if down.expert is None or one.matrix.endswith(f"[{down.expert}]")
        )

    def _hidden_of(self, down: Weight, rows: frozenset[Rows]) -> Hidden | None:
        ordered = sorted(rows, key=lambda one: (one.matrix, one.first))
        places = tuple((self._tensor(one.matrix), one.first, one.step) for one in ordered)
        units = down.shape[1]
        if any(first + step * (units - 1) >= len(tensor) for tensor, first, step in places):
            return None
        up = tuple(
            self._weights[matrix]
            for matrix in dict.fromkeys(one.matrix for one in ordered)
            if matrix in self._weights
        )
        return Hidden(down.block, units, places, up, down) if up else None

    def _tensor(self, name: str) -> Tensor:
        return self._weights[name].get() if name in self._weights else self._vectors[name]


def _outside(view: ModelView) -> Iterator[Weight]:
    """Embeddings, the head and projections outside the blocks, each as a matrix as it is stored."""
    for name, parameter in view.model.named_parameters(remove_duplicate=False):
        if (
            parameter.dim() == 2
            and name.endswith(".weight")
            and not any(name.startswith(block.name + ".") for block in view.blocks)
        ):
            path = name.removesuffix(".weight")
            yield Weight(
                path,
                OUTSIDE,
                (parameter.shape[0], parameter.shape[1]),
                False,
                None,
                view.model.get_submodule(path),
                "weight",
            )


def _dense_inside(view: ModelView) -> Iterator[Weight]:
    """Matrices of blocks that aren't compressed, such as a router's: they read the stream all
    the same.
    """
    for dense in view.dense:
        block = next(
            (block for block in view.blocks if dense.name.startswith(block.name + ".")), None
        )
        if block is not None and len(dense.shape) == 2 and dense.name.endswith(".weight"):
            path = dense.name.removesuffix(".weight")
            yield Weight(
                path,
                block.index,
                (dense.shape[0], dense.shape[1]),
                False,
                None,
                view.model.get_submodule(path),
                "weight",
            )


def _vectors(view: ModelView) -> Iterator[tuple[str, Tensor]]:
    """Parameters of one dimension, and the rows of experts' biases."""
    for name, parameter in view.model.named_parameters():
        if parameter.dim() == 1:
            yield name, parameter
        elif parameter.dim() == 2 and name.endswith("bias"):
            yield from ((f"{name}[{e}]", parameter.detach()[e]) for e in range(len(parameter)))


def _twin(name: str) -> str:
    """A matrix's name without the number of its expert."""
    return name.partition("[")[0]


def _of_expert(rows: Rows, expert: int) -> Rows:
    return (
        Rows(f"{_twin(rows.matrix)}[{expert}]", rows.first, rows.step)
        if "[" in rows.matrix
        else rows
    )


def _measured(module: nn.Module, width: int) -> tuple[float | None, bool]:
    """What a norm's weight lacks of its scale (None where it is no scale), and whether the norm
    subtracts the mean: both by trying.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    x = torch.linspace(-1.0, 2.0, width).square()[None]
    if not isinstance(weight, Tensor):
        before, after = module(x), module(x + 3.0)
        return 0.0, bool(torch.allclose(before, after, atol=0.05))
    if weight.shape != (width,):
        return None, False
    x, shift = x.to(weight), bias.detach() if isinstance(bias, Tensor) else torch.zeros_like(weight)

    def output(scale: float, moved: float = 0.0) -> Tensor:
        return (
            torch.func.functional_call(
                module, {"weight": torch.full_like(weight, scale)}, (x + moved,)
            )
            - shift
        ).float()

    with torch.no_grad():
        none, one, two = output(0.0), output(1.0), output(2.0)
        straight = torch.allclose(two - one, one - none, atol=0.05) and bool(
            (one - none).abs().max() > 0.1
        )
        offset = 0.0 if torch.allclose(none, torch.zeros_like(none), atol=1e-3) else 1.0
        holds = straight and torch.allclose(one, (1 + offset) * (one - none), atol=0.05)
        return (offset if holds else None), bool(torch.allclose(output(1.0, 3.0), one, atol=0.05))
