"""Experts that get few tokens: which they are, and what their matrices are calibrated on instead.

An expert is starved that gets fewer of the calibration tokens, counted by their weight, than it has
inputs: a Gram matrix of them is singular. Who is starved is found in the untouched model, once,
whatever is done to it later.

- `as_seen`: nothing else; each is calibrated on the tokens that it gets, and one that gets none
  stays dense.
- `dense`: a starved expert stays as it is.
- `all_tokens`: it is calibrated on every token that comes to its layer. It runs them with a weight
  of zero, so the model computes what it did.
- `shared`: its matrices are calibrated on what the same matrices of all experts of the layer saw
  together. Of inputs of the layer that is what tokens look like; hidden units of different experts
  have nothing in common, so of them it says no more than how large they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from operator import add
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from calibrant.activations import Routing, Seen
from calibrant.data import TokenBatch
from calibrant.errors import ModelError
from calibrant.models import ExpertLayer, ModelView, Opened, Weight, expert_layers
from calibrant.walk.observing import blocks_seen
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.statistics import by_block

Starved = Literal["as_seen", "dense", "all_tokens", "shared"]
AS_SEEN: Final[Starved] = "as_seen"

Arrivals = Iterator[tuple[Weight, Seen]]


def starving(
    opened: Opened, view: ModelView, batch: TokenBatch, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Return the matrices of starved experts, by name, with the tokens that come to them; nothing
    for a model without experts.

    Raises `ModelError` where it can't be told which router picks among the experts.
    """
    layers = {layer.block: layer for layer in expert_layers(view)}
    found: dict[str, float] = {}
    with torch.no_grad():
        for block, seen in (
            blocks_seen(opened, view, batch, (Routing,), ranks=ranks) if layers else ()
        ):
            if block.index in layers:
                found |= _starved(layers[block.index], seen[Routing])
    return found


def _starved(layer: ExpertLayer, routing: Routing) -> dict[str, float]:
    counted = zip(layer.experts, routing.counts.tolist(), strict=True)
    return {
        weight.name: count
        for matrices, count in counted
        if count < layer.matrix.shape[1]
        for weight in matrices
    }


def fed(
    view: ModelView,
    arrivals: Callable[[], Arrivals],
    how: Starved,
    names: Mapping[str, float],
    start: int = 0,
) -> Arrivals:
    """Yield what `arrivals` yields, with the matrices `names` of starved experts treated as `how`
    says; `shared` only for a dense walk.

    Raises `ModelError` for `all_tokens` where a layer's experts can't be sent more tokens than its
    router sends them.
    """
    if not names or how == AS_SEEN:
        yield from arrivals()
    elif how == "dense":
        yield from (arrival for arrival in arrivals() if arrival[0].name not in names)
    elif how == "all_tokens":
        with _sent_all(view, names):
            yield from arrivals()
    else:
        layers = {layer.block: layer for layer in expert_layers(view)}
        for block, seen in by_block(view.blocks[start:], arrivals()):
            yield from _pooled(layers.get(block.index), seen, names).items()


def _pooled(
    layer: ExpertLayer | None, seen: Mapping[Weight, Seen], names: Mapping[str, float]
) -> dict[Weight, Seen]:
    pooled = dict(seen)
    for same in zip(*layer.experts, strict=True) if layer is not None else ():
        arrived = [seen[weight] for weight in same if weight in seen]
        if arrived:
            together = reduce(add, arrived)
            pooled |= {weight: together for weight in same if weight.name in names}
    return pooled


@contextmanager
def _sent_all(view: ModelView, names: Mapping[str, float]) -> Iterator[None]:
    """While it lasts, tokens go through starved experts too that their router didn't choose,
    with a weight of zero.
    """
    handles: list[Any] = []
    try:
        for layer in expert_layers(view):
            if experts := [
                number for number, matrices in enumerate(layer.experts) if matrices[0].name in names
            ]:
                _check(layer)
                handles.append(
                    layer.holders[0].register_forward_pre_hook(
                        partial(_with_others, layer.count, experts), with_kwargs=True
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_others(
    count: int, experts: Sequence[int], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    every = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.dim() == 2]
    index = next(one for one in every if not one.is_floating_point())
    weights = next(one for one in every if one.is_floating_point() and one.shape == index.shape)
    more = torch.tensor(experts, device=index.device, dtype=index.dtype).expand(len(index), -1)
    # The number after the last expert's stands for none: a token isn't sent where it is already.
    there = (index[:, :, None] == more[:, None, :]).any(1)
    longer = torch.cat([index, more.masked_fill(there, count)], 1)
    given = torch.cat([weights, weights.new_zeros(more.shape)], 1)

    def other(one: Any) -> Any:
        return longer if one is index else given if one is weights else one

    return tuple(map(other, args)), {name: other(one) for name, one in kwargs.items()}


def _check(layer: ExpertLayer) -> None:
    """Show the experts a token that is sent to none of them."""
    some = layer.experts[0][0].stored
    token = torch.zeros(1, layer.matrix.shape[1], dtype=some.dtype, device=some.device)
    try:
        if layer.weighs_inputs:
            raise IndexError
        with torch.no_grad():
            layer.holders[0](
                token,
                torch.full((1, 1), layer.count, device=some.device),
                torch.zeros(1, 1, dtype=some.dtype, device=some.device),
            )
    except (IndexError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"the experts of {layer.name} take no other tokens than their router sends them; use --starved dense or shared",
            subject=layer.name,
        ) from error
