"""Shares by measured errors: each matrix (or block) gets the target at which the errors of all
together are least.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, Statistic, wide
from calibrant.allocations._base import Allocation
from calibrant.allocations._sharing import cheapest, menu, size_of, to_the_weight
from calibrant.errors import SpecError
from calibrant.methods import MatrixMethod, Method, methods
from calibrant.methods._base import TokenUse
from calibrant.models import Weight
from calibrant.numerics import finite_number
from calibrant.packed import gram_energy
from calibrant.targets import Removal, Sparsity, Target

PARTS: Final = ("matrix", "block")
ERRORS: Final = ("relative", "absolute")


@dataclass(frozen=True, repr=False)
class LeastError(Allocation):
    """Compresses each matrix at a menu of targets, and takes of all ways to share with the right
    mean the one with the least sum of errors.

    The menu is what was asked and up to `reach` steps to either side: of `step` for a sparsity, of
    one kept weight for N:M, of one bit for a grid. The errors are those of `method` on the inputs
    of the untouched model: without one, of `wanda` where weights go and `rtn` for grids. Another
    method may compress in the end. An error is tr(ΔW G ΔWᵀ) a token, `absolute`, or divided by tr(W
    G Wᵀ), `relative`. `per` says whether each matrix gets a share of its own, or all of a block the
    same. The best way is found exactly (a knapsack), and counts add up to the weight.

    Errors of matrices don't add up to a model's loss: `docs/log` has what was measured. Dynamic
    programming over errors of layers is SPDY's (Frantar, Alistarh 2022), without its search for how
    much each layer counts.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    # A MatrixMethod, or None; anything else is refused in a sentence.
    method: Any = None
    step: float = 0.05
    reach: int = 3
    per: str = "matrix"
    errors: str = "relative"

    def __post_init__(self) -> None:
        if self.method is not None:
            object.__setattr__(self, "method", methods.build(self.method))
            # The errors are computed from Grams, from which feature norms follow.
            usable = {FeatureNorms, Gram}
            fits = isinstance(self.method, MatrixMethod)
            fits = fits and usable.issuperset(self.method.observes)
            # Of other tokens, or of each source by itself, it has no Grams.
            fits = fits and self.method.token_use == TokenUse()
            if not fits:
                raise SpecError(
                    f"least_error(method={self.method}): errors are those of a method that looks "
                    f"at feature norms or a Gram and takes tokens as they are, such as wanda",
                    subject=str(self.method),
                )
        if not 0 < self.step < 1:
            raise SpecError(
                f"least_error(step={self.step}): a step is above 0 and below 1, such as 0.05",
                subject="step",
            )
        if not 1 <= self.reach <= 20:
            raise SpecError(
                f"least_error(reach={self.reach}): "
                f"from 1 to 20 steps to either side are tried, such as 3",
                subject="reach",
            )
        for name, value, values in (("per", self.per, PARTS), ("errors", self.errors, ERRORS)):
            if value not in values:
                raise SpecError(
                    f"least_error({name}={value}): choose {' or '.join(values)}", subject=name
                )

    def share(self, matrices: Mapping[Weight, Seen], target: Target) -> Mapping[str, Target]:
        """Return the targets. Raises `TargetError` for a target that has no steps, or that the
        method doesn't accept.
        """
        steps = menu(target, self.step, self.reach)
        method = self._judge(target)
        method.check(target)
        costs: dict[Weight, np.ndarray] = {}
        for weight, seen in matrices.items():
            if Gram in seen and seen[Gram].mass > 0:
                costs[weight] = self._errors(method, weight, seen[Gram], steps)
        parts = self._parts(matrices)
        # Of a part that no token reached nothing is known, so it gets what was asked: any other
        # target costs infinitely much.
        unreached = np.full(len(steps), np.inf)
        unreached[list(steps).index(0)] = 0.0
        part_costs: list[np.ndarray] = []
        for part in parts:
            reached = [costs[weight] for weight in part if weight in costs]
            if reached:
                part_costs.append(np.sum(reached, axis=0))
            else:
                part_costs.append(unreached)
        sizes = list(map(size_of, parts))
        chosen = cheapest(np.stack(part_costs), list(steps), sizes, self._advice)
        targets = list(steps.values())
        shared: dict[Weight, Target] = {}
        for part, choice in zip(parts, chosen, strict=True):
            shared |= dict.fromkeys(part, targets[choice])
        if isinstance(target, Sparsity):
            wanted = {weight: float(shared[weight].amount or 0) for weight in matrices}
            return dict(to_the_weight(wanted, target))
        return {weight.name: shared[weight] for weight in matrices}

    def judges_by(self, method: Method, target: Target) -> tuple[Method, int]:
        return self._judge(target), 2 * self.reach + 1

    def _parts(self, matrices: Iterable[Weight]) -> list[list[Weight]]:
        """The matrices that get one share together: those of a block, or each by itself."""
        parts: dict[str | int, list[Weight]] = {}
        for weight in matrices:
            key = weight.block if self.per == "block" else weight.name
            parts.setdefault(key, []).append(weight)
        return list(parts.values())

    @property
    def _advice(self) -> str:
        """What to choose so that the search has fewer sums to go through."""
        choices: list[str] = []
        if self.per != "block":
            choices.append("per=block")
        if self.reach > 1:
            choices.append("a smaller reach")
        if not choices:
            return "leave the allocation out"
        return f"choose {' or '.join(choices)}"

    def _judge(self, target: Target) -> MatrixMethod:
        """The method whose errors are measured."""
        if self.method is not None:
            return self.method
        usual = "wanda" if isinstance(target, Removal) else "rtn"
        return methods.build(usual)

    def _errors(
        self, method: MatrixMethod, weight: Weight, gram: Gram, steps: Mapping[int, Target]
    ) -> np.ndarray:
        """The error of a matrix at each step: as a share of its outputs' energy, or a token."""
        matrix = weight.get()
        energy = gram_energy(gram, wide(matrix.dtype))
        scale = gram.mass
        if self.errors == "relative":
            scale = energy(_wide(matrix))
        finite_number(scale, f"the size of the outputs of {weight.name}", weight.name)

        def error(target: Target) -> float:
            compressed = method.compress(matrix, Seen.of_gram(gram), target).weight
            lost = energy(_wide(matrix) - _wide(compressed))
            finite_number(lost, f"the error of {weight.name} at {target}", weight.name)
            # A matrix without outputs, such as one of zeros, loses nothing.
            if scale <= 0:
                return 0.0
            return lost / scale

        return np.array([error(target) for target in steps.values()])


def _wide(matrix: Tensor) -> Tensor:
    return matrix.detach().to(wide(matrix.dtype))
