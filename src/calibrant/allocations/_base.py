"""What an allocation is: a frozen dataclass with one pure verb."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from calibrant.activations import Seen, Statistic
from calibrant.job import Job
from calibrant.methods import Method
from calibrant.models import Weight
from calibrant.spec import Spec
from calibrant.targets import Target


class Allocation(Spec, ABC):
    """Gives each matrix its target.

    `observes` says which statistics of the untouched model's matrices it needs; one that looks at
    nothing leaves it empty and costs no forward. `tries` says whether it measures the model on the
    calibration tokens: then `targets` finds the result, and `share` is where it begins.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = ()
    tries: ClassVar[bool] = False

    @abstractmethod
    def share(self, matrices: Mapping[Weight, Seen], target: Target) -> Mapping[str, Target]:
        """Return one target for each of the `matrices`, by name; their mean, each matrix counted by
        its size, is `target`.

        `matrices` are all that will be compressed, each with what it sees: nothing without
        `observes`, or where no token arrives. Going through its `items()` is a walk through the
        model that holds one block's statistics at a time; looking a matrix up reads all of them
        into memory.
        """

    def targets(
        self, matrices: Mapping[Weight, Seen], job: Job, method: Method
    ) -> Mapping[str, Target]:
        """Return one target for each of the `matrices`, by name, for a job that the `method` will
        do: by default those of `share`.

        An allocation that `tries` measures in the job what the method would make of the model,
        which is untouched before and after. It keeps what it finds out in `job.journal`. What it
        puts into `job.notes` goes into the record.
        """
        del method
        return self.share(matrices, job.target)

    def tried(self, blocks: int, target: Target) -> int:
        """Return how many tokens at most an allocation that `tries` runs through a model of so many
        blocks; plans say it.
        """
        del blocks, target
        return 0

    def judges_by(self, method: Method, target: Target) -> tuple[Method, int]:
        """Return the method with which it compresses every matrix before `method` does, and how
        many times at most; plans say it.
        """
        del target
        return method, 0
