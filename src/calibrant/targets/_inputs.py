"""What becomes of the inputs of a matrix in formats that round them too: which values they are
rounded to, and which of them share a scale.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.errors import NumericsError
from calibrant.system.products import frexp
from calibrant.targets._elements import E2M1, E4M3
from calibrant.targets.float_grid import INSTEAD_OF_ZERO, ScaleKind

ElementName = Literal["int8", "e4m3", "e2m1"]
Strategy = Literal["tensor", "token", "group"]
Range = Literal["absmax", "percentile", "mse"]
"""How far a static scale reaches: as far as the calibration data, as far as nearly all of it, or
where its errors are least.
"""
TINIEST: Final = 1e-30
"""Smaller inputs count as zero where a global scale would have to make them large."""
_LOOK_AT: Final = "look at the activations of the model, and at its dtype"


class _Bounds(NamedTuple):
    """The largest value of an element, and how large an input a scale of 1 reaches (`reach`)."""

    largest: float
    reach: float


_BOUNDS: Final = {
    # From -128 to 127: compressed-tensors lets the largest input lie in the middle of the two.
    "int8": _Bounds(127, 127.5),
    "e4m3": _Bounds(E4M3.largest, E4M3.largest),
    "e2m1": _Bounds(E2M1.largest, E2M1.largest),
}


@dataclass(frozen=True)
class InputGrid:
    """The values of one `element`, times a scale. All inputs of a matrix share it (`tensor`), those
    of a token, or so many (`group`) consecutive ones of a token.

    `scale` says how scales are stored. With a `range` one number is found beforehand, from
    calibration data, the static scale: the scale of a tensor, or the global scale that e4m3 scales
    are divided by. Without one all scales follow from the inputs themselves, as they come.

    >>> grid = InputGrid("int8", "token")
    >>> grid.rounded(torch.tensor([[127.5, -0.6, 0.5], [0.0, 0.0, 0.0]])).tolist()
    [[127.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    """

    element: ElementName
    strategy: Strategy
    group: int | None = None
    scale: ScaleKind = "plain"
    range: Range | None = None

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> "InputGrid":
        """Return the grid of which `vars` gave these facts. Raises `ValueError` for facts that
        contradict each other, or are none of a grid.
        """
        grid = msgspec.convert(facts, cls)
        in_groups = grid.strategy == "group"
        if in_groups != (grid.group is not None and grid.group > 0):
            raise ValueError(f"inputs of {grid.strategy} don't have groups of {grid.group}")
        if grid.scale != "plain" and not in_groups:
            raise ValueError(f"scales of {grid.strategy} aren't stored as {grid.scale}")
        is_static = grid.strategy == "tensor" or grid.has_global_scale
        if is_static != (grid.range is not None):
            raise ValueError(
                f"a range of {grid.range} doesn't fit {grid.scale} scales of {grid.strategy}"
            )
        return grid

    @property
    def has_global_scale(self) -> bool:
        """Whether scales are divided by one that all inputs share."""
        return self.scale == "e4m3"

    def static_scale(self, reach: float, dtype: torch.dtype) -> float:
        """Return the static scale for inputs that are at most `reach`: the scale of a tensor, in
        the type `dtype`, or a global scale, in float32.

        Inputs that are all zero get a scale that is valid. Raises `NumericsError` where there is
        none that is finite and above 0, and for a `reach` that is NaN or infinite.
        """
        if not math.isfinite(reach):
            raise NumericsError(
                f"the largest input is {reach:g}, and a scale can't reach so far; {_LOOK_AT}"
            )
        bounds = _BOUNDS[self.element]
        if self.has_global_scale:
            found = 1.0
            if reach > TINIEST:
                found = _in_type(E4M3.largest * bounds.largest / reach, torch.float32)
        else:
            found = _in_type(reach / bounds.reach, dtype) or torch.finfo(dtype).eps
        self.check(found)
        return found

    def check(self, static_scale: float | None) -> None:
        """Raise `NumericsError` for a static scale that isn't finite and above 0, `ValueError` for
        one that these inputs don't have, or that is missing.
        """
        if (static_scale is None) != (self.range is None):
            raise ValueError(f"the scale {static_scale} doesn't fit {self}")
        if static_scale is not None and not (math.isfinite(static_scale) and static_scale > 0):
            raise NumericsError(
                f"a scale of inputs is {static_scale:g}, and must be finite and above 0; {_LOOK_AT}"
            )

    def rounded(
        self, x: Float[Tensor, "*token in"], static_scale: float | None = None
    ) -> Float[Tensor, "*token in"]:
        """Return the inputs after rounding, in their own type; half way between two values, the
        even one. `static_scale` is what the method of that name gave, where there is one. What a
        scale doesn't reach becomes the largest value. All is computed in float32, or in float64 for
        that type.
        """
        numbers = x if x.dtype == torch.float64 else x.float()
        parts = numbers
        if self.group is not None:
            parts = numbers.unflatten(-1, (-1, self.group))
        scales = self._scales(parts, static_scale)
        values = self.nearest(parts / scales)
        return (values * scales).reshape(x.shape).to(x.dtype)

    def nearest(self, numbers: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the nearest value of each number, where the scale is 1."""
        if self.element == "int8":
            return numbers.round().clamp(-128, 127)
        element = E4M3 if self.element == "e4m3" else E2M1
        return element.nearest(numbers)

    def _scales(self, parts: Tensor, static_scale: float | None) -> Tensor:
        """Return the scale of each part of the inputs; 1 for a part whose own would be zero."""
        if self.scale == "e8m0":
            return _powers_of_two(parts.abs().amax(-1, keepdim=True))
        found = 1.0 if static_scale is None else static_scale
        for_all = parts.new_full((), found)
        if self.strategy == "tensor":
            return for_all
        reach = parts.abs().amax(-1, keepdim=True)
        scales = reach / _BOUNDS[self.element].reach
        if self.has_global_scale:
            stored = E4M3.nearest(scales * for_all)
            scales = stored.where(stored > 0, INSTEAD_OF_ZERO) / for_all
        return scales.where(scales > 0, 1.0)


def _in_type(number: float, dtype: torch.dtype) -> float:
    """Return a number rounded to a type; infinity where the type doesn't reach so far."""
    return float(torch.tensor(number, dtype=torch.float64).to(dtype))


def _powers_of_two(reach: Tensor) -> Tensor:
    """Return the power of two by which the largest number of each part comes to lie between 3.5 and
    7: the rule of `MXFP4A16` for weights.
    """
    mantissa, _ = frexp(reach)
    # Exact, as `pow` needn't be: the next power of two above.
    above = reach / mantissa
    scales = above.where(mantissa < 1.75 / 2, 2 * above) / 8
    return scales.clamp(2.0**-127, 2.0**127).where(reach > 0, 1.0)
