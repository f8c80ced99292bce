"""What the matrices and blocks of an untouched model see of a batch: gathered by a walk, or read
from the disk, where an earlier walk kept it. It serves every method, target and mixture.

    ROOT/<identity>/norms/block-00000.safetensors
    ROOT/<identity>/gram/block-00000.safetensors
    ROOT/<identity>/change/block-00000.safetensors    of the block itself, where that is asked for
    ROOT/<identity>/routing/block-00000.safetensors   of its router
    ROOT/<identity>/kinds/block-00000.safetensors     of the tokens of its experts
    ROOT/<identity>/outputs/block-00000.safetensors   of what its experts give

A file holds one kind of statistic of one block's matrices. A statistic is in it once, however many
matrices share it (q, k and v; gate and up), beside a table of which matrix has which. Norms are
kept in float64, as they are summed; of a Gram the upper triangle is kept, in the type that it was
summed in. Files are mapped into memory when they are read, and give back every bit. A file appears
by rename, so a pass that was killed goes on from its last whole block. Each file is sealed for its
model, tokens and block; one that is damaged, or is of others, is made anew. Factorisations are
never kept.
"""

import operator
import os
import shutil
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property, partial, reduce
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, final

import torch
from torch import Tensor

from calibrant.activations import (
    BlockChange,
    FeatureNorms,
    Gram,
    InputStatistic,
    Routing,
    Seen,
    Statistic,
)
from calibrant.data import TokenBatch
from calibrant.errors import OutputError, SpecError
from calibrant.models import Block, ModelView, Opened, Weight
from calibrant.numerics import not_finite, type_name
from calibrant.results import statistics_purpose
from calibrant.spec import identity
from calibrant.spec.foreign import brief
from calibrant.system import sealed_tensors
from calibrant.system.durable import locked_folder, reason, short
from calibrant.system.progress import Progress, silent
from calibrant.system.sealed_tensors import SealedTensors
from calibrant.system.seals import BrokenSealError, tell_made_again
from calibrant.walk.attention import Weigh
from calibrant.walk.block_statistics import ExpertOutputs, TokenKinds
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.walking import Arrivals, one_by_one, walk, walk_blocks

REVISION: Final = 1
"""To be raised when a change of the code gives other sums of the same model and tokens."""

KINDS: Final[Mapping[type[InputStatistic], str]] = MappingProxyType(
    {FeatureNorms: "norms", Gram: "gram"}
)
"""What can be kept of matrices, and the folder it is kept in."""

BLOCK_KINDS: Final[Mapping[type[Statistic], str]] = MappingProxyType(
    {BlockChange: "change", Routing: "routing", TokenKinds: "kinds", ExpertOutputs: "outputs"}
)
"""What can be kept of blocks, their routers and their experts, and the folder it is kept in."""

SeenInBlock = tuple[Block, dict[Weight, Seen]]
"""A block of the untouched model and what each of its matrices saw; a matrix that no token
reached is absent.
"""


def statistics_id(opened: Opened, batch: TokenBatch) -> str:
    """Return the identity of what this model's matrices see of these tokens: the same for every
    method, target and propagation.
    """
    return identity(
        {
            "statistics": REVISION,
            "model": opened.digest,
            "tokens": batch.fingerprint,
            "dtype": type_name(opened.dtype),
        }
    )


def statistics_ids(opened: Opened, batch: TokenBatch) -> tuple[str, ...]:
    """Return the identities of the statistics that `batch` needs: its own, or of a mix those of its
    parts, so that a part has one identity alone and in every mix.
    """
    if not batch.mixed:
        return (statistics_id(opened, batch),)
    return tuple(statistics_id(opened, part) for _, part in batch.mixed)


def packed_bytes(width: int, kind: type[Statistic], dtype: torch.dtype = torch.float32) -> int:
    """Return how many bytes the statistic of one input of `width` features takes on disk, besides
    some hundred bytes a block; `dtype` is the Gram's.
    """
    if kind is Gram:
        return dtype.itemsize * width * (width + 1) // 2
    return 8 * width


def surplus(sizes: Mapping[str, int], finished: Sequence[str], limit: int) -> list[str]:
    """Return which statistics to delete so that all together take at most `limit` bytes.

    `sizes` has the bytes of each. Only the `finished` may go, those whose last use is over; they
    are in the order of their last uses, and the earliest go first. What is still to be used stays,
    even beyond the limit.
    """
    excess = sum(sizes.values()) - limit
    deleted: list[str] = []
    for name in finished:
        if excess <= 0:
            break
        if name in sizes:
            deleted.append(name)
            excess -= sizes[name]
    return deleted


@final
class Statistics:
    """The folder of one model's statistics of one batch. It is made when the first block is added.

    `name` is the `statistics_id`. One process at a time should add; any number may read. Where two
    add, each writes the same bytes, and the work was done twice.
    """

    def __init__(self, root: str | Path, name: str) -> None:
        self.name = name
        self.folder = Path(root) / name.removeprefix("sha256:")

    def stored_blocks(self, kind: type[Statistic], blocks: Sequence[Block]) -> int:
        """Return how many of the `blocks`, from the first one on without a gap, have their
        statistics here.

        A damaged file counts as a gap, and a line says so.
        """
        for count, block in enumerate(blocks):
            if self._stored_if_whole(kind, block) is None:
                return count
        return len(blocks)

    def has(self, kinds: Iterable[type[Statistic]], count: int) -> bool:
        """Return whether there is a file of each of the `kinds` for each of `count` blocks. None is
        read, so one may be damaged.
        """
        paths = [self._file(kind, index) for kind, index in product(kinds, range(count))]
        return all(path.is_file() for path in paths)

    def held(self) -> AbstractContextManager[bool]:
        """Keep others from removing this while it lasts. Yields False where that can't be done: the
        folder isn't there, or the system has no locks.
        """
        return locked_folder(self.folder, shared=True)

    def pieces(self, kind: type[InputStatistic], block: Block) -> int:
        """Return into how many pieces the tokens were divided, where the block's statistics here
        are of the first piece; 0 if they aren't here.
        """
        stored = self._stored_if_whole(kind, block)
        return 0 if stored is None else stored.facts["pieces"]

    def read(self, kinds: Sequence[type[InputStatistic]], block: Block) -> SeenInBlock:
        """Return what the block's matrices saw, in the order in which a forward used them. Matrices
        that share an input share a `Seen`.

        Raises `OutputError` if it isn't here.
        """
        by_kind = [self._read(kind, block) for kind in kinds]
        weights = {weight.name: weight for weight in block.weights}
        shared: dict[tuple[int, ...], Seen] = {}
        seen: dict[Weight, Seen] = {}
        for name in by_kind[0]:
            statistics = [by_name[name] for by_name in by_kind]
            key = tuple(map(id, statistics))
            if key not in shared:
                shared[key] = Seen(dict(zip(kinds, statistics, strict=True)))
            seen[weights[name]] = shared[key]
        return block, seen

    def add(
        self, kind: type[InputStatistic], block: Block, seen: Mapping[Weight, Seen], pieces: int = 1
    ) -> None:
        """Keep what the block's matrices saw of the first of so many `pieces` of the tokens.

        Raises `OutputError` on a full disk; what was there stays.
        """
        numbers: dict[int, int] = {}
        matrices: dict[str, int] = {}
        sums: list[list[float]] = []
        tensors: dict[str, Tensor] = {}
        for weight, weight_seen in seen.items():
            statistic = weight_seen[kind]
            if id(statistic) not in numbers:
                number = len(numbers)
                numbers[id(statistic)] = number
                sums.append([statistic.tokens, statistic.mass])
                tensors[str(number)] = _numbers_of(statistic)
            matrices[weight.name] = numbers[id(statistic)]
        facts = {"matrices": matrices, "sums": sums, "pieces": pieces}
        self._write(kind, block, facts, tensors)

    def read_block(self, kinds: Sequence[type[Statistic]], block: Block) -> Seen:
        """Return what the block itself did, and whom its router picked: as `walk_blocks` yields
        it. Raises `OutputError` if it isn't here.
        """
        seen: dict[type[Statistic], Statistic] = {}
        for kind in kinds:
            stored = self._stored(kind, block)
            if stored.facts["there"]:
                device = next(block.module.parameters()).device
                tensors = {name: tensor.to(device) for name, tensor in stored.tensors.items()}
                seen[kind] = kind(**stored.facts["numbers"], **tensors)
        return Seen(seen)

    def add_block(self, kind: type[Statistic], block: Block, seen: Seen) -> None:
        """Keep what the block itself did. That a block has no such statistic, since it has no
        router, is kept too. Raises `OutputError` as `add` does.
        """
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        if kind in seen:
            for name, value in seen[kind].held().items():
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    numbers[name] = value
        self._write(kind, block, {"there": kind in seen, "numbers": numbers}, tensors)

    def bytes(self) -> int:
        """Return how many bytes are on disk here. Another process may be writing, so a file that is
        gone meanwhile counts nothing.
        """
        total = 0
        for folder, _, names in os.walk(self.folder):  # a folder that isn't there has no files
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    def remove(self) -> None:
        """Delete all of it, unless it is `held`."""
        with locked_folder(self.folder) as taken:
            if taken:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, kind: type[InputStatistic], block: Block) -> dict[str, InputStatistic]:
        stored = self._stored(kind, block)
        device = block.weights[0].stored.device if block.weights else torch.device("cpu")
        distinct: list[InputStatistic] = []
        for number, (tokens, mass) in enumerate(stored.facts["sums"]):
            numbers = stored.tensors[str(number)].to(device)
            if kind is Gram:
                distinct.append(Gram.unpacked(numbers, tokens, mass))
            else:
                distinct.append(FeatureNorms(numbers, tokens, mass))
        return {name: distinct[number] for name, number in stored.facts["matrices"].items()}

    def _stored_if_whole(self, kind: type[Statistic], block: Block) -> SealedTensors | None:
        """What a file holds; None where it is missing or damaged. Of a damaged one a line tells."""
        try:
            return self._sealed(kind, block)
        except FileNotFoundError:
            return None
        except BrokenSealError:
            tell_made_again("what a model's matrices saw", short(self._path(kind, block)))
            return None

    def _stored(self, kind: type[Statistic], block: Block) -> SealedTensors:
        """What a file holds. Raises `OutputError` if it isn't here, or isn't what was written."""
        try:
            return self._sealed(kind, block)
        except (FileNotFoundError, BrokenSealError) as error:
            path = self._path(kind, block)
            raise OutputError(
                f"{short(path)!r} is gone or is not what was written; ask again, and it is made "
                "anew",
                subject=str(path),
            ) from error

    def _sealed(self, kind: type[Statistic], block: Block) -> SealedTensors:
        purpose = statistics_purpose(self.name, _folder_of(kind), block.index)
        return sealed_tensors.read(self._path(kind, block), purpose)

    def _write(
        self,
        kind: type[Statistic],
        block: Block,
        facts: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        purpose = statistics_purpose(self.name, _folder_of(kind), block.index)
        try:
            sealed_tensors.write(self._path(kind, block), purpose, facts, tensors)
        except OSError as error:
            raise OutputError(
                f"can't keep statistics in {short(self.folder)!r}: {reason(error)}",
                subject=str(self.folder),
            ) from error

    def _path(self, kind: type[Statistic], block: Block) -> Path:
        return self._file(kind, block.index)

    def _file(self, kind: type[Statistic], index: int) -> Path:
        return self.folder / _folder_of(kind) / f"block-{index:05d}.safetensors"


def _folder_of(kind: type[Statistic]) -> str:
    return KINDS[kind] if issubclass(kind, InputStatistic) else BLOCK_KINDS[kind]


def _numbers_of(statistic: InputStatistic) -> Tensor:
    numbers = statistic.packed() if isinstance(statistic, Gram) else statistic.norms()
    return numbers.detach().contiguous().cpu()


@final
class SeenByMatrix(Mapping[Weight, Seen]):
    """All matrices of a model with what each of them sees; an empty `Seen` where no token arrives.

    Each call of `arrivals` walks through the model. `items()` does so too, and holds what one block
    sees at a time, so a large model fits. Looking a matrix up reads all of them into memory, once.
    """

    def __init__(
        self, weights: Sequence[Weight], arrivals: Callable[[], Iterable[tuple[Weight, Seen]]]
    ) -> None:
        self._weights = tuple(weights)
        self._arrivals = arrivals

    def __iter__(self) -> Iterator[Weight]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, weight: Weight) -> Seen:
        return self._all[weight]

    def items(self) -> ItemsView[Weight, Seen]:
        return _InTurn(self)

    @cached_property
    def _all(self) -> dict[Weight, Seen]:
        return dict(self.in_turn())

    def in_turn(self) -> Arrivals:
        """Yield the matrices that tokens reach in the order of the walk, then the others."""
        unreached = dict.fromkeys(self._weights)
        for weight, seen in self._arrivals():
            del unreached[weight]
            yield weight, seen
        for weight in unreached:
            yield weight, Seen({})


@final
class _InTurn(ItemsView[Weight, Seen]):
    """Items that are read anew each time somebody goes through them."""

    def __init__(self, seen: SeenByMatrix) -> None:
        super().__init__(seen)
        self._seen = seen

    def __iter__(self) -> Arrivals:
        return self._seen.in_turn()


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
) -> Arrivals:
    """Yield what the untouched model's matrices see, from the block `start` on; of a mix the sum of
    its parts.

    With a folder `root` it is read from there. What is lacking is first gathered in one pass, which
    also gathers the `kinds` that later callers will want. What is kept in `root` isn't weighed, so
    with `weigh` nothing is read from there. Raises `SpecError` for a folder with several `ranks`:
    each would gather all of it, and write the same files.
    """
    blocks = view.blocks[start:]
    wanted = tuple(kind for kind in observes if issubclass(kind, InputStatistic))
    parts = batch.mixed or ((1.0, batch),)
    by_part: list[Iterator[SeenInBlock]] = []
    for name, (_, part) in zip(statistics_ids(opened, batch), parts, strict=True):
        if root is not None and weigh is None and set(wanted) <= set(KINDS):
            if ranks.size > 1:
                raise SpecError(
                    f"one process gathers the statistics in {brief(str(root))}, and {ranks.size} "
                    "work together; leave the folder out, or use one process",
                    subject=str(root),
                )
            stored = Statistics(root, name)
            gathered = [kind for kind in KINDS if kind in (*wanted, *kinds)]
            gather(view, part, gathered, stored, progress)
            by_part.append(map(partial(stored.read, wanted), blocks))
        else:
            arrivals = walk(view, part, wanted, "dense", start=start, ranks=ranks, weigh=weigh)
            by_part.append(by_block(blocks, arrivals))
    by_blocks = by_part[0]
    if batch.mixed:
        by_blocks = mixed(by_part, [factor for factor, _ in parts])
    for block, seen in by_blocks:
        with view.held(block):
            yield from one_by_one(seen)


def gather(
    view: ModelView,
    batch: TokenBatch,
    kinds: Iterable[type[InputStatistic]],
    stored: Statistics,
    progress: Progress = silent,
) -> None:
    """Walk through the untouched model once, and keep in `stored` what it lacks of these `kinds`,
    block by block.
    """
    blocks = view.blocks
    missing: dict[type[InputStatistic], int] = {}
    for kind in kinds:
        count = stored.stored_blocks(kind, blocks)
        if count < len(blocks):
            missing[kind] = count
    if not missing:
        return
    start = min(missing.values())
    with torch.no_grad():
        arrivals = walk(view, batch, tuple(missing), "dense", start=start)
        for block, seen in by_block(blocks[start:], arrivals):
            # A kind of which more blocks were stored before is kept from its first gap on.
            for kind, count in missing.items():
                if block.index >= count:
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
    by_part: list[Iterator[tuple[Block, Seen]]] = []
    for name, (_, part) in zip(statistics_ids(opened, batch), parts, strict=True):
        if root is None or not set(observes) <= set(BLOCK_KINDS):
            by_part.append(walk_blocks(view, part, observes, ranks=ranks))
        else:
            stored = Statistics(root, name)
            _gather_blocks(view, part, observes, stored, ranks)
            by_part.append(_read_blocks(view, observes, stored))
    for entries in zip(*by_part, strict=True):
        block, seen = entries[0]
        if batch.mixed:
            scaled: list[Seen] = []
            for (_, part_seen), (factor, _) in zip(entries, parts, strict=True):
                scaled.append(part_seen * factor)
            seen = reduce(operator.add, scaled)
        # Sums that come from the disk are checked too, not only those of a walk.
        if not all(statistic.finite() for statistic in seen.values()):
            raise not_finite(f"the statistics of {block.name}", block.name)
        yield block, seen


def _gather_blocks(
    view: ModelView,
    batch: TokenBatch,
    kinds: Iterable[type[Statistic]],
    stored: Statistics,
    ranks: Ranks,
) -> None:
    missing: list[type[Statistic]] = []
    for kind in kinds:
        if stored.stored_blocks(kind, view.blocks) < len(view.blocks):
            missing.append(kind)
    if not missing:
        return
    for block, seen in walk_blocks(view, batch, tuple(missing), ranks=ranks):
        for kind in missing:
            stored.add_block(kind, block, seen)


def _read_blocks(
    view: ModelView, kinds: Sequence[type[Statistic]], stored: Statistics
) -> Iterator[tuple[Block, Seen]]:
    for block in view.blocks:
        yield block, stored.read_block(kinds, block)


def by_block(
    blocks: Sequence[Block], arrivals: Iterable[tuple[Weight, Seen]]
) -> Iterator[SeenInBlock]:
    """Put what a dense walk yields matrix by matrix together by block. Yields one entry for each of
    the `blocks`, also where none of its matrices was reached.
    """
    rest = iter(arrivals)
    arrival = next(rest, None)
    for block in blocks:
        seen: dict[Weight, Seen] = {}
        while arrival is not None and arrival[0].block == block.index:
            seen[arrival[0]] = arrival[1]
            arrival = next(rest, None)
        yield block, seen


def mixed(
    parts: Sequence[Iterator[SeenInBlock]], factors: Sequence[float]
) -> Iterator[SeenInBlock]:
    """Yield, block by block, the sum of what the matrices saw of several batches, each times its
    factor. Matrices that share a `Seen` in all batches share their sum.
    """
    for entries in zip(*parts, strict=True):
        block = entries[0][0]
        # Matrices that share their addends are added up once.
        scale = _once(operator.mul)
        add = _once(operator.add)
        sums: dict[Weight, Seen] = {}
        weights: dict[Weight, None] = {}
        for _, seen in entries:
            weights |= dict.fromkeys(seen)
        for weight in weights:
            for (_, seen), factor in zip(entries, factors, strict=True):
                if weight in seen:
                    scaled = scale(seen[weight], factor)
                    sums[weight] = add(sums[weight], scaled) if weight in sums else scaled
        yield block, sums


def _once(compute: Callable[[Any, Any], Seen]) -> Callable[[Any, Any], Seen]:
    """Return a function that computes once for each pair of objects, and remembers the result."""
    # The objects are held too, since an address is an object's own only while that lives.
    results: dict[tuple[int, int], tuple[Any, Any, Seen]] = {}

    def once(left: Any, right: Any) -> Seen:
        key = id(left), id(right)
        if key not in results:
            results[key] = left, right, compute(left, right)
        return results[key][2]

    return once
