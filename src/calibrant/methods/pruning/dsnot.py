"""DSnoT: another mask with the mean of each output put right, weights unchanged, for wide
matrices (Zhang et al. 2023, arXiv 2310.08915).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.activations import FeatureMoments, FeatureNorms, Seen, Statistic, wide
from calibrant.errors import SpecError
from calibrant.methods._base import (
    MOST_DAMP,
    Compressed,
    MatrixMethod,
    StandIn,
    finite,
    observed,
    prune,
    standing_in,
)
from calibrant.methods.pruning._mean_swaps import Effects, swapped
from calibrant.methods.pruning.wanda import Wanda
from calibrant.spec import MOST_STEPS, check_most, text_of
from calibrant.targets import NofM, Removal, Target


@dataclass(frozen=True, repr=False)
class DSnoT(MatrixMethod):
    """Swaps weights of another method's mask until the mean of each output is what it was; changes
    no weight that stays, and costs next to nothing.

    What an output loses on average is ε = Σ W_oi·μ_i over its removed weights, with μ the mean of
    an input and v its variance. While |ε| is above `tolerance`, at most `swaps` times a row: the
    removed weight with the largest W_oi·μ_i/v_i of the sign of ε comes back, and of the kept ones
    with W_oi·μ_i of the other sign that with the least |W_oi|·‖x_i‖₂ goes. Each weight is swapped
    once at most. For N:M the one that goes is the least of the same group, of either sign, and a
    row ends before ε would change its sign. `start` makes the first mask: a method that looks at
    nothing but the sizes of inputs.

    Differs from the paper's code in: ε is that of a token, where the code sums over a sequence, so
    its 0.1 is 5e-5 for 2,048 tokens; all matrices are refined, where the code leaves feed-forward
    networks alone by default; a row ends when nothing of the right sign is left to swap.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms, FeatureMoments)

    start: Any = Wanda()  # noqa: RUF009  # frozen; a MatrixMethod, anything else is refused in a sentence
    swaps: int = 50
    tolerance: float = 5e-5

    def __post_init__(self) -> None:
        start = self.start
        known = isinstance(start, MatrixMethod) and start.prunes and Removal in start.accepts
        if not known or start.updates or set(start.observes) - {FeatureNorms}:
            text = f"dsnot(start={text_of(start)})"
            needs = "it starts from a mask that needs no more than the sizes of inputs"
            raise SpecError(f"{text}: {needs}; write wanda, ria or magnitude", subject="start")
        if self.swaps < 0:
            raise SpecError(
                f"dsnot(swaps={self.swaps}): swaps must be 0 or more; 50 is the paper's",
                subject="swaps",
            )
        if not (self.tolerance >= 0 and math.isfinite(self.tolerance)):
            raise SpecError(
                f"dsnot(tolerance={self.tolerance}): tolerance must be 0 or more; 5e-5 is the paper's",
                subject="tolerance",
            )
        check_most(self, swaps=MOST_STEPS, tolerance=MOST_DAMP)

    def stand_in(self, target: Target) -> StandIn | None:
        return (
            standing_in(self.start, target, f"{self.start}, without the swaps")
            if self.start.looks
            else None
        )

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: how many `swaps` there were a row, and the mean |ε| `before` and `after` them.

        Raises `NumericsError` for a weight or statistic that isn't finite or if no token arrived,
        `TargetError` if `target` doesn't fit.
        """
        self.check(target)
        kind, moments = wide(weight.dtype), observed(seen, FeatureMoments)
        norms = finite(observed(seen, FeatureNorms).norms(), "the squared norms of the inputs")
        sound = finite(weight, "the weight").to(kind).contiguous()
        keep = self.start.compress(weight, seen, target).weight != 0
        means = sound * moments.means().to(kind)
        effects = Effects(
            means, means / moments.variances().to(kind), sound.abs() * norms.sqrt().to(kind)
        )
        group = target.m if isinstance(target, NofM) else 0
        mask, counts = swapped(effects, keep, self.swaps, self.tolerance, group)
        notes = {"swaps": _mean(counts), "before": _lost(means, keep), "after": _lost(means, mask)}
        return Compressed(prune(weight, mask), notes)


def _lost(means: Float[Tensor, "out in"], keep: Bool[Tensor, "out in"]) -> float:
    """What outputs lose on average, as a mean of its size over outputs."""
    return _mean(means.masked_fill(keep, 0).double().sum(1).abs())


def _mean(numbers: Tensor) -> float:
    return float(f"{float(numbers.double().mean()):.6g}")
