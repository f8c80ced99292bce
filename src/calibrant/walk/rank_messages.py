"""What ranks say to each other: messages with their failures, and statistics that stand one
behind the other until all are there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, final

import torch

from calibrant.activations import Gram, Statistic
from calibrant.errors import CalibrantError, RankError
from calibrant.system.wire import Kind, Language, fields_of, kind_of, raised


@dataclass(frozen=True)
class RankMessage:
    """What a rank says in a meeting: where it is, and what it has there, or why it failed."""

    where: str
    what: Any
    failure: "RankFailure | None" = None


@dataclass(frozen=True)
class RankFailure:
    """An exception in words: the exception itself may hold what can't be sent."""

    kind: str
    text: str
    subject: str

    @classmethod
    def of(cls, error: BaseException) -> "RankFailure":
        name = "" if isinstance(error, CalibrantError) else f"{type(error).__name__}: "
        return cls(
            kind_of(error), name + " ".join(str(error).split()), getattr(error, "subject", "")
        )

    def error(self, rank: int) -> BaseException:
        """Return what the others raise for it."""
        if self.kind == KeyboardInterrupt.__name__:
            return KeyboardInterrupt()
        return raised(self.kind, self.text, self.subject) or RankError(
            f"rank {rank} failed: {self.text}", subject=self.subject
        )


@dataclass(frozen=True)
class GramSize:
    """What there is to know of a Gram before it is summed."""

    width: int
    dtype: str
    tokens: int
    mass: float

    @classmethod
    def of(cls, gram: Gram) -> "GramSize":
        return cls(len(gram.matrix), str(gram.matrix.dtype), gram.tokens, gram.mass)


@final
class InOrder(Statistic):
    """Statistics that stand one behind the other until all are there: how floats are added
    decides their last bits.
    """

    def __init__(self, parts: tuple[Statistic, ...]) -> None:
        self.parts = parts
        self.tokens, self.mass = (
            sum(part.tokens for part in parts),
            sum(part.mass for part in parts),
        )

    def __add__(self, other: "InOrder") -> "InOrder":
        return InOrder(self.parts + other.parts)

    def __mul__(self, factor: float) -> "InOrder":
        return InOrder(tuple(part * factor for part in self.parts))


def added(parts: Iterable[Any]) -> Any:
    """Return the sum from left to right; None of nothing."""
    rest = iter(parts)
    first = next(rest, None)
    return None if first is None else sum(rest, start=first)


def moved(part: Statistic, device: torch.device) -> Statistic:
    """Return the same statistic with its tensors on `device`."""
    return type(part)(
        **{
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in part.held().items()
        }
    )


def called(kind: type[Statistic]) -> str:
    """Return what messages call a kind of statistic: its class, with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def loaded_kinds() -> dict[str, type[Statistic]]:
    """Return the statistics that this process knows, by name, a method's own among them: nothing
    is imported because a message says so.
    """
    kinds: list[type[Statistic]] = [Statistic]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {called(kind): kind for kind in kinds}


WIDE: Final = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}
"""What a Gram is summed in."""

LANGUAGE: Final = Language(
    *map(fields_of, (RankMessage, RankFailure, GramSize)),
    Kind(
        "statistic",
        Statistic,
        lambda part: [called(type(part)), part.held()],
        lambda parts: loaded_kinds()[parts[0]](**parts[1]),
    ),
)
