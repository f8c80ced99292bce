"""Magnitude: the smallest weights go; needs no data, and loses most (Han et al. 2015, "Learning
both weights and connections", arXiv 1506.02626).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Seen, wide
from calibrant.methods._base import Compressed, MatrixMethod, finite, prune, removal
from calibrant.targets import Target


@dataclass(frozen=True, repr=False)
class Magnitude(MatrixMethod):
    """Removes the smallest |W|: of the whole matrix for a sparsity, of each group for N:M. Observes
    nothing.

    Differs from the baseline in Wanda's code, which removes everything up to a threshold and so,
    with ties, more than was asked (bfloat16 weights tie often): here the count is exact, and of
    equal weights the first in row-major order goes first.
    """

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `NumericsError` for a weight that isn't finite, `TargetError` for a target that
        doesn't fit the shape.
        """
        scores = finite(weight, "the weight").abs().to(wide(weight.dtype))
        keep = removal(target).keep(scores, "matrix")
        return Compressed(prune(weight, keep), only_removes=True)
