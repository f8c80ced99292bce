"""Texts in a row, none of them cut."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calibrant.data.packings._base import Frame, Packing, TokenizedText, Window


@dataclass(frozen=True, repr=False)
class Whole(Packing):
    """As many texts as fit, one after the other, and none cut that fits a window; the rest of the
    window is empty.

    Each begins with its start token. Only a text that is longer than a window is cut, at its end,
    and counted. So is the first of the last window, where an exact number of tokens leaves that
    less room.
    """

    bos: str = "tokenizer"

    @property
    def fills(self) -> bool:
        return False

    @property
    def alone(self) -> bool:
        return True

    def windows(
        self, texts: Iterator[TokenizedText], sizes: Iterator[int], frame: Frame
    ) -> Iterator[Window]:
        waiting: TokenizedText | None = None
        for size in sizes:
            pieces = [np.zeros(0, dtype=np.int32)]  # so that there is always one to join
            count = 0
            while count < size:
                if waiting is None:
                    waiting = next(texts, None)
                if waiting is None:
                    break
                if count and count + len(waiting.ids) > size:
                    break
                pieces.append(waiting.ids)
                count += len(waiting.ids)
                waiting = None
            if size and not count:
                return
            ids = np.concatenate(pieces)[:size]
            yield Window(ids, broken=count > size, read_ahead=waiting is not None)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        fitting = sum(min(length, frame.length) for length in lengths)
        return f"{len(lengths):,} texts with {fitting:,} tokens that fit their windows"
