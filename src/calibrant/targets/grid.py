"""A grid of evenly spaced values that weights are rounded to, such as `w4g64`: 4 bits a weight,
one scale for 64 inputs of a row.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.spec.grammar import read_target
from calibrant.targets._base import Target
from calibrant.targets._kinds import allowed

FEWEST: Final = 2
MOST: Final = 8
"""Bits that a code may have: of more nobody can see the difference, and with one bit zero is no
value.
"""

SMALLEST: Final = 8
"""Inputs of the smallest group that is proposed: in a smaller one the scales take more room than
they save.
"""


@dataclass(frozen=True)
class Grid(Target):
    """Codes of `bits` bits for each weight, and a scale for `group` consecutive inputs of a row;
    without `group`, for the whole row.

    On a `symmetric` grid a code c stands for scale · c, so that its values lie about zero: from
    -2^(bits-1) to 2^(bits-1) - 1 times the scale. On another each group has a zero point z too, and
    c stands for scale · (c - z): the values cover a range that needn't have zero in its middle.
    """

    written: ClassVar[str] = (
        f"a grid of {FEWEST} to {MOST} bits, with a scale for each group of inputs"
    )
    example: ClassVar[str] = "w4g64"

    bits: int
    group: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not FEWEST <= self.bits <= MOST:
            message = (
                f"{self} has codes of {brief(self.bits)} bits, and {FEWEST} to {MOST} are "
                f"possible; {allowed((Grid,))}"
            )
            raise TargetError(message, subject=str(self))
        if self.group is not None and (type(self.group) is not int or self.group < 2):
            message = (
                f"{self} has groups of {brief(self.group)} inputs, and a group has at least 2; "
                f"{allowed((Grid,))}, or w{self.bits} for a whole row"
            )
            raise TargetError(message, subject=str(self))

    @classmethod
    def read(cls, value: str | float | int) -> "Grid | None":
        if not isinstance(value, str):
            return None
        label = read_target(value)
        return None if label.bits is None else cls(label.bits, label.group, not label.zeros)

    def __str__(self) -> str:
        text = f"w{brief(self.bits)}"
        if self.group is not None:
            text += f"g{brief(self.group)}"
        return text if self.symmetric else f"{text}a"

    @property
    def amount(self) -> float:
        return float(self.bits)

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    def width(self, inputs: int) -> int:
        """Return how many inputs share a scale, in a matrix that has so many."""
        return inputs if self.group is None else self.group

    def check(self, shape: tuple[int, int], name: str) -> None:
        if shape[1] % self.width(shape[1]):
            near = [
                str(Grid(self.bits, group, self.symmetric))
                for group in _near(shape[1], self.width(shape[1]))
            ]
            row = f"{Grid(self.bits, None, self.symmetric)} with a scale for each row"
            choices = f"{', '.join(near)}, or {row}" if near else row
            message = (
                f"{name} has {shape[1]} inputs, which groups of {self.group} don't divide; choose "
                f"{choices}"
            )
            raise TargetError(message, subject=name)


def _near(inputs: int, group: int) -> list[int]:
    """The divisors of `inputs` near `group`: the next on either side, and the next smaller power
    of two, which is what fast kernels are made for.
    """
    fitting = [size for size in range(SMALLEST, inputs) if inputs % size == 0]
    smaller = [size for size in fitting if size < group]
    larger = [size for size in fitting if size > group]
    powers = [size for size in smaller if size & (size - 1) == 0]
    return sorted({*smaller[-1:], *larger[:1], *powers[-1:]})
