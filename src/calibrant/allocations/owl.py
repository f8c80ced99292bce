"""OWL: blocks with more outliers keep more of their weights (Yin et al. 2023, arXiv 2310.05175)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen, Statistic, wide
from calibrant.allocations._base import Allocation
from calibrant.allocations._sharing import cheapest, size_of, to_the_weight
from calibrant.errors import SpecError, TargetError
from calibrant.methods._base import finite
from calibrant.models import Weight
from calibrant.spec import check_most
from calibrant.system.products import exact
from calibrant.targets import NofM, Sparsity, Target

MOST_TIMES: Final = 10**12
"""The largest `times`: no score of float32 is further above the mean."""


@dataclass(frozen=True, repr=False)
class OWL(Allocation):
    """Lets a block keep more of its weights the more outliers it has: scores |W|·‖x‖ above `times`
    their mean in the block.

    The shares of outliers D are mapped onto 0 to 2·`spread` (the paper's M and λ); a block's
    sparsity is s - (D - mean D), the mean over all weights, and so s on average. All matrices of a
    block get the same. For N:M each block has an N of its own, the M stays.

    Differs from the paper's code in: counts add up to what was asked, to the weight; blocks count
    by their size in the mean; norms are plain sums over tokens, as in `wanda`; a block that no
    token reached gets the mean.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)

    times: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        check_most(self, times=MOST_TIMES)
        if not self.times > 0:
            raise SpecError(
                f"owl(times={self.times}): an outlier is above so many times the mean; "
                f"give a number above 0, such as 5",
                subject="times",
            )
        if not 0 <= self.spread < 0.5:
            raise SpecError(
                f"owl(spread={self.spread}): spread is from 0 up to (not including) 0.5; "
                f"0.08 is the paper's",
                subject="spread",
            )

    def share(self, matrices: Mapping[Weight, Seen], target: Target) -> Mapping[str, Target]:
        """Return the targets. Raises `TargetError` for a target that is neither a sparsity nor N:M,
        and where a block would lose less than nothing or all of its weights.
        """
        if not isinstance(target, Sparsity | NofM):
            raise TargetError(
                f"{self} shares a sparsity such as 0.6 or N:M such as 4:8, not {target}; "
                f"leave the allocation out",
                subject=str(target),
            )
        blocks: dict[int, list[tuple[Weight, Seen]]] = {}
        for weight, seen in matrices.items():
            blocks.setdefault(weight.block, []).append((weight, seen))
        sizes: list[int] = []
        for block in blocks.values():
            sizes.append(size_of(weight for weight, _ in block))
        surplus = self._surplus(list(blocks.values()), sizes)
        if isinstance(target, Sparsity):
            lowest = target.fraction - max(surplus)
            highest = target.fraction - min(surplus)
            if not 0 <= lowest <= highest < 1:
                raise TargetError(
                    f"{self} would ask for sparsities from {lowest:.3g} to {highest:.3g} in "
                    f"blocks, to give {target}; choose a smaller spread",
                    subject=str(target),
                )
            surplus_of = dict(zip(blocks, surplus, strict=True))
            wanted = {weight: target.fraction - surplus_of[weight.block] for weight in matrices}
            return to_the_weight(wanted, target)
        patterns = dict(zip(blocks, _nearest_patterns(target, sizes, surplus), strict=True))
        return {weight.name: patterns[weight.block] for weight in matrices}

    def _surplus(
        self, blocks: Sequence[Sequence[tuple[Weight, Seen]]], sizes: Sequence[int]
    ) -> list[float]:
        """How much more of its weights each block keeps than the mean, as a share of them."""
        shares = [outliers(block, self.times) for block in blocks]
        reached = [share for share in shares if share is not None]
        if not reached or max(reached) == min(reached):
            return [0.0] * len(blocks)
        lowest = min(reached)
        width = max(reached) - lowest
        scaled = np.zeros(len(blocks))
        counted = np.zeros(len(blocks))
        for index, share in enumerate(shares):
            # A block that no token reached doesn't count in the mean, and keeps as much.
            if share is not None:
                scaled[index] = (share - lowest) / width * 2 * self.spread
                counted[index] = sizes[index]
        # Blocks count by their size, so that the mean over all weights is what was asked.
        mean = float((scaled * counted).sum() / counted.sum())
        return np.where(counted > 0, scaled - mean, 0.0).tolist()


def _nearest_patterns(target: NofM, sizes: Sequence[int], surplus: Sequence[float]) -> list[NofM]:
    """Return each block's pattern: it keeps about as much above the target as `surplus` says.

    N can't be a fraction: of all N from 1 to M - 1 with the right mean, those are taken that lie
    nearest to what is wanted, by squares that count by size.
    """
    steps = [target.n - number for number in range(1, target.m)]
    distances: list[list[float]] = []
    for size, kept_more in zip(sizes, surplus, strict=True):
        distances.append([size * (kept_more * target.m + step) ** 2 for step in steps])
    advice = "choose a pattern with a smaller M, or leave the allocation out"
    choices = cheapest(np.array(distances), steps, sizes, advice)
    return [NofM(target.n - steps[choice], target.m) for choice in choices]


def outliers(block: Sequence[tuple[Weight, Seen]], times: float) -> float | None:
    """Return the share of a block's scores that lie above `times` their mean; None where no
    token reached it.
    """
    scores: list[Tensor] = []
    for weight, seen in block:
        if FeatureNorms in seen:
            scores.append(_scores(weight, seen[FeatureNorms]))
    count = sum(matrix_scores.numel() for matrix_scores in scores)
    if not count:
        return None
    total = sum(float(exact(matrix_scores).sum()) for matrix_scores in scores)
    threshold = times * (total / count)
    above = sum(int((matrix_scores > threshold).count_nonzero()) for matrix_scores in scores)
    return above / count


def _scores(weight: Weight, norms: FeatureNorms) -> Tensor:
    """Wanda's scores |W|·‖x‖, [out, in]."""
    matrix = weight.get()
    dtype = wide(matrix.dtype)
    # `norms` gives squares.
    lengths = norms.norms().sqrt().to(matrix.device, dtype)
    scores = matrix.abs().to(dtype) * lengths
    return finite(scores, f"the scores of {weight.name}")
