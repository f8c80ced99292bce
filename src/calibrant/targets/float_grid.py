"""Grids of floating-point numbers, such as `NVFP4A16`: what weights become in formats of few bits
that GPUs compute with.
"""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple

from calibrant.errors import TargetError
from calibrant.spec import later
from calibrant.spec.foreign import brief
from calibrant.targets._base import Target
from calibrant.targets._elements import E2M1, E4M3, Element

ScaleKind = Literal["plain", "e4m3", "e8m0"]
"""How scales are stored: in the type of the weight; as numbers of 8 bits, which share one of
float32; as powers of two.
"""
INSTEAD_OF_ZERO: Final = 0.125
"""The e4m3 scale that compressed-tensors gives a group whose own would be zero."""


class _Format(NamedTuple):
    """Which `element` weights become, and how many `rows` and `inputs` share a scale; None is all
    of them.
    """

    element: Element
    rows: int | None
    inputs: int | None
    scale: ScaleKind


_BY_NAME: Final = {
    "FP8A16": _Format(E4M3, 1, None, "plain"),
    "FP8A16_TENSOR": _Format(E4M3, None, None, "plain"),
    "FP8A16_BLOCK": _Format(E4M3, 128, 128, "plain"),
    "MXFP4A16": _Format(E2M1, 1, 32, "e8m0"),
    "NVFP4A16": _Format(E2M1, 1, 16, "e4m3"),
}


@dataclass(frozen=True)
class FloatGrid(Target):
    """Floating-point numbers of 4 or 8 bits, and the scales that a format of this `name` has.

    `FP8A16` has e4m3 numbers and a scale for each row, `FP8A16_TENSOR` one for the matrix,
    `FP8A16_BLOCK` one for 128 × 128 weights. `NVFP4A16` has e2m1 numbers, an e4m3 scale for 16
    inputs, and one of float32 for the matrix; `MXFP4A16` a power of two for 32 inputs.

    `reach` is the largest |w| of all matrices that share a scale of float32; None where each matrix
    has its own. It is no part of how the grid is written.

    >>> FloatGrid("NVFP4A16").bits, FloatGrid("NVFP4A16").width(64)
    (4, 16)
    """

    written: ClassVar[str] = "a grid of floating-point numbers"
    example: ClassVar[str] = "FP8A16"

    name: str
    reach: float | None = later(None)

    def __post_init__(self) -> None:
        if self.name not in _BY_NAME:
            raise TargetError(
                f"{brief(self.name)} is no grid of floating-point numbers; "
                f"write one of {', '.join(_BY_NAME)}",
                subject=str(self.name),
            )

    @classmethod
    def read(cls, value: str | float | int) -> "FloatGrid | None":
        name = value.strip().upper() if isinstance(value, str) else ""
        return cls(name) if name in _BY_NAME else None

    def __str__(self) -> str:
        return self.name

    @property
    def element(self) -> Element:
        """The numbers that weights become, before they are multiplied by their scale."""
        return _BY_NAME[self.name].element

    @property
    def bits(self) -> int:
        """The bits of a code."""
        return self.element.bits

    @property
    def scale(self) -> ScaleKind:
        """How its scales are stored."""
        return _BY_NAME[self.name].scale

    @property
    def amount(self) -> float:
        return float(self.bits)

    @property
    def revised(self) -> int:
        # Once: matrices that are joined when they are served share their scale of float32.
        return 1 if self.scale == "e4m3" else 0

    def width(self, inputs: int) -> int:
        """Return how many inputs share a scale, in a matrix with so many inputs."""
        return _BY_NAME[self.name].inputs or inputs

    def height(self, rows: int) -> int:
        """Return how many rows share a scale, in a matrix with so many rows."""
        return _BY_NAME[self.name].rows or rows

    def check(self, shape: tuple[int, int], name: str) -> None:
        inputs = shape[1]
        width = self.width(inputs)
        if inputs % width:
            raise TargetError(
                f"{name} has {inputs} inputs, and {self} has a scale for every {width}; "
                f"choose one with a scale for each row: FP8A16, w4, or FP8_DYNAMIC, which rounds "
                "inputs too",
                subject=name,
            )
