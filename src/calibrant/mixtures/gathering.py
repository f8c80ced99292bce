"""What the untouched model's matrices see of each source and of each judge: gathered once, kept on disk, read a block at a time."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from calibrant.activations import Gram, InputStatistic
from calibrant.data import TokenBatch
from calibrant.errors import SpecError
from calibrant.methods import MatrixMethod, Method
from calibrant.mixtures.algebra import Group, groups_of
from calibrant.mixtures.pieces import KeptPieces, gather_with_pieces
from calibrant.mixtures.sampling import Sample
from calibrant.models import Block, ModelView, Opened
from calibrant.progress import Progress, silent
from calibrant.walk.observing import gather
from calibrant.walk.statistics import KINDS, Dense, Statistics, statistics_id


@final
@dataclass(frozen=True)
class Watched:
    """One set's tokens, and where what the matrices see of them is kept; `ready` if all of it was there before it was asked for."""

    data: str
    batch: TokenBatch
    kept: Statistics
    ready: bool = False

    @property
    def mass(self) -> float:
        """The sum of the weights of its tokens."""
        return float(self.batch.weights.double().sum())


@final
@dataclass(frozen=True)
class Gathered:
    """All statistics that mixtures of `sources` for `method` need; `judges` have theirs from the part that is measured on.

    The method's own kind of statistic is kept of the sources, and a Gram of the judges.
    """

    seen_by: ModelView
    method: MatrixMethod
    kind: type[InputStatistic]
    root: Path
    sources: tuple[Watched, ...]
    judges: tuple[Watched, ...]
    metered: tuple[int, ...]

    @property
    def masses(self) -> list[float]:
        """Those of the sources."""
        return [source.mass for source in self.sources]

    def groups(self, sample: Sample, progress: Progress = silent, what: str = "mixtures") -> Iterator[Group]:
        """The groups of the sampled blocks, each read when its turn comes."""
        chosen = sample.of_blocks(len(self.seen_by.blocks))
        for done, place in enumerate(chosen):
            progress(what, done, len(chosen))
            block = self.seen_by.blocks[place]
            sources = [source.kept.read([self.kind], block) for source in self.sources]
            yield from groups_of(sources, [judge.kept.read([Gram], block) for judge in self.judges], sample)
        progress(what, len(chosen), len(chosen))

    def pieces(self) -> Iterator[tuple[Block, list[list[Dense]]]]:
        """The metered blocks, with the pieces of each source."""
        for place in self.metered:
            block = self.seen_by.blocks[place]
            yield block, [KeptPieces(self.root, source.kept.name, self.kind).read(block) for source in self.sources]


def gathered(
    opened: Opened,
    seen_by: ModelView,
    method: MatrixMethod,
    sources: Sequence[tuple[str, TokenBatch]],
    judges: Sequence[tuple[str, TokenBatch]],
    root: Path,
    meter: Sample,
    progress: Progress = silent,
) -> Gathered:
    """Walk through the untouched model once for each source and each judge whose statistics aren't in `root` yet.

    A walk that was killed goes on from its last whole block. `SpecError` for a method that looks at nothing, or at what can't be kept.
    """
    kind = kind_of(method)
    blocks = seen_by.blocks
    metered = tuple(meter.of_blocks(len(blocks)))

    def source(data: str, batch: TokenBatch) -> Watched:
        kept = Statistics(root, statistics_id(opened, batch))
        pieces = KeptPieces(root, kept.name, kind)
        ready = kept.held(kind, blocks) == len(blocks) and all(pieces.holds(blocks[place]) for place in metered)
        gather_with_pieces(seen_by, batch, kind, kept, pieces, metered, _about(f"statistics of {data}", progress))
        return Watched(data, batch, kept, ready)

    def judge(data: str, batch: TokenBatch) -> Watched:
        kept = Statistics(root, statistics_id(opened, batch))
        ready = kept.held(Gram, blocks) == len(blocks)
        gather(seen_by, batch, (Gram,), kept, _about(f"statistics of {data}, held out", progress))
        return Watched(data, batch, kept, ready)

    seen, judged = tuple(itertools.starmap(source, sources)), tuple(itertools.starmap(judge, judges))
    return Gathered(seen_by, method, kind, root, seen, judged, metered)


def _about(what: str, progress: Progress) -> Progress:
    return lambda _, done, total: progress(what, done, total)


def kind_of(method: Method) -> type[InputStatistic]:
    """The one statistic that the method reads of a matrix's inputs."""
    kinds = [kind for kind in KINDS if kind in method.observes]
    if not method.looks:
        raise SpecError(f"{method} looks at no data, so every mixture gives the same weights; choose wanda or sparsegpt", subject=str(method))
    if not isinstance(method, MatrixMethod) or len(kinds) != 1 or len(method.observes) != 1:
        raise SpecError(
            f"{method} looks at {', '.join(k.__name__ for k in method.observes) or 'the loss'}; statistics of a mixture are added up for methods "
            "that look at FeatureNorms or at a Gram alone, such as wanda and sparsegpt",
            subject=str(method),
        )
    return kinds[0]


def in_common(kept: Gathered) -> tuple[str, ...]:
    """A sentence for each two judges that judge with the same rows, and for each source that holds rows of a judge: such figures count rows twice,
    or are too good."""
    found: list[str] = []
    for one, other in itertools.combinations(kept.judges, 2):
        if same := {*one.batch.examples} & {*other.batch.examples}:
            fewest = min(len(one.batch.examples), len(other.batch.examples))
            found.append(f"{one.data} and {other.data} judge with the same rows: {len(same)} of {fewest}, which so count twice in mean")
    for source, judge in itertools.product(kept.sources, kept.judges):
        if same := {*source.batch.examples} & {*judge.batch.examples}:
            found.append(f"{len(same)} rows that {judge.data} judges with are in what {source.data} calibrates on: its error there is too good")
    return tuple(found)
