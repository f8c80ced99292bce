"""A share of the blocks or the experts of a model, or of the numbers that its feed-forward
networks are stored with.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Final, Literal, get_args

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.spec.grammar import read_target
from calibrant.targets._base import Target, Verb

Parts = Literal["blocks", "experts", "numbers"]
ALLOWED: Final = "write blocks, experts or numbers and a share from 0 up to (not including) 1"


@dataclass(frozen=True)
class Share(Target):
    """A share of a model's blocks, or of the experts of each layer, `0 <= fraction < 1`; of `count`
    of them ⌊count·fraction⌋ go.

    A share of `numbers` is one of those that the matrices of feed-forward networks consist of:
    factors take their place that have so many fewer numbers. A method that removes such parts
    accepts a plain 0.25 too.
    """

    written: ClassVar[str] = (
        "a share of the blocks, the experts, or the numbers of feed-forward networks"
    )
    example: ClassVar[str] = "blocks 0.25"
    verb: ClassVar[Verb] = "prune"

    parts: Parts
    fraction: float

    def __post_init__(self) -> None:
        known = self.parts in get_args(Parts)
        number = isinstance(self.fraction, int | float) and not isinstance(self.fraction, bool)
        if not known or not number or not 0 <= self.fraction < 1:
            text = f"{brief(self.parts)} {brief(self.fraction)}"
            raise TargetError(f"{text} is no share of a model's parts; {ALLOWED}", subject=text)
        # Of -0.0, which would be written differently, + 0.0 makes 0.0.
        object.__setattr__(self, "fraction", float(self.fraction) + 0.0)

    @classmethod
    def read(cls, value: str | float | int) -> "Share | None":
        if not isinstance(value, str):
            return None
        label = read_target(value)
        if label.parts is None or label.share is None:
            return None
        return cls(label.parts, label.share)

    def __str__(self) -> str:
        return f"{self.parts} {self.fraction}"

    @property
    def amount(self) -> float:
        return self.fraction

    def quota(self, count: int) -> int:
        """Return how many of `count` parts go: the product with the fraction as it is written,
        rounded down.
        """
        return int(count * Fraction(str(self.fraction)))
