"""RIA: as quick as wanda, and loses no input or output whole; with --transform permute also for
N:M.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen, Statistic, wide
from calibrant.errors import SpecError
from calibrant.methods._base import Compressed, MatrixMethod, finite, observed, prune, removal
from calibrant.spec import check_most
from calibrant.targets import Target

MOST_POWER: Final = 10
"""The largest power of an input's size; of higher ones float32 has no numbers."""


@dataclass(frozen=True, repr=False)
class RIA(MatrixMethod):
    """Removes what is small beside the rest of its row and of its column, so that no whole input or
    output is lost; the others stay as they are.

    The score is (|W_oi|/Σ_o|W_oi| + |W_oi|/Σ_i|W_oi|)·‖x_i‖₂^`power`, compared in the whole matrix
    for a sparsity, in each group for N:M. Scores are float32, or float64 for a float64 weight. The
    paper's permutation of inputs for N:M is a transform that goes with every method: `--transform
    permute`.

    From "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models"
    (Zhang, Bai, Lin, Zhao, Hou, Cannistraci, ICLR 2024). Differs from the paper's code in: norms
    are plain sums over tokens, and the count is exact.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)

    power: float = 0.5

    def __post_init__(self) -> None:
        if not (self.power >= 0 and math.isfinite(self.power)):
            allowed = "the power of the inputs' size must be 0 or more; 0.5 is the paper's"
            raise SpecError(f"ria(power={self.power}): {allowed}", subject="power")
        check_most(self, power=MOST_POWER)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `NumericsError` for a weight or norms that aren't finite or if no token
        arrived, `TargetError` if `target` doesn't fit.
        """
        norms = finite(observed(seen, FeatureNorms).norms(), "the squared norms of the inputs")
        sizes = finite(weight, "the weight").abs().to(wide(weight.dtype))
        lengths = norms.sqrt().to(sizes.dtype)
        scores = relative(sizes) * lengths**self.power
        keep = removal(target).keep(finite(scores, "the scores of the weights"), "matrix")
        return Compressed(prune(weight, keep), only_removes=True)


def relative(sizes: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Return each size as a share of its column's sum plus as a share of its row's; 0 in what is
    all zero.

    >>> import torch
    >>> relative(torch.tensor([[1.0, 3.0], [1.0, 0.0]])).tolist()
    [[0.75, 1.75], [1.5, 0.0]]
    """
    column_sums = sizes.sum(0, keepdim=True)
    row_sums = sizes.sum(1, keepdim=True)
    of_column = sizes / column_sums.where(column_sums > 0, 1)
    of_row = sizes / row_sums.where(row_sums > 0, 1)
    return of_column + of_row
