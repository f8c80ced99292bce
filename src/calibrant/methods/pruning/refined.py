"""Refined: swaps weights of wanda's mask and fits those that stay; the least loss for its effort
(SparseSwaps, arXiv 2512.10922).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen, wide
from calibrant.methods._base import Compressed, finite, observed
from calibrant.methods.pruning._gradients import damped, masked
from calibrant.methods.pruning._refining import Refining, refine
from calibrant.targets import Target


@dataclass(frozen=True, repr=False)
class Refined(Refining):
    """Takes another method's mask, swaps weights where that brings the outputs nearer to the dense
    ones, and fits those that are kept.

    A row's loss is (w - v)ᵀH(w - v), with H = Gram/mass + λI, λ = `damp` · mean diagonal. In each
    of `rounds` conjugate gradients fit the kept weights; then a kept weight and a removed one of a
    row change places, again and again, the pair that takes most off the loss, exactly computed. In
    the end the weights are fitted once more. `swaps` of each row and `steps` of the gradients are
    those of all rounds together. Swaps stay within a row, and for N:M within a group, so counts are
    those of `start`. They end early when one takes off less than `tolerance` of the row's loss, and
    steps when one takes off so little of the matrix's.

    Differs from SparseSwaps in: a weight comes back at its best value instead of the dense one;
    weights are fitted before and after; of all pairs only the most promising are compared
    (`_swaps_kernel.best_pair`), for N:M all. From sparsegpt's mask (`start=sparsegpt`) errors of
    matrices end smaller, and the loss of the model larger.

    >>> Refined(swaps=25)
    refined(swaps=25)
    """

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: those of `start`, and the shares of its loss that gradients (`fitted`) and swaps
        (`swapped`) took off; `swaps` of the mean row.

        Raises `NumericsError` for a weight or Gram that isn't finite, or if no token arrived;
        `TargetError` for a target that `start` doesn't accept or that doesn't fit the shape.
        """
        self.check(target)
        gram = observed(seen, Gram)
        dense = finite(weight, "the weight").to(wide(weight.dtype))
        begun = self.begun(dense, seen, target)
        hessian = damped(gram, self.damp).to(dense.dtype)
        start = masked(dense, begun.weight, begun.weight != 0, hessian)
        done, notes = refine(
            start, hessian, target, self.swaps, self.steps, self.rounds, self.tolerance
        )
        return Compressed(
            finite(done.weight.to(weight.dtype), "the refined weight"), {**begun.notes, **notes}
        )
