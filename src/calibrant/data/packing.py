"""How texts become windows of tokens."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int32

from calibrant.spec import Spec


@dataclass(frozen=True)
class Text:
    """A tokenised text, known by its row's key."""

    key: str
    ids: Int32[np.ndarray, " token"]


@dataclass(frozen=True)
class Frame:
    """What a window is cut from: its full length, how to tokenise a separator, and which draw this is."""

    length: int
    encode: Callable[[str], Int32[np.ndarray, " token"]]
    draw: int = 0


class Packing(Spec, ABC):
    """Cuts texts into windows. Pure and lazy: a text is asked for only when its tokens are needed."""

    @classmethod
    def spec_name(cls) -> str:
        """The class's name in lower case: packings share a file."""
        return cls.__name__.lower()

    @abstractmethod
    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Int32[np.ndarray, " token"]]:
        """A window for each of `sizes`, none longer than that, until sizes or texts run out. `sizes` are at most `frame.length`."""

    @abstractmethod
    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        """What texts of these lengths amount to, for the message that says they don't suffice."""


@dataclass(frozen=True, repr=False)
class One(Packing):
    """One text a window, its end cut off if it is too long."""

    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Int32[np.ndarray, " token"]]:
        for size in sizes:
            text = next(texts, None)
            if text is None:
                return
            yield text.ids[:size]

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        return f"{len(lengths)} texts with {sum(min(n, frame.length) for n in lengths)} tokens that fit their windows"


@dataclass(frozen=True, repr=False)
class Many(Packing):
    """Texts one after the other, the separator's tokens between them, cut into consecutive full windows."""

    separator: str = "\n\n"

    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Int32[np.ndarray, " token"]]:
        between = frame.encode(self.separator) if self.separator else np.zeros(0, dtype=np.int32)
        held: list[Int32[np.ndarray, " token"]] = []
        count, first = 0, True
        for size in sizes:
            while count < size and (text := next(texts, None)) is not None:
                held += [text.ids] if first else [between, text.ids]
                count += len(text.ids) + (0 if first else len(between))
                first = False
            joined = np.concatenate(held) if held else np.zeros(0, dtype=np.int32)
            if size and not len(joined):
                return
            yield joined[:size]
            held, count = [joined[size:]], max(0, len(joined) - size)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        between = len(frame.encode(self.separator)) if self.separator else 0
        return f"{sum(lengths) + between * max(0, len(lengths) - 1)} tokens in {len(lengths)} texts"


@dataclass(frozen=True, repr=False)
class Crop(Packing):
    """A window at a random place of each text that is at least a window long; shorter texts are passed over.

    The place is hashed from the row and the draw.
    """

    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Int32[np.ndarray, " token"]]:
        enough = (text for text in texts if len(text.ids) >= frame.length)
        for size in sizes:
            text = next(enough, None)
            if text is None:
                return
            noise = int(hashlib.sha256(f"{text.key} {frame.draw}".encode()).hexdigest()[:16], 16)
            begin = noise % (len(text.ids) - size + 1)
            yield text.ids[begin : begin + size]

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        enough = sum(n >= frame.length for n in lengths)
        return f"{enough} texts of at least {frame.length} tokens (the longest of {len(lengths)} has {max(lengths, default=0)})"


PACKINGS: Final[dict[str, type[Packing]]] = {cls.spec_name(): cls for cls in (One, Many, Crop)}
