"""The same request for every block."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrant.activations import Seen
from calibrant.allocations._base import Allocation
from calibrant.targets import Target


@dataclass(frozen=True, repr=False)
class Uniform(Allocation):
    """Every block gets the request itself, whatever it saw."""

    def share(self, blocks: int, target: Target, seen: Sequence[Seen] | None = None) -> list[Target]:
        return [target] * blocks
