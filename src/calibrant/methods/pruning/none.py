"""No compression. The dense model is a run like any other, so that it takes the same path as
what it is compared with.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Seen
from calibrant.methods._base import Compressed, MatrixMethod
from calibrant.targets import Target


@dataclass(frozen=True, repr=False)
class Untouched(MatrixMethod):
    """Leaves every weight as it is, whatever the target. Observes nothing."""

    accepts: ClassVar[tuple[type[Target], ...]] = (Target,)
    prunes: ClassVar[bool] = False

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """`weight` itself: not a copy."""
        return Compressed(weight)
