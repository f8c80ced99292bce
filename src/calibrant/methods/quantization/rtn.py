"""Round to nearest: every weight becomes the nearest value of its group's grid. What all other
quantizers are compared with.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen, Statistic
from calibrant.methods._base import Compressed, MatrixMethod, check_choice, finite, grid, observed
from calibrant.methods.quantization._rounding import RULES, check_rule, scales_of
from calibrant.spec import later
from calibrant.targets import FloatGrid, Grid, Target, WithCache


@dataclass(frozen=True, repr=False)
class RoundToNearest(MatrixMethod):
    """Rounds each weight to the nearest value of its group's grid; `scales` by absmax or mse use no
    data, by importance the inputs' sizes.

    Scales and zero points are those of the compressed-tensors format (`_rounding` has the
    formulas), but in float32, or float64 for a float64 weight, until they are rounded to the
    weight's type; codes are chosen against the rounded scale. `absmax` reaches as far as the
    weights of a group, `mse` where their errors are least, and `importance` where the errors are
    least that are weighted with Σx² of their inputs. Of twenty shares of the weights' reach, 1,
    0.9525 … 0.0975, it takes the best; llm-compressor's `imatrix_mse` tries 1, 0.95 … 0.05, and
    ends after five that improve no group. Scales of float grids such as `NVFP4A16` are by absmax.
    The target `kv_fp8` leaves weights as they are.

    >>> RoundToNearest("importance").observes
    (<class 'calibrant.activations.FeatureNorms'>,)
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid, FloatGrid, WithCache)

    scales: str = later("absmax")

    def __post_init__(self) -> None:
        check_choice(self, scales=RULES)

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return (FeatureNorms,) if self.scales == "importance" else ()

    def check(self, target: Target) -> None:
        super().check(target)
        check_rule(self.scales, target)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `NumericsError` for a weight or norms that aren't finite, `TargetError` for a
        target that is no grid or doesn't fit the shape.
        """
        if isinstance(target, WithCache):
            return Compressed(weight)
        grid(target).check((weight.shape[0], weight.shape[1]), "the matrix")
        checked = finite(weight, "the weight")
        importance = observed(seen, FeatureNorms).norms() if self.observes else None
        packed = scales_of(self.scales, checked, grid(target), importance).nearest(checked)
        return Compressed(finite(packed.dense(), "the rounded weight"), packed=packed)
