"""One text a window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibrant.data.packings._base import Frame, Packing, TokenizedText, Window


@dataclass(frozen=True, repr=False)
class One(Packing):
    """One text a window, its end cut off if it is too long."""

    bos: str = "tokenizer"

    @property
    def fills(self) -> bool:
        return False

    def windows(
        self, texts: Iterator[TokenizedText], sizes: Iterator[int], frame: Frame
    ) -> Iterator[Window]:
        for size in sizes:
            text = next(texts, None)
            if text is None:
                return
            yield Window(text.ids[:size], broken=len(text.ids) > size)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        fitting = sum(min(length, frame.length) for length in lengths)
        return f"{len(lengths):,} texts with {fitting:,} tokens that fit their windows"
