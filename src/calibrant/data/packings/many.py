"""Texts in a row, cut into full windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from calibrant.data.packings._base import Frame, Ids, Packing, TokenizedText, Window
from calibrant.errors import SpecError

MOST_SHOTS: Final = 10_000
_NOTHING: Final[Ids] = np.zeros(0, dtype=np.int32)


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
        if self.shots is not None and self.shots < 1:
            raise SpecError(
                f"many(shots={self.shots}): a window holds at least 1 text; leave shots out to fill it",
                subject="shots",
            )
        if self.shots is not None and self.shots > MOST_SHOTS:
            raise SpecError(
                f"many(shots={self.shots}): a window holds at most {MOST_SHOTS:,} texts; leave shots out to fill it",
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
        between = self._between(frame)
        if self.shots is not None:
            for size in sizes:
                pieces = [text.ids for text in islice(texts, self.shots)]
                if not pieces:
                    return
                yield self._window(
                    pieces
                    if self.isolate
                    else [piece for ids in pieces for piece in (between, ids)][1:],
                    size,
                )
            return
        pieces: list[Ids] = []
        count, first = 0, True
        for size in sizes:
            while count < size and (text := next(texts, None)) is not None:
                pieces += [text.ids] if first or self.isolate else [between, text.ids]
                count += len(text.ids) + (0 if first else len(between))
                first = False
            joined = np.concatenate(pieces) if pieces else _NOTHING
            if size and not len(joined):
                return
            # Only the last text can reach over the window's end: no text is read once the window is
            # full.
            yield self._window(pieces or [_NOTHING], size)
            pieces, count = [joined[size:]], max(0, len(joined) - size)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        tokens = sum(lengths) + len(self._between(frame)) * max(0, len(lengths) - 1)
        return f"{tokens} tokens in {len(lengths)} texts" + (
            f", {self.shots} a window" if self.shots else ""
        )

    def _between(self, frame: Frame) -> Ids:
        return frame.encode(self.separator) if self.separator and not self.isolate else _NOTHING

    def _window(self, pieces: Sequence[Ids], size: int) -> Window:
        """Return the first `size` tokens of the pieces; where texts are isolated, a piece is a
        text and its end a border.
        """
        joined = np.concatenate(pieces)
        ends = np.cumsum([len(piece) for piece in pieces]).tolist() if self.isolate else []
        borders = tuple(sorted({border for border in ends if 0 < border < min(size, len(joined))}))
        return Window(joined[:size], borders, broken=len(joined) > size)
