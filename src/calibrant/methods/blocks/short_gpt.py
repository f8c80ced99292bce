"""ShortGPT: whole blocks go that turn their input least (Men et al. 2024, arXiv 2403.03853)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from calibrant.activations import BlockChange, Seen, Statistic
from calibrant.edits import DropBlocks, Edit
from calibrant.job import Job
from calibrant.methods._model_method import BlockMethod
from calibrant.numerics import six_digits


@dataclass(frozen=True, repr=False)
class ShortGPT(BlockMethod):
    """Removes the blocks with the smallest block influence, 1 − the mean cosine of a token's hidden
    state before and after (equation 1).

    All are scored in one pass through the untouched model and go at once, as in the paper (section
    3.2); the record's `notes` have the scores. Differs from the paper in: tokens count by their
    weight, and padding never.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = (BlockChange,)

    def edits(self, job: Job) -> Iterator[Edit]:
        if job.done:
            return
        scores = [influence(seen) for _, seen in job.blocks(self.observes)]
        dropped = least_influence(scores, self.left_to_drop(job))
        yield DropBlocks(dropped, {"scores": [six_digits(score) for score in scores]})


def influence(seen: Seen) -> float:
    """Return how far a block turned its input: 1 less the cosine, averaged over tokens. It is 0 for
    a block that turns nothing, and 2 at most.
    """
    change = seen[BlockChange]
    return change.total / change.mass


def least_influence(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the `count` blocks with the lowest scores, in the order of the model; of equal ones
    the first goes.
    """
    # Sorting is stable, so of equal scores the first block comes first.
    ranked = sorted(range(len(scores)), key=scores.__getitem__)
    return tuple(sorted(ranked[:count]))
