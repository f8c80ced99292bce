"""What becomes of keys and values of attention where the KV cache is quantized: which values they
are rounded to, and which of them share a scale.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.errors import NumericsError
from calibrant.targets._inputs import InputGrid

CacheElement = Literal["int8", "e4m3"]
CacheScales = Literal["tensor", "head"]
WORDS: Final[Mapping[str, CacheElement]] = {"int8": "int8", "fp8": "e4m3"}
"""How a user writes the elements."""
WAYS: Final = get_args(CacheScales)


@dataclass(frozen=True)
class CacheGrid:
    """The values of one `element`, times a scale that is found beforehand. All keys of a layer
    share one scale, and all its values another (`tensor`), or those of each head do (`head`).

    >>> grid = CacheGrid("int8")
    >>> keys = torch.tensor([0.25, -0.6, 1000.0]).reshape(1, 1, 3, 1)
    >>> grid.rounded(keys, [0.5]).flatten().tolist()
    [0.0, -0.5, 63.5]
    """

    element: CacheElement
    per: CacheScales = "tensor"

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> "CacheGrid":
        """Return the grid of which `vars` gave these facts. Raises `ValueError` for others."""
        return msgspec.convert(facts, cls)

    def scales_of(
        self, largest: Float[Tensor, "head"], dtype: torch.dtype, name: str
    ) -> tuple[float, ...]:
        """Return the scales for numbers of which each head's largest is given, as `dtype` holds
        them. `name` says in errors what they are.

        Raises `NumericsError` where nothing was seen but zeros, NaN or infinity: there is no scale
        for them.
        """
        reaches = largest if self.per == "head" else largest.amax(0, keepdim=True)
        scales: list[float] = []
        for reach in reaches.tolist():
            # False for NaN as well.
            if not 0 < reach < math.inf:
                raise NumericsError(
                    f"the largest of {name} is {reach:g} on the calibration data, so they have no "
                    "scale; look at the model, or leave its cache as it is",
                    subject=name,
                )
            scales.append(self._inputs.static_scale(reach, dtype))
        return tuple(scales)

    def check(self, scales: Sequence[float]) -> None:
        """Raise `NumericsError` for a scale that isn't finite and above 0, `ValueError` for another
        number of them than there can be.
        """
        if not scales or (self.per == "tensor" and len(scales) > 1):
            raise ValueError(f"{len(scales)} scales don't fit {self}")
        for scale in scales:
            self._inputs.check(scale)

    def rounded(
        self, numbers: Float[Tensor, "sample head position width"], scales: Sequence[float]
    ) -> Float[Tensor, "sample head position width"]:
        """Return keys or values after rounding, in their own type. All is computed in float32, or
        in float64 for that type.
        """
        exact = numbers if numbers.dtype == torch.float64 else numbers.float()
        by_head = exact.new_tensor(scales)[:, None, None]
        return (self._inputs.nearest(exact / by_head) * by_head).to(numbers.dtype)

    @property
    def _inputs(self) -> InputGrid:
        """The same values for inputs of a matrix."""
        return InputGrid(self.element, "tensor", range="absmax")
