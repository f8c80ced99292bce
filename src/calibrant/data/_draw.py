"""Dealing rows: draw after draw takes the next rows of a fixed order, so that draws are disjoint
until the rows are used up.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np

from calibrant.data._base import Format, Part, PartRows, PerDraw, Row, Source, StoredSource, digest
from calibrant.data._encoding import Encoder
from calibrant.data.expression import Term
from calibrant.data.packings._base import PAD, Frame, TokenizedText, Window
from calibrant.errors import DataError

_PATIENCE: Final = 100
"""How often each row may come on average before drawing with replacement is given up."""


@dataclass(frozen=True)
class Quota:
    """How much of one part is drawn: real tokens, or windows; the flags that lower it, and the
    part's share of the whole.
    """

    tokens: int | None = None
    windows: int | None = None
    flags: str = "--tokens"
    share: Fraction = Fraction(1)


@dataclass
class PartDraw:
    """What one part of a set gave in one draw: its windows, the rows that they were made of with
    their lengths in tokens, and the rows passed over.

    `tokens` counts the windows' real tokens, start tokens among them, pads not.
    """

    windows: list[Window] = field(default_factory=list[Window])
    rows: list[Row] = field(default_factory=list[Row])
    lengths: list[int] = field(default_factory=list[int])
    passed_over: int = 0
    tokens: int = 0


class Deck:
    """The rows of one part of a source. A row is dealt once a draw; when the rows are used up, a
    later draw begins again at the top.

    A control has no end: each draw has its own rows, and earlier draws needn't be dealt again. The
    same is true of what is supplied per draw, though that ends.
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
    def content(self) -> PartRows:
        """The rows that there are to deal."""
        if self.endless:
            return PartRows(())
        if isinstance(self._source, PerDraw):
            return self._source.for_draw(self._draw)
        return (
            self._source.part(self._part)
            if isinstance(self._source, StoredSource)
            else PartRows(tuple(self._source.rows(self._part)))
        )

    @property
    def description(self) -> str:
        """What a message calls it."""
        return (
            f"draw {self._draw} of {self._source}"
            if isinstance(self._source, PerDraw)
            else f"the {self._part} part of {self._source}"
        )

    def begin(self, number: int) -> None:
        """Begin draw `number`. Nothing is shuffled: the order is fixed, and goes on where the
        draw before ended.
        """
        self._earlier.update(self._dealt)
        self._dealt, self._turned, self._number = [], 0, number

    def deals(self, number: int) -> bool:
        """Return whether this deck takes part in draw `number`."""
        return number == self._draw or not (self.endless or isinstance(self._source, PerDraw))

    def deal(self, form: Format, replacement: bool = False) -> Iterator[Row | None]:
        """Yield the next rows, each once a draw, or with replacement; None stands for a row that
        `form` passes over.
        """
        if self.endless:
            rows = self._stream
        elif replacement:
            rows = self._with_replacement()
        else:
            rows = self._once_each()
        for row in rows:
            if form.takes(row):
                self._dealt.append(row.key)
                yield row
            else:
                yield None

    def _once_each(self) -> Iterator[Row]:
        while self._turned < len(self.content.rows):
            row = self.content.rows[self._next]
            self._next, self._turned = (self._next + 1) % len(self.content.rows), self._turned + 1
            yield row

    def _with_replacement(self) -> Iterator[Row]:
        """Yield rows at random, hashed from the draw: a row may come again. Ends when it is
        plain that nothing more will come of it.
        """
        for number in range(_PATIENCE * len(self.content.rows)):
            noise = hashlib.sha256(f"{self._number} {number}".encode()).digest()[:8]
            yield self.content.rows[int.from_bytes(noise) % len(self.content.rows)]

    def overlap(self, rows: list[Row]) -> float:
        """Return the share of `rows` that earlier draws used too."""
        earlier = self._earlier
        if self.endless and self._draw:
            earlier = {row.key for row in islice(self._source.rows(self._part, 0), len(rows))}
        elif (
            isinstance(self._source, PerDraw)
            and (end := self._source.disjoint()) is not None
            and self._draw >= end
        ):
            # As many rows of each earlier draw: the budget is the same.
            draws = (
                islice(self._source.rows(self._part, draw), len(rows)) for draw in range(self._draw)
            )
            earlier = {row.key for draw in draws for row in draw}
        return sum(row.key in earlier for row in rows) / len(rows) if rows else 0.0

    def digest(self, rows: list[Row]) -> str:
        """Return the digest of everything that was read; of a control, of what was used."""
        return digest(rows) if self.endless else self.content.digest


class TooFew(DataError):
    """A source doesn't hold enough for a draw; `tokens` is the largest budget of the whole set,
    in tokens, for which it does.
    """

    def __init__(self, message: str, *, subject: str = "", tokens: int = 0) -> None:
        super().__init__(message, subject=subject)
        self.tokens = tokens


def draw(term: Term, quota: Quota, deck: Deck, encoder: Encoder, frame: Frame) -> PartDraw:
    """Cut windows of `term` until `quota` is met. `frame.length` is that of a whole window;
    `TooFew` if the source doesn't hold enough.
    """
    part = PartDraw()
    before, head = encoder.starts(term.packing, term.format)

    # Texts and sizes are generators that a packing pulls from in turn, so that no row is read
    # before its tokens are needed, and the size of the next window is known only when the one
    # before it is counted.
    def texts() -> Iterator[TokenizedText]:
        for row in deck.deal(term.format, term.packing.replacement):
            if row is None:
                part.passed_over += 1
                continue
            ids = encoder.row(row, term.format)
            part.rows.append(row)
            part.lengths.append(len(ids))
            if len(ids):
                yield TokenizedText(row.key, np.concatenate([before, ids]))

    def room() -> int:
        left = (
            frame.length if quota.tokens is None else min(frame.length, quota.tokens - part.tokens)
        )
        return left if quota.windows is None or len(part.windows) < quota.windows else 0

    def sizes() -> Iterator[int]:
        while room() > 0:
            yield max(0, room() - len(head))

    inner = Frame(frame.length - len(head), frame.encode, frame.draw, len(head))
    for window in term.packing.windows(texts(), sizes(), inner):
        ids = np.concatenate([head, window.ids])
        part.windows.append(
            replace(window, ids=ids, borders=tuple(len(head) + border for border in window.borders))
        )
        part.tokens += int((ids != PAD).sum())
    if room() > 0:
        budget = f"{quota.windows} windows" if quota.tokens is None else f"{quota.tokens} tokens"
        held = int(part.tokens / quota.share)
        most = (
            f"--tokens {held}"
            if quota.tokens is not None
            else f"--samples {int(len(part.windows) / quota.share)}"
        )
        raise TooFew(
            f"{deck.description} holds {term.packing.supply(part.lengths, inner)}, too little for {budget} of {term} "
            f"in windows of {frame.length}{f' ({part.passed_over} rows are no {term.format})' if part.passed_over else ''}; lower {quota.flags}"
            + (f": the most that works is {most}" if part.windows else ""),
            subject=str(term.source),
            tokens=held,
        )
    return part
