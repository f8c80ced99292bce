"""A method for mixtures of experts: of every layer those go that the router sends the fewest
tokens to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from calibrant.activations import Routing, Statistic
from calibrant.edits import DropExperts, Edit
from calibrant.job import Job
from calibrant.methods import ExpertMethod


@dataclass(frozen=True, repr=False)
class LeastUsedExperts(ExpertMethod):
    """Drops the experts that got the smallest share of the calibration tokens; of equal ones the
    first go first.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (Routing,)

    def edits(self, job: Job) -> Iterator[Edit]:
        if job.done:
            return
        drop = self.left_to_drop(job)
        counts: dict[str, list[float]] = {}
        experts: dict[int, tuple[int, ...]] = {}
        for block, seen in job.blocks(self.observes):
            if Routing in seen:
                sent = seen[Routing].counts.tolist()
                ranked = sorted(range(len(sent)), key=sent.__getitem__)
                counts[str(block.index)] = sent
                experts[block.index] = tuple(sorted(ranked[:drop]))
        yield DropExperts(experts, {"counts": counts})
