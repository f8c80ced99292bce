"""What the matrices and blocks of a model see of a batch: by a walk, or from the disk, where an earlier walk through the untouched model kept it."""

import operator
from collections.abc import Iterable, Iterator
from functools import partial, reduce
from pathlib import Path

import torch

from calibrant.activations import InputStatistic, Seen, Statistic
from calibrant.data import TokenBatch
from calibrant.models import Block, ModelView, Opened, Weight
from calibrant.progress import Progress, silent
from calibrant.walk.attention import Weigh
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.statistics import BLOCK_KINDS, KINDS, Dense, Statistics, by_block, mixed, statistics_ids
from calibrant.walk.walking import walk, walk_blocks


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
    """Yield what the untouched model's matrices see, from the block `start` on; of a mix the sum of its parts.

    With a folder `root` it is read from there, and what is lacking is first gathered in one pass, with it the `kinds` that others will want.
    What is kept there isn't weighed, so with `weigh` nothing is read.
    """
    blocks, input_kinds = view.blocks[start:], tuple(kind for kind in observes if issubclass(kind, InputStatistic))
    parts = batch.mixed or ((1.0, batch),)
    seen: list[Iterator[Dense]] = []
    for name, (_, part) in zip(statistics_ids(opened, batch), parts, strict=True):
        if root is not None and weigh is None and set(input_kinds) <= set(KINDS):
            stored = Statistics(root, name)
            gather(view, part, [kind for kind in KINDS if kind in (*input_kinds, *kinds)], stored, progress)
            seen.append(map(partial(stored.read, input_kinds), blocks))
        else:
            seen.append(by_block(blocks, walk(view, part, input_kinds, "dense", start=start, ranks=ranks, weigh=weigh)))
    for _, by_weight in mixed(seen, [factor for factor, _ in parts]) if batch.mixed else seen[0]:
        yield from by_weight.items()


def gather(view: ModelView, batch: TokenBatch, kinds: Iterable[type[InputStatistic]], stored: Statistics, progress: Progress = silent) -> None:
    """Walk through the untouched model once, and keep what is lacking of these `kinds`, block by block."""
    blocks = view.blocks
    counts = {kind: stored.stored_blocks(kind, blocks) for kind in kinds}
    missing = {kind: count for kind, count in counts.items() if count < len(blocks)}
    if not missing:
        return
    start = min(missing.values())
    with torch.no_grad():
        for block, seen in by_block(blocks[start:], walk(view, batch, tuple(missing), "dense", start=start)):
            for kind in [kind for kind, count in missing.items() if block.index >= count]:
                stored.add(kind, block, seen)
            progress("statistics", block.index + 1, len(blocks))


def blocks_seen(
    opened: Opened, view: ModelView, batch: TokenBatch, observes: tuple[type[Statistic], ...], *, root: Path | None = None, ranks: Ranks = ALONE
) -> Iterator[tuple[Block, Seen]]:
    """Yield what each block of the model does to its input, and whom its router picks; of a mix the sum of its parts.

    With a folder `root` the model must be untouched: it is read from there, and what is lacking is first gathered in one pass.
    """
    parts = batch.mixed or ((1.0, batch),)
    seen: list[Iterator[tuple[Block, Seen]]] = []
    for name, (_, part) in zip(statistics_ids(opened, batch), parts, strict=True):
        if root is None or not set(observes) <= set(BLOCK_KINDS):
            seen.append(walk_blocks(view, part, observes, ranks=ranks))
            continue
        stored = Statistics(root, name)
        missing = tuple(kind for kind in observes if stored.stored_blocks(kind, view.blocks) < len(view.blocks))
        for block, there in walk_blocks(view, part, missing, ranks=ranks) if missing else ():
            for kind in missing:
                stored.add_block(kind, block, there)
        seen.append((block, stored.read_block(observes, block)) for block in view.blocks)
    for entries in zip(*seen, strict=True):
        shares = [there * share if batch.mixed else there for (_, there), (share, _) in zip(entries, parts, strict=True)]
        yield entries[0][0], reduce(operator.add, shares)
