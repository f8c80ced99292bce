"""Schemes that round inputs of matrices as well as weights, by the names that compressed-tensors
and vLLM have for them, such as `W8A8`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple, get_args

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.targets._base import Target, name_and_word
from calibrant.targets._inputs import InputGrid, Range
from calibrant.targets.float_grid import FloatGrid
from calibrant.targets.grid import Grid


class _Parts(NamedTuple):
    """What becomes of weights, and of inputs."""

    weights: Grid | FloatGrid
    inputs: InputGrid


SCHEMES: Final = {
    "W8A8": _Parts(Grid(8), InputGrid("int8", "token")),
    "W4A8": _Parts(Grid(4, 128), InputGrid("int8", "token")),
    "FP8": _Parts(FloatGrid("FP8A16_TENSOR"), InputGrid("e4m3", "tensor", range="absmax")),
    "FP8_DYNAMIC": _Parts(FloatGrid("FP8A16"), InputGrid("e4m3", "token")),
    "FP8_BLOCK": _Parts(FloatGrid("FP8A16_BLOCK"), InputGrid("e4m3", "group", 128)),
    "NVFP4": _Parts(
        FloatGrid("NVFP4A16"), InputGrid("e2m1", "group", 16, scale="e4m3", range="absmax")
    ),
    "MXFP4": _Parts(FloatGrid("MXFP4A16"), InputGrid("e2m1", "group", 32, scale="e8m0")),
}


@dataclass(frozen=True)
class Scheme(Target):
    """A scheme of this `name`. What becomes of its weights, `weights` says, and a method is asked
    for that; what becomes of inputs, `inputs` says.

    `range` is how far the scale of `FP8` reaches, which is found beforehand: as far as the inputs
    of the calibration data (`absmax`), as far as all but the largest of 10,000 (`percentile`), or
    where their errors are least (`mse`).

    >>> Scheme.read("fp8(range=mse)")
    Scheme(name='FP8', range='mse')
    >>> Scheme("W8A8").weights, Scheme("W8A8").inputs.strategy
    (Grid(bits=8, group=None, symmetric=True), 'token')
    """

    written: ClassVar[str] = "a scheme that rounds inputs too"
    example: ClassVar[str] = "W8A8"

    name: str
    range: str = "absmax"

    def __post_init__(self) -> None:
        if self.name not in SCHEMES:
            raise TargetError(
                f"{brief(self.name)} is no scheme; write one of {', '.join(SCHEMES)}",
                subject=str(self.name),
            )
        if self.range not in get_args(Range):
            raise TargetError(
                f"{self.name} has no range {brief(self.range)}; write absmax, percentile or mse",
                subject=str(self),
            )
        if self.range != "absmax" and SCHEMES[self.name].inputs.strategy != "tensor":
            raise TargetError(
                f"{self} has a range, and only the scale of FP8 has one to choose; "
                f"write {self.name}, or FP8(range={self.range})",
                subject=str(self),
            )

    @classmethod
    def read(cls, value: str | float | int) -> "Scheme | None":
        if not isinstance(value, str):
            return None
        name = value.partition("(")[0].strip().upper()
        # What is added to a scheme makes another target of it.
        if "+" in value:
            return None
        # By itself that is llama.cpp's recipe; a method that rounds inputs takes it for the scheme.
        if name not in SCHEMES or value.strip().upper() == "NVFP4":
            return None
        read = name_and_word(value, "range", "absmax")
        if read is None:
            raise _unreadable(value)
        _, chosen = read
        return cls(name, chosen)

    def __str__(self) -> str:
        if self.range == "absmax":
            return self.name
        return f"{self.name}(range={self.range})"

    @property
    def weights(self) -> Grid | FloatGrid:
        return SCHEMES[self.name].weights

    @property
    def inputs(self) -> InputGrid:
        """What becomes of the inputs of a matrix."""
        inputs = SCHEMES[self.name].inputs
        if inputs.range is None:
            return inputs
        return replace(inputs, range=self.range)

    @property
    def looks(self) -> bool:
        return self.inputs.range is not None

    @property
    def amount(self) -> float | None:
        return self.weights.amount

    @property
    def revised(self) -> int:
        return self.weights.revised

    def check(self, shape: tuple[int, int], name: str) -> None:
        self.weights.check(shape, name)


def _unreadable(text: str) -> TargetError:
    return TargetError(
        f"{text!r} can't be read as a scheme; write one of {', '.join(SCHEMES)}, or FP8(range=mse)",
        subject=text,
    )
