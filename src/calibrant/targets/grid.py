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
"""How few and how many bits a code may have: beyond 8 nobody sees a difference, and with one bit
zero wouldn't be among the values.
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
        # Not `isinstance`: True is an int, too.
        if type(self.bits) is not int or not FEWEST <= self.bits <= MOST:
            raise TargetError(
                f"{self} has codes of {brief(self.bits)} bits, and {FEWEST} to {MOST} are "
                f"possible; {allowed((Grid,))}",
                subject=str(self),
            )
        if self.group is not None and (type(self.group) is not int or self.group < 2):
            raise TargetError(
                f"{self} has groups of {brief(self.group)} inputs, and a group has at least 2; "
                f"{allowed((Grid,))}, or w{self.bits} for a whole row",
                subject=str(self),
            )

    @classmethod
    def read(cls, value: str | float | int) -> "Grid | None":
        if not isinstance(value, str):
            return None
        label = read_target(value)
        if label.bits is None:
            return None
        return cls(label.bits, label.group, not label.zeros)

    def __str__(self) -> str:
        text = f"w{brief(self.bits)}"
        if self.group is not None:
            text += f"g{brief(self.group)}"
        if not self.symmetric:
            text += "a"
        return text

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
        """Return how many inputs share a scale, in a matrix with so many inputs."""
        return inputs if self.group is None else self.group

    def check(self, shape: tuple[int, int], name: str) -> None:
        inputs = shape[1]
        width = self.width(inputs)
        if inputs % width == 0:
            return
        choices = [str(Grid(self.bits, group, self.symmetric)) for group in _near(inputs, width)]
        choices.append(f"{Grid(self.bits, None, self.symmetric)} with a scale for each row")
        *others, last = choices
        listed = f"{', '.join(others)}, or {last}" if others else last
        raise TargetError(
            f"{name} has {inputs} inputs, which groups of {self.group} don't divide; "
            f"choose {listed}",
            subject=name,
        )


def _near(inputs: int, group: int) -> list[int]:
    """Return the divisors of `inputs` near `group`, in order: the next smaller and larger ones, and
    the next smaller power of two, which fast kernels are made for.
    """
    near: set[int] = set()
    divisors = [size for size in range(SMALLEST, inputs) if inputs % size == 0]
    smaller = [size for size in divisors if size < group]
    powers = [size for size in smaller if size & (size - 1) == 0]
    larger = [size for size in divisors if size > group]
    near.update(smaller[-1:], powers[-1:], larger[:1])
    return sorted(near)
