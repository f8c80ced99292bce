"""What a method is given to work with: an open model, its calibration tokens, and the target of
each matrix.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from calibrant.activations import Propagation, Seen, Statistic
from calibrant.data import TokenBatch
from calibrant.edits import Edit, Replace
from calibrant.errors import SpecError
from calibrant.models import Block, ModelView, Opened, Weight
from calibrant.results.outcomes import Journal
from calibrant.system.progress import Progress, silent
from calibrant.targets import Target
from calibrant.walk import walk
from calibrant.walk.attention import Weigh
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.starving import AS_SEEN, Starved, fed
from calibrant.walk.statistics import blocks_seen, untouched
from calibrant.walk.variants import loss


@dataclass(frozen=True)
class Job:
    """An open model, the tokens it is calibrated on, and its targets.

    `target` is what was asked for, and `targets` has by name what the allocation gives each matrix.

    `done` are the edits of before an interruption: a method yields only the others. They are
    applied, except that in `dense` propagation those that change a block's numbers aren't yet: its
    walk is through the untouched model.

    `journal` is for what a method finds out by trying: after an interruption it is there, and
    needn't be tried again. What an allocation puts into `notes` goes into the record.

    `statistics` is the folder that keeps what the untouched model's matrices saw, None for none;
    `kinds` are the statistics that other jobs will look for there. `starving` has by name the
    matrices of experts that get few tokens, and `starved` says what they are calibrated on.
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

    reread: Callable[[Block], Sequence[Edit]] | None = field(default=None, repr=False)
    """Reads the edits of a finished block that is held; None where `done` has their numbers."""

    @property
    def start(self) -> int:
        """The first block behind all those of which something was replaced before an
        interruption.
        """
        blocks = [edit.block for edit in self.done if edit.block is not None]
        return max(blocks, default=-1) + 1

    def finished(self, block: Block) -> Sequence[Edit]:
        """Return the edits of a block that were made before an interruption. The block must be
        held.
        """
        if self.reread is not None:
            return self.reread(block)
        return [edit for edit in self.done if edit.block == block.index]

    def walk(
        self, observes: tuple[type[Statistic], ...], weigh: Weigh | None = None
    ) -> Iterator[tuple[Weight, Seen]]:
        """Yield each matrix that is still to be compressed with what it saw, as the propagation
        says. `weigh` computes the tokens' weights for each block.

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
        looks_at_untouched = self.propagate == "dense" and bool(observes)
        # `untouched` reads and keeps statistics, and adds up the parts of a mix. A plain walk can
        # do neither.
        if looks_at_untouched and batch is not None and (self.statistics or batch.mixed):
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
        """The folder of statistics; None where matrices see something else in this job.

        It holds what they see in the model with all its parts, where experts get the tokens that
        their router sends them.
        """
        if any(kind != Replace.kind for kind in self.applied_kinds):
            return None
        if self.starving and self.starved == "all_tokens":
            return None
        return self.statistics

    def blocks(self, observes: tuple[type[Statistic], ...]) -> Iterator[tuple[Block, Seen]]:
        """Yield each block of the model as it is now, with what it did to its input and which
        experts its router picked; of a mix the sum over its parts.
        """
        # What is kept in the folder is of the untouched model.
        root = None if self.applied_kinds else self.statistics
        seen_by_block = blocks_seen(
            self.opened, self.view, self.tokens(), observes, root=root, ranks=self.ranks
        )
        for block, seen in seen_by_block:
            self.progress("looking at blocks", block.index + 1, len(self.view.blocks))
            yield block, seen

    def loss(self) -> float:
        """Return the loss of the model as it is now on the calibration tokens, in nats a token.

        A token counts by its weight; of a mix, each part by its share. Padding is neither predicted
        nor counted.
        """
        return loss(self.view, self.tokens(), self.ranks)

    @contextmanager
    def trying(self, edit: Edit) -> Iterator[None]:
        """Apply `edit` while the context lasts, and undo it at its end, whatever happens in it;
        also where it fails half way.
        """
        # Before it is applied: to undo is to put back what is there now.
        undo = edit.undo(self.view)
        try:
            edit.apply(self.view)
            yield
        finally:
            undo()

    def tokens(self) -> TokenBatch:
        """Return the calibration tokens. Raises `SpecError` where there are none."""
        if self.batch is None:
            raise SpecError(
                "this method looks at calibration data; give --data (in Python data=)",
                subject="data",
            )
        return self.batch
