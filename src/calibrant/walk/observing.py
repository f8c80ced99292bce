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
) -> Iterator[tuple[Weight, Seen]]:
    """Yield what the untouched model's matrices see, from the block `start` on; of a mix the sum of its parts.

    With a folder `root` it is read from there, and what is lacking is first gathered in one pass, with it the `kinds` that others will want.
    """
    blocks, wanted = view.blocks[start:], tuple(kind for kind in observes if issubclass(kind, InputStatistic))
    parts = batch.mixed or ((1.0, batch),)
    seen: list[Iterator[Dense]] = []
    for name, (_, part) in zip(statistics_ids(opened, batch), parts, strict=True):
        if root is not None and set(wanted) <= set(KINDS):
            kept = Statistics(root, name)
            gather(view, part, [kind for kind in KINDS if kind in (*wanted, *kinds)], kept, progress)
            seen.append(map(partial(kept.read, wanted), blocks))
        else:
            seen.append(by_block(blocks, walk(view, part, wanted, "dense", start=start, ranks=ranks)))
    for _, there in mixed(seen, [factor for factor, _ in parts]) if batch.mixed else seen[0]:
        yield from there.items()


def gather(view: ModelView, batch: TokenBatch, kinds: Iterable[type[InputStatistic]], kept: Statistics, progress: Progress = silent) -> None:
    """Walk through the untouched model once, and keep what is lacking of these `kinds`, block by block."""
    blocks = view.blocks
    here = {kind: kept.held(kind, blocks) for kind in kinds}
    lacking = {kind: count for kind, count in here.items() if count < len(blocks)}
    if not lacking:
        return
    start = min(lacking.values())
    with torch.no_grad():
        for block, seen in by_block(blocks[start:], walk(view, batch, tuple(lacking), "dense", start=start)):
            for kind, count in lacking.items():
                if block.index >= count:
                    kept.add(kind, block, seen)
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
        kept = Statistics(root, name)
        lacking = tuple(kind for kind in observes if kept.held(kind, view.blocks) < len(view.blocks))
        for block, there in walk_blocks(view, part, lacking, ranks=ranks) if lacking else ():
            for kind in lacking:
                kept.add_block(kind, block, there)
        seen.append((block, kept.read_block(observes, block)) for block in view.blocks)
    for several in zip(*seen, strict=True):
        shares = [there * share if batch.mixed else there for (_, there), (share, _) in zip(several, parts, strict=True)]
        yield several[0][0], reduce(operator.add, shares)
