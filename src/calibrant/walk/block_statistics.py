"""What a block does to the tokens that pass through it, whom its router sends them to, and what
the experts make of them: of no one matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.activations import BlockChange, Routing, Seen, Statistic, wide
from calibrant.errors import ModelError, NumericsError
from calibrant.models import Block, Choices, ExpertLayer, ModelView, Weight, expert_layers
from calibrant.numerics import not_finite
from calibrant.walk.expert_statistics import ExpertOutputs, TokenKinds
from calibrant.walk.products import Product

OF_EXPERTS: Final = (Routing, TokenKinds, ExpertOutputs)
"""Statistics that only a block with a layer of experts has."""


@final
@dataclass(frozen=True)
class BlockRun:
    """A micro-batch at the door of a block.

    `before` is what the block is about to get, `ids` are the real tokens, and `weights` says how
    much each of them counts (None: 1). `by_position` says it of every position, 0 for what isn't
    real. `run` runs the block, tells of the products with some matrices, and gives the same as
    `before` after it; `rows` leaves of such a tensor the rows that are real.
    """

    block: Block
    before: Tensor
    ids: Int[Tensor, "token"]
    weights: Float[Tensor, "token"] | None
    by_position: Float[Tensor, "position"] = field(repr=False)
    run: Callable[[Sequence[Weight], Callable[[Product], None]], Tensor] = field(repr=False)
    rows: Callable[[Tensor], Tensor] = field(repr=False)


@final
class BlockStatistics:
    """Gathers the kinds `observes` of the blocks of a model: `BlockChange` of every one, the others
    of those that have a layer of experts.

    Raises `ModelError` where one of the others is asked for and a router can't be told.
    """

    def __init__(self, view: ModelView, observes: tuple[type[Statistic], ...]) -> None:
        routes = any(issubclass(kind, OF_EXPERTS) for kind in observes)
        self._observes, self._layers = (
            observes,
            {layer.block: layer for layer in expert_layers(view)} if routes else {},
        )

    def of(self, at: BlockRun) -> Seen:
        """Return what the block does."""
        layer, seen = self._layers.get(at.block.index), dict[type[Statistic], Statistic]()
        inputs = at.rows(at.before)  # before the run, which may write over its input
        with Choices([layer] if layer else []) as choices:
            outputs = (
                _OutputSums(layer, choices, at)
                if layer is not None and ExpertOutputs in self._observes
                else None
            )
            after = at.run(
                outputs.matrices if outputs else (), outputs.saw if outputs else _nothing
            )
        _check_sizes(at.block, at.rows(after))
        for kind in self._observes:
            if issubclass(kind, BlockChange):
                seen[kind] = kind.of(inputs, at.rows(after), at.weights)
            elif outputs is not None and issubclass(kind, ExpertOutputs):
                seen[kind] = outputs.sums
            elif layer is not None and issubclass(kind, Routing):
                chosen, gates = map(at.rows, choices.of(layer))
                seen[kind] = kind.of(chosen, gates, layer.count, at.weights)
            elif layer is not None and issubclass(kind, TokenKinds):
                seen[kind] = kind.of(at.ids, at.rows(choices.of(layer)[0]), layer.count, at.weights)
        return Seen(seen)


def _check_sizes(block: Block, rows: Float[Tensor, "token hidden"]) -> None:
    """Raise `NumericsError` for rows that aren't finite, or too long for their lengths to be.

    A cosine of those would be 0, and look sound.
    """
    lengths = torch.linalg.vector_norm(rows.to(wide(rows.dtype)), dim=-1)
    if not bool(lengths.isfinite().all()):
        raise not_finite(f"the activations that leave {block.name}, or their lengths,", block.name)


def _nothing(product: Product) -> None:
    pass


@final
class _OutputSums:
    """Adds up what the experts of a layer give, while the layer runs."""

    def __init__(self, layer: ExpertLayer, choices: Choices, at: BlockRun) -> None:
        self._layer, self._choices, self._at = layer, choices, at
        # The last of an expert's matrices gives its output, but for a bias.
        self.matrices = tuple(expert[-1] for expert in layer.experts)
        real = int((at.by_position > 0).sum())
        mass = float(at.by_position.double().sum())
        self.sums = ExpertOutputs.none(
            layer.count, layer.matrix.shape[1], at.by_position.device, real, mass
        )

    def saw(self, product: Product) -> None:
        weight, rows, tokens = (
            product.weight,
            product.x.reshape(-1, product.x.shape[-1]),
            product.tokens,
        )
        assert weight.expert is not None
        if tokens is None or len(tokens) != len(rows):
            raise ModelError(
                f"the {len(rows)} rows that reach {weight.name} can't be traced to their tokens, so what its expert makes of them can't be judged",
                subject=weight.name,
            )
        weigh = self._at.by_position[tokens]
        real = weigh > 0
        y = rows[real] @ weight.get().T
        bias = getattr(weight.owner, f"{weight.key}_bias", None)
        if isinstance(bias, Tensor):
            y = y + bias.detach()[weight.expert]
        if not bool(torch.isfinite(y).all()):
            raise NumericsError(
                f"the outputs of {weight.name} hold NaN or infinity; its model or type can't be calibrated on",
                subject=weight.name,
            )
        self.sums.add(weight.expert, y, self._gates(weight.expert, tokens[real]), weigh[real])

    def _gates(self, expert: int, tokens: Int[Tensor, "token"]) -> Float[Tensor, "token"]:
        """What the router gives the expert for each of these tokens; 1 where the expert's input
        had it already.
        """
        chosen, gates = self._choices.of(self._layer)
        if self._layer.weighs_inputs:
            return torch.ones(len(tokens), dtype=gates.dtype, device=gates.device)
        return (gates[tokens] * (chosen[tokens] == expert)).sum(1)
