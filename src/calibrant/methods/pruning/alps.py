"""ALPS: the least error of each matrix, at several times sparsegpt's effort (Meng et al. 2024,
arXiv 2406.07831).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, get_args

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen, Statistic, wide
from calibrant.methods._base import (
    MOST_DAMP,
    Compressed,
    MatrixMethod,
    check_choice,
    check_least,
    check_positive,
    finite,
    observed,
    removal,
)
from calibrant.methods.pruning._admm import Directions, Scaled, chosen, shared_scaled
from calibrant.methods.pruning._gradients import damped
from calibrant.numerics import six_digits
from calibrant.spec import MOST_STEPS, check_most, later
from calibrant.targets import Group, Removal, Target

CHECKED_EVERY: Final = 3
"""Iterations between two looks at how the support changes."""

GROWTH: Final = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""The paper's schedule: where more than the first number, a share of the support, has changed, ρ is
multiplied by the second.
"""

RESTING: Final = 0.005
"""A first ρ after which no more than this share of the support has changed holds the weights where
they started, and is lowered.
"""

RHO_DIVISOR: Final = 5.0
"""What such a first ρ is divided by."""

LEAST_RHO: Final = 1e-4
"""A ρ as small as this isn't lowered any more."""

PATIENCE: Final = 30
"""Iterations after which a small change of the support ends them."""

CALM: Final = 3e-4
"""The share of the support that such a change is below."""


@dataclass(frozen=True, repr=False)
class ALPS(MatrixMethod):
    """Chooses which weights stay, and what they become, together: less error of the outputs than
    sparsegpt leaves, at several times its effort.

    From Meng, Behdin, Wang, Mazumder 2024.

    Weights that fit the outputs and weights that are sparse are drawn towards each other
    (alternating directions, algorithm 1) with a weight ρ that grows from `rho` on, faster while
    many of the chosen weights change, until they settle or after `iterations`; then `steps` of
    conjugate gradients on the chosen ones: the paper's ten take off some ten thousandths more.
    Inputs are scaled to the same size first, and λ = `damp` · mean diagonal is added to the Gram. A
    sparsity is that of the whole matrix, so rows differ in how many weights they keep; with
    `per=row` (ours) it is that of each row.

    Differs from the paper's code in: inputs that were always zero are removed first, keep their
    weights beyond the quota, and don't count in the mean diagonal; counts are rounded down; what is
    kept is that of the sparse weights, not of those that fit; the first ρ stops falling at 1e-4 or
    less; steps are preconditioned by the diagonal; and where the largest scaled weights, as they
    were, lose no more than the result, they are kept and fitted in its place.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    copies: ClassVar[int] = 7
    copies_elsewhere: ClassVar[int] = 14
    updates: ClassVar[bool] = True

    rho: float = 0.1
    iterations: int = 300
    steps: int = 3
    damp: float = 0.01
    per: str = later("matrix")

    def __post_init__(self) -> None:
        check_positive(self, rho="0.1 is the paper's", damp="0.01 is the paper's")
        check_least(self, iterations=1, steps=0)
        check_choice(self, per=get_args(Group))
        check_most(self, rho=MOST_DAMP, damp=MOST_DAMP, iterations=MOST_STEPS, steps=MOST_STEPS)

    @property
    def _group(self) -> Group:
        return "row" if self.per == "row" else "matrix"

    def squares(self, sources: int) -> int:
        return 5

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: how many `iterations` it took, the last `rho`, and the share of the support that
        was still `changing`.

        Raises `NumericsError` for a weight or Gram that isn't finite or if no token arrived;
        `TargetError` for a target that is no removal or doesn't fit the shape.
        """
        self.check(target)
        target.check((weight.shape[0], weight.shape[1]), "the matrix")
        gram = observed(seen, Gram)
        checked = finite(weight, "the weight").to(wide(weight.dtype)).contiguous()
        scaled = shared_scaled(gram, self.damp)
        dense = checked * scaled.scale.to(checked.dtype)
        # A weight's size says how much it matters once it is scaled.
        largest = removal(target).keep(dense.abs(), self._group)
        if bool(largest.all()):
            notes = {"iterations": 0, "rho": self.rho, "changing": 0.0}
            return Compressed(weight.detach().clone(), notes)
        directions, notes = self._directions(dense, largest, scaled, removal(target))
        hessian = damped(gram, self.damp).to(checked.dtype)
        result = chosen(checked, largest, directions, scaled, hessian, self.steps).weight
        return Compressed(finite(result.to(weight.dtype), "the fitted weight"), notes)

    def _directions(
        self, dense: Tensor, largest: Tensor, scaled: Scaled, target: Removal
    ) -> tuple[Directions, dict[str, Any]]:
        """Iterate from the support `largest` until it settles; return the state, and the notes."""
        start = dense.masked_fill(~largest, 0)
        state = Directions(dense, start, largest)
        kept = int(largest.count_nonzero())
        rho = self.rho
        has_grown = False
        previous = largest
        changing = 1.0
        iterations = 0
        while iterations < self.iterations:
            steps = min(CHECKED_EVERY, self.iterations - iterations)
            self._step(state, scaled, rho, target, steps)
            iterations += steps
            changing = int((state.keep ^ previous).count_nonzero()) / max(kept, 1)
            previous = state.keep
            # The first ρ held the weights where they started: begin again with a smaller one.
            if (
                not has_grown
                and changing <= RESTING
                and rho > LEAST_RHO
                and iterations < self.iterations
            ):
                rho /= RHO_DIVISOR
                state = Directions(dense, start, largest)
                previous = largest
                continue
            if changing == 0 or (iterations > PATIENCE and changing < CALM):
                break
            has_grown = True
            growth = _growth_of(changing)
            # The dual is kept scaled by ρ, and so is rescaled with it.
            rho *= growth
            state.rescale(1 / growth)
        notes = {"iterations": iterations, "rho": six_digits(rho), "changing": six_digits(changing)}
        return state, notes

    def _step(
        self, state: Directions, scaled: Scaled, rho: float, target: Removal, steps: int
    ) -> None:
        """Go on by so many steps with one ρ. They share its response, which costs an inverse, and
        which is let go before the next ρ has its own.
        """
        response = scaled.response(rho).to(state.dense.dtype)
        for _ in range(steps):
            state.pull(response)
            state.keep = target.keep(state.pulled.abs(), self._group)


def _growth_of(changing: float) -> float:
    """Return what ρ is multiplied by where the share `changing` of the support has changed."""
    for share, factor in GROWTH[:-1]:
        if changing > share:
            return factor
    return GROWTH[-1][1]
