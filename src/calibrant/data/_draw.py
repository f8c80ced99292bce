"""Dealing rows: draw after draw takes the next rows of a fixed order, so that draws are disjoint until the rows are used up."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from jaxtyping import Int32

from calibrant.data._base import Holding, Row, Source, Stored, digest
from calibrant.data._encoding import Encoder
from calibrant.data.expression import Term
from calibrant.data.packing import Frame, Text
from calibrant.errors import DataError


@dataclass(frozen=True)
class Quota:
    """What one part of a set is to give: real tokens, or windows; and the flags that lower it."""

    tokens: int | None = None
    windows: int | None = None
    flags: str = "--tokens"


@dataclass
class Drawn:
    """What one part gave: its windows, each with its start token, and the rows that they were made of with their lengths."""

    windows: list[Int32[np.ndarray, " token"]] = field(default_factory=list[np.ndarray])
    rows: list[Row] = field(default_factory=list[Row])
    lengths: list[int] = field(default_factory=list[int])

    @property
    def tokens(self) -> int:
        """Real tokens, start tokens among them."""
        return sum(map(len, self.windows))


class Deck:
    """The rows of one source's calibrate part. A row is dealt once a draw; when the rows are used up, a later draw begins again at the top.

    A control has no end: each draw has its own rows, and earlier draws needn't be dealt again.
    """

    def __init__(self, source: Source, draw: int) -> None:
        self.endless = source.kind == "control"
        self.held = Holding(()) if self.endless else source.holding("calibrate") if isinstance(source, Stored) else _held(source)
        self._source, self._draw = source, draw
        self._stream = source.rows("calibrate", draw) if self.endless else iter(())
        self._next = 0
        self._dealt: list[str] = []
        self._earlier: set[str] = set()

    def shuffle(self) -> None:
        """Begin a draw. Nothing is shuffled: the order is fixed, and goes on where the draw before ended."""
        self._earlier.update(self._dealt)
        self._dealt = []

    def deals(self, number: int) -> bool:
        """Whether this deck takes part in draw `number`."""
        return not self.endless or number == self._draw

    def deal(self) -> Iterator[Row]:
        """The next rows, each once a draw."""
        while self.endless or len(self._dealt) < len(self.held.rows):
            row = next(self._stream) if self.endless else self.held.rows[self._next]
            self._next = 0 if self.endless else (self._next + 1) % len(self.held.rows)
            self._dealt.append(row.key)
            yield row

    def overlap(self, rows: list[Row]) -> float:
        """The share of `rows` that earlier draws used too."""
        earlier = self._earlier
        if self.endless and self._draw:
            earlier = {row.key for row in islice(self._source.rows("calibrate", 0), len(rows))}
        return sum(row.key in earlier for row in rows) / len(rows) if rows else 0.0

    def digest(self, rows: list[Row]) -> str:
        """The digest of everything that was read; of a control, of what was used."""
        return digest(rows) if self.endless else self.held.digest


def draw(term: Term, quota: Quota, deck: Deck, encoder: Encoder, frame: Frame) -> Drawn:
    """Windows of `term` until `quota` is met. `frame.length` is that of a whole window; `DataError` if the source doesn't hold enough."""
    drawn = Drawn()

    def texts() -> Iterator[Text]:
        for row in deck.deal():
            ids = encoder.row(row, term.format)
            drawn.rows.append(row)
            drawn.lengths.append(len(ids))
            if len(ids):
                yield Text(row.key, ids)

    def room() -> int:
        left = frame.length if quota.tokens is None else min(frame.length, quota.tokens - drawn.tokens)
        return left if quota.windows is None or len(drawn.windows) < quota.windows else 0

    def sizes() -> Iterator[int]:
        while room() > 0:
            yield max(0, room() - len(encoder.start))

    inner = Frame(frame.length - len(encoder.start), frame.encode, frame.draw)
    for window in term.packing.windows(texts(), sizes(), inner):
        drawn.windows.append(np.concatenate([encoder.start, window])[: room()])
    if room() > 0:
        wanted = f"{quota.windows} windows" if quota.tokens is None else f"{quota.tokens} tokens"
        raise DataError(
            f"the calibrate part of {term.source} holds {term.packing.supply(drawn.lengths, inner)}, too little for {wanted} of {term} "
            f"in windows of {frame.length}; lower {quota.flags}",
            subject=str(term.source),
        )
    return drawn


def _held(source: Source) -> Holding:
    return Holding(tuple(source.rows("calibrate")))
