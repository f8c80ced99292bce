"""RSQ: rounding with updates, where tokens count by the attention they get (Sung, Yadav, Li,
Yoon, Bansal 2025, arXiv 2503.01820).
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.activations import Gram, Seen, Statistic
from calibrant.errors import SpecError
from calibrant.methods._base import (
    MOST_DAMP,
    Compressed,
    MatrixMethod,
    StandIn,
    TokenUse,
    check_choice,
    check_least,
    grid,
    observed,
)
from calibrant.methods.quantization._quantizing import check_updates, rounded
from calibrant.methods.quantization._rounding import check_rule
from calibrant.methods.quantization.gptq import GPTQ
from calibrant.spec import check_most
from calibrant.targets import FloatGrid, Grid, Target

MOST_TURNS: Final = 1_000
"""The largest `expand`: each turn shows the whole calibration set once more."""


@dataclass(frozen=True, repr=False)
class RSQ(MatrixMethod):
    """Does what gptq does, on a Gram in which tokens count by the attention that they get in the
    block: the paper's scale and quantize.

    The paper's first step, rotation, is a transform that goes with every method: `--transform
    rotate`. `importance=attention` sums, for each token, the attention of all heads and tokens in
    the block as it is before it is rounded, maps a sequence's sums onto `least` to 1, and divides
    by their mean; `equal` leaves all tokens alike, which is gptq. Weights that tokens already have
    are multiplied by these. `expand=8` shows every sequence in eight turns, so that each eighth of
    it comes first once; causal attention favours what comes first. `damp`, `order` and `scales` are
    those of `gptq`.

    Differs from the paper's code in: rotations at run time are left out (see `rotate`); by default
    nothing is expanded, and scales are gptq's, so that both differ in the tokens' weights alone
    (the paper's are `expand=8, scales=mse`); padding neither looks nor is looked at.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid, FloatGrid)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    updates: ClassVar[bool] = True

    importance: str = "attention"
    least: float = 0.005
    expand: int = 1
    damp: float = 0.01
    order: str = "natural"
    scales: str = "absmax"

    def __post_init__(self) -> None:
        check_updates(self)
        check_choice(self, importance=("attention", "equal"))
        check_least(self, expand=1)
        if not 0 <= self.least <= 1:
            allowed = "the least important token counts from 0 to 1; 0.005 is the paper's"
            raise SpecError(f"rsq(least={self.least}): {allowed}", subject="least")
        check_most(self, expand=MOST_TURNS, damp=MOST_DAMP)

    def check(self, target: Target) -> None:
        super().check(target)
        check_rule(self.scales, target)

    def stand_in(self, target: Target) -> StandIn:
        return StandIn(
            GPTQ(self.damp, self.order, self.scales),
            target,
            "all tokens count alike, not by the attention that they get",
        )

    @property
    def token_use(self) -> TokenUse:
        return TokenUse(turns=self.expand, by_attention=self.importance == "attention")

    def token_weights(
        self, attention: Float[Tensor, "sample position"], real: Bool[Tensor, "sample position"]
    ) -> Float[Tensor, "sample position"]:
        return spread(attention, real, self.least)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes and errors are those of `gptq`."""
        return rounded(
            weight, observed(seen, Gram), grid(target), self.damp, self.order, self.scales
        )


def spread(
    received: Float[Tensor, "sample position"], real: Bool[Tensor, "sample position"], least: float
) -> Float[Tensor, "sample position"]:
    """Return weights of tokens: each sequence's numbers mapped onto `least` to 1, and then divided
    by their mean; padding gets 0.

    >>> spread(torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[True, True, False]]), 0.5)
    tensor([[1.3333, 0.6667, 0.0000]])
    """
    # What padding received is neither the lowest nor the highest.
    lowest = received.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    highest = received.masked_fill(~real, -torch.inf).amax(1, keepdim=True)
    # Of a sequence of one token, or of equal ones, none counts more than another.
    shares = ((received - lowest) / (highest - lowest)).where(highest > lowest, 1.0)
    weights = (least + shares * (1 - least)).masked_fill(~real, 0)
    # Where all of a sequence's weights are zero, so is what is divided by their sum.
    total = weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return weights * real.sum(1, keepdim=True) / total
