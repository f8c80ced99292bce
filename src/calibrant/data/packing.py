"""How texts become windows of tokens.

Every packing says where start tokens go (`bos`): as the tokenizer does it for a text alone, which is once a window, or once a text where texts
can't see each other (`tokenizer`, the default); before each text (`document`); at the head of each window (`window`); nowhere (`none`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Int32

from calibrant.errors import SpecError
from calibrant.registry import Registry, did_you_mean
from calibrant.spec import Spec, is_foreign

STARTS: Final = ("tokenizer", "document", "window", "none")
MOST_SHOTS: Final = 10_000
PAD: Final = -1
"""Stands in a window for a pad that counts as a token; only `legacy` has them."""

Ids = Int32[np.ndarray, " _"]
_NOTHING: Final[Ids] = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Text:
    """A tokenised text, known by its row's key."""

    key: str
    ids: Ids


@dataclass(frozen=True)
class Window:
    """One window's tokens. `borders` are the positions where a text begins that can't see what is before it; `broken`, that its end cuts a text."""

    ids: Ids
    borders: tuple[int, ...] = ()
    broken: bool = False

    def sequences(self) -> list[Ids]:
        """The window in pieces that don't see each other."""
        return [piece for piece in np.split(self.ids, self.borders) if len(piece)]


@dataclass(frozen=True)
class Frame:
    """What a window is cut from: its full length, how to tokenise a separator, and which draw this is."""

    length: int
    encode: Callable[[str], Ids]
    draw: int = 0


class Packing(Spec, ABC):
    """Cuts texts into windows. Pure and lazy: a text is asked for only when its tokens are needed."""

    replacement: ClassVar[bool] = False
    """Whether rows are drawn with replacement, which only the original study's way does."""
    bos: str

    def __post_init__(self) -> None:
        _known("bos", self.bos, STARTS)

    @property
    def fills(self) -> bool:
        """Whether windows are full whatever the texts; where they aren't, a budget in samples counts windows."""
        return True

    @property
    def alone(self) -> bool:
        """Whether every text begins as if nothing stood before it."""
        return False

    @classmethod
    def spec_name(cls) -> str:
        """The class's name in lower case, because ours share a file; of another package's class its entry point's."""
        return super().spec_name() if is_foreign(cls) else cls.__name__.lower()

    @abstractmethod
    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Window]:
        """A window for each of `sizes`, none longer than that, until sizes or texts run out. `sizes` are at most `frame.length`."""

    @abstractmethod
    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        """What texts of these lengths amount to, for the message that says they don't suffice."""


@dataclass(frozen=True, repr=False)
class One(Packing):
    """One text a window, its end cut off if it is too long."""

    bos: str = "tokenizer"

    @property
    def fills(self) -> bool:
        return False

    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Window]:
        for size in sizes:
            text = next(texts, None)
            if text is None:
                return
            yield Window(text.ids[:size], broken=len(text.ids) > size)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        return f"{len(lengths)} texts with {sum(min(n, frame.length) for n in lengths)} tokens that fit their windows"


@dataclass(frozen=True, repr=False)
class Many(Packing):
    """Texts one after the other, the separator's tokens between them, cut into consecutive full windows.

    `shots=k` puts exactly k texts into a window, and leaves the rest of it empty. `isolate` keeps the texts of a window from seeing each other,
    without separators: block-diagonal attention and positions that restart. It is had by running each text as a sequence of its own, which is
    the same thing and works for every architecture; the budget still counts windows.
    """

    separator: str = "\n\n"
    shots: int | None = None
    isolate: bool = False
    bos: str = "tokenizer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots is not None and self.shots < 1:
            raise SpecError(f"many(shots={self.shots}): a window holds at least 1 text; leave shots out to fill it", subject="shots")
        if self.shots is not None and self.shots > MOST_SHOTS:
            raise SpecError(f"many(shots={self.shots}): a window holds at most {MOST_SHOTS:,} texts; leave shots out to fill it", subject="shots")

    @property
    def fills(self) -> bool:
        return self.shots is None

    @property
    def alone(self) -> bool:
        return self.isolate

    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Window]:
        yield from (self._filled if self.shots is None else self._counted)(texts, sizes, frame)

    def _filled(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Window]:
        between = self._between(frame)
        held: list[Ids] = []
        count, first = 0, True
        for size in sizes:
            while count < size and (text := next(texts, None)) is not None:
                held += [text.ids] if first or self.isolate else [between, text.ids]
                count += len(text.ids) + (0 if first else len(between))
                first = False
            joined = np.concatenate(held) if held else _NOTHING
            if size and not len(joined):
                return
            # Only the last text can reach over the window's end: nothing is asked for once the window is full.
            yield Window(joined[:size], self._borders(held, min(size, len(joined))), broken=len(joined) > size)
            held, count = [joined[size:]], max(0, len(joined) - size)

    def _counted(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Window]:
        between = self._between(frame)
        for size in sizes:
            taken = [text.ids for text in islice(texts, self.shots)]
            if not taken:
                return
            held = taken if self.isolate else [piece for ids in taken for piece in (between, ids)][1:]
            joined = np.concatenate(held)
            yield Window(joined[:size], self._borders(held, min(size, len(joined))), broken=len(joined) > size)

    def _between(self, frame: Frame) -> Ids:
        return frame.encode(self.separator) if self.separator and not self.isolate else _NOTHING

    def _borders(self, held: Sequence[Ids], end: int) -> tuple[int, ...]:
        ends = np.cumsum([len(piece) for piece in held]).tolist() if self.isolate else []
        return tuple(sorted({border for border in ends if 0 < border < end}))

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        tokens = sum(lengths) + len(self._between(frame)) * max(0, len(lengths) - 1)
        return f"{tokens} tokens in {len(lengths)} texts" + (f", {self.shots} a window" if self.shots else "")


@dataclass(frozen=True, repr=False)
class Crop(Packing):
    """A window at a random place of each text that is at least a window long; shorter texts are passed over.

    The place is hashed from the row and the draw.
    """

    bos: str = "tokenizer"

    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Window]:
        enough = (text for text in texts if len(text.ids) >= frame.length)
        for size in sizes:
            text = next(enough, None)
            if text is None:
                return
            yield _cut(text.key, text.ids, size, frame.draw)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        enough = sum(n >= frame.length for n in lengths)
        return f"{enough} texts of at least {frame.length} tokens (the longest of {len(lengths)} has {max(lengths, default=0)})"


@dataclass(frozen=True, repr=False)
class Legacy(Packing):
    """As the original study's code packs (Bandari et al. 2024, arXiv:2410.07461), kept so that the difference can be measured.

    Rows are drawn with replacement, and each text has its own start token. `of="one"`: a text a window, pads on its left, which the model attends
    to and which *count* in the statistics. `of="many"`: texts without a separator until a window is more than full, then a window at a random
    place of them. `of="crop"`: only texts longer than a window, at a random place. Where an expression doesn't say which, texts are cropped and
    lone questions stand alone. The original adds a pad token whose embedding is random; here pads are the tokenizer's own (or its end token).
    """

    of: str = "many"

    replacement = True
    bos = "tokenizer"

    def __post_init__(self) -> None:
        _known("of", self.of, ("one", "many", "crop"))

    @property
    def fills(self) -> bool:
        return self.of != "one"

    @property
    def alone(self) -> bool:
        return True

    def windows(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Window]:
        match self.of:
            case "one":
                for window in One().windows(texts, sizes, frame):
                    pads = np.full(frame.length - len(window.ids), PAD, dtype=np.int32)
                    yield replace(window, ids=np.concatenate([pads, window.ids]))
            case "crop":
                longer = (text for text in texts if len(text.ids) > frame.length)
                yield from Crop().windows(longer, sizes, frame)
            case _:
                yield from self._concatenated(texts, sizes, frame)

    def _concatenated(self, texts: Iterator[Text], sizes: Iterator[int], frame: Frame) -> Iterator[Window]:
        for size in sizes:
            held: list[Text] = []
            while sum(len(text.ids) for text in held) <= frame.length:
                text = next(texts, None)
                if text is None:
                    return
                held.append(text)
            yield _cut(held[0].key, np.concatenate([text.ids for text in held]), size, frame.draw)

    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        return {"one": One(), "crop": Crop()}.get(self.of, Many()).supply(lengths, frame)


PACKINGS: Final[dict[str, type[Packing]]] = {cls.spec_name(): cls for cls in (One, Many, Crop, Legacy)}
packings: Final = Registry(__name__, "packing", PACKINGS)
"""Ours, and those that other packages add through an entry point of the group `calibrant.data.packing`."""


def _cut(key: str, ids: Ids, size: int, draw: int) -> Window:
    """`size` tokens from a place that is hashed from the row and the draw."""
    noise = int(hashlib.sha256(f"{key} {draw}".encode()).hexdigest()[:16], 16)
    begin = noise % (len(ids) - size + 1)
    return Window(ids[begin : begin + size], broken=len(ids) > size)


def _known(name: str, given: str, allowed: Sequence[str]) -> None:
    if given not in allowed:
        raise SpecError(f"{name}={given!r} is not known{did_you_mean(str(given), allowed)}; choose one of {', '.join(allowed)}", subject=str(given))
