"""ADMM: fits weights while they are removed, for a little less error of each matrix than refined
leaves (Boža 2024, arXiv 2401.02938).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.activations import Gram, Seen, Statistic, wide
from calibrant.errors import SpecError
from calibrant.methods._base import (
    MOST_DAMP,
    Compressed,
    MatrixMethod,
    check_least,
    check_positive,
    finite,
    observed,
    removal,
)
from calibrant.methods.pruning._admm import Directions, chosen, shared_scaled
from calibrant.methods.pruning._gradients import damped
from calibrant.spec import MOST_STEPS, check_most
from calibrant.targets import Removal, Target, keep_highest


@dataclass(frozen=True, repr=False)
class ADMM(MatrixMethod):
    """Removes weights gradually, while alternating directions fit the others: most of what alps
    gains, with one inverse for each input.

    Inputs are scaled to the same size, `damp` is added to the diagonal, which is 1 then, and
    `iterations` steps with ρ = `rho` follow. Over the first `ramp` of them what is removed grows to
    what is asked, as 1 - (1 - t/`ramp`)³; then the mask is fixed. A sparsity is that of the whole
    matrix.

    Differs from the paper's code in: the first of the `iterations` chooses a mask and fits nothing,
    so there is one fit less; the ramp works for a sparsity of the matrix too, where the code
    computes it and removes everything at once; the count is exact; inputs that were always zero are
    removed first, and keep their weights beyond the quota; and the largest scaled weights stay as
    they were where that loses no more.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    copies_elsewhere: ClassVar[int] = 14
    updates: ClassVar[bool] = True

    iterations: int = 20
    ramp: int = 15
    rho: float = 1.0
    damp: float = 0.1

    def __post_init__(self) -> None:
        check_least(self, iterations=2)
        check_positive(self, rho="1.0 is the paper's", damp="0.1 is the paper's")
        if not 1 <= self.ramp <= self.iterations:
            given = f"admm(iterations={self.iterations}, ramp={self.ramp})"
            allowed = "the ramp has at least 1 of the iterations and at most all"
            raise SpecError(f"{given}: {allowed}; 15 of 20 are the paper's", subject="ramp")
        check_most(self, rho=MOST_DAMP, damp=MOST_DAMP, iterations=MOST_STEPS)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `NumericsError` for a weight or Gram that isn't finite or if no token arrived;
        `TargetError` for a target that is no removal or doesn't fit the shape.
        """
        self.check(target)
        target.check((weight.shape[0], weight.shape[1]), "the matrix")
        gram = observed(seen, Gram)
        scaled = shared_scaled(gram, self.damp, after_scaling=True)
        checked = finite(weight, "the weight").to(wide(weight.dtype)).contiguous()
        # ρ stays what it is, so one inverse serves all iterations.
        response = scaled.response(self.rho).to(checked.dtype)
        dense = checked * scaled.scale.to(checked.dtype)
        state = Directions(dense, dense, torch.ones_like(dense, dtype=torch.bool))
        for step in range(1, self.iterations + 1):
            # The first mask is that of the weights as they came.
            if step > 1:
                state.pull(response)
            if step <= self.ramp:
                # A fraction, so that the last step removes what is asked to the weight.
                share = 1 - (1 - Fraction(step, self.ramp)) ** 3
                state.keep = _ramped(state.pulled.abs(), removal(target), share)
        largest = removal(target).keep(dense.abs(), "matrix")
        # Both are judged by the Gram as it is, without damping.
        hessian = damped(gram, 0.0).to(checked.dtype)
        result = chosen(checked, largest, state, scaled, hessian).weight
        return Compressed(finite(result.to(weight.dtype), "the fitted weight"))


def _ramped(
    sizes: Float[Tensor, "out in"], target: Removal, share: Fraction
) -> Bool[Tensor, "out in"]:
    """Return which weights stay when, of those that the target removes, only a `share` goes: those
    of the least `sizes`.
    """
    keep = target.keep(sizes, "matrix")
    count = int(share * int((~keep).count_nonzero()))
    removed_sizes = sizes.masked_fill(keep, torch.inf)
    return keep_highest(removed_sizes.reshape(1, -1), count).reshape(keep.shape)
