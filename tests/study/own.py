"""Classes of somebody's own, which no name leads to: a source, a method and an evaluator, in a
file that workers can import.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from calibrant.activations import Seen
from calibrant.data import Part, Row, Source
from calibrant.evaluators.loss import Loss
from calibrant.methods import Compressed, MatrixMethod
from calibrant.targets import Sparsity, Target


@dataclass(frozen=True, repr=False)
class Counting(Source):
    """Rows that count upwards in words."""

    first: int = 0
    kind = "corpus"
    licence = "CC0-1.0"
    fields = ("text",)

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        for number in range(200):
            yield Row(text=" ".join(f"{part} {self.first + number + step}" for step in range(12)))


@dataclass(frozen=True, repr=False)
class Leading(MatrixMethod):
    """Takes the first weights of each row."""

    scale: float = 1.0
    accepts: ClassVar[tuple[type[Target], ...]] = (Sparsity,)

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        kept = weight.detach().clone() * self.scale
        kept[:, : int(weight.shape[1] * float(str(target)))] = 0
        return Compressed(kept)


@dataclass(frozen=True, repr=False)
class OwnLoss(Loss):
    """The loss, as somebody else measures it."""


@dataclass(frozen=True, repr=False)
class Counted(Leading):
    """Notes each time that one is made."""

    made: ClassVar[list[float]] = []

    def __post_init__(self) -> None:
        self.made.append(self.scale)
