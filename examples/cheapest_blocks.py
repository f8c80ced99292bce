"""A method that tries: block by block, the one goes without which the model loses least on the
calibration text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from calibrant.edits import DropBlocks, Edit
from calibrant.job import Job
from calibrant.methods import BlockMethod


@dataclass(frozen=True, repr=False)
class CheapestBlocks(BlockMethod):
    """Drops, as often as the target asks, the block whose absence costs least; each time all
    that are left are tried.
    """

    tries: ClassVar[bool] = True

    def edits(self, job: Job) -> Iterator[Edit]:
        for _ in range(self.left_to_drop(job)):
            losses: list[float] = []
            for block in job.view.blocks:
                with job.trying(DropBlocks((block.index,))):
                    losses.append(job.loss())
            yield DropBlocks((losses.index(min(losses)),), {"losses": losses})
