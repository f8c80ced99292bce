"""The Gram of the inputs in two halves: one to fit weights to, and one to measure on what was
fitted.
"""

from functools import cached_property
from typing import final

from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, InputStatistic


@final
class HalvedGram(InputStatistic):
    """Two Grams of different texts: each micro-batch, which is made of whole windows, is counted in
    one of them in turn.

    A single micro-batch is divided in the middle of its rows; there is no second half of a single
    row.
    """

    def __init__(self, fitted: Gram, measured: Gram | None, batches: int = 1) -> None:
        self.fitted, self.measured, self.batches = fitted, measured, batches
        self.tokens = fitted.tokens + (measured.tokens if measured else 0)
        self.mass = fitted.mass + (measured.mass if measured else 0.0)

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "HalvedGram":
        cut = (len(x) + 1) // 2
        first, second = (
            Gram.of(x[half], None if weights is None else weights[half])
            for half in (slice(0, cut), slice(cut, None))
        )
        return cls(first, second if len(x) > 1 else None)

    def __add__(self, other: "HalvedGram") -> "HalvedGram":
        if (
            other.batches > 1 < self.batches and self.measured and other.measured
        ):  # both are divided by micro-batches already
            return HalvedGram(
                self.fitted + other.fitted,
                self.measured + other.measured,
                self.batches + other.batches,
            )
        fitted, measured = (self.whole, None) if self.batches == 1 else (self.fitted, self.measured)
        if self.batches % 2 == 0:
            fitted = fitted + other.whole
        else:
            measured = other.whole if measured is None else measured + other.whole
        return HalvedGram(fitted, measured, self.batches + other.batches)

    def __mul__(self, factor: float) -> "HalvedGram":
        return HalvedGram(
            self.fitted * factor, self.measured * factor if self.measured else None, self.batches
        )

    def norms(self) -> Float[Tensor, "in"]:
        return self.fitted.norms() + self.measured.norms() if self.measured else self.fitted.norms()

    @cached_property
    def whole(self) -> Gram:
        """The Gram of all."""
        return self.fitted + self.measured if self.measured else self.fitted
