"""The same request for every matrix."""

from collections.abc import Mapping
from dataclasses import dataclass

from calibrant.activations import Seen
from calibrant.allocations._base import Allocation
from calibrant.models import Weight
from calibrant.targets import Target


@dataclass(frozen=True, repr=False)
class Uniform(Allocation):
    """Every matrix gets the request itself, whatever it saw."""

    def share(self, matrices: Mapping[Weight, Seen], target: Target) -> Mapping[str, Target]:
        return {weight.name: target for weight in matrices}
