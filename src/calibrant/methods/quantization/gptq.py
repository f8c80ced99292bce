"""GPTQ: rounding with updates of what is still to be rounded (Frantar et al. 2022, arXiv
2210.17323).
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen, Statistic
from calibrant.methods._base import MOST_DAMP, Compressed, MatrixMethod, grid, observed
from calibrant.methods.quantization._quantizing import check_updates, rounded
from calibrant.methods.quantization._rounding import check_rule
from calibrant.spec import check_most
from calibrant.targets import FloatGrid, Grid, Target


@dataclass(frozen=True, repr=False)
class GPTQ(MatrixMethod):
    """Rounds weights column by column, and corrects the columns that follow for the error that this
    makes in the outputs.

    With H = Gram/mass + λI, λ = `damp` · mean diagonal, and H⁻¹ = UᵀU: a column becomes the nearest
    values q of its groups' grids; the error is e = (w - q) / U_ii, and every later column j loses
    e·U_ij. `order` is that of the inputs (`natural`), or the largest first (`activation`). `scales`
    are chosen before, from the weights as they came, and so for all groups (static): by `absmax`,
    `mse`, or `importance`, which weighs errors with the Gram's diagonal (see `rtn`); those of float
    grids such as `NVFP4A16` by absmax. Codes are chosen against the scale that is stored.

    Differs from the paper's code in: groups are always static, so that the order of inputs needs no
    index at run time, and a scale never misses updates of its block; inputs that were always zero
    are rounded to nearest (the code zeroes them) and don't count in the mean diagonal; grids are
    those of compressed-tensors; H isn't doubled, and a Gram that isn't positive definite climbs the
    ladder of `factorise`.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid, FloatGrid)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    updates: ClassVar[bool] = True

    damp: float = 0.01
    order: str = "natural"
    scales: str = "absmax"

    def __post_init__(self) -> None:
        check_updates(self)
        check_most(self, damp=MOST_DAMP)

    def check(self, target: Target) -> None:
        super().check(target)
        check_rule(self.scales, target)

    def squares(self, sources: int) -> int:
        # The Gram, a Gram that is added to it, and the root. An order takes another Gram.
        return 3 if self.order == "natural" else 4

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: the `damp` and the `precision` that the factorisation took, and how many
        `dead_inputs` were always zero.

        Raises `NumericsError` for a weight or Gram that isn't finite, a Gram beyond repair, or if
        no token arrived; `TargetError` for a target that doesn't fit the shape or is no grid.
        """
        return rounded(
            weight, observed(seen, Gram), grid(target), self.damp, self.order, self.scales
        )
