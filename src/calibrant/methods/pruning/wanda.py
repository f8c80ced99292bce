"""Wanda: quick, changes no weight that stays, and needs few tokens: the least of size times
input go (Sun et al. 2023, arXiv 2306.11695).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, Statistic, wide
from calibrant.methods._base import Compressed, MatrixMethod, finite, observed, prune, removal
from calibrant.methods.pruning._lowest import without_lowest
from calibrant.targets import Target


@dataclass(frozen=True, repr=False)
class Wanda(MatrixMethod):
    """Removes, in each output row, the weights with the smallest |W_oi|·‖x_i‖₂ (equation 1); the
    others stay as they are.

    Scores are float32, or float64 for a float64 weight. Differs from the paper's code in: norms are
    plain sums over tokens, where the code keeps a running mean over samples, so that samples of
    different lengths weigh as much as their tokens; padding never counts.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)
    # The compiled pass over it makes the result, and reads float16 as float32.
    copies: ClassVar[int] = 2
    copies_elsewhere: ClassVar[int] = 4

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `NumericsError` for a weight or norms that aren't finite or if no token
        arrived, `TargetError` if `target` doesn't fit.
        """
        # Sums over tokens are float64; the root is taken before they become float32.
        norms = finite(observed(seen, FeatureNorms).norms(), "the squared norms of the inputs")
        in_one_pass = without_lowest(weight, norms, removal(target))
        if in_one_pass is not None:
            # A Gram says more of what was lost than norms do.
            return replace(in_one_pass, change=None) if Gram in seen else in_one_pass
        sizes = finite(weight, "the weight").abs().to(wide(weight.dtype))
        scores = sizes * norms.sqrt().to(sizes.dtype)
        keep = removal(target).keep(scores, "row")
        return Compressed(prune(weight, keep), only_removes=True)
