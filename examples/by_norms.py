"""An allocation: matrices whose inputs are large lose less, the others more; the mean is what
was asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from calibrant.activations import FeatureNorms, Seen, Statistic
from calibrant.allocations import Allocation, to_the_weight
from calibrant.errors import TargetError
from calibrant.models import Weight
from calibrant.targets import Sparsity, Target


@dataclass(frozen=True, repr=False)
class ByNorms(Allocation):
    """Gives each matrix a share between 1 − `spread` and 1 + `spread` times what was asked,
    falling with the size of its inputs.
    """

    spread: float = 0.2

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)

    def share(self, matrices: Mapping[Weight, Seen], target: Target) -> Mapping[str, Target]:
        if not isinstance(target, Sparsity) or target.fraction * (1 + self.spread) >= 1:
            raise TargetError(
                f"{self} shares a sparsity below {1 / (1 + self.spread):.3g}, not {target}"
            )
        sizes = {weight: weight.shape[0] * weight.shape[1] for weight in matrices}
        norms = {weight: _size(seen) for weight, seen in matrices.items()}
        mean = sum(sizes[weight] * norms[weight] for weight in matrices) / sum(sizes.values())
        widest = max(abs(norm - mean) for norm in norms.values()) or 1.0
        wanted = {
            weight: target.fraction * (1 - self.spread * (norms[weight] - mean) / widest)
            for weight in matrices
        }
        return to_the_weight(wanted, target)


def _size(seen: Seen) -> float:
    """The root mean square of what arrived; nothing where nothing did."""
    if FeatureNorms not in seen:
        return 0.0
    norms = seen[FeatureNorms].norms()
    return float((norms.sum() / (seen[FeatureNorms].mass * len(norms))).sqrt())
