"""As llama.cpp's imatrix tool cuts a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from calibrant.data.packings._base import Frame, Packing, TokenizedText, Window


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
        stream = np.full(frame.head, -1, dtype=np.int32)
        between = frame.encode(self.separator) if self.separator else stream[:0]
        first = next(texts, None)
        following = chain.from_iterable((between, text.ids) for text in texts)
        pieces = chain(() if first is None else (first.ids,), following)
        for size in sizes:
            needed = frame.head + size
            gathered, count = [stream], len(stream)
            while count < needed and (piece := next(pieces, None)) is not None:
                gathered.append(piece)
                count += len(piece)
            stream = np.concatenate(gathered)
            if len(stream) < needed:
                return
            yield Window(stream[frame.head : needed], broken=len(stream) > needed)
            stream = stream[needed:]

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        tokens = sum(lengths) + (len(frame.encode(self.separator)) if self.separator else 0) * max(
            0, len(lengths) - 1
        )
        return f"{tokens} tokens in {len(lengths)} texts, {(tokens + frame.head) // (frame.head + frame.length)} whole windows"
