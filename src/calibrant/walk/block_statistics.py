"""Statistics of a whole block: what it does to the tokens that pass through it, to which experts
its router sends them, and what those experts make of them.

All are sums over real tokens, gathered in the walk that gathers `Routing` too. No block runs twice.
An expert's output is computed from what arrives at its last matrix, while the forward stands there.
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
from calibrant.numerics import not_finite, six_digits
from calibrant.system.products import exact, exact_type
from calibrant.walk.products import Product

PER_OCTAVE: Final = 16
"""Bins of the histogram of an expert's outputs for each doubling of their size: a bin is 4.4 %
wide.
"""

OCTAVES: Final = 48
"""From 2⁻²⁴ to 2²⁴; what is smaller or larger is in the first or the last bin."""

BINS: Final = PER_OCTAVE * OCTAVES
"""Bins of the histogram for each sign."""

ROUNDED: Final = 1e-12
"""A variance that is at most this share of the mean square is rounding: that of a single token is
zero.
"""


@final
class TokenKinds(Statistic):
    """Which token ids were sent to which expert, each pair once. It is an exact set: a sum of two
    is their union, and a factor leaves the pairs as they are.

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
        picked = (chosen >= 0) & (chosen < experts)
        pairs = (ids.long()[:, None] * experts + chosen)[picked]
        mass = float(len(ids)) if weights is None else float(exact(weights).sum())
        return TokenKinds(pairs.unique(), experts, len(ids), mass)

    def __add__(self, other: "TokenKinds") -> "TokenKinds":
        pairs = torch.cat([self.pairs, other.pairs]).unique()
        return TokenKinds(pairs, self.experts, self.tokens + other.tokens, self.mass + other.mass)

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
        kinds, rows = (self.pairs // self.experts).unique(return_inverse=True)
        device = self.pairs.device
        # In float64, whose products are quick and whose counts are exact.
        sent = torch.zeros(len(kinds), self.experts, dtype=exact_type(device), device=device)
        sent[rows, self.pairs % self.experts] = 1
        return (sent.T @ sent).long()


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
        """Return the statistic of `experts` none of which got any of the `tokens`."""
        dtype = exact_type(device)

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
        # Every feature of a token counts with the token's weight.
        feature_weights = w[:, None].expand_as(y).flatten()
        self.histogram[expert] += torch.bincount(bins_of(y).flatten(), feature_weights, 2 * BINS)

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
        variances = squares - self.means().square()
        return torch.where(variances > ROUNDED * squares, variances, 0)

    def outliers(self, deviations: float = 3.0) -> Float[Tensor, "expert"]:
        """Return, for each expert, Σ w of the outputs that are farther than `deviations` standard
        deviations from the mean. Mean and deviation are over all features and tokens together.

        Whole bins of the histogram are counted, by their middles. So an output that is within a
        bin (4.4 % of its size) of the border may be on either side.
        """
        width = self.sums.shape[1]
        mean = self.means().mean(1, keepdim=True)
        square = self.squares.sum(1, keepdim=True) / (self._counts() * width)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        bins = torch.arange(BINS, dtype=self.sums.dtype, device=self.sums.device)
        sizes = 2.0 ** ((bins + 0.5) / PER_OCTAVE - OCTAVES // 2)
        sizes[0] = 0  # where zeros are, and what is hardly more
        # The histogram begins with the largest negative numbers.
        middles = torch.cat([-sizes.flip(0), sizes])
        distances = (middles - mean).abs()
        is_outlier = (distances > deviations * deviation) & (deviation > 0)
        return (self.histogram * is_outlier).sum(1)

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
    """Return as plain data how many tokens each expert of a layer got, and which got none
    (`unseen`) or few (`starved`).

    Few are fewer than an expert has `inputs`: a Gram matrix of them is singular. `gates` are the
    mean weights that the router gave. `even` is the effective number of experts: so many experts
    with equal loads have the entropy that these have.
    """
    counts = routing.counts.tolist()
    gates = routing.mean_gates().tolist()
    unseen: list[int] = []
    starved: list[int] = []
    for expert, count in enumerate(counts):
        if count == 0:
            unseen.append(expert)
        elif count < inputs:
            starved.append(expert)
    return {
        "experts": len(counts),
        "counts": list(map(six_digits, counts)),
        "gates": list(map(_four_digits, gates)),
        "unseen": unseen,
        "starved": starved,
        "even": _four_digits(math.exp(routing.entropy())),
    }


def _four_digits(number: float) -> float:
    return float(f"{number:.4g}")


OF_EXPERTS: Final = (Routing, TokenKinds, ExpertOutputs)
"""Statistics that only a block with a layer of experts has."""


@final
@dataclass(frozen=True)
class BlockVisit:
    """A micro-batch at the door of a block.

    `before` are the hidden states that the block is about to get. `ids` are the real tokens, and
    `weights` says how much each of them counts (None: 1). `by_position` has the weight of every
    position, 0 for what isn't real. `run` runs the block, calls a function with every product with
    some matrices, and returns the hidden states after the block. `rows` takes the real rows of
    hidden states.
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
    """Gathers the statistics `observes` of the blocks of a model: `BlockChange` of every block, the
    others of blocks that have a layer of experts.

    Raises `ModelError` where one of those others is asked for and it can't be told which matrix is
    the router.
    """

    def __init__(self, view: ModelView, observes: tuple[type[Statistic], ...]) -> None:
        self._observes = observes
        self._layers: dict[int, ExpertLayer] = {}
        if any(issubclass(kind, OF_EXPERTS) for kind in observes):
            self._layers = {layer.block: layer for layer in expert_layers(view)}

    def of(self, visit: BlockVisit) -> Seen:
        """Run the block and return what it does."""
        inputs = visit.rows(visit.before)
        layer = self._layers.get(visit.block.index)
        outputs: _OutputSums | None = None
        layers = [] if layer is None else [layer]
        with Choices(layers) as choices:
            if layer is not None and ExpertOutputs in self._observes:
                outputs = _OutputSums(layer, choices, visit)
                after = visit.run(outputs.matrices, outputs.add)
            else:
                after = visit.run((), _ignore)
        _check_lengths(visit.block, visit.rows(after))
        seen: dict[type[Statistic], Statistic] = {}
        for kind in self._observes:
            if issubclass(kind, BlockChange):
                seen[kind] = kind.of(inputs, visit.rows(after), visit.weights)
            elif layer is None:
                continue
            elif issubclass(kind, Routing):
                chosen, gates = choices.of(layer)
                seen[kind] = kind.of(
                    visit.rows(chosen), visit.rows(gates), layer.count, visit.weights
                )
            elif issubclass(kind, TokenKinds):
                chosen, _ = choices.of(layer)
                seen[kind] = kind.of(visit.ids, visit.rows(chosen), layer.count, visit.weights)
            elif outputs is not None and issubclass(kind, ExpertOutputs):
                seen[kind] = outputs.sums
        return Seen(seen)


def _check_lengths(block: Block, rows: Float[Tensor, "token hidden"]) -> None:
    """Raise `NumericsError` for rows that aren't finite, or too long for their lengths to be.

    A cosine of those would be 0, and look sound.
    """
    lengths = torch.linalg.vector_norm(rows.to(wide(rows.dtype)), dim=-1)
    if not bool(lengths.isfinite().all()):
        raise not_finite(f"the activations that leave {block.name}, or their lengths,", block.name)


def _ignore(product: Product) -> None:
    pass


@final
class _OutputSums:
    """Adds up what the experts of a layer give, while the layer runs."""

    def __init__(self, layer: ExpertLayer, choices: Choices, visit: BlockVisit) -> None:
        self._layer = layer
        self._choices = choices
        self._weights = visit.by_position
        # The last of an expert's matrices gives its output, but for a bias.
        self.matrices = tuple(expert[-1] for expert in layer.experts)
        tokens = int((visit.by_position > 0).sum())
        mass = float(exact(visit.by_position).sum())
        hidden = layer.matrix.shape[1]
        device = visit.by_position.device
        self.sums = ExpertOutputs.none(layer.count, hidden, device, tokens, mass)

    def add(self, product: Product) -> None:
        """Add the outputs that the product with an expert's last matrix is about to give."""
        weight = product.weight
        tokens = product.tokens
        rows = product.x.reshape(-1, product.x.shape[-1])
        assert weight.expert is not None
        # Without its token, a row's weight and gate aren't known.
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
