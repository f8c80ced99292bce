"""What a packing is: it cuts texts into windows of tokens.

Every packing says where start tokens go (`bos`): as the tokenizer does it for a text alone, which
is once a window, or once a text where texts can't see each other (`tokenizer`, the default); before
each text (`document`); at the head of each window (`window`); nowhere (`none`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Int32

from calibrant.errors import SpecError
from calibrant.spec import Spec, build
from calibrant.spec.foreign import did_you_mean

STARTS: Final = ("tokenizer", "document", "window", "none")
PAD: Final = -1
"""Stands in a window for a pad that counts as a token; only `legacy` has them."""

Ids = Int32[np.ndarray, " _"]


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text, known by its row's key."""

    key: str
    ids: Ids


@dataclass(frozen=True)
class Window:
    """One window's tokens. `borders` are the positions where a text begins that can't see what
    is before it; `broken`, that its end cuts a text; `read_ahead`, that one more text was read,
    which no longer fitted.
    """

    ids: Ids
    borders: tuple[int, ...] = ()
    broken: bool = False
    read_ahead: bool = False

    def behind(self, start: Ids) -> "Window":
        """Return the window with these start tokens at its head."""
        borders = tuple(len(start) + border for border in self.borders)
        return replace(self, ids=np.concatenate([start, self.ids]), borders=borders)

    def sequences(self) -> list[Ids]:
        """Return the window in pieces that don't see each other."""
        # An empty window has no pieces.
        return [piece for piece in np.split(self.ids, self.borders) if len(piece)]


@dataclass(frozen=True)
class Frame:
    """What a window is cut from: its full length, how to tokenise a separator, and which draw this
    is.

    `head` is how many start tokens will be put before each window; they aren't part of `length`.
    """

    length: int
    encode: Callable[[str], Ids]
    draw: int = 0
    head: int = 0


class Packing(Spec, ABC):
    """Cuts texts into windows. Pure and lazy: a text is read only when its tokens are needed."""

    replacement: ClassVar[bool] = False
    """Whether rows are drawn with replacement, as only `legacy` does."""
    bos: str

    def __post_init__(self) -> None:
        check_choice("bos", self.bos, STARTS)

    @classmethod
    def bare(cls, format_name: str) -> "Packing":
        """Return what the name without arguments stands for where rows are in this format."""
        del format_name
        return build(cls, {})

    @property
    def fills(self) -> bool:
        """Whether windows are full whatever the texts; where they aren't, a budget in samples
        counts windows.
        """
        return True

    @property
    def alone(self) -> bool:
        """Whether every text begins as if nothing stood before it."""
        return False

    def shortest(self, frame: Frame) -> int:
        """Return how many tokens a text must have; shorter ones are passed over."""
        del frame
        return 0

    @abstractmethod
    def windows(
        self, texts: Iterator[TokenizedText], sizes: Iterator[int], frame: Frame
    ) -> Iterator[Window]:
        """Yield a window for each of `sizes`, none longer than that, until sizes or texts run
        out. `sizes` are at most `frame.length`, and no text is shorter than `shortest`.
        """

    @abstractmethod
    def supply(self, lengths: Sequence[int], frame: Frame) -> str:
        """Return what texts of these lengths amount to, for the message that says they don't
        suffice.
        """


def cut_anywhere(key: str, ids: Ids, size: int, draw: int) -> Window:
    """Return `size` tokens from a place that is hashed from the row and the draw."""
    # A hash and no random numbers: the place is the same on every machine and in any order.
    noise = int(hashlib.sha256(f"{key} {draw}".encode()).hexdigest()[:16], 16)
    begin = noise % (len(ids) - size + 1)
    return Window(ids[begin : begin + size], broken=len(ids) > size)


def tokenized_separator(separator: str, frame: Frame) -> Ids:
    """Return the tokens of what stands between texts; none for an empty separator."""
    if not separator:
        return np.zeros(0, dtype=np.int32)
    return frame.encode(separator)


def joined_length(lengths: Sequence[int], separator: Ids) -> int:
    """Return how many tokens texts of these lengths have with separators between them."""
    return sum(lengths) + len(separator) * max(0, len(lengths) - 1)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise `SpecError` for a value that isn't one of those allowed."""
    if value not in allowed:
        near = did_you_mean(str(value), allowed)
        raise SpecError(
            f"{name}={value!r} is not known{near}; choose one of {', '.join(allowed)}",
            subject=str(value),
        )
