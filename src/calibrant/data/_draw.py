"""Dealing rows: draw after draw takes the next rows of a fixed order, so that draws are disjoint until the rows are used up."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np

from calibrant.data._base import Format, Holding, Part, PerDraw, Row, Source, Stored, digest
from calibrant.data._encoding import Encoder
from calibrant.data.expression import Term
from calibrant.data.packings._base import PAD, Frame, TokenizedText, Window
from calibrant.errors import DataError

_PATIENCE: Final = 100
"""How often each row may come on average before drawing with replacement is given up."""


@dataclass(frozen=True)
class Quota:
    """What one part of a set is to give: real tokens, or windows; and the flags that lower it."""

    tokens: int | None = None
    windows: int | None = None
    flags: str = "--tokens"


@dataclass
class Drawn:
    """What one part gave: its windows, start tokens among them, the rows that they were made of with their lengths, and what was passed over."""

    windows: list[Window] = field(default_factory=list[Window])
    rows: list[Row] = field(default_factory=list[Row])
    lengths: list[int] = field(default_factory=list[int])
    passed_over: int = 0
    tokens: int = 0

    def add(self, window: Window) -> None:
        """Count a window's real tokens, start tokens among them, pads not."""
        self.windows.append(window)
        self.tokens += int((window.ids != PAD).sum())


class Deck:
    """The rows of one part of a source. A row is dealt once a draw; when the rows are used up, a later draw begins again at the top.

    A control has no end: each draw has its own rows, and earlier draws needn't be dealt again. The same is true of what is supplied per draw,
    though that ends.
    """

    def __init__(self, source: Source, draw: int, part: Part = "calibrate") -> None:
        self.endless = source.kind == "control"
        self._source, self._draw = source, draw
        self._part: Part = part
        self._stream = source.rows(part, draw) if self.endless else iter(())
        self._next = self._turned = self._number = 0
        self._dealt: list[str] = []
        self._earlier: set[str] = set()

    @cached_property
    def held(self) -> Holding:
        """What there is to deal."""
        if self.endless:
            return Holding(())
        if isinstance(self._source, PerDraw):
            return self._source.holding(self._draw)
        return self._source.holding(self._part) if isinstance(self._source, Stored) else Holding(tuple(self._source.rows(self._part)))

    @property
    def told(self) -> str:
        """What a message calls it."""
        return f"draw {self._draw} of {self._source}" if isinstance(self._source, PerDraw) else f"the {self._part} part of {self._source}"

    def begin(self, number: int) -> None:
        """Begin draw `number`. Nothing is shuffled: the order is fixed, and goes on where the draw before ended."""
        self._earlier.update(self._dealt)
        self._dealt, self._turned, self._number = [], 0, number

    def deals(self, number: int) -> bool:
        """Whether this deck takes part in draw `number`."""
        return number == self._draw or not (self.endless or isinstance(self._source, PerDraw))

    def deal(self, form: Format, replacement: bool = False) -> Iterator[Row | None]:
        """The next rows, each once a draw, or with replacement without end; None stands for a row that `form` passes over."""
        for row in self._replaced() if replacement and not self.endless else self._next_rows():
            if form.takes(row):
                self._dealt.append(row.key)
                yield row
            else:
                yield None

    def _next_rows(self) -> Iterator[Row]:
        while self.endless:
            yield next(self._stream)
        while self._turned < len(self.held.rows):
            row = self.held.rows[self._next]
            self._next, self._turned = (self._next + 1) % len(self.held.rows), self._turned + 1
            yield row

    def _replaced(self) -> Iterator[Row]:
        """Rows at random, hashed from the draw: a row may come again. Ends when it is plain that nothing more will come of it."""
        for number in range(_PATIENCE * len(self.held.rows)):
            noise = hashlib.sha256(f"{self._number} {number}".encode()).digest()[:8]
            yield self.held.rows[int.from_bytes(noise) % len(self.held.rows)]

    def overlap(self, rows: list[Row]) -> float:
        """The share of `rows` that earlier draws used too."""
        earlier = self._earlier
        if self.endless and self._draw:
            earlier = {row.key for row in islice(self._source.rows(self._part, 0), len(rows))}
        elif isinstance(self._source, PerDraw) and (end := self._source.disjoint()) is not None and self._draw >= end:
            # As many rows of each earlier draw: the budget is the same.
            draws = (islice(self._source.rows(self._part, draw), len(rows)) for draw in range(self._draw))
            earlier = {row.key for draw in draws for row in draw}
        return sum(row.key in earlier for row in rows) / len(rows) if rows else 0.0

    def digest(self, rows: list[Row]) -> str:
        """The digest of everything that was read; of a control, of what was used."""
        return digest(rows) if self.endless else self.held.digest


def draw(term: Term, quota: Quota, deck: Deck, encoder: Encoder, frame: Frame) -> Drawn:
    """Windows of `term` until `quota` is met. `frame.length` is that of a whole window; `DataError` if the source doesn't hold enough."""
    drawn = Drawn()
    before, head = encoder.starts(term.packing, term.format)

    def texts() -> Iterator[TokenizedText]:
        for row in deck.deal(term.format, term.packing.replacement):
            if row is None:
                drawn.passed_over += 1
                continue
            ids = encoder.row(row, term.format)
            drawn.rows.append(row)
            drawn.lengths.append(len(ids))
            if len(ids):
                yield TokenizedText(row.key, np.concatenate([before, ids]))

    def room() -> int:
        left = frame.length if quota.tokens is None else min(frame.length, quota.tokens - drawn.tokens)
        return left if quota.windows is None or len(drawn.windows) < quota.windows else 0

    def sizes() -> Iterator[int]:
        while room() > 0:
            yield max(0, room() - len(head))

    inner = Frame(frame.length - len(head), frame.encode, frame.draw)
    for window in term.packing.windows(texts(), sizes(), inner):
        drawn.add(replace(window, ids=np.concatenate([head, window.ids]), borders=tuple(len(head) + border for border in window.borders)))
    if room() > 0:
        wanted = f"{quota.windows} windows" if quota.tokens is None else f"{quota.tokens} tokens"
        raise DataError(
            f"{deck.told} holds {term.packing.supply(drawn.lengths, inner)}, too little for {wanted} of {term} "
            f"in windows of {frame.length}{f' ({drawn.passed_over} rows are no {term.format})' if drawn.passed_over else ''}; lower {quota.flags}",
            subject=str(term.source),
        )
    return drawn
