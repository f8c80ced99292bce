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
from calibrant.data import KnownExamples, TokenBatch
from calibrant.lab.mixtures.aims import statistic_of
from calibrant.lab.mixtures.algebra import Sample, SharedInput, Shares, blended, shared_inputs
from calibrant.methods import MatrixMethod
from calibrant.models import Block, ModelView, Opened, Weight
from calibrant.system.progress import Progress, silent
from calibrant.targets import Target
from calibrant.walk import walk
from calibrant.walk.statistics import SeenInBlock, Statistics, by_block, gather, statistics_id


class Pieces(InputStatistic, ABC):
    """Several statistics of one kind; adding deals the other's pieces onto one's own, up to
    `most` of them.
    """

    most: ClassVar[int]

    def __init__(self, parts: Sequence[InputStatistic], dealt: int) -> None:
        self.parts = tuple(parts)
        self.dealt = dealt
        self.tokens = sum(part.tokens for part in parts)
        self.mass = sum(part.mass for part in parts)

    @staticmethod
    @abstractmethod
    def kind() -> type[InputStatistic]:
        """What the pieces are."""

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "Pieces":
        """Return two pieces. Of a single token the second is empty, so that pieces stay in pairs
        of one micro-batch each.
        """
        cut = (len(x) + 1) // 2
        parts: list[InputStatistic] = []
        for half in (slice(0, cut), slice(cut, len(x))):
            part_weights = None if weights is None else weights[half]
            parts.append(cls.kind().of(x[half], part_weights))
        return cls(parts, len(parts))

    def __add__(self, other: "Pieces") -> "Pieces":
        # Dealt like cards: the pieces of one micro-batch go to different sums, and after the last
        # sum comes the first again.
        parts: list[Any] = list(self.parts)
        # `dealt` says how many pieces came so far, so the turn goes on from there.
        for place, part in enumerate(other.parts, self.dealt):
            if place < self.most:
                parts.append(part)
            else:
                turn = place % self.most
                parts[turn] = parts[turn] + part
        return type(self)(parts, self.dealt + len(other.parts))

    def __mul__(self, factor: float) -> "Pieces":
        return type(self)([part * factor for part in self.parts], self.dealt)

    def norms(self) -> Float[Tensor, "in"]:
        by_part = [part.norms() for part in self.parts]
        return torch.stack(by_part).sum(0)


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
        self._root = root
        self._name = name
        self._kind = kind

    def holds(self, block: Block) -> bool:
        """Return whether all of the block's pieces are stored."""
        count = self._part(0).pieces(self._kind, block)
        if count == 0:
            return False
        for place in range(1, count):
            if not self._part(place).stored_blocks(self._kind, [block]):
                return False
        return True

    def add(self, block: Block, seen: Mapping[Weight, Seen]) -> None:
        """Store the pieces of a walk."""
        pieces: dict[Weight, Any] = {}
        count = 1
        for weight, statistics in seen.items():
            pieces[weight] = statistics[PIECES[self._kind]].parts
            count = max(count, len(pieces[weight]))
        # The first piece is written last: it says how many there are.
        for place in reversed(range(count)):
            part: dict[Weight, Seen] = {}
            for weight, parts in pieces.items():
                if place < len(parts):
                    part[weight] = Seen({self._kind: parts[place]})
            self._part(place).add(self._kind, block, part, count)

    def read(self, block: Block) -> list[SeenInBlock]:
        """Return what the block's matrices saw in each piece."""
        count = self._part(0).pieces(self._kind, block)
        pieces: list[SeenInBlock] = []
        for place in range(count):
            part = self._part(place)
            pieces.append(part.read([self._kind], block))
        return pieces

    def _part(self, place: int) -> Statistics:
        return Statistics(self._root, f"{self._name}-piece-{place:02d}")


def gather_with_pieces(
    view: ModelView,
    batch: TokenBatch,
    kind: type[InputStatistic],
    stored: Statistics,
    pieces: StoredPieces,
    sampled: Sequence[int],
    progress: Progress = silent,
) -> None:
    """Walk through the untouched model once and store what is missing.

    Of all blocks that is the whole, and of those `sampled` the pieces too.
    """
    blocks = view.blocks
    stored_count = stored.stored_blocks(kind, blocks)
    lacking = [place for place in sampled if not pieces.holds(blocks[place])]
    if not lacking:
        gather(view, batch, (kind,), stored, progress)
        return
    first_lacking = lacking[0]
    kinds: tuple[type[InputStatistic], ...] = (PIECES[kind],)
    if stored_count < len(blocks):
        kinds = (kind, PIECES[kind])
    # A killed walk may have stored the whole of more blocks than pieces, or the other way round: it
    # goes on where either is missing.
    start = min(stored_count, first_lacking)
    with torch.no_grad():
        walked = walk(view, batch, kinds, "dense", start=start)
        for block, seen in by_block(blocks[start:], walked):
            if block.index >= stored_count:
                stored.add(kind, block, seen)
            if block.index in sampled and block.index >= first_lacking:
                pieces.add(block, seen)
            progress("statistics", block.index + 1, len(blocks))


@final
@dataclass(frozen=True)
class SetStatistics:
    """One set's tokens, and where what the matrices see of them is stored.

    `ready` says that all of it was there already.
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
    """All statistics that mixtures of `sources` for `method` need.

    Of the sources there is the method's own kind of statistic. Of the judges there is a Gram, from
    the part that is measured on. `meter_blocks` are those with pieces.
    """

    view: ModelView
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
        self,
        sample: Sample,
        target: Target,
        progress: Progress = silent,
        what: str = "mixtures",
    ) -> Iterator[SharedInput]:
        """Yield the inputs of the sampled blocks, each read when its turn comes, with the `target`
        of their matrices.
        """
        chosen = sample.of_blocks(len(self.view.blocks))
        for done, place in enumerate(chosen):
            progress(what, done, len(chosen))
            block = self.view.blocks[place]
            sources = [source.stored.read([self.kind], block) for source in self.sources]
            judges = [judge.stored.read([Gram], block) for judge in self.judges]
            yield from shared_inputs(sources, judges, sample, target)
        progress(what, len(chosen), len(chosen))

    def mixed(self, shares: Shares) -> Iterator[tuple[Weight, Seen]]:
        """Yield what every matrix of the model sees of a mixture, from the disk; one that no
        token of it reached isn't yielded.
        """
        masses = self.masses
        for block in self.view.blocks:
            by_source: list[Mapping[Weight, Seen]] = []
            for source in self.sources:
                _, statistics = source.stored.read([self.kind], block)
                by_source.append(statistics)
            for weight in block.weights:
                parts = [statistics.get(weight) for statistics in by_source]
                seen = blended(parts, shares, masses)
                if seen is not None:
                    yield weight, seen

    def pieces(self) -> Iterator[tuple[Block, list[list[SeenInBlock]]]]:
        """Yield the blocks that have pieces, with those of each source."""
        for place in self.meter_blocks:
            block = self.view.blocks[place]
            pieces: list[list[SeenInBlock]] = []
            for source in self.sources:
                stored = StoredPieces(self.root, source.stored.name, self.kind)
                pieces.append(stored.read(block))
            yield block, pieces


def gather_statistics(
    opened: Opened,
    view: ModelView,
    method: MatrixMethod,
    sources: Sequence[tuple[str, TokenBatch]],
    judges: Sequence[tuple[str, TokenBatch]],
    root: Path,
    meter: Sample,
    progress: Progress = silent,
) -> MixtureStatistics:
    """Walk through the untouched model once for each source and each judge whose statistics aren't
    in `root` yet.

    A walk that was killed goes on from its last whole block. Raises `SpecError` for a method that
    looks at what can't be kept.
    """
    kind = statistic_of(method)
    blocks = view.blocks
    meter_blocks = tuple(meter.of_blocks(len(blocks)))
    gathered: list[SetStatistics] = []
    for data, batch in sources:
        stored = Statistics(root, statistics_id(opened, batch))
        pieces = StoredPieces(root, stored.name, kind)
        ready = stored.stored_blocks(kind, blocks) == len(blocks)
        for place in meter_blocks:
            ready = ready and pieces.holds(blocks[place])
        stage_progress = _called(progress, f"statistics of {data}")
        gather_with_pieces(view, batch, kind, stored, pieces, meter_blocks, stage_progress)
        gathered.append(SetStatistics(data, batch, stored, ready))
    judging: list[SetStatistics] = []
    for data, batch in judges:
        stored = Statistics(root, statistics_id(opened, batch))
        ready = stored.stored_blocks(Gram, blocks) == len(blocks)
        gather(view, batch, (Gram,), stored, _called(progress, f"statistics of {data}, held out"))
        judging.append(SetStatistics(data, batch, stored, ready))
    return MixtureStatistics(
        view, method, kind, root, tuple(gathered), tuple(judging), meter_blocks
    )


def _called(progress: Progress, stage: str) -> Progress:
    """Progress of a stage that is called otherwise where it is made."""

    def called(_: str, done: int, total: int) -> None:
        progress(stage, done, total)

    return called


def rows_in_common(statistics: MixtureStatistics) -> tuple[str, ...]:
    """Return a sentence for each two judges that judge with the same rows, and for each source that
    holds rows of a judge.

    Such figures count rows twice, or are too good.
    """
    sentences: list[str] = []
    for first_judge, second_judge in itertools.combinations(statistics.judges, 2):
        same = min(_same_rows(first_judge, second_judge), _same_rows(second_judge, first_judge))
        if same:
            fewest = min(len(first_judge.batch.examples), len(second_judge.batch.examples))
            pair = f"{first_judge.data} and {second_judge.data} judge with the same rows"
            sentences.append(f"{pair}: {same} of {fewest}, which so count twice in mean")
    for source, judge in itertools.product(statistics.sources, statistics.judges):
        same = _same_rows(judge, source)
        if same:
            rows = f"{same} rows that {judge.data} judges with are in what {source.data}"
            sentences.append(f"{rows} calibrates on: its error there is too good")
    return tuple(sentences)


def _same_rows(first_set: SetStatistics, second_set: SetStatistics) -> int:
    """How many rows of the first set are examples of the second."""
    known = KnownExamples()
    known.add(row.beginnings for row in second_set.batch.rows)
    same = {row.example for row in first_set.batch.rows if row.beginnings in known}
    return len(same)
