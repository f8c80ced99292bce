"""What matrices saw, in pieces: a batch's tokens dealt onto a few sums, so that halves of it can be held against one another.

The pieces come of the same walk that gathers the whole, and are kept beside it, of the sampled blocks alone:

    ROOT/<identity of the whole>-piece-00/…

Each micro-batch gives two pieces, the rows of its first and of its second half. They are dealt in turn onto at most as many sums as there is
room for: those of the first micro-batch stand first, then those of the second, and so on from the first sum again.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, InputStatistic, Seen
from calibrant.data import TokenBatch
from calibrant.models import Block, ModelView, Weight
from calibrant.progress import Progress, silent
from calibrant.walk import walk
from calibrant.walk.observing import gather
from calibrant.walk.statistics import Dense, Statistics, by_block


class Pieces(InputStatistic, ABC):
    """Several statistics of one kind; adding deals the other's pieces onto one's own, up to `most` of them."""

    most: ClassVar[int]

    def __init__(self, parts: Sequence[InputStatistic], dealt: int) -> None:
        self.parts, self.dealt = tuple(parts), dealt
        self.tokens, self.mass = sum(part.tokens for part in parts), sum(part.mass for part in parts)

    @staticmethod
    @abstractmethod
    def kind() -> type[InputStatistic]:
        """What the pieces are."""

    @classmethod
    def of(cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None) -> "Pieces":
        """Two pieces, or one of a single token."""
        cut = (len(x) + 1) // 2
        halves = [slice(0, cut), slice(cut, len(x))] if len(x) > 1 else [slice(0, len(x))]
        parts = [cls.kind().of(x[half], None if weights is None else weights[half]) for half in halves]
        return cls(parts, len(parts))

    def __add__(self, other: "Pieces") -> "Pieces":
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


PIECES: Final[Mapping[type[InputStatistic], type[Pieces]]] = {FeatureNorms: NormPieces, Gram: GramPieces}
"""What is gathered in pieces beside a statistic."""


@final
class KeptPieces:
    """The pieces of one batch on disk. `name` is the identity of the whole's statistics."""

    def __init__(self, root: Path, name: str, kind: type[InputStatistic]) -> None:
        self._root, self._name, self._kind, self._pieces = root, name, kind, PIECES[kind]

    def holds(self, block: Block) -> bool:
        """Whether the block's pieces are here, all of them: the first one is written last."""
        return self._part(0).held(self._kind, [block]) == 1

    def add(self, block: Block, seen: Mapping[Weight, Seen]) -> None:
        """Keep the pieces that a walk brought."""
        found: dict[Weight, Any] = {weight: there[self._pieces] for weight, there in seen.items()}
        for place in reversed(range(max((len(pieces.parts) for pieces in found.values()), default=1))):
            here = {weight: Seen({self._kind: pieces.parts[place]}) for weight, pieces in found.items() if place < len(pieces.parts)}
            self._part(place).add(self._kind, block, here)

    def read(self, block: Block) -> list[Dense]:
        """What the block's matrices saw in each piece."""
        parts = map(self._part, range(self._pieces.most))
        return [part.read([self._kind], block) for part in parts if part.held(self._kind, [block])]

    def _part(self, place: int) -> Statistics:
        return Statistics(self._root, f"{self._name}-piece-{place:02d}")


def gather_with_pieces(
    seen_by: ModelView,
    batch: TokenBatch,
    kind: type[InputStatistic],
    kept: Statistics,
    pieces: KeptPieces,
    sampled: Sequence[int],
    progress: Progress = silent,
) -> None:
    """Walk through the untouched model once and keep what is lacking: of all blocks the whole, of those `sampled` the pieces too."""
    blocks = seen_by.blocks
    here = kept.held(kind, blocks)
    begun = next((place for place in sampled if not pieces.holds(blocks[place])), len(blocks))
    if begun == len(blocks):
        gather(seen_by, batch, (kind,), kept, progress)
        return
    kinds = (kind, PIECES[kind]) if here < len(blocks) else (PIECES[kind],)
    start = min(here, begun)
    with torch.no_grad():
        for block, seen in by_block(blocks[start:], walk(seen_by, batch, kinds, "dense", start=start)):
            if block.index >= here:
                kept.add(kind, block, seen)
            if block.index in sampled and block.index >= begun:
                pieces.add(block, seen)
            progress("statistics", block.index + 1, len(blocks))
