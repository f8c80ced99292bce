"""What an allocation is: a frozen dataclass with one pure verb."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from calibrant.activations import Seen, Statistic
from calibrant.models import Weight
from calibrant.spec import Spec
from calibrant.targets import Target


class Allocation(Spec, ABC):
    """Gives each matrix its target.

    `observes` says which statistics of the untouched model's matrices it needs; one that looks at nothing leaves it empty and costs no forward.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = ()

    @abstractmethod
    def share(self, matrices: Mapping[Weight, Seen], target: Target) -> Mapping[str, Target]:
        """Return one target for each of the `matrices`, by name; their mean, each matrix counted by its size, is `target`.

        `matrices` are all that will be compressed, each with what it sees: nothing without `observes`, or where no token arrives. Going through
        its `items()` is a walk through the model that holds one block's statistics at a time; looking a matrix up reads all of them into memory.
        """
