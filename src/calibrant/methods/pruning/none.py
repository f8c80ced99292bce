"""No compression. The dense model is a run like any other, so that it takes the same path as
what it is compared with.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Seen
from calibrant.errors import TargetError
from calibrant.methods._base import Compressed, MatrixMethod
from calibrant.targets import Scheme, Target, WithCache


@dataclass(frozen=True, repr=False)
class Untouched(MatrixMethod):
    """Leaves every weight as it is, whatever the target; targets that round inputs or the KV cache
    are refused. Observes nothing.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Target,)
    prunes: ClassVar[bool] = False

    def aim(self, target: Target) -> Target:
        # Its runs stand for the model as it came.
        if isinstance(target, Scheme | WithCache):
            rounded = "its inputs" if isinstance(target, Scheme) else "its KV cache"
            raise TargetError(
                f"{self} leaves the model as it came, and {target} rounds {rounded}; write rtn",
                subject=str(target),
            )
        return super().aim(target)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """`weight` itself: not a copy."""
        return Compressed(weight)
