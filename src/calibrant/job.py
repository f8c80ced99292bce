"""What a method is given to work with: an open model, its calibration tokens, and the target of
each matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from calibrant.activations import Seen, Statistic
from calibrant.data import TokenBatch
from calibrant.edits import Edit, Replace
from calibrant.errors import SpecError
from calibrant.models import Block, ModelView, Opened, Weight
from calibrant.results.outcomes import Journal
from calibrant.system.progress import Progress, silent
from calibrant.targets import Target
from calibrant.walk import Propagation, walk
from calibrant.walk.attention import Weigh
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.starving import AS_SEEN, Starved, fed
from calibrant.walk.statistics import blocks_seen, untouched
from calibrant.walk.variants import loss


@dataclass(frozen=True)
class Job:
    """An open model, the tokens it is calibrated on, and its targets.

    `targets` has the target that the allocation gives each matrix, by name. `done` are edits that
    were applied before an interruption: a method yields only the others. In `dense` propagation,
    and there alone, edits of `done` that change a block's numbers are not applied yet, since the
    walk is through the untouched model. What a method finds out by trying it may keep in `journal`:
    after an interruption it is there, and needn't be tried again; what an allocation puts into
    `notes` the record says. `statistics` is the folder that keeps what the untouched model's
    matrices saw, None for none; `kinds` are what others need there. `starving` are the matrices of
    experts that get few tokens, by name; `starved` says what they are calibrated on.
    """

    opened: Opened
    view: ModelView
    batch: TokenBatch | None
    target: Target
    targets: Mapping[str, Target]
    propagate: Propagation
    done: Sequence[Edit] = ()
    statistics: Path | None = None
    kinds: tuple[type[Statistic], ...] = ()
    progress: Progress = silent
    ranks: Ranks = field(default=ALONE, repr=False)
    journal: Journal = field(default_factory=Journal, repr=False)
    notes: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    applied_kinds: list[str] = field(default_factory=list[str])
    """The kinds of the edits that were applied, those of `done` included."""
    starved: Starved = AS_SEEN
    starving: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def start(self) -> int:
        """The first block of which no matrix was replaced before an interruption."""
        blocks = [edit.block for edit in self.done if edit.block is not None]
        return max(blocks, default=-1) + 1

    def walk(
        self, observes: tuple[type[Statistic], ...], weigh: Weigh | None = None
    ) -> Iterator[tuple[Weight, Seen]]:
        """Yield each matrix that is still to be compressed with what it saw, as the propagation
        says; `weigh` weighs tokens block by block.

        A matrix that no token reached isn't yielded. An edit of the matrix is applied before the
        next one is asked for. Raises `WalkError` and `NumericsError` as `calibrant.walk.walk` does.
        """
        arrivals = partial(self._walk, observes, weigh)
        starving = self.starving if observes else {}
        return fed(self.view, arrivals, self.starved, starving, self.start)

    def _walk(
        self, observes: tuple[type[Statistic], ...], weigh: Weigh | None
    ) -> Iterator[tuple[Weight, Seen]]:
        batch = self.batch
        untouched_model = self.propagate == "dense" and observes
        # A walk can't add up the parts of a mix, each of which has a share of its own.
        if untouched_model and batch is not None and (self.statistics or batch.mixed):
            return untouched(
                self.opened,
                self.view,
                batch,
                observes,
                start=self.start,
                root=self._stored_statistics(),
                kinds=self.kinds,
                progress=self.progress,
                ranks=self.ranks,
                weigh=weigh,
            )
        return walk(
            self.view,
            batch,
            observes,
            self.propagate,
            start=self.start,
            ranks=self.ranks,
            weigh=weigh,
        )

    def _stored_statistics(self) -> Path | None:
        """The folder of what matrices saw, where that is what they see in this job.

        What is kept there is of the model with all its parts, and of experts that get the tokens
        that their router sends them.
        """
        if any(kind != Replace.kind for kind in self.applied_kinds):
            return None
        if self.starving and self.starved == "all_tokens":
            return None
        return self.statistics

    def blocks(self, observes: tuple[type[Statistic], ...]) -> Iterator[tuple[Block, Seen]]:
        """Yield each block of the model as it is now, with what it did to its input and whom its
        router picked; of a mix the sum.
        """
        # What is kept there is of the untouched model.
        root = None if self.applied_kinds else self.statistics
        seen_by_block = blocks_seen(
            self.opened, self.view, self.tokens(), observes, root=root, ranks=self.ranks
        )
        for block, seen in seen_by_block:
            self.progress("looking at blocks", block.index + 1, len(self.view.blocks))
            yield block, seen

    def loss(self) -> float:
        """Measure what the model as it is now loses on the calibration tokens, in nats a token; a
        token counts by its weight.

        Of a mix, the loss of each part counts by its share. Padding is neither predicted nor
        counted.
        """
        return loss(self.view, self.tokens(), self.ranks)

    @contextmanager
    def trying(self, edit: Edit) -> Iterator[None]:
        """Apply `edit` while the context lasts, and undo it at its end, whatever happens in it."""
        undo = edit.undo(self.view)
        edit.apply(self.view)
        try:
            yield
        finally:
            undo()

    def tokens(self) -> TokenBatch:
        """Return the tokens that it is calibrated on. Raises `SpecError` where there are none."""
        if self.batch is None:
            raise SpecError("this method looks at calibration data; give --data", subject="data")
        return self.batch
