"""What a block does to the tokens that pass through it, and whom its router sends them to: statistics that are of no one matrix."""

from collections.abc import Callable
from typing import final

from torch import Tensor

from calibrant.activations import BlockChange, Routing, Seen, Statistic
from calibrant.models import Block, Choices, ModelView, expert_layers


@final
class BlockStatistics:
    """Gathers the kinds `observes` of the blocks of a model: `BlockChange` of every one, `Routing` of those that have a layer of experts.

    Raises `ModelError` where `Routing` is asked for and a router can't be told.
    """

    def __init__(self, view: ModelView, observes: tuple[type[Statistic], ...]) -> None:
        routes = any(issubclass(kind, Routing) for kind in observes)
        self._observes, self._layers = observes, {layer.block: layer for layer in expert_layers(view)} if routes else {}

    def of(self, block: Block, before: Tensor, run: Callable[[], Tensor], rows: Callable[[Tensor], Tensor], weights: Tensor | None) -> Seen:
        """Return what the block does to `before` [sample, position, hidden] when it is `run`, which gives the same after it.

        `rows` leaves of such a tensor the rows that count, `weights` says how much each does.
        """
        layer, seen = self._layers.get(block.index), dict[type[Statistic], Statistic]()
        inputs = rows(before)  # before the run, which may write over its input
        with Choices([layer] if layer else []) as choices:
            after = run()
        for kind in self._observes:
            if issubclass(kind, BlockChange):
                seen[kind] = kind.of(inputs, rows(after), weights)
            elif issubclass(kind, Routing) and layer is not None:
                chosen, gates = choices.of(layer)
                seen[kind] = kind.of(rows(chosen), rows(gates), layer.count, weights)
        return Seen(seen)
