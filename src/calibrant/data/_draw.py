"""Deals rows to draws: each draw takes the next rows of a fixed order, so that draws share no row
until the rows are used up.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np

from calibrant.data._base import (
    PARTS,
    Format,
    Part,
    PartRows,
    PerDraw,
    Row,
    Source,
    StoredSource,
    digest,
)
from calibrant.data._encoding import Encoder
from calibrant.data._templates import RefusedError
from calibrant.data.expression import Term
from calibrant.data.packings._base import PAD, Frame, TokenizedText, Window
from calibrant.errors import DataError
from calibrant.spec import qualified

_PATIENCE: Final = 100
"""How often each row may come, on average, before a draw with replacement is given up; how many
rows a chat template may refuse before it takes one; and how many rows of a control may be of no use
before one is.
"""


@dataclass(frozen=True)
class Quota:
    """How much of one part is drawn: real tokens, or windows.

    `setting` is what the budget was given as, `tokens` or `samples`, for messages. `share` is the
    part's share of the whole.
    """

    tokens: int | None = None
    windows: int | None = None
    setting: str = "tokens"
    share: Fraction = Fraction(1)

    def left(self, part_draw: "PartDraw", length: int) -> int:
        """Return how many tokens the next window may have, its start token among them; `length` is
        that of a whole one.
        """
        if self.windows is not None and len(part_draw.windows) >= self.windows:
            return 0
        if self.tokens is None:
            return length
        return min(length, self.tokens - part_draw.tokens)


@dataclass
class PartDraw:
    """What one part of a set gave in one draw.

    `rows` are those that the windows were made of, and `lengths` how many tokens each has.
    `passed_over` counts rows that the format can't render, `refused` those that the model's chat
    template doesn't take, by its reason, and `first_refusal` is the first of these. `too_short` has
    the lengths of rows that the packing takes no window from. `tokens` counts the windows' real
    tokens, start tokens among them, pads not.
    """

    windows: list[Window] = field(default_factory=list[Window])
    rows: list[Row] = field(default_factory=list[Row])
    lengths: list[int] = field(default_factory=list[int])
    passed_over: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    first_refusal: RefusedError | None = None
    too_short: list[int] = field(default_factory=list[int])
    tokens: int = 0

    @property
    def unused(self) -> int:
        """How many rows were read and not used."""
        return self.passed_over + self.refused.total() + len(self.too_short)

    @property
    def fruitless(self) -> bool:
        """Whether many rows were read, and none had a token."""
        return not any(self.lengths) and self.unused + len(self.rows) >= _PATIENCE

    def refuse(self, error: RefusedError) -> None:
        """Count a row that the chat template doesn't take. Raises `error` where it took none of
        many.
        """
        self.refused[error.reason] += 1
        if not self.rows and self.refused.total() == _PATIENCE:
            raise error
        self.first_refusal = self.first_refusal or error

    def add(self, window: Window) -> None:
        """Add a window and count its tokens."""
        self.windows.append(window)
        self.tokens += int((window.ids != PAD).sum())


class Deck:
    """The rows of one part of a source. A row is dealt once a draw; when the rows are used up, a
    later draw begins again at the top.

    A control has no end: each draw has its own rows, and earlier draws needn't be dealt again. What
    is supplied per draw has its own rows for each draw too, but not without end. Of both, a deck
    holds the rows of the draw `draw` alone.
    """

    def __init__(self, source: Source, draw: int, part: Part = "calibrate") -> None:
        self.endless = source.kind == "control"
        self._source = source
        self._own_draw = draw
        self._part: Part = part
        # A control's rows come out of one generator, which goes on where it stopped.
        self._stream: Iterator[Row] = iter(())
        if self.endless:
            self._stream = source.rows(part, draw)
        self._current_draw = 0
        self._known_rows: list[Row] = []
        self._next_place = 0
        self._rows_read = 0
        self._dealt_keys: list[str] = []
        self._earlier_keys: set[str] = set()

    @cached_property
    def content(self) -> PartRows:
        """The rows that there are to deal."""
        if self.endless:
            return PartRows(())
        if isinstance(self._source, PerDraw):
            return self._source.for_draw(self._own_draw)
        if isinstance(self._source, StoredSource):
            return self._source.part(self._part)
        self._known_rows.extend(self._unread_rows)
        return PartRows(tuple(self._known_rows))

    @cached_property
    def _unread_rows(self) -> Iterator[Row]:
        """The rows behind those that are known. Of a source that isn't stored each is read when it
        is dealt: it may have many more.
        """
        if isinstance(self._source, PerDraw | StoredSource):
            return iter(self.content.rows)
        return iter(self._source.rows(self._part))

    @property
    def description(self) -> str:
        """What a message calls it."""
        if isinstance(self._source, PerDraw):
            return f"draw {self._own_draw} of {self._source}"
        return f"the {self._part} part of {self._source}"

    def check_filled(self) -> None:
        """Raise `TooFew` where the source has rows, and all of them are in its other parts: no
        budget is small enough then.
        """
        source = self._source
        if not isinstance(source, StoredSource) or self.content.rows or self.content.overlapping:
            return
        others = [part for part in PARTS if part != self._part and source.part(part).rows]
        if others:
            noun = "part" if len(others) == 1 else "parts"
            raise TooFew(
                f"{self.description} has no row: all of the source's ({source.size()}) are in the "
                f"{noun} {' and '.join(others)}; divide the data into more rows, such as "
                "paragraphs with an empty line between them, or give a folder with a train and a "
                "test file",
                subject=str(source),
            )

    def begin(self, number: int) -> None:
        """Begin draw `number`.

        Nothing is shuffled: the order is fixed, and goes on where the draw before ended.
        """
        self._earlier_keys.update(self._dealt_keys)
        self._dealt_keys = []
        self._rows_read = 0
        self._current_draw = number

    def deals(self, number: int) -> bool:
        """Return whether this deck takes part in draw `number`."""
        own_rows = self.endless or isinstance(self._source, PerDraw)
        return number == self._own_draw or not own_rows

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
            if not form.takes(row):
                yield None
                continue
            self._dealt_keys.append(self._key_of(row))
            yield row

    def _once_each(self) -> Iterator[Row]:
        while True:
            if self._next_place == len(self._known_rows):
                self._read_next()
            # Where one more row was to be had, it has just been read.
            if self._rows_read == len(self._known_rows):
                return
            row = self._known_rows[self._next_place]
            self._next_place += 1
            self._rows_read += 1
            yield row

    def _read_next(self) -> None:
        """Read the row behind those that are known; behind the last one comes the first."""
        row = next(self._unread_rows, None)
        if row is None:
            self._next_place = 0
        else:
            self._known_rows.append(row)

    def _with_replacement(self) -> Iterator[Row]:
        """Yield rows at random, hashed from the draw: a row may come again. Ends when it is
        plain that nothing more will come of it.
        """
        rows = self.content.rows
        for number in range(_PATIENCE * len(rows)):
            # Hashed and not drawn by a generator: the same rows with any version of any library.
            noise = hashlib.sha256(f"{self._current_draw} {number}".encode()).digest()
            place = int.from_bytes(noise[:8]) % len(rows)
            yield rows[place]

    def overlap(self, part_draw: PartDraw) -> float:
        """Return the share of a draw's rows that earlier draws used too."""
        rows = part_draw.rows
        if not rows:
            return 0.0
        earlier_keys = self._keys_of_earlier_draws(len(rows) + part_draw.unused)
        return sum(self._key_of(row) in earlier_keys for row in rows) / len(rows)

    def _key_of(self, row: Row) -> str:
        """What a row is known by in another draw. A model that is asked the same question again may
        answer otherwise, which is no other example.
        """
        if isinstance(self._source, PerDraw):
            return row.example
        return row.key

    def _keys_of_earlier_draws(self, count: int) -> set[str]:
        """Return the keys of rows that earlier draws used, where each draw reads `count` rows."""
        # What has rows of its own for each draw wasn't dealt in earlier draws, so it is read again.
        read_again = range(0)
        if self.endless and self._own_draw:
            read_again = range(1)  # a control that repeats itself has the rows of its first draw
        elif isinstance(self._source, PerDraw):
            disjoint = self._source.disjoint()
            if disjoint is not None and self._own_draw >= disjoint:
                read_again = range(self._own_draw)
        if not read_again:
            return self._earlier_keys
        keys: set[str] = set()
        for draw in read_again:
            rows = islice(self._source.rows(self._part, draw), count)
            keys.update(self._key_of(row) for row in rows)
        return keys

    def digest(self, rows: list[Row]) -> str:
        """Return the digest of everything that was read; of a control, of what was used."""
        if self.endless:
            return digest(rows)
        return self.content.digest


class TooFew(DataError):
    """A source doesn't hold enough for a draw; `tokens` is the largest budget of the whole set,
    in tokens, for which it does.
    """

    def __init__(self, message: str, *, subject: str = "", tokens: int = 0) -> None:
        super().__init__(message, subject=subject)
        self.tokens = tokens


def draw_part(term: Term, quota: Quota, deck: Deck, encoder: Encoder, frame: Frame) -> PartDraw:
    """Return the windows that `quota` asks for, cut from the rows that come next.

    `frame.length` is that of a whole window. Raises `TooFew` if the source doesn't hold enough.
    """
    part_draw = PartDraw()
    text_start, window_start = encoder.starts(term.packing, term.format)
    head = len(window_start)
    inner_frame = replace(frame, length=frame.length - head, head=head)
    shortest = term.packing.shortest(inner_frame)
    # A packing pulls from both in turn, so that no row is read before its tokens are needed, and
    # the size of the next window is known only when the one before it is counted.
    texts = _texts(term, deck, encoder, part_draw, shortest)
    sizes = _sizes(quota, part_draw, frame.length, head)
    for window in term.packing.windows(texts, sizes, inner_frame):
        _check_window(window, term, inner_frame)
        part_draw.add(window.behind(window_start))
    # A text that no longer fitted is none of the draw.
    if part_draw.windows and part_draw.windows[-1].read_ahead:
        part_draw.rows.pop()
        part_draw.lengths.pop()
    if part_draw.first_refusal is not None and not part_draw.rows:
        raise part_draw.first_refusal
    if quota.left(part_draw, frame.length) > 0:
        deck.check_filled()
        read = part_draw.lengths + part_draw.too_short
        lengths = [len(text_start) + length for length in read]
        supply = term.packing.supply(lengths, inner_frame)
        raise _too_few(term, quota, deck, part_draw, supply, frame.length)
    return part_draw


def _texts(
    term: Term, deck: Deck, encoder: Encoder, part_draw: PartDraw, shortest: int
) -> Iterator[TokenizedText]:
    """Yield the rows that come next as tokens, and note in `part_draw` what became of each."""
    text_start, _ = encoder.starts(term.packing, term.format)
    for row in deck.deal(term.format, term.packing.replacement):
        # A control has no end of rows, and those without a token fill no window.
        if deck.endless and part_draw.fruitless:
            return
        if row is None:
            part_draw.passed_over += 1
            continue
        try:
            ids = encoder.row(row, term.format)
        except RefusedError as error:
            part_draw.refuse(error)
            continue
        if len(text_start) + len(ids) < shortest:
            part_draw.too_short.append(len(ids))
            continue
        part_draw.rows.append(row)
        part_draw.lengths.append(len(ids))
        if len(ids):
            yield TokenizedText(row.key, np.concatenate([text_start, ids]))


def _sizes(quota: Quota, part_draw: PartDraw, length: int, head: int) -> Iterator[int]:
    """Yield how many tokens each next window may have behind its `head` start tokens."""
    while (left := quota.left(part_draw, length)) > 0:
        yield max(0, left - head)


def _check_window(window: Window, term: Term, frame: Frame) -> None:
    """Raise `DataError` for a window that has more tokens than there is room for."""
    count = len(window.ids)
    if count > frame.length:
        problem = f"a window of {count:,} tokens where there is room for {frame.length:,}"
        message = f"{term.packing} gives {problem}; mend {qualified(type(term.packing))}"
        raise DataError(message, subject=str(term))


def _too_few(
    term: Term, quota: Quota, deck: Deck, part_draw: PartDraw, supply: str, length: int
) -> TooFew:
    # What the whole set may have, so that this part's share of it is what there is.
    tokens = int(part_draw.tokens / quota.share)
    if quota.tokens is None:
        budget = f"{quota.windows:,} windows"
        windows = int(len(part_draw.windows) / quota.share)
    else:
        budget = f"{quota.tokens:,} tokens"
        windows = tokens // length
    most = tokens if quota.setting == "tokens" else windows
    message = f"{deck.description} holds {supply}, too little for {budget} of {term}"
    message += f" in windows of {length:,}"
    if part_draw.passed_over:
        message += f" ({part_draw.passed_over} rows are no {term.format})"
    if part_draw.refused:
        reason, _ = part_draw.refused.most_common(1)[0]
        count = part_draw.refused.total()
        message += f" ({count} rows the model's chat template doesn't take: {reason})"
    if deck.content.overlapping:
        count = deck.content.overlapping
        message += f" ({count} rows are left out because they are also measured)"
    message += f"; lower length, or {quota.setting}"
    if most:
        message += f" to at most {most}"
    if quota.setting == "samples" and quota.tokens is not None and tokens:
        # With a budget of tokens the last window needn't be full.
        message += f", or ask for {tokens} tokens instead"
    return TooFew(message, subject=str(term.source), tokens=tokens)
