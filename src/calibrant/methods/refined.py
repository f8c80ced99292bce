"""Refined: any method's mask, bettered by swaps, and weights fitted to it (SparseSwaps, arXiv 2512.10922; the gradients of ALPS, 2406.07831)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen, Statistic, wide
from calibrant.methods._base import Compressed, MatrixMethod, finite, observed
from calibrant.methods._gradients import damped, masked
from calibrant.methods._refining import check_refining, refine
from calibrant.methods.sparsegpt import SparseGPT
from calibrant.targets import Target


@dataclass(frozen=True, repr=False)
class Refined(MatrixMethod):
    """Takes another method's mask, swaps weights where that brings the outputs nearer to the dense ones, and fits those that are kept.

    A row's loss is (w - v)ᵀH(w - v), with H = Gram/mass + λI, λ = `damp` · mean diagonal. In each of `rounds` conjugate gradients fit the kept
    weights; then a kept weight and a removed one of a row change places, again and again, the pair that takes most off the loss, exactly computed. In
    the end the weights are fitted once more. `swaps` of each row and `steps` of the gradients are those of all rounds together. Swaps stay within
    a row, and for N:M within a group, so counts are those of `start`. They end early when one takes off less than `tolerance` of the row's loss, and
    steps when one takes off so little of the matrix's.

    Differs from SparseSwaps in: a weight comes back at its best value instead of the dense one; weights are fitted before and after; of all pairs
    only the most promising are compared (`_swaps_kernel.best_pair`), for N:M all. `start=wanda` is the paper's, and ends with larger errors.

    >>> Refined(swaps=50)
    refined(swaps=50)
    """

    updates: ClassVar[bool] = True

    start: Any = SparseGPT()  # noqa: RUF009  # frozen; a MatrixMethod, anything else is refused in a sentence
    swaps: int = 25
    steps: int = 10
    rounds: int = 2
    damp: float = 0.01
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_refining("refined", self.start, self.swaps, self.steps, self.rounds, self.damp, self.tolerance)

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return (Gram,) if self.start == SparseGPT() else tuple(dict.fromkeys((*self.start.observes, Gram)))

    def check(self, target: Target) -> None:
        super().check(target)
        self.start.check(target)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: those of `start`, and the shares of its loss that gradients (`fitted`) and swaps (`swapped`) took off; `swaps` of the mean row.

        Raises `NumericsError` for a weight or Gram that isn't finite, or if no token arrived; `TargetError` for a target that `start` doesn't accept
        or that doesn't fit the shape.
        """
        self.check(target)
        gram = observed(seen, Gram)
        dense = finite(weight, "the weight").to(wide(weight.dtype))
        begun = self.start.compress(dense, seen, target)
        hessian = damped(gram, self.damp).to(dense.dtype)
        start = masked(dense, begun.weight, begun.weight != 0, hessian)
        done, notes = refine(start, hessian, target, self.swaps, self.steps, self.rounds, self.tolerance)
        return Compressed(finite(done.weight.to(weight.dtype), "the refined weight"), {**begun.notes, **notes})
