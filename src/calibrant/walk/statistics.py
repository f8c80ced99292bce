"""What the matrices of an untouched model saw of one batch, kept on disk: the one pass that every
target, sparsity and mixture shares.

    ROOT/<identity>/norms/block-00000.safetensors
    ROOT/<identity>/gram/block-00000.safetensors
    ROOT/<identity>/change/block-00000.safetensors        of the block itself, where that is asked for
    ROOT/<identity>/routing/block-00000.safetensors       of its router
    ROOT/<identity>/kinds/block-00000.safetensors         of the tokens of its experts
    ROOT/<identity>/outputs/block-00000.safetensors       of what its experts give

A file holds what one block's matrices saw, of one kind: a statistic once, however many matrices
share it (q, k and v; gate and up), and which matrix has which. Norms are kept as they are summed,
in float64; of a Gram its upper triangle, in the type it was summed in. Files are mapped into memory
when they are read, and give back every bit. A file appears by rename, so a pass that was killed
goes on from its last whole block. Each is sealed for its question; one that answers another, or is
damaged, is made anew. Factorisations are never kept.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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
from calibrant.errors import OutputError
from calibrant.models import Block, Opened, Weight
from calibrant.results import statistics_purpose
from calibrant.spec import identity
from calibrant.system import sealed_tensors
from calibrant.system.durable import reason, short
from calibrant.system.sealed_tensors import SealedTensors
from calibrant.system.seals import BrokenSealError, tell_made_again
from calibrant.walk.expert_statistics import ExpertOutputs, TokenKinds

REVISION: Final = 1
"""Raised when a walk through the same untouched model gives other sums than before."""

KINDS: Final[Mapping[type[InputStatistic], str]] = MappingProxyType(
    {FeatureNorms: "norms", Gram: "gram"}
)
"""What can be kept of matrices, and the folder it is kept in."""

BLOCK_KINDS: Final[Mapping[type[Statistic], str]] = MappingProxyType(
    {BlockChange: "change", Routing: "routing", TokenKinds: "kinds", ExpertOutputs: "outputs"}
)
"""What can be kept of blocks, their routers and their experts, and the folder it is kept in."""

Dense = tuple[Block, dict[Weight, Seen]]
"""A block of the untouched model and what each of its matrices saw; a matrix that no token
reached is absent.
"""


def statistics_id(opened: Opened, batch: TokenBatch) -> str:
    """Return the identity of what this model's matrices see of these tokens: the same for every
    method, target and propagation.
    """
    dtype = str(opened.dtype).removeprefix("torch.")
    return identity(
        {
            "statistics": REVISION,
            "model": opened.digest,
            "tokens": batch.fingerprint,
            "dtype": dtype,
        }
    )


def statistics_ids(opened: Opened, batch: TokenBatch) -> tuple[str, ...]:
    """Return the identities of all that `batch` is answered from: its own, or those of the parts
    of a mix, which they share with the parts alone.
    """
    return tuple(statistics_id(opened, part) for _, part in batch.mixed) or (
        statistics_id(opened, batch),
    )


def packed_bytes(width: int, kind: type[Statistic], dtype: torch.dtype = torch.float32) -> int:
    """Return what one distinct input of `width` features takes on disk, but for some hundred
    bytes a block; `dtype` is the Gram's.
    """
    return dtype.itemsize * width * (width + 1) // 2 if kind is Gram else 8 * width


def surplus(sizes: Mapping[str, int], finished: Sequence[str], limit: int) -> list[str]:
    """Return which statistics to delete so that all together take at most `limit` bytes.

    Only those whose last use is over may go: `finished`, in the order of their last uses, of which
    the earliest go first and no more than it takes. What is still to be used stays, even if it
    takes more.
    """
    over = sum(sizes.values()) - limit
    deleted: list[str] = []
    for name in finished:
        if over <= 0:
            break
        if name in sizes:
            deleted.append(name)
            over -= sizes[name]
    return deleted


@final
class Statistics:
    """The folder of one model's statistics of one batch; nothing is made before the first block is
    added.

    `name` is its `statistics_id`. One process at a time adds, any number read.
    """

    def __init__(self, root: str | Path, name: str) -> None:
        self.name, self.folder = name, Path(root) / name.removeprefix("sha256:")

    def stored_blocks(self, kind: type[Statistic], blocks: Sequence[Block]) -> int:
        """Return the length of the unbroken row of blocks, from the first one on, whose statistics
        are here.

        One that isn't what was written ends the row, and a line says so.
        """
        for count, block in enumerate(blocks):
            if self._if_whole(kind, block) is None:
                return count
        return len(blocks)

    def pieces(self, kind: type[InputStatistic], block: Block) -> int:
        """Return how many pieces the block's statistics are the first of; 0 if they aren't here."""
        stored = self._if_whole(kind, block)
        return 0 if stored is None else stored.facts["pieces"]

    def _if_whole(self, kind: type[Statistic], block: Block) -> SealedTensors | None:
        """What a file holds, or None where it is missing, or isn't what was written, which a
        line then says.
        """
        try:
            return self._sealed(kind, block)
        except FileNotFoundError:
            return None
        except BrokenSealError:
            tell_made_again("what a model's matrices saw", short(self._path(kind, block)))
            return None

    def read(self, kinds: Sequence[type[InputStatistic]], block: Block) -> Dense:
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
            shared.setdefault(key, Seen(dict(zip(kinds, statistics, strict=True))))
            seen[weights[name]] = shared[key]
        return block, seen

    def add(
        self, kind: type[InputStatistic], block: Block, seen: Mapping[Weight, Seen], pieces: int = 1
    ) -> None:
        """Keep what the block's matrices saw, of how many `pieces` this is the first. Raises
        `OutputError` on a full disk; what was there stays.
        """
        distinct = {id(s[kind]): s[kind] for s in seen.values()}
        numbers = {key: number for number, key in enumerate(distinct)}
        tensors = {
            str(number): _numbers_of(statistic)
            for number, statistic in enumerate(distinct.values())
        }
        facts = {
            "matrices": {weight.name: numbers[id(s[kind])] for weight, s in seen.items()},
            "sums": [[statistic.tokens, statistic.mass] for statistic in distinct.values()],
            "pieces": pieces,
        }
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
        """Keep what the block itself did; that it has no such statistic, as a block without a
        router, is kept too. Raises as `add` does.
        """
        values = seen[kind].held() if kind in seen else {}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        self._write(kind, block, {"there": kind in seen, "numbers": numbers}, tensors)

    def bytes(self) -> int:
        """Return what is on disk here. Another process may be writing: a file that goes
        meanwhile counts nothing.
        """
        total = 0
        for folder, _, names in os.walk(self.folder):  # a folder that isn't there has no files
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    def remove(self) -> None:
        """Delete all of it; a process that is reading goes on undisturbed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, kind: type[InputStatistic], block: Block) -> dict[str, InputStatistic]:
        stored = self._stored(kind, block)
        device = block.weights[0].stored.device if block.weights else torch.device("cpu")
        distinct: list[InputStatistic] = []
        for number, (tokens, mass) in enumerate(stored.facts["sums"]):
            distinct.append(
                _statistic_of(kind, stored.tensors[str(number)].to(device), tokens, mass)
            )
        return {name: distinct[number] for name, number in stored.facts["matrices"].items()}

    def _stored(self, kind: type[Statistic], block: Block) -> SealedTensors:
        """What a file holds. Raises `OutputError` if it isn't here, or isn't what was written."""
        try:
            return self._sealed(kind, block)
        except (FileNotFoundError, BrokenSealError) as error:
            path = self._path(kind, block)
            message = f"{short(path)!r} is gone or is not what was written; ask again, and it is made anew"
            raise OutputError(message, subject=str(path)) from error

    def _sealed(self, kind: type[Statistic], block: Block) -> SealedTensors:
        return sealed_tensors.read(
            self._path(kind, block), statistics_purpose(self.name, _folder_of(kind), block.index)
        )

    def _write(
        self,
        kind: type[Statistic],
        block: Block,
        facts: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        try:
            purpose = statistics_purpose(self.name, _folder_of(kind), block.index)
            sealed_tensors.write(self._path(kind, block), purpose, facts, tensors)
        except OSError as error:
            raise OutputError(
                f"can't keep statistics in {short(self.folder)!r}: {reason(error)}",
                subject=str(self.folder),
            ) from error

    def _path(self, kind: type[Statistic], block: Block) -> Path:
        return self.folder / _folder_of(kind) / f"block-{block.index:05d}.safetensors"


def _folder_of(kind: type[Statistic]) -> str:
    return KINDS[kind] if issubclass(kind, InputStatistic) else BLOCK_KINDS[kind]


def by_block(blocks: Sequence[Block], arrivals: Iterable[tuple[Weight, Seen]]) -> Iterator[Dense]:
    """Yield what a dense walk through `blocks` yields matrix by matrix, block by block: one
    entry for each, be it empty.
    """
    groups = itertools.groupby(arrivals, key=lambda arrival: arrival[0].block)
    index, group = next(groups, (-1, iter(())))
    for block in blocks:
        if block.index != index:
            yield block, {}
            continue
        yield block, dict(group)
        index, group = next(groups, (-1, iter(())))


def mixed(parts: Sequence[Iterator[Dense]], factors: Sequence[float]) -> Iterator[Dense]:
    """The sum of what the matrices saw of several batches, each times its factor. Matrices that
    shared an input in all of them go on sharing.
    """
    for entries in zip(*parts, strict=True):
        block, seen = entries[0][0], [there for _, there in entries]
        scaled = _once(lambda one, factor: one * factor)
        added = _once(lambda one, other: one + other)
        sums: dict[Weight, Seen] = {}
        for weight in dict.fromkeys(itertools.chain(*seen)):
            scaled_parts = [
                scaled(there[weight], factor)
                for there, factor in zip(seen, factors, strict=True)
                if weight in there
            ]
            sums[weight] = scaled_parts[0]
            for other in scaled_parts[1:]:
                sums[weight] = added(sums[weight], other)
        yield block, sums


def _once(compute: Callable[[Any, Any], Seen]) -> Callable[[Any, Any], Seen]:
    """`compute`, once for each pair of objects."""
    results: dict[
        tuple[int, int], tuple[Any, Any, Seen]
    ] = {}  # the arguments are held, so that their addresses stay theirs

    def once(one: Any, other: Any) -> Seen:
        key = id(one), id(other)
        if key not in results:
            results[key] = one, other, compute(one, other)
        return results[key][2]

    return once


def _numbers_of(statistic: InputStatistic) -> Tensor:
    numbers = statistic.packed() if isinstance(statistic, Gram) else statistic.norms()
    return numbers.detach().contiguous().cpu()


def _statistic_of(
    kind: type[InputStatistic], numbers: Tensor, tokens: int, mass: float
) -> InputStatistic:
    return (
        Gram.unpacked(numbers, tokens, mass)
        if kind is Gram
        else FeatureNorms(numbers, tokens, mass)
    )
