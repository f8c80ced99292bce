"""What the untouched model's matrices see of each source and of each judge: gathered once, stored
on disk, read a block at a time.

Of the sampled blocks the statistics are stored in pieces too: a batch's tokens dealt onto a few
sums, so that halves of it can be compared. The pieces come of the same walk that gathers the whole,
and are stored beside it, of the sampled blocks alone:

    ROOT/<identity of the whole>-piece-00/…

Each micro-batch gives two pieces, the rows of its first and of its second half. They are dealt in
turn onto at most as many sums as there is room for: those of the first micro-batch stand first,
then those of the second, and so on from the first sum again.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, InputStatistic, Seen
from calibrant.data import TokenBatch
from calibrant.lab.mixtures.aims import statistic_of
from calibrant.lab.mixtures.algebra import Sample, SharedInput, Shares, blended, shared_inputs
from calibrant.methods import MatrixMethod
from calibrant.models import Block, ModelView, Opened, Weight
from calibrant.system.progress import Progress, silent
from calibrant.walk import walk
from calibrant.walk.statistics import Dense, Statistics, by_block, gather, statistics_id


class Pieces(InputStatistic, ABC):
    """Several statistics of one kind; adding deals the other's pieces onto one's own, up to
    `most` of them.
    """

    most: ClassVar[int]

    def __init__(self, parts: Sequence[InputStatistic], dealt: int) -> None:
        self.parts, self.dealt = tuple(parts), dealt
        self.tokens, self.mass = (
            sum(part.tokens for part in parts),
            sum(part.mass for part in parts),
        )

    @staticmethod
    @abstractmethod
    def kind() -> type[InputStatistic]:
        """What the pieces are."""

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "Pieces":
        """Two pieces, or one of a single token."""
        cut = (len(x) + 1) // 2
        halves = [slice(0, cut), slice(cut, len(x))] if len(x) > 1 else [slice(0, len(x))]
        parts = [
            cls.kind().of(x[half], None if weights is None else weights[half]) for half in halves
        ]
        return cls(parts, len(parts))

    def __add__(self, other: "Pieces") -> "Pieces":
        # Dealt like cards: the pieces of one micro-batch go to different sums, and after the last
        # sum comes the first again.
        parts: list[Any] = list(self.parts)
        for place, part in enumerate(other.parts, self.dealt):
            if place < self.most:
                parts.append(part)
            else:
                parts[place % self.most] = parts[place % self.most] + part
        return type(self)(parts, self.dealt + len(other.parts))

    def __mul__(self, factor: float) -> "Pieces":
        return type(self)([part * factor for part in self.parts], self.dealt)

    def norms(self) -> Float[Tensor, "in"]:
        return torch.stack([part.norms() for part in self.parts]).sum(0)


@final
class NormPieces(Pieces):
    """Pieces of the inputs' norms."""

    most: ClassVar[int] = 16

    @staticmethod
    def kind() -> type[InputStatistic]:
        return FeatureNorms


@final
class GramPieces(Pieces):
    """Pieces of a Gram; few, because each is as large as the whole."""

    most: ClassVar[int] = 8

    @staticmethod
    def kind() -> type[InputStatistic]:
        return Gram


PIECES: Final[Mapping[type[InputStatistic], type[Pieces]]] = {
    FeatureNorms: NormPieces,
    Gram: GramPieces,
}
"""What is gathered in pieces beside a statistic."""


@final
class StoredPieces:
    """The pieces of one batch on disk. `name` is the identity of the whole's statistics."""

    def __init__(self, root: Path, name: str, kind: type[InputStatistic]) -> None:
        self._root, self._name, self._kind, self._pieces = root, name, kind, PIECES[kind]

    def holds(self, block: Block) -> bool:
        """Whether all of the block's pieces are stored."""
        count = self._part(0).pieces(self._kind, block)
        return count > 0 and all(
            self._part(place).stored_blocks(self._kind, [block]) for place in range(1, count)
        )

    def add(self, block: Block, seen: Mapping[Weight, Seen]) -> None:
        """Store the pieces of a walk."""
        by_weight: dict[Weight, Any] = {weight: of[self._pieces] for weight, of in seen.items()}
        count = max((len(pieces.parts) for pieces in by_weight.values()), default=1)
        # The first piece is written last: it says how many there are.
        for place in reversed(range(count)):
            parts = {
                weight: Seen({self._kind: pieces.parts[place]})
                for weight, pieces in by_weight.items()
                if place < len(pieces.parts)
            }
            self._part(place).add(self._kind, block, parts, count)

    def read(self, block: Block) -> list[Dense]:
        """Return what the block's matrices saw in each piece."""
        count = self._part(0).pieces(self._kind, block)
        return [self._part(place).read([self._kind], block) for place in range(count)]

    def _part(self, place: int) -> Statistics:
        return Statistics(self._root, f"{self._name}-piece-{place:02d}")


def gather_with_pieces(
    seen_by: ModelView,
    batch: TokenBatch,
    kind: type[InputStatistic],
    stored: Statistics,
    pieces: StoredPieces,
    sampled: Sequence[int],
    progress: Progress = silent,
) -> None:
    """Walk through the untouched model once and store what is missing: of all blocks the whole,
    of those `sampled` the pieces too.
    """
    blocks = seen_by.blocks
    whole = stored.stored_blocks(kind, blocks)
    first = next((place for place in sampled if not pieces.holds(blocks[place])), len(blocks))
    if first == len(blocks):
        gather(seen_by, batch, (kind,), stored, progress)
        return
    kinds = (kind, PIECES[kind]) if whole < len(blocks) else (PIECES[kind],)
    # A killed walk may have stored the whole of more blocks than pieces, or the other way round: it
    # goes on where either is missing.
    start = min(whole, first)
    with torch.no_grad():
        for block, seen in by_block(
            blocks[start:], walk(seen_by, batch, kinds, "dense", start=start)
        ):
            if block.index >= whole:
                stored.add(kind, block, seen)
            if block.index in sampled and block.index >= first:
                pieces.add(block, seen)
            progress("statistics", block.index + 1, len(blocks))


@final
@dataclass(frozen=True)
class SetStatistics:
    """One set's tokens, and where what the matrices see of them is stored; `ready` if all of it
    was there already.
    """

    data: str
    batch: TokenBatch
    stored: Statistics
    ready: bool = False

    @property
    def mass(self) -> float:
        """The sum of the weights of its tokens."""
        return float(self.batch.weights.double().sum())


@final
@dataclass(frozen=True)
class MixtureStatistics:
    """All statistics that mixtures of `sources` for `method` need; `judges` have theirs from the
    part that is measured on.

    Of the sources there is the method's own kind of statistic, and of the judges a Gram.
    `meter_blocks` are those with pieces.
    """

    seen_by: ModelView
    method: MatrixMethod
    kind: type[InputStatistic]
    root: Path
    sources: tuple[SetStatistics, ...]
    judges: tuple[SetStatistics, ...]
    meter_blocks: tuple[int, ...]

    @property
    def masses(self) -> list[float]:
        """The sum of the weights of each source's tokens."""
        return [source.mass for source in self.sources]

    def inputs(
        self, sample: Sample, progress: Progress = silent, what: str = "mixtures"
    ) -> Iterator[SharedInput]:
        """Yield the inputs of the sampled blocks, each read when its turn comes."""
        chosen = sample.of_blocks(len(self.seen_by.blocks))
        for done, place in enumerate(chosen):
            progress(what, done, len(chosen))
            block = self.seen_by.blocks[place]
            sources = [source.stored.read([self.kind], block) for source in self.sources]
            yield from shared_inputs(
                sources, [judge.stored.read([Gram], block) for judge in self.judges], sample
            )
        progress(what, len(chosen), len(chosen))

    def mixed(self, shares: Shares) -> Iterator[tuple[Weight, Seen]]:
        """Yield what every matrix of the model sees of a mixture, from the disk; one that no
        token of it reached isn't yielded.
        """
        for block in self.seen_by.blocks:
            parts = [source.stored.read([self.kind], block)[1] for source in self.sources]
            for weight in block.weights:
                if (
                    there := blended([part.get(weight) for part in parts], shares, self.masses)
                ) is not None:
                    yield weight, there

    def pieces(self) -> Iterator[tuple[Block, list[list[Dense]]]]:
        """Yield the blocks that have pieces, with those of each source."""
        for place in self.meter_blocks:
            block = self.seen_by.blocks[place]
            yield (
                block,
                [
                    StoredPieces(self.root, source.stored.name, self.kind).read(block)
                    for source in self.sources
                ],
            )


def gather_statistics(
    opened: Opened,
    seen_by: ModelView,
    method: MatrixMethod,
    sources: Sequence[tuple[str, TokenBatch]],
    judges: Sequence[tuple[str, TokenBatch]],
    root: Path,
    meter: Sample,
    progress: Progress = silent,
) -> MixtureStatistics:
    """Walk through the untouched model once for each source and each judge whose statistics aren't
    in `root` yet.

    A walk that was killed goes on from its last whole block. `SpecError` for a method that looks at
    what can't be kept.
    """
    kind = statistic_of(method)
    blocks = seen_by.blocks
    meter_blocks = tuple(meter.of_blocks(len(blocks)))

    def about(what: str) -> Progress:
        return lambda _, done, total: progress(what, done, total)

    def source(data: str, batch: TokenBatch) -> SetStatistics:
        stored = Statistics(root, statistics_id(opened, batch))
        pieces = StoredPieces(root, stored.name, kind)
        ready = stored.stored_blocks(kind, blocks) == len(blocks) and all(
            pieces.holds(blocks[place]) for place in meter_blocks
        )
        gather_with_pieces(
            seen_by, batch, kind, stored, pieces, meter_blocks, about(f"statistics of {data}")
        )
        return SetStatistics(data, batch, stored, ready)

    def judge(data: str, batch: TokenBatch) -> SetStatistics:
        stored = Statistics(root, statistics_id(opened, batch))
        ready = stored.stored_blocks(Gram, blocks) == len(blocks)
        gather(seen_by, batch, (Gram,), stored, about(f"statistics of {data}, held out"))
        return SetStatistics(data, batch, stored, ready)

    seen, judged = (
        tuple(itertools.starmap(source, sources)),
        tuple(itertools.starmap(judge, judges)),
    )
    return MixtureStatistics(seen_by, method, kind, root, seen, judged, meter_blocks)


def rows_in_common(statistics: MixtureStatistics) -> tuple[str, ...]:
    """Return a sentence for each two judges that judge with the same rows, and for each source that
    holds rows of a judge.

    Such figures count rows twice, or are too good.
    """
    sentences: list[str] = []
    for one, other in itertools.combinations(statistics.judges, 2):
        if same := {*one.batch.examples} & {*other.batch.examples}:
            fewest = min(len(one.batch.examples), len(other.batch.examples))
            sentences.append(
                f"{one.data} and {other.data} judge with the same rows: {len(same)} of {fewest}, which so count twice in mean"
            )
    for source, judge in itertools.product(statistics.sources, statistics.judges):
        if same := {*source.batch.examples} & {*judge.batch.examples}:
            sentences.append(
                f"{len(same)} rows that {judge.data} judges with are in what {source.data} calibrates on: its error there is too good"
            )
    return tuple(sentences)
