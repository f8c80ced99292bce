"""Experts that get few tokens: which they are, and what their matrices are calibrated on instead.

An expert is starved if it gets fewer of the calibration tokens, counted by their weight, than it
has inputs: their Gram matrix is singular. Which experts are starved is found once, in the untouched
model, whatever is done to it later.

- `as_seen`: no exception is made. Each expert is calibrated on the tokens that it gets, and one
  that gets none stays dense.
- `dense`: a starved expert stays as it is.
- `all_tokens`: it is calibrated on every token that comes to its layer. It runs them with a weight
  of zero, so the model computes what it did.
- `shared`: its matrices are calibrated on what the same matrices of all experts of the layer saw
  together. For matrices that read the layer's input that is sound. Hidden units of different
  experts have nothing in common, so for a down projection it says no more than how large they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from operator import add
from typing import Any, Final, Literal

import torch
from torch import nn

from calibrant.activations import Routing, Seen
from calibrant.data import TokenBatch
from calibrant.errors import ModelError
from calibrant.models import ExpertLayer, ModelView, Opened, Weight, expert_layers
from calibrant.models.experts import sent
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.statistics import blocks_seen, by_block
from calibrant.walk.walking import Arrivals

Starved = Literal["as_seen", "dense", "all_tokens", "shared"]
AS_SEEN: Final[Starved] = "as_seen"


def starving(
    opened: Opened, view: ModelView, batch: TokenBatch, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Return the matrices of starved experts, by name, with the tokens that come to them; nothing
    for a model without experts.

    Raises `ModelError` where it can't be told which router picks among the experts.
    """
    layers = {layer.block: layer for layer in expert_layers(view)}
    starved: dict[str, float] = {}
    if not layers:
        return starved
    with torch.no_grad():
        for block, seen in blocks_seen(opened, view, batch, (Routing,), ranks=ranks):
            layer = layers.get(block.index)
            if layer is None:
                continue
            counts = seen[Routing].counts.tolist()
            for matrices, count in zip(layer.experts, counts, strict=True):
                if count < layer.matrix.shape[1]:
                    starved |= {weight.name: count for weight in matrices}
    return starved


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
        for weight, seen in arrivals():
            if weight.name not in names:
                yield weight, seen
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
    """What the matrices of a block saw, where those in `names` get the sum over all experts."""
    pooled = dict(seen)
    if layer is None:
        return pooled
    # One round for each matrix of an expert: that matrix of all experts.
    for matrices in zip(*layer.experts, strict=True):
        arrived = [seen[weight] for weight in matrices if weight in seen]
        if arrived:
            total = reduce(add, arrived)
            pooled |= {weight: total for weight in matrices if weight.name in names}
    return pooled


@contextmanager
def _sent_all(view: ModelView, names: Mapping[str, float]) -> Iterator[None]:
    """While it lasts, every token of a layer also goes through the layer's starved experts; where
    the router didn't choose them, with a weight of zero.
    """
    with ExitStack() as stack:
        for layer in expert_layers(view):
            starved: list[int] = []
            for number, matrices in enumerate(layer.experts):
                if matrices[0].name in names:
                    starved.append(number)
            if starved:
                _check_takes_more(layer)
                send = partial(_with_others, layer.count, starved)
                handle = layer.holders[0].register_forward_pre_hook(send, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _with_others(
    count: int, experts: Sequence[int], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """A hook of the experts' module: its arguments, with `experts` added for every token."""
    index, weights = sent(args, kwargs)
    assert index is not None
    assert weights is not None
    added = torch.tensor(experts, device=index.device, dtype=index.dtype).expand(len(index), -1)
    # The number after the last expert's stands for none: a token isn't sent where it is already.
    chosen = (index[:, :, None] == added[:, None, :]).any(1)
    more_index = torch.cat([index, added.masked_fill(chosen, count)], 1)
    more_weights = torch.cat([weights, weights.new_zeros(added.shape)], 1)

    def exchanged(value: Any) -> Any:
        if value is index:
            return more_index
        if value is weights:
            return more_weights
        return value

    positional = tuple(exchanged(value) for value in args)
    return positional, {name: exchanged(value) for name, value in kwargs.items()}


def _check_takes_more(layer: ExpertLayer) -> None:
    """Raise `ModelError` unless the experts take a token that is sent to none of them."""
    stored = layer.experts[0][0].stored
    device = stored.device
    token = torch.zeros(1, layer.matrix.shape[1], dtype=stored.dtype, device=device)
    nobody = torch.full((1, 1), layer.count, device=device)
    weight = torch.zeros(1, 1, dtype=stored.dtype, device=device)
    try:
        # Experts that weigh their inputs aren't told where a token goes, so no hook can send more.
        if layer.weighs_inputs:
            raise IndexError
        with torch.no_grad():
            layer.holders[0](token, nobody, weight)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"the experts of {layer.name} take no other tokens than their router sends them; "
            "use --starved dense or shared (in Python starved='dense' or 'shared')",
            subject=layer.name,
        ) from error
