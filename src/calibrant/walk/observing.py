"""What the matrices and blocks of a model see of a batch: by a walk, or from the disk, where an
earlier walk through the untouched model kept it.
"""

import operator
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import final

import torch

from calibrant.activations import InputStatistic, Seen, Statistic
from calibrant.data import TokenBatch
from calibrant.models import Block, ModelView, Opened, Weight
from calibrant.numerics import not_finite
from calibrant.system.progress import Progress, silent
from calibrant.walk.attention import Weigh
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.statistics import (
    BLOCK_KINDS,
    KINDS,
    Dense,
    Statistics,
    by_block,
    mixed,
    statistics_ids,
)
from calibrant.walk.walking import one_by_one, walk, walk_blocks


@final
class SeenByMatrix(Mapping[Weight, Seen]):
    """All matrices of a model with what each of them sees; nothing of one that no token reached.

    `items()` goes through the model and holds what one block sees at a time, so that of a large
    model whatever sums up can be read. Looking a matrix up reads all of them into memory, once.
    """

    def __init__(
        self, weights: Sequence[Weight], through: Callable[[], Iterable[tuple[Weight, Seen]]]
    ) -> None:
        self._weights, self._through = tuple(weights), through

    def __iter__(self) -> Iterator[Weight]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, weight: Weight) -> Seen:
        return self._all[weight]

    def items(self) -> ItemsView[Weight, Seen]:
        return _InTurn(self, self._in_turn)

    @cached_property
    def _all(self) -> dict[Weight, Seen]:
        return dict(self._in_turn())

    def _in_turn(self) -> Iterator[tuple[Weight, Seen]]:
        """Those that tokens reach as the walk comes to them, then the others."""
        left = dict.fromkeys(self._weights)
        for weight, seen in self._through():
            del left[weight]
            yield weight, seen
        yield from ((weight, Seen({})) for weight in left)


class _InTurn(ItemsView[Weight, Seen]):
    """Items that are made anew each time somebody goes through them."""

    def __init__(
        self, of: SeenByMatrix, in_turn: Callable[[], Iterator[tuple[Weight, Seen]]]
    ) -> None:
        super().__init__(of)
        self._in_turn = in_turn

    def __iter__(self) -> Iterator[tuple[Weight, Seen]]:
        return self._in_turn()


def untouched(
    opened: Opened,
    view: ModelView,
    batch: TokenBatch,
    observes: tuple[type[Statistic], ...],
    *,
    start: int = 0,
    root: Path | None = None,
    kinds: Iterable[type[Statistic]] = (),
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    weigh: Weigh | None = None,
) -> Iterator[tuple[Weight, Seen]]:
    """Yield what the untouched model's matrices see, from the block `start` on; of a mix the sum of
    its parts.

    With a folder `root` it is read from there, and what is lacking is first gathered in one pass,
    with it the `kinds` that others will want. What is kept there isn't weighed, so with `weigh`
    nothing is read.
    """
    blocks, input_kinds = (
        view.blocks[start:],
        tuple(kind for kind in observes if issubclass(kind, InputStatistic)),
    )
    parts = batch.mixed or ((1.0, batch),)
    seen: list[Iterator[Dense]] = []
    for name, (_, part) in zip(statistics_ids(opened, batch), parts, strict=True):
        if root is not None and weigh is None and set(input_kinds) <= set(KINDS):
            stored = Statistics(root, name)
            gather(
                view,
                part,
                [kind for kind in KINDS if kind in (*input_kinds, *kinds)],
                stored,
                progress,
            )
            seen.append(map(partial(stored.read, input_kinds), blocks))
        else:
            seen.append(
                by_block(
                    blocks,
                    walk(view, part, input_kinds, "dense", start=start, ranks=ranks, weigh=weigh),
                )
            )
    for block, by_weight in (
        mixed(seen, [factor for factor, _ in parts]) if batch.mixed else seen[0]
    ):
        with view.held(block):
            yield from one_by_one(by_weight)


def gather(
    view: ModelView,
    batch: TokenBatch,
    kinds: Iterable[type[InputStatistic]],
    stored: Statistics,
    progress: Progress = silent,
) -> None:
    """Walk through the untouched model once, and keep what is lacking of these `kinds`, block by
    block.
    """
    blocks = view.blocks
    counts = {kind: stored.stored_blocks(kind, blocks) for kind in kinds}
    missing = {kind: count for kind, count in counts.items() if count < len(blocks)}
    if not missing:
        return
    start = min(missing.values())
    with torch.no_grad():
        for block, seen in by_block(
            blocks[start:], walk(view, batch, tuple(missing), "dense", start=start)
        ):
            for kind in [kind for kind, count in missing.items() if block.index >= count]:
                stored.add(kind, block, seen)
            progress("statistics", block.index + 1, len(blocks))


def blocks_seen(
    opened: Opened,
    view: ModelView,
    batch: TokenBatch,
    observes: tuple[type[Statistic], ...],
    *,
    root: Path | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Block, Seen]]:
    """Yield what each block of the model does to its input, and whom its router picks; of a mix the
    sum of its parts.

    With a folder `root` the model must be untouched: it is read from there, and what is lacking is
    first gathered in one pass.
    """
    parts = batch.mixed or ((1.0, batch),)
    seen: list[Iterator[tuple[Block, Seen]]] = []
    for name, (_, part) in zip(statistics_ids(opened, batch), parts, strict=True):
        if root is None or not set(observes) <= set(BLOCK_KINDS):
            seen.append(walk_blocks(view, part, observes, ranks=ranks))
            continue
        stored = Statistics(root, name)
        missing = tuple(
            kind for kind in observes if stored.stored_blocks(kind, view.blocks) < len(view.blocks)
        )
        for block, there in walk_blocks(view, part, missing, ranks=ranks) if missing else ():
            for kind in missing:
                stored.add_block(kind, block, there)
        seen.append((block, stored.read_block(observes, block)) for block in view.blocks)
    for entries in zip(*seen, strict=True):
        shares = [
            there * share if batch.mixed else there
            for (_, there), (share, _) in zip(entries, parts, strict=True)
        ]
        block, there = entries[0][0], reduce(operator.add, shares)
        _check_statistics(block, there)
        yield block, there


def _check_statistics(block: Block, seen: Seen) -> None:
    """Raise `NumericsError` for sums that aren't finite, those that were kept on disk too."""
    if not all(statistic.finite() for statistic in seen.values()):
        raise not_finite(f"the statistics of {block.name}", block.name)
