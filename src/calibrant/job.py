"""What a method is given to work with: an open model, its calibration tokens, and the target of each matrix."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from calibrant.activations import Seen, Statistic
from calibrant.data import TokenBatch, micro_batches
from calibrant.edits import Edit, Replace
from calibrant.errors import SpecError
from calibrant.models import Block, ModelView, Opened, Weight
from calibrant.progress import Progress, silent
from calibrant.targets import Target
from calibrant.walk import TOKENS_PER_PASS, Propagation, walk
from calibrant.walk.attention import Weigh
from calibrant.walk.observing import blocks_seen, untouched
from calibrant.walk.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Job:
    """An open model, the tokens it is calibrated on, and its targets.

    `targets` has the target that the allocation gives each matrix, by name. `done` are edits that were applied before an interruption: a method
    yields only the others. In `dense` propagation, and there alone, edits of `done` that change a block's numbers are not applied yet, since the
    walk is through the untouched model. `statistics` is the folder that keeps what the untouched model's matrices saw, None for none; `kinds` are
    what others need there.
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
    applied_kinds: list[str] = field(default_factory=list[str])
    """The kinds of the edits that were applied, those of `done` included."""

    @property
    def start(self) -> int:
        """The first block of which no matrix was replaced before an interruption."""
        return max((edit.block for edit in self.done if edit.block is not None), default=-1) + 1

    def walk(self, observes: tuple[type[Statistic], ...], weigh: Weigh | None = None) -> Iterator[tuple[Weight, Seen]]:
        """Yield each matrix that is still to be compressed with what it saw, as the propagation says; `weigh` weighs tokens block by block.

        A matrix that no token reached isn't yielded. An edit of the matrix is applied before the next one is asked for. Raises `WalkError`
        and `NumericsError` as `calibrant.walk.walk` does.
        """
        if self.propagate == "dense" and self.batch is not None and observes and (self.statistics or self.batch.mixed):
            root = self.statistics if set(self.applied_kinds) <= {Replace.kind} else None  # what is kept there is of the model with all its parts
            how = {"start": self.start, "root": root, "kinds": self.kinds, "progress": self.progress, "ranks": self.ranks, "weigh": weigh}
            return untouched(self.opened, self.view, self.batch, observes, **how)
        return walk(self.view, self.batch, observes, self.propagate, start=self.start, ranks=self.ranks, weigh=weigh)

    def blocks(self, observes: tuple[type[Statistic], ...]) -> Iterator[tuple[Block, Seen]]:
        """Yield each block of the model as it is now, with what it did to its input and whom its router picked; of a mix the sum."""
        root = None if self.applied_kinds else self.statistics  # what is kept there is of the untouched model
        for block, seen in blocks_seen(self.opened, self.view, self._shown(), observes, root=root, ranks=self.ranks):
            self.progress("looking at blocks", block.index + 1, len(self.view.blocks))
            yield block, seen

    def loss(self) -> float:
        """Measure what the model as it is now loses on the calibration tokens, in nats a token; a token counts by its weight.

        Of a mix, the loss of each part counts by its share. Padding is neither predicted nor counted.
        """
        batch = self._shown()
        parts = batch.mixed or ((1.0, batch),)
        losses = [(share, self._loss_of(part)) for share, part in parts]
        return sum(share * loss for share, loss in losses) / sum(share for share, _ in losses)

    @contextmanager
    def trying(self, edit: Edit) -> Iterator[None]:
        """Apply `edit` while the context lasts, and undo it at its end, whatever happens in it."""
        undo = edit.undo(self.view)
        edit.apply(self.view)
        try:
            yield
        finally:
            undo()

    def _shown(self) -> TokenBatch:
        if self.batch is None:
            raise SpecError("this method looks at calibration data; give --data", subject="data")
        return self.batch

    def _loss_of(self, batch: TokenBatch) -> float:
        device = next(self.view.model.parameters()).device
        sums = [_summed(self.view, *(part.to(device) for part in few)) for few in self.ranks.share(list(micro_batches(batch, TOKENS_PER_PASS)))]
        everywhere = self.ranks.gathered(sums)
        return sum(nats for nats, _ in everywhere) / sum(mass for _, mass in everywhere)


def _summed(view: ModelView, ids: Tensor, mask: Tensor, weights: Tensor) -> tuple[float, float]:
    """Σ w·nats and Σ w over the tokens of these windows that something stands before."""
    with torch.no_grad():
        padding = {} if bool(mask.all()) else {"attention_mask": mask.long()}
        logits = view.model(input_ids=ids, use_cache=False, **padding).logits
        nats = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    counted = (weights[:, 1:] * mask[:, :-1]).flatten().double()
    return float((nats.double() * counted).sum()), float(counted.sum())
