"""Where scales of inputs can move to: a norm before matrices, the values before an output, the rows
before a feed-forward network's last matrix.

At a site the columns of its readers are multiplied by scales, and what makes their inputs is
divided by them: the block computes what it did. Sites are found by running the model. That shows
the residual stream, the heads' values and the hidden units, and which rows of a matrix hidden units
are proportional to.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calibrant.edits.folding import Scaling
from calibrant.models import Block, Heads, ModelView, Stream, Weight
from calibrant.models.stream import Hidden, Norm, UnitRows

PROBE: Final = 8
"""Tokens that are run to see what hidden units are proportional to."""


@dataclass(frozen=True)
class Site:
    """A place in a block. `readers` are the matrices whose columns are scaled, as far as they are
    compressed; `writer` is the one behind them whose outputs go to the residual stream, None where
    there isn't exactly one. Of experts beside a shared one it is the module that has all of them.
    `scalings` gives what a fold of column scales does.
    """

    name: str
    block: int
    readers: tuple[Weight, ...]
    writer: Weight | nn.Module | None
    scalings: Callable[[Float[Tensor, "in"]], tuple[Scaling, ...]] = field(repr=False)

    def scales_any(self, parameters: Collection[str]) -> bool:
        """Return whether a fold here changes any of these parameters."""
        columns = self.readers[0].shape[1]
        scalings = self.scalings(torch.ones(columns))
        return any(scaling.name in parameters for scaling in scalings)


@dataclass(frozen=True)
class Sites:
    """The sites of a model.

    `by_block` has those of each block in the order in which inputs pass them. `clippable` are the
    names of the matrices that may be clipped: all but queries and keys. `left` are matrices whose
    inputs can't be scaled, with the reason.
    """

    by_block: Mapping[int, tuple[Site, ...]]
    clippable: frozenset[str]
    left: Mapping[str, str]

    @classmethod
    def of(cls, view: ModelView, *, norms_only: bool = False) -> "Sites":
        """Find the sites of a model. Raises `ModelError` where the stream isn't understood.

        With `norms_only` only norms are looked at, not what is before the outputs of attentions and
        of networks. Blocks may be on disk then.
        """
        stream = Stream.of(view)
        named = view.named
        heads: Mapping[int, Heads] = {}
        hidden: list[Hidden] = []
        if not norms_only:
            heads = Heads.of(view)
            hidden = [network for network in stream.hidden if network.down.name in named]
        parameters = _Parameters(view)
        # Of experts' networks, of which a block has many, the last matrices aren't scaled.
        networks = {network.block: network for network in hidden if network.down.expert is None}
        # A parameter that is in several places would be scaled in all of them.
        shared = frozenset(chain.from_iterable(view.tied))
        by_block: dict[int, tuple[Site, ...]] = {}
        for block in view.blocks:
            parts = _BlockParts(block, heads.get(block.index), networks.get(block.index))
            sites: list[Site] = []
            for norm in stream.norms:
                if norm.name.startswith(f"{block.name}."):
                    sites += _at_norm(norm, parts, stream, named, parameters)
            if parts.heads is not None:
                sites += _at_values(parts.heads, parameters)
            if parts.hidden is not None:
                sites += _at_hidden(view, parts.hidden, parameters)
            movable = [site for site in sites if not site.scales_any(shared)]
            by_block[block.index] = tuple(movable)
        left = _left(view, stream, by_block, norms_only)
        return cls(by_block, _clippable(hidden, heads.values()), left)


def _clippable(hidden: Iterable[Hidden], heads: Iterable[Heads]) -> frozenset[str]:
    """Return the names of the matrices that may be clipped."""
    names: list[str] = []
    for network in hidden:
        names += [up.name for up in network.up]
        names.append(network.down.name)
    for attention in heads:
        names.append(attention.output.name)
        # A matrix of values alone has no rows of queries or keys.
        rows_of_values = len(set(attention.first)) * attention.width
        if attention.values.shape[0] == rows_of_values:
            names.append(attention.values.name)
    return frozenset(names)


def _left(
    view: ModelView,
    stream: Stream,
    by_block: Mapping[int, tuple[Site, ...]],
    norms_only: bool,
) -> Mapping[str, str]:
    """Return the matrices that are at no site, each with the reason; with `norms_only` of those
    that read a norm. Experts have one entry together.
    """
    at_sites: set[str] = set()
    for site in chain.from_iterable(by_block.values()):
        at_sites |= {weight.name for weight in site.readers}
    norms = {reader.weight.name: reader.norm for reader in stream.readers}
    left: dict[str, str] = {}
    for weight in view.weights:
        norm = norms.get(weight.name)
        if weight.name in at_sites or (norms_only and norm is None):
            continue
        reason = "nothing before it can take the scales of its inputs"
        if norm is not None and norm.others:
            reason = f"what {norm.name} gives also goes into {norm.others[0]}"
        elif norm is not None:
            reason = f"{norm.name} has no weight, or one that is used elsewhere too"
        left[weight.tensor_name] = reason
    return left


class _Parameters:
    """Says which parameter has the numbers of a matrix or a bias, and along which axis its rows
    lie.
    """

    def __init__(self, view: ModelView) -> None:
        # Not by the parameter, which may be another while its block is held.
        self._names: dict[tuple[int, str], str] = {}
        self._by_address: dict[int, tuple[str, int]] = {}
        for path, module in view.model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{key}".removeprefix(".")
                self._names[id(module), key] = name
                self._by_address.setdefault(parameter.data_ptr(), (name, parameter.dim()))
        self._transposed = {weight.address for weight in view.weights if weight.transposed}

    def columns(self, weight: Weight, factors: Float[Tensor, "in"]) -> Scaling:
        """Return what multiplies the columns of a matrix by these factors."""
        name = self._names[id(weight.owner), weight.key]
        axis = -2 if weight.transposed else -1
        return Scaling(name, axis, factors)

    def rows(self, stored: Tensor) -> Callable[[Float[Tensor, "out"]], Scaling]:
        """Return what makes, of factors, the scaling of the rows of what is `stored`: a matrix or a
        bias.
        """
        name, dimensions = self._by_address[stored.data_ptr()]
        # A bias has one axis, and of a transposed matrix [in, out] the outputs are the last.
        outputs_are_last = dimensions == 1 or stored.data_ptr() in self._transposed
        axis = -1 if outputs_are_last else -2
        return partial(Scaling, name, axis)

    def norm(self, norm: Norm, factors: Float[Tensor, "in"]) -> Iterator[Scaling]:
        """Yield what multiplies the outputs of a norm by these factors."""
        module: Any = norm.module
        weight = self._names[id(module), "weight"]
        yield Scaling(weight, -1, factors, norm.offset)
        if isinstance(getattr(module, "bias", None), Tensor):
            bias = self._names[id(module), "bias"]
            yield Scaling(bias, -1, factors)


class _BlockParts(NamedTuple):
    """A block with the heads of its attention and the units of its feed-forward network, None
    where they aren't known.
    """

    block: Block
    heads: Heads | None
    hidden: Hidden | None

    def writer_behind(self, readers: Sequence[Weight]) -> Weight | nn.Module | None:
        """Return the writer of a site that has these readers; None unless there is exactly one."""
        names = {reader.name for reader in readers}
        writers: list[Weight] = []
        if self.heads is not None and self.heads.values.name in names:
            writers.append(self.heads.output)
        if self.hidden is not None and any(up.name in names for up in self.hidden.up):
            writers.append(self.hidden.down)
        if len(writers) != 1:
            return None
        # What a shared expert writes says nothing of the others, which read the norm too.
        if any(reader.expert is not None for reader in readers):
            return _module_around(self.block, readers)
        return writers[0]


def _at_norm(
    norm: Norm,
    parts: _BlockParts,
    stream: Stream,
    named: Mapping[str, Weight],
    parameters: _Parameters,
) -> Iterator[Site]:
    """Yield the site of a norm of this block, if nothing but the block's matrices reads it."""
    if norm.others or norm.scale is None:
        return
    readers = [reader.weight for reader in stream.readers_of(norm)]
    index = parts.block.index
    if {weight.block for weight in readers} != {index}:
        return
    compressed = tuple(weight for weight in readers if weight.name in named)
    if not compressed:
        return
    # Experts of one tensor are scaled together: once.
    distinct: dict[int, Weight] = {}
    for weight in readers:
        parameter = getattr(weight.owner, weight.key)
        distinct[id(parameter)] = weight

    def scalings(column_scales: Tensor) -> tuple[Scaling, ...]:
        divided = parameters.norm(norm, 1 / column_scales)
        columns = [parameters.columns(weight, column_scales) for weight in distinct.values()]
        return (*divided, *columns)

    yield Site(norm.name, index, compressed, parts.writer_behind(compressed), scalings)


def _module_around(block: Block, weights: Iterable[Weight]) -> nn.Module | None:
    """Return the smallest module of a block that has all these matrices; None where that is the
    block itself.
    """
    owners = {weight.owner for weight in weights}
    smallest: nn.Module | None = None
    # From the outside in.
    for module in block.module.modules():
        if module is not block.module and owners.issubset(module.modules()):
            smallest = module
    return smallest


def _at_values(heads: Heads, parameters: _Parameters) -> Iterator[Site]:
    """Yield the site of an attention's output matrix, if every head has values of its own."""
    # Heads that share values would need scales that are equal, which nothing here makes.
    if len(set(heads.first)) < len(heads.first):
        return
    # Found now, where matrices are where they were when the parameters were listed.
    scale_rows = [parameters.rows(heads.values.get())]
    if heads.bias is not None:
        scale_rows.append(parameters.rows(heads.bias))

    def scalings(column_scales: Tensor) -> tuple[Scaling, ...]:
        factors = column_scales.new_ones(heads.values.shape[0])
        by_head = column_scales.unflatten(0, (-1, heads.width))
        for first, head_scales in zip(heads.first, by_head, strict=True):
            factors[first : first + heads.width] = 1 / head_scales
        divided = [scale(factors) for scale in scale_rows]
        return (*divided, parameters.columns(heads.output, column_scales))

    yield Site(heads.values.name, heads.block, (heads.output,), None, scalings)


def _at_hidden(view: ModelView, hidden: Hidden, parameters: _Parameters) -> Iterator[Site]:
    """Yield the site of a feed-forward network's last matrix, if its inputs are proportional to
    some rows of a matrix before it.
    """
    for up in hidden.up:
        for rows in hidden.rows:
            of_matrix = rows.stored.data_ptr() == up.address
            if of_matrix and _proportional(view, hidden, up, rows):
                yield _hidden_site(hidden, up, parameters, rows)
                return


def _hidden_site(hidden: Hidden, up: Weight, parameters: _Parameters, rows: UnitRows) -> Site:
    """Return the site of hidden units that are proportional to these rows of `up`."""
    places = rows.places(hidden.units).cpu()
    scale_rows = [parameters.rows(rows.stored)]
    bias_address = _address_of_bias(up)
    # What the bias adds to these rows is divided as well.
    for other in hidden.rows:
        is_bias = other.stored.dim() == 1 and other.stored.data_ptr() == bias_address
        if is_bias and other.first == rows.first and other.stored is not rows.stored:
            scale_rows.append(parameters.rows(other.stored))

    def scalings(column_scales: Tensor) -> tuple[Scaling, ...]:
        ones = column_scales.new_ones(len(rows.stored))
        factors = ones.index_put((places,), 1 / column_scales)
        divided = [scale(factors) for scale in scale_rows]
        return (*divided, parameters.columns(hidden.down, column_scales))

    return Site(up.name, hidden.block, (hidden.down,), None, scalings)


def _address_of_bias(weight: Weight) -> int:
    bias = getattr(weight.owner, "bias", None)
    if isinstance(bias, Tensor):
        return bias.data_ptr()
    return 0


def _proportional(view: ModelView, hidden: Hidden, up: Weight, rows: UnitRows) -> bool:
    """Return whether hidden units double when these rows of `up`'s outputs do."""
    recorded: list[Tensor] = []
    factors = torch.ones(up.shape[0])
    factors[rows.places(hidden.units).cpu()] = 2

    def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        recorded.append(args[0].detach().clone())

    def double(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * factors.to(output)

    device = view.device
    # Any tokens will do: the first ones of the vocabulary.
    ids = torch.arange(PROBE, device=device)[None]
    watching = hidden.down.owner.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            view.base(input_ids=ids, use_cache=False)
            doubling = up.owner.register_forward_hook(double)
            try:
                view.base(input_ids=ids, use_cache=False)
            finally:
                doubling.remove()
    finally:
        watching.remove()
    if len(recorded) != 2:
        return False
    plain, doubled = recorded
    if plain.shape != doubled.shape:
        return False
    # As near as a bfloat16 forward rounds; what isn't proportional is far off.
    return bool(torch.allclose(doubled, 2 * plain, rtol=1e-2, atol=1e-6))
