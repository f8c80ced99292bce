"""A share of the weights that go, such as `0.5`."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.spec.grammar import read_target
from calibrant.targets._base import Group, Removal, keep_highest
from calibrant.targets._kinds import allowed, bits_hint, percentage


@dataclass(frozen=True)
class Sparsity(Removal):
    """A share of the weights, `0 <= fraction < 1`; of `count` weights exactly ⌊count·fraction⌋
    go.
    """

    written: ClassVar[str] = "a sparsity from 0 up to (not including) 1"
    example: ClassVar[str] = "0.5"

    fraction: float | int

    def __post_init__(self) -> None:
        number = isinstance(self.fraction, int | float) and not isinstance(self.fraction, bool)
        if not number or not 0 <= self.fraction < 1:
            raise TargetError(
                f"{brief(self.fraction)} is no sparsity{percentage(self.fraction)}; "
                f"{allowed((Removal,))}{bits_hint(brief(self.fraction))}",
                subject=brief(self.fraction),
            )
        # Of -0.0, which would be written differently, + 0.0 makes 0.0.
        object.__setattr__(self, "fraction", float(self.fraction) + 0.0)

    @classmethod
    def read(cls, value: str | float | int) -> "Sparsity | None":
        if not isinstance(value, str):
            return cls(value)
        # Written like numbers, and refused as such.
        word = value.strip().lower()
        if word in ("nan", "inf"):
            return cls(float(word))
        label = read_target(value)
        if label.share is None or label.parts:
            return None
        return cls(label.share)

    def __str__(self) -> str:
        return str(self.fraction)

    @property
    def amount(self) -> float:
        return self.fraction

    def quota(self, count: int) -> int:
        """Return how many of `count` weights go: the product with the fraction as it is written,
        rounded down.
        """
        # In floating point 0.29 · 100 is less than 29.
        return int(count * Fraction(str(self.fraction)))

    def keep(self, scores: Float[Tensor, "out in"], group: Group = "row") -> Bool[Tensor, "out in"]:
        rows = scores.reshape(1, -1) if group == "matrix" else scores
        return keep_highest(rows, self.quota(rows.shape[1])).reshape(scores.shape)
