"""Where scales of inputs can move to: a norm before matrices, the values before an output, the rows
before a feed-forward network's last matrix.

At a site the columns of its readers are multiplied by s, and what makes their inputs is divided by
s; the block computes what it did. Sites are found by running the model: the residual stream, the
heads' values, the hidden units, and which rows of these the hidden units are proportional to.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.edits import Scaling
from calibrant.models import Heads, ModelView, Stream, Weight
from calibrant.models.stream import OUTSIDE, Hidden, Norm

PROBE = 8
"""Tokens that are run to see what hidden units are proportional to."""


@dataclass(frozen=True)
class Site:
    """A place in a block. `readers` are the matrices whose columns are scaled, as far as they are
    compressed; `writer` is the one whose outputs go to the stream behind them, None where there
    isn't one alone.
    """

    name: str
    block: int
    readers: tuple[Weight, ...]
    writer: Weight | None
    scalings: Callable[[Float[Tensor, "in"]], tuple[Scaling, ...]] = field(repr=False)


@dataclass(frozen=True)
class Sites:
    """Those of a model by block, in the order in which inputs pass them, and the matrices that
    may be clipped: all but queries and keys.
    """

    by_block: Mapping[int, tuple[Site, ...]]
    clippable: frozenset[str]

    @classmethod
    def of(cls, view: ModelView) -> "Sites":
        """Find them. Raises `ModelError` where the stream isn't understood."""
        stream, heads, places = Stream.of(view), Heads.of(view), _Places(view)
        hidden = [one for one in stream.hidden if one.down.name in view.named]
        dense = {one.block: one for one in hidden if one.down.expert is None}
        by_block: dict[int, tuple[Site, ...]] = {}
        for block in view.blocks:
            index, found = block.index, list[Site]()
            for norm in stream.norms:
                found += _at_norm(
                    norm, stream, view, places, heads.get(index), dense.get(index), index
                )
            found += _at_values(heads[index], places) if index in heads else []
            found += _at_hidden(view, dense[index], places) if index in dense else []
            by_block[index] = tuple(found)
        values = [
            one.values.name
            for one in heads.values()
            if one.values.shape[0] == len(set(one.first)) * one.width
        ]  # and no queries or keys
        networks = [name for one in hidden for name in (*(up.name for up in one.up), one.down.name)]
        outputs = [one.output.name for one in heads.values()]
        return cls(by_block, frozenset([*networks, *outputs, *values]))


class _Places:
    """Which parameter holds the numbers of a matrix or a bias, and along which axis its rows
    lie.
    """

    def __init__(self, view: ModelView) -> None:
        self._names = {id(parameter): name for name, parameter in view.model.named_parameters()}
        self._by_address = {
            parameter.data_ptr(): (name, parameter.dim())
            for name, parameter in view.model.named_parameters()
        }
        self._turned = {weight.address for weight in view.weights if weight.transposed}

    def columns(self, weight: Weight, factors: Tensor) -> Scaling:
        return Scaling(
            self._names[id(getattr(weight.owner, weight.key))],
            -2 if weight.transposed else -1,
            factors,
        )

    def rows(self, stored: Tensor, factors: Tensor) -> Scaling:
        """`stored` is a matrix as `[out, in]`, or a bias."""
        name, dimensions = self._by_address[stored.data_ptr()]
        return Scaling(
            name, -1 if dimensions == 1 or stored.data_ptr() in self._turned else -2, factors
        )

    def norm(self, norm: Norm, factors: Tensor) -> Iterator[Scaling]:
        module: Any = norm.module
        yield Scaling(self._names[id(module.weight)], -1, factors, norm.offset)
        if isinstance(getattr(module, "bias", None), Tensor):
            yield Scaling(self._names[id(module.bias)], -1, factors)


def _at_norm(
    norm: Norm,
    stream: Stream,
    view: ModelView,
    places: _Places,
    heads: Heads | None,
    hidden: Hidden | None,
    block: int,
) -> Iterator[Site]:
    """The site of a norm that nothing but matrices of this block read."""
    readers = [reader.weight for reader in stream.readers_of(norm)]
    if (
        {weight.block for weight in readers} != {block}
        or block == OUTSIDE
        or norm.others
        or norm.scale is None
    ):
        return
    distinct = {
        id(getattr(weight.owner, weight.key)): weight for weight in readers
    }.values()  # experts of one tensor are scaled together

    def scalings(s: Tensor) -> tuple[Scaling, ...]:
        return (*places.norm(norm, 1 / s), *(places.columns(weight, s) for weight in distinct))

    compressed = tuple(weight for weight in readers if weight.name in view.named)
    names = {weight.name for weight in compressed}
    attends, feeds = (
        heads is not None and heads.values.name in names,
        hidden is not None and any(up.name in names for up in hidden.up),
    )
    writer = (
        heads.output
        if heads and attends and not feeds
        else hidden.down
        if hidden and feeds and not attends
        else None
    )
    if compressed:
        yield Site(norm.name, block, compressed, writer, scalings)


def _at_values(heads: Heads, places: _Places) -> Iterator[Site]:
    """The site of an attention's output matrix, where every head has values of its own."""
    if len(set(heads.first)) < len(heads.first):
        return

    def scalings(s: Tensor) -> tuple[Scaling, ...]:
        rows = torch.ones(heads.values.shape[0])
        for place, part in zip(heads.first, s.unflatten(0, (-1, heads.width)), strict=True):
            rows[place : place + heads.width] = 1 / part
        bias = () if heads.bias is None else (places.rows(heads.bias, rows),)
        return (places.rows(heads.values.get(), rows), *bias, places.columns(heads.output, s))

    yield Site(heads.values.name, heads.block, (heads.output,), None, scalings)


def _at_hidden(view: ModelView, hidden: Hidden, places: _Places) -> Iterator[Site]:
    """The site of a feed-forward network's last matrix: its inputs are proportional to some rows
    of the one before it.
    """
    for up in hidden.up:
        for stored, first, step in hidden.rows:
            if stored.data_ptr() == up.address and _proportional(view, hidden, up, first, step):
                at = torch.arange(hidden.units) * step + first
                biases = [
                    tensor
                    for tensor, start, _ in hidden.rows
                    if tensor.dim() == 1 and start == first and tensor is not stored
                ]
                own = [tensor for tensor in biases if tensor.data_ptr() == _address_of_bias(up)]

                def scalings(
                    s: Tensor, stored: Tensor = stored, at: Tensor = at, own: list[Tensor] = own
                ) -> tuple[Scaling, ...]:
                    rows = torch.ones(len(stored)).index_put((at,), 1 / s)
                    return (
                        places.rows(stored, rows),
                        *(places.rows(bias, rows) for bias in own),
                        places.columns(hidden.down, s),
                    )

                yield Site(up.name, hidden.block, (hidden.down,), None, scalings)
                return


def _address_of_bias(weight: Weight) -> int:
    bias = getattr(weight.owner, "bias", None)
    return bias.data_ptr() if isinstance(bias, Tensor) else 0


def _proportional(view: ModelView, hidden: Hidden, up: Weight, first: int, step: int) -> bool:
    """Whether hidden units double when these rows of what makes them do."""
    seen, factors = list[Tensor](), torch.ones(up.shape[0])
    factors[torch.arange(hidden.units) * step + first] = 2
    down = hidden.down.owner.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().clone())
    )
    device = next(view.model.parameters()).device
    ids = torch.arange(PROBE, device=device)[None]
    try:
        with torch.no_grad():
            view.base(input_ids=ids)
            doubling = up.owner.register_forward_hook(lambda _, __, out: out * factors.to(out))
            try:
                view.base(input_ids=ids)
            finally:
                doubling.remove()
    finally:
        down.remove()
    return (
        len(seen) == 2
        and seen[0].shape == seen[1].shape
        and bool(torch.allclose(seen[1], 2 * seen[0], rtol=1e-2, atol=1e-6))
    )
