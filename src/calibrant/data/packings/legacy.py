"""As the original study's code packs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibrant.data.packings._base import (
    PAD,
    Frame,
    Packing,
    TokenizedText,
    Window,
    check_choice,
    cut_anywhere,
)
from calibrant.data.packings.crop import Crop
from calibrant.data.packings.many import Many
from calibrant.data.packings.one import One


@dataclass(frozen=True, repr=False)
class Legacy(Packing):
    """As the original study's code packs (Bandari et al. 2024, arXiv:2410.07461), kept so that the
    difference can be measured.

    Rows are drawn with replacement, and each text has its own start token. `of="one"`: a text a
    window, pads on its left, which the model attends to and which *count* in the statistics.
    `of="many"`: texts without a separator until a window is more than full, then a window at a
    random place of them. `of="crop"`: only texts longer than a window, at a random place. Where an
    expression doesn't say which, texts are cropped and lone questions stand alone. The original
    adds a pad token whose embedding is random; here pads are the tokenizer's own (or its end
    token).
    """

    of: str = "many"

    replacement = True
    bos = "tokenizer"

    def __post_init__(self) -> None:
        check_choice("of", self.of, ("one", "many", "crop"))

    @classmethod
    def bare(cls, format_name: str) -> "Legacy":
        return cls({"text": "crop", "question": "one"}.get(format_name, "many"))

    @property
    def fills(self) -> bool:
        return self.of != "one"

    @property
    def alone(self) -> bool:
        return True

    def shortest(self, frame: Frame) -> int:
        # `crop` takes a text of exactly a window's length; the study's code passes it over.
        return frame.length + 1 if self.of == "crop" else 0

    def windows(
        self, texts: Iterator[TokenizedText], sizes: Iterator[int], frame: Frame
    ) -> Iterator[Window]:
        if self.of == "one":
            for window in One().windows(texts, sizes, frame):
                pads = np.full(frame.length - len(window.ids), PAD, dtype=np.int32)
                yield replace(window, ids=np.concatenate([pads, window.ids]))
        elif self.of == "crop":
            yield from Crop().windows(texts, sizes, frame)
        else:
            yield from _overfull_windows(texts, sizes, frame)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        packing = {"one": One(), "crop": Crop(), "many": Many()}[self.of]
        if self.of == "crop":
            frame = replace(frame, length=self.shortest(frame))
        return packing.supply(lengths, frame)


def _overfull_windows(
    texts: Iterator[TokenizedText], sizes: Iterator[int], frame: Frame
) -> Iterator[Window]:
    """Yield windows cut out of texts that are together longer than a window."""
    for size in sizes:
        gathered: list[TokenizedText] = []
        count = 0
        while count <= frame.length and (text := next(texts, None)) is not None:
            gathered.append(text)
            count += len(text.ids)
        if count <= frame.length:
            return
        ids = np.concatenate([text.ids for text in gathered])
        yield cut_anywhere(gathered[0].key, ids, size, frame.draw)
