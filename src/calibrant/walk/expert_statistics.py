"""What the experts of a layer got, and what they made of it: the kinds of tokens that came to each,
and the sizes of its outputs.

Both are sums over real tokens like all statistics, gathered in the same walk as `Routing`. Nothing
is run twice: an output is computed once more from what arrives at an expert's last matrix, where
the forward stands at it.
"""

import math
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.activations import Routing, Statistic

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

    >>> seen = TokenKinds.of(torch.tensor([7, 7, 9]), torch.tensor([[0, 1], [0, 2], [0, 1]]), experts=4)
    >>> seen.counts().tolist()
    [2, 2, 1, 0]
    >>> seen.shared()[0].tolist()
    [2, 2, 1, 0]
    """

    def __init__(self, pairs: Int[Tensor, "pair"], experts: int, tokens: int, mass: float) -> None:
        self.pairs, self.experts, self.tokens, self.mass = pairs, experts, tokens, mass

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
        return TokenKinds(
            pairs.unique(),
            experts,
            len(ids),
            float(len(ids)) if weights is None else float(weights.double().sum()),
        )

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
        kinds = (self.pairs // self.experts).unique(return_inverse=True)[1]
        got = torch.zeros(
            int(kinds.max()) + 1 if len(kinds) else 0,
            self.experts,
            dtype=torch.float64,
            device=self.pairs.device,
        )
        got[kinds, self.pairs % self.experts] = 1
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
        self.counts, self.sums, self.squares, self.norms, self.gated, self.largest = (
            counts,
            sums,
            squares,
            norms,
            gated,
            largest,
        )
        self.histogram, self.tokens, self.mass = histogram, tokens, mass

    @classmethod
    def none(
        cls, experts: int, hidden: int, device: torch.device, tokens: int = 0, mass: float = 0.0
    ) -> "ExpertOutputs":
        """Return the statistic of `experts` that got nothing of so many tokens."""
        kind = torch.float64 if device.type != "mps" else torch.float32

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=kind, device=device)

        each = (
            zeros(experts, hidden),
            zeros(experts, hidden),
            zeros(experts),
            zeros(experts),
            zeros(experts),
        )
        return ExpertOutputs(zeros(experts), *each, zeros(experts, 2 * BINS), tokens, mass)

    def add(
        self,
        expert: int,
        y: Float[Tensor, "token hidden"],
        gates: Float[Tensor, "token"],
        weights: Float[Tensor, "token"],
    ) -> None:
        """Count, in place, what one expert made of some tokens."""
        # Products of float32 numbers are exact in float64, and the order of their sums hardly
        # matters.
        rows, w = y.to(self.sums.dtype), weights.to(self.sums.dtype)
        lengths = rows.square().sum(1).sqrt()
        self.counts[expert] += w.sum()
        self.sums[expert] += w @ rows
        self.squares[expert] += w @ rows.square()
        self.norms[expert] += w @ lengths
        self.gated[expert] += (w * gates.to(w.dtype)) @ lengths
        if len(rows):
            self.largest[expert] = torch.maximum(self.largest[expert], rows.abs().max())
        self.histogram[expert] += torch.bincount(
            bins_of(rows).flatten(), w[:, None].expand_as(rows).flatten(), 2 * BINS
        )

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
        spread = (
            ((self.squares.sum(1, keepdim=True) / (self._counts() * width)) - mean.square())
            .clamp_min(0)
            .sqrt()
        )
        sizes = 2.0 ** (
            (torch.arange(BINS, dtype=self.sums.dtype, device=self.sums.device) + 0.5) / PER_OCTAVE
            - OCTAVES // 2
        )
        sizes[0] = 0  # where zeros are, and what is hardly more
        middles = torch.cat([-sizes.flip(0), sizes])
        far = ((middles - mean).abs() > deviations * spread) & (spread > 0)
        return (self.histogram * far).sum(1)

    def _counts(self) -> Float[Tensor, "expert 1"]:
        return torch.where(self.counts > 0, self.counts, 1)[:, None]


def bins_of(y: Float[Tensor, "token hidden"]) -> Int[Tensor, "token hidden"]:
    """Return the bin of the histogram that each number is in; zeros are in the smallest of the
    positive ones.
    """
    steps = (
        (y.abs().log2() + OCTAVES // 2) * PER_OCTAVE
    ).floor()  # of zero, which is minus infinity, the first bin
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
