"""Texts in a row, cut into full windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from calibrant.data._limits import MOST_SHOTS
from calibrant.data.packings._base import (
    Frame,
    Ids,
    Packing,
    TokenizedText,
    Window,
    joined_length,
    tokenized_separator,
)
from calibrant.errors import SpecError


@dataclass(frozen=True, repr=False)
class Many(Packing):
    """Texts one after the other, the separator's tokens between them, cut into consecutive full
    windows.

    `shots=k` puts exactly k texts into a window, and leaves the rest of it empty. `isolate` keeps
    the texts of a window from seeing each other, without separators: block-diagonal attention and
    positions that restart. It is had by running each text as a sequence of its own, which is the
    same thing and works for every architecture; the budget still counts windows.
    """

    separator: str = "\n\n"
    shots: int | None = None
    isolate: bool = False
    bos: str = "tokenizer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots is None or 1 <= self.shots <= MOST_SHOTS:
            return
        allowed = f"at most {MOST_SHOTS:,} texts"
        if self.shots < 1:
            allowed = "at least 1 text"
        raise SpecError(
            f"many(shots={self.shots}): a window holds {allowed}; leave shots out to fill it",
            subject="shots",
        )

    @property
    def fills(self) -> bool:
        return self.shots is None

    @property
    def alone(self) -> bool:
        return self.isolate

    def windows(
        self, texts: Iterator[TokenizedText], sizes: Iterator[int], frame: Frame
    ) -> Iterator[Window]:
        separator = self._separator(frame)
        if self.shots is None:
            yield from self._full_windows(texts, sizes, separator)
            return
        for size in sizes:
            pieces: list[Ids] = []
            for text in islice(texts, self.shots):
                if pieces and not self.isolate:
                    pieces.append(separator)
                pieces.append(text.ids)
            if not pieces:
                return
            yield self._window(pieces, size)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        tokens = joined_length(lengths, self._separator(frame))
        supply = f"{tokens:,} tokens in {len(lengths):,} texts"
        if self.shots:
            supply += f", {self.shots} a window"
        return supply

    def _full_windows(
        self, texts: Iterator[TokenizedText], sizes: Iterator[int], separator: Ids
    ) -> Iterator[Window]:
        pieces = [separator[:0]]  # an empty piece, so that there is always one to join
        count = 0
        first = True
        for size in sizes:
            while count < size and (text := next(texts, None)) is not None:
                if not first and not self.isolate:
                    pieces.append(separator)
                    count += len(separator)
                # A separator stands before each text but the very first of the draw.
                first = False
                pieces.append(text.ids)
                count += len(text.ids)
            # A window of no tokens but its start token needs no text.
            if size and not count:
                return
            # Only the last text can reach over the window's end: no text is read once the window is
            # full.
            yield self._window(pieces, size)
            rest = np.concatenate(pieces)[size:]
            pieces = [rest]
            count = len(rest)

    def _separator(self, frame: Frame) -> Ids:
        separator = self.separator
        if self.isolate:
            separator = ""
        return tokenized_separator(separator, frame)

    def _window(self, pieces: Sequence[Ids], size: int) -> Window:
        """Return the first `size` tokens of the pieces; where texts are isolated, a piece is a
        text and its end a border.
        """
        tokens = np.concatenate(pieces)
        window_end = min(size, len(tokens))
        borders: set[int] = set()
        if self.isolate:
            ends = np.cumsum([len(piece) for piece in pieces]).tolist()
            borders = {end for end in ends if 0 < end < window_end}
        return Window(tokens[:size], tuple(sorted(borders)), broken=len(tokens) > size)
