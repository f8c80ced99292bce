"""Round to nearest: every weight becomes the nearest value of its group's grid. What all other quantizers are compared with."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Seen
from calibrant.methods._base import Compressed, MatrixMethod, finite, grid
from calibrant.methods._rounding import absmax
from calibrant.targets import Grid, Target


@dataclass(frozen=True, repr=False)
class RoundToNearest(MatrixMethod):
    """Rounds each weight to the nearest value of a grid that reaches as far as the weights of its group. Observes nothing.

    Scales and zero points are those of llm-compressor's default observer in the compressed-tensors format (`_rounding` has the formulas), but
    in float32, or float64 for a float64 weight, until they are rounded to the weight's type; codes are chosen against the rounded scale.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid,)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `NumericsError` for a weight that isn't finite, `TargetError` for a target that is no grid or doesn't fit the shape."""
        grid(target).check((weight.shape[0], weight.shape[1]), "the matrix")
        sound = finite(weight, "the weight")
        packed = absmax(sound, grid(target)).nearest(sound)
        return Compressed(packed.dense(), packed=packed)
