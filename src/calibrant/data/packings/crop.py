"""A stretch from somewhere in a long text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibrant.data.packings._base import Frame, Packing, TokenizedText, Window, cut_anywhere


@dataclass(frozen=True, repr=False)
class Crop(Packing):
    """A window at a random place of each text that is at least a window long; shorter texts are
    passed over.

    The place is hashed from the row and the draw.
    """

    bos: str = "tokenizer"

    def shortest(self, frame: Frame) -> int:
        return frame.length

    def windows(
        self, texts: Iterator[TokenizedText], sizes: Iterator[int], frame: Frame
    ) -> Iterator[Window]:
        # A text is read only when its size is known.
        for size, text in zip(sizes, texts, strict=False):
            yield cut_anywhere(text.key, text.ids, size, frame.draw)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        count = sum(length >= frame.length for length in lengths)
        longest = f"the longest of {len(lengths):,} has {max(lengths, default=0):,}"
        return f"{count:,} texts of at least {frame.length:,} tokens ({longest})"
