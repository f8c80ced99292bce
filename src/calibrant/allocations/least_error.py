"""Shares by measured errors: each matrix (or block) gets the target at which the errors of all
together are least.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, Statistic, wide
from calibrant.allocations._base import Allocation
from calibrant.allocations._counting import to_the_weight
from calibrant.allocations._menu import cheapest, menu
from calibrant.edits.changes import gram_energy
from calibrant.errors import SpecError
from calibrant.methods import MatrixMethod, Method, methods
from calibrant.models import Weight
from calibrant.numerics import finite_number
from calibrant.targets import Removal, Sparsity, Target

PARTS = ("matrix", "block")
ERRORS = ("relative", "absolute")


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

    method: Any = None  # a MatrixMethod, or None; anything else is refused in a sentence
    step: float = 0.05
    reach: int = 3
    per: str = "matrix"
    errors: str = "relative"

    def __post_init__(self) -> None:
        if self.method is not None:
            method = methods.build(self.method)
            object.__setattr__(self, "method", method)
            is_matrix_method = isinstance(method, MatrixMethod)
            if not is_matrix_method or not {FeatureNorms, Gram} >= set(method.observes):
                given = f"least_error(method={method})"
                allowed = "a method that looks at feature norms or a Gram, such as wanda"
                raise SpecError(f"{given}: errors are those of {allowed}", subject=str(method))
        if not 0 < self.step < 1:
            message = "a step is above 0 and below 1, such as 0.05"
            raise SpecError(f"least_error(step={self.step}): {message}", subject="step")
        if not 1 <= self.reach <= 20:
            message = "from 1 to 20 steps to either side are tried, such as 3"
            raise SpecError(f"least_error(reach={self.reach}): {message}", subject="reach")
        for name, known in (("per", PARTS), ("errors", ERRORS)):
            value = getattr(self, name)
            if value not in known:
                message = f"choose {' or '.join(known)}"
                raise SpecError(f"least_error({name}={value}): {message}", subject=name)

    def share(self, matrices: Mapping[Weight, Seen], target: Target) -> Mapping[str, Target]:
        """Return the targets.

        Raises `TargetError` for a target that has no steps, or that the method doesn't accept.
        """
        steps = menu(target, self.step, self.reach)
        method = self._judge(target)
        method.check(target)
        errors: dict[Weight, np.ndarray] = {}
        parts: dict[str | int, list[Weight]] = {}
        for weight, seen in matrices.items():
            part = weight.block if self.per == "block" else weight.name
            parts.setdefault(part, []).append(weight)
            if Gram in seen and seen[Gram].mass > 0:
                errors[weight] = self._errors(method, weight, seen[Gram], steps)
        # Of a part that no token reached nothing is known, and it gets what was asked.
        unknown = np.array([0.0 if step == 0 else np.inf for step in steps])
        costs: list[np.ndarray] = []
        sizes: list[int] = []
        for part in parts.values():
            known = [errors[weight] for weight in part if weight in errors]
            costs.append(np.sum(known, axis=0) if known else unknown)
            sizes.append(sum(weight.shape[0] * weight.shape[1] for weight in part))
        chosen = cheapest(np.stack(costs), list(steps), sizes, self._advice)
        targets = list(steps.values())
        shared: dict[Weight, Target] = {}
        for part, choice in zip(parts.values(), chosen, strict=True):
            shared.update(dict.fromkeys(part, targets[choice]))
        if isinstance(target, Sparsity):
            wanted = {weight: float(shared[weight].amount or 0) for weight in matrices}
            return dict(to_the_weight(wanted, target))
        return {weight.name: shared[weight] for weight in matrices}

    def judges_by(self, method: Method, target: Target) -> tuple[Method, int]:
        return self._judge(target), 2 * self.reach + 1

    @property
    def _advice(self) -> str:
        """How there would be fewer sums to search through."""
        ways = [] if self.per == "block" else ["per=block"]
        if self.reach > 1:
            ways.append("a smaller reach")
        return f"choose {' or '.join(ways)}" if ways else "leave the allocation out"

    def _judge(self, target: Target) -> MatrixMethod:
        return self.method or methods.build("wanda" if isinstance(target, Removal) else "rtn")

    def _errors(
        self, method: MatrixMethod, weight: Weight, gram: Gram, steps: Mapping[int, Target]
    ) -> np.ndarray:
        """The error at each step."""
        matrix = weight.get()
        energy = gram_energy(gram, wide(matrix.dtype))
        whole = energy(_wide(matrix)) if self.errors == "relative" else gram.mass
        finite_number(whole, f"the size of the outputs of {weight.name}", weight.name)

        def error(target: Target) -> float:
            compressed = method.compress(matrix, Seen.of_gram(gram), target).weight
            lost = energy(_wide(matrix) - _wide(compressed))
            finite_number(lost, f"the error of {weight.name} at {target}", weight.name)
            return lost / whole if whole > 0 else 0.0

        return np.array([error(target) for target in steps.values()])


def _wide(matrix: Tensor) -> Tensor:
    return matrix.detach().to(wide(matrix.dtype))
