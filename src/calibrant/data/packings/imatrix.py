"""As llama.cpp's imatrix tool cuts a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calibrant.data.packings._base import (
    Frame,
    Ids,
    Packing,
    TokenizedText,
    Window,
    joined_length,
    tokenized_separator,
)


@dataclass(frozen=True, repr=False)
class ImatrixChunks(Packing):
    """All texts as one stream, cut into consecutive full windows, as llama-imatrix cuts a file; a
    rest that fills none is dropped.

    Where the tokenizer puts a start token before a text, the stream begins with one, and in every
    window it stands in place of the first token, which is lost. `separator` stands between texts.
    Windows of other lengths than llama.cpp's 512 are had by --length.
    """

    separator: str = "\n\n"
    bos: str = "tokenizer"

    def windows(
        self, texts: Iterator[TokenizedText], sizes: Iterator[int], frame: Frame
    ) -> Iterator[Window]:
        # A window is `frame.head` start tokens and what follows here, so that many tokens of the
        # stream are passed over at each.
        # Of the first window these tokens are the start token itself: any number will do.
        stream = np.full(frame.head, -1, dtype=np.int32)
        pieces = _pieces(texts, tokenized_separator(self.separator, frame))
        for size in sizes:
            needed = frame.head + size
            gathered = [stream]
            count = len(stream)
            while count < needed and (piece := next(pieces, None)) is not None:
                gathered.append(piece)
                count += len(piece)
            if count < needed:
                return
            stream = np.concatenate(gathered)
            # Of later windows the start token stands in place of these first tokens.
            yield Window(stream[frame.head : needed], broken=count > needed)
            stream = stream[needed:]

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        tokens = joined_length(lengths, tokenized_separator(self.separator, frame))
        windows = (tokens + frame.head) // (frame.head + frame.length)
        return f"{tokens:,} tokens in {len(lengths):,} texts, {windows:,} whole windows"


def _pieces(texts: Iterator[TokenizedText], separator: Ids) -> Iterator[Ids]:
    """Yield the texts' tokens and what stands between them, each only when it is asked for."""
    for number, text in enumerate(texts):
        if number:
            yield separator
        yield text.ids
