"""What an allocation is: a frozen dataclass with one pure verb."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from calibrant.activations import Seen
from calibrant.spec import Spec
from calibrant.targets import Target


class Allocation(Spec, ABC):
    """Decides how much each block of a model gives."""

    @abstractmethod
    def share(self, blocks: int, target: Target, seen: Sequence[Seen] | None = None) -> list[Target]:
        """One target for each of `blocks` blocks, whose mean is `target`; `seen` is what each block saw, for allocations that look."""
