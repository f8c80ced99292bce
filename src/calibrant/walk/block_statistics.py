"""What a block does to the tokens that pass through it, whom its router sends them to, and what
the experts make of them: of no one matrix.

All are sums over real tokens, gathered in the walk that sees `Routing` too. Nothing is run twice:
an expert's output is computed once more from what arrives at its last matrix, where the forward
stands at it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.activations import BlockChange, Routing, Seen, Statistic, wide
from calibrant.errors import ModelError, NumericsError
from calibrant.models import Block, Choices, ExpertLayer, ModelView, Weight, expert_layers
from calibrant.numerics import not_finite
from calibrant.walk.products import Product

PER_OCTAVE: Final = 16
"""Bins of the histogram of an expert's outputs for each doubling of their size: a bin is 4.4 %
wide.
"""

OCTAVES: Final = 48
"""From 2⁻²⁴ to 2²⁴; what is smaller or larger is in the first or the last bin."""

BINS: Final = PER_OCTAVE * OCTAVES
"""Of each sign."""

ROUNDED: Final = 1e-12
"""The share of a mean square that rounding may leave of a variance of zero, as that of a single
token is.
"""


@final
class TokenKinds(Statistic):
    """Which token ids were sent to which expert, each pair once: an exact set, so a sum is a union
    and a factor changes nothing.

    `pairs` are id · experts + expert, ascending. There are at most as many as the vocabulary times
    the experts, and no more than the tokens times the experts that a router picks.

    >>> ids, chosen = torch.tensor([7, 7, 9]), torch.tensor([[0, 1], [0, 2], [0, 1]])
    >>> seen = TokenKinds.of(ids, chosen, experts=4)
    >>> seen.counts().tolist()
    [2, 2, 1, 0]
    >>> seen.shared()[0].tolist()
    [2, 2, 1, 0]
    """

    def __init__(self, pairs: Int[Tensor, "pair"], experts: int, tokens: int, mass: float) -> None:
        self.pairs = pairs
        self.experts = experts
        self.tokens = tokens
        self.mass = mass

    @classmethod
    def of(
        cls,
        ids: Int[Tensor, "token"],
        chosen: Int[Tensor, "token chosen"],
        experts: int,
        weights: Float[Tensor, "token"] | None = None,
    ) -> "TokenKinds":
        """Return the kinds of these tokens alone; a number in `chosen` that is no expert's says
        that a choice was left out.
        """
        real = (chosen >= 0) & (chosen < experts)
        pairs = (ids.long()[:, None] * experts + chosen)[real]
        mass = float(len(ids)) if weights is None else float(weights.double().sum())
        return TokenKinds(pairs.unique(), experts, len(ids), mass)

    def __add__(self, other: "TokenKinds") -> "TokenKinds":
        both = torch.cat([self.pairs, other.pairs]).unique()
        return TokenKinds(both, self.experts, self.tokens + other.tokens, self.mass + other.mass)

    def __mul__(self, factor: float) -> "TokenKinds":
        return TokenKinds(self.pairs, self.experts, self.tokens, self.mass * factor)

    def distinct(self) -> int:
        """Return how many kinds of tokens there were."""
        return len((self.pairs // self.experts).unique())

    def counts(self) -> Int[Tensor, "expert"]:
        """Return how many kinds of tokens each expert got."""
        return (self.pairs % self.experts).bincount(minlength=self.experts)

    def shared(self) -> Int[Tensor, "expert expert"]:
        """Return how many kinds of tokens both of two experts got; on the diagonal, those of
        one.
        """
        kinds, places = (self.pairs // self.experts).unique(return_inverse=True)
        # In float64, whose products are quick and whose counts are exact.
        got = torch.zeros(len(kinds), self.experts, dtype=torch.float64, device=self.pairs.device)
        got[places, self.pairs % self.experts] = 1
        return (got.T @ got).long()


@final
class ExpertOutputs(Statistic):
    """What experts made of the tokens that they got, before the router's weight: with y an expert's
    output for a token of weight w,

    `counts` Σ w, `sums` Σ w·y and `squares` Σ w·y² of each feature, `norms` Σ w·‖y‖, `gated` Σ
    w·g·‖y‖ with the weight g that the router gave it, and `largest`, the largest |y| of all.
    `histogram` has Σ w over all features by sign and size, in bins of 1/16 octave: the negative
    ones from the largest size down, then the positive ones up. Where a model weighs an expert's
    input (Llama 4), y is what comes of that, and g is 1. All are float64; a sum takes the larger
    `largest`.
    """

    def __init__(
        self,
        counts: Float[Tensor, "expert"],
        sums: Float[Tensor, "expert hidden"],
        squares: Float[Tensor, "expert hidden"],
        norms: Float[Tensor, "expert"],
        gated: Float[Tensor, "expert"],
        largest: Float[Tensor, "expert"],
        histogram: Float[Tensor, "expert bin"],
        tokens: int,
        mass: float,
    ) -> None:
        self.counts = counts
        self.sums = sums
        self.squares = squares
        self.norms = norms
        self.gated = gated
        self.largest = largest
        self.histogram = histogram
        self.tokens = tokens
        self.mass = mass

    @classmethod
    def none(
        cls, experts: int, hidden: int, device: torch.device, tokens: int = 0, mass: float = 0.0
    ) -> "ExpertOutputs":
        """Return the statistic of `experts` that got nothing of so many tokens."""
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return ExpertOutputs(
            counts=zeros(experts),
            sums=zeros(experts, hidden),
            squares=zeros(experts, hidden),
            norms=zeros(experts),
            gated=zeros(experts),
            largest=zeros(experts),
            histogram=zeros(experts, 2 * BINS),
            tokens=tokens,
            mass=mass,
        )

    def add(
        self,
        expert: int,
        outputs: Float[Tensor, "token hidden"],
        gates: Float[Tensor, "token"],
        weights: Float[Tensor, "token"],
    ) -> None:
        """Count, in place, what one expert made of some tokens."""
        # Products of float32 numbers are exact in float64, and the order of their sums hardly
        # matters.
        y = outputs.to(self.sums.dtype)
        w = weights.to(self.sums.dtype)
        lengths = y.square().sum(1).sqrt()
        self.counts[expert] += w.sum()
        self.sums[expert] += w @ y
        self.squares[expert] += w @ y.square()
        self.norms[expert] += w @ lengths
        self.gated[expert] += (w * gates.to(w.dtype)) @ lengths
        if len(y):
            self.largest[expert] = torch.maximum(self.largest[expert], y.abs().max())
        each = w[:, None].expand_as(y).flatten()
        self.histogram[expert] += torch.bincount(bins_of(y).flatten(), each, 2 * BINS)

    def __add__(self, other: "ExpertOutputs") -> "ExpertOutputs":
        return ExpertOutputs(
            self.counts + other.counts,
            self.sums + other.sums,
            self.squares + other.squares,
            self.norms + other.norms,
            self.gated + other.gated,
            torch.maximum(self.largest, other.largest),
            self.histogram + other.histogram,
            self.tokens + other.tokens,
            self.mass + other.mass,
        )

    def __mul__(self, factor: float) -> "ExpertOutputs":
        return ExpertOutputs(
            self.counts * factor,
            self.sums * factor,
            self.squares * factor,
            self.norms * factor,
            self.gated * factor,
            self.largest,
            self.histogram * factor,
            self.tokens,
            self.mass * factor,
        )

    def means(self) -> Float[Tensor, "expert hidden"]:
        """Return each expert's mean output; 0 of one that got no token."""
        return self.sums / self._counts()

    def variances(self) -> Float[Tensor, "expert hidden"]:
        """Return the variance of each feature over an expert's tokens; 0 of one that got none,
        and where hardly more than rounding is left.
        """
        squares = self.squares / self._counts()
        spread = squares - self.means().square()
        return torch.where(spread > ROUNDED * squares, spread, 0)

    def outliers(self, deviations: float = 3.0) -> Float[Tensor, "expert"]:
        """Return Σ w of outputs farther from the mean of all of an expert's outputs, features and
        tokens alike, than so many standard deviations.

        Counted in whole bins of the histogram, whose middles decide: those within a bin of the
        border, 4.4 % of its size, may be on either side.
        """
        width = self.sums.shape[1]
        mean = self.means().mean(1, keepdim=True)
        square = self.squares.sum(1, keepdim=True) / (self._counts() * width)
        spread = (square - mean.square()).clamp_min(0).sqrt()
        bins = torch.arange(BINS, dtype=self.sums.dtype, device=self.sums.device)
        sizes = 2.0 ** ((bins + 0.5) / PER_OCTAVE - OCTAVES // 2)
        sizes[0] = 0  # where zeros are, and what is hardly more
        middles = torch.cat([-sizes.flip(0), sizes])
        far = ((middles - mean).abs() > deviations * spread) & (spread > 0)
        return (self.histogram * far).sum(1)

    def _counts(self) -> Float[Tensor, "expert 1"]:
        """The counts as divisors: 1 of an expert that got nothing."""
        return torch.where(self.counts > 0, self.counts, 1)[:, None]


def bins_of(y: Float[Tensor, "token hidden"]) -> Int[Tensor, "token hidden"]:
    """Return the bin of the histogram that each number is in; zeros are in the smallest of the
    positive ones.
    """
    # The logarithm of zero is minus infinity, which is clamped to the first bin.
    steps = ((y.abs().log2() + OCTAVES // 2) * PER_OCTAVE).floor()
    places = steps.clamp(0, BINS - 1).long()
    return torch.where(y < 0, BINS - 1 - places, BINS + places)


def coverage(routing: Routing, inputs: int) -> dict[str, Any]:
    """Say in plain data what the experts of a layer got: how many tokens each, and which got none
    (`unseen`) or few (`starved`).

    Few are fewer than an expert has `inputs`: a Gram matrix of them is singular. `even` is how many
    experts that are used alike would make as even a load, `gates` are the mean weights that the
    router gave.
    """
    counts = routing.counts.tolist()
    return {
        "experts": len(counts),
        "counts": [float(f"{count:.6g}") for count in counts],
        "gates": [float(f"{gate:.4g}") for gate in routing.mean_gates().tolist()],
        "unseen": [expert for expert, count in enumerate(counts) if count == 0],
        "starved": [expert for expert, count in enumerate(counts) if 0 < count < inputs],
        "even": float(f"{math.exp(routing.entropy()):.4g}"),
    }


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
        self._observes = observes
        self._layers: dict[int, ExpertLayer] = {}
        if any(issubclass(kind, OF_EXPERTS) for kind in observes):
            self._layers = {layer.block: layer for layer in expert_layers(view)}

    def of(self, run: BlockRun) -> Seen:
        """Run the block and return what it does."""
        inputs = run.rows(run.before)  # before the run, which may write over its input
        layer = self._layers.get(run.block.index)
        outputs: _OutputSums | None = None
        layers = [] if layer is None else [layer]
        with Choices(layers) as choices:
            if layer is not None and ExpertOutputs in self._observes:
                outputs = _OutputSums(layer, choices, run)
                after = run.run(outputs.matrices, outputs.add)
            else:
                after = run.run((), _nothing)
        _check_sizes(run.block, run.rows(after))
        seen: dict[type[Statistic], Statistic] = {}
        for kind in self._observes:
            if issubclass(kind, BlockChange):
                seen[kind] = kind.of(inputs, run.rows(after), run.weights)
            elif layer is None:
                continue
            elif issubclass(kind, Routing):
                chosen, gates = choices.of(layer)
                seen[kind] = kind.of(run.rows(chosen), run.rows(gates), layer.count, run.weights)
            elif issubclass(kind, TokenKinds):
                chosen, _ = choices.of(layer)
                seen[kind] = kind.of(run.ids, run.rows(chosen), layer.count, run.weights)
            elif outputs is not None and issubclass(kind, ExpertOutputs):
                seen[kind] = outputs.sums
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

    def __init__(self, layer: ExpertLayer, choices: Choices, run: BlockRun) -> None:
        self._layer = layer
        self._choices = choices
        self._weights = run.by_position
        # The last of an expert's matrices gives its output, but for a bias.
        self.matrices = tuple(expert[-1] for expert in layer.experts)
        tokens = int((run.by_position > 0).sum())
        mass = float(run.by_position.double().sum())
        hidden = layer.matrix.shape[1]
        device = run.by_position.device
        self.sums = ExpertOutputs.none(layer.count, hidden, device, tokens, mass)

    def add(self, product: Product) -> None:
        """Add what the product of an expert's last matrix is about to give."""
        weight = product.weight
        tokens = product.tokens
        rows = product.x.reshape(-1, product.x.shape[-1])
        assert weight.expert is not None
        if tokens is None or len(tokens) != len(rows):
            raise ModelError(
                f"the {len(rows)} rows that reach {weight.name} can't be traced to their tokens, "
                "so what its expert makes of them can't be judged",
                subject=weight.name,
            )
        weights = self._weights[tokens]
        real = weights > 0
        outputs = rows[real] @ weight.get().T
        bias = getattr(weight.owner, f"{weight.key}_bias", None)
        if isinstance(bias, Tensor):
            outputs = outputs + bias.detach()[weight.expert]
        if not bool(torch.isfinite(outputs).all()):
            raise NumericsError(
                f"the outputs of {weight.name} hold NaN or infinity; its model or type can't be "
                "calibrated on",
                subject=weight.name,
            )
        gates = self._gates(weight.expert, tokens[real])
        self.sums.add(weight.expert, outputs, gates, weights[real])

    def _gates(self, expert: int, tokens: Int[Tensor, "token"]) -> Float[Tensor, "token"]:
        """What the router gives the expert for each of these tokens; 1 where the expert's input
        had it already.
        """
        chosen, gates = self._choices.of(self._layer)
        if self._layer.weighs_inputs:
            return torch.ones(len(tokens), dtype=gates.dtype, device=gates.device)
        return (gates[tokens] * (chosen[tokens] == expert)).sum(1)
