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

from calibrant.errors import ModelError, NumericsError
from calibrant.targets._inputs import InputGrid

CacheElement = Literal["int8", "e4m3"]
CacheScales = Literal["tensor", "head"]
WORDS: Final[Mapping[str, CacheElement]] = {"int8": "int8", "fp8": "e4m3"}
"""How a user writes the elements."""
WAYS: Final = get_args(CacheScales)
"""Which keys, or values, share a scale."""


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
        """Return the scales for keys or values of which each head's largest is given. `dtype` is
        the type that they are stored in, and `name` says in errors whose they are.

        Raises `NumericsError` where the largest is zero, NaN or infinite: there is no scale for it.
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
            needed = "one" if self.per == "tensor" else "one for each head"
            raise ValueError(
                f"there are {len(scales)} scales for its keys or its values, which need {needed}"
            )
        for scale in scales:
            if not (math.isfinite(scale) and scale > 0):
                raise NumericsError(
                    f"a scale of keys or values is {scale:g}, and must be finite and above 0; "
                    "look at the model"
                )

    def rounded(
        self, numbers: Float[Tensor, "sample head position width"], scales: Sequence[float]
    ) -> Float[Tensor, "sample head position width"]:
        """Return keys or values after rounding, in their own type; half way between two values,
        the even one. What a scale doesn't reach becomes the largest value. All is computed in
        float32, or in float64 for that type.

        Raises `ModelError` where each head has a scale, and there are more or fewer heads.
        """
        heads = numbers.shape[1]
        if self.per == "head" and len(scales) != heads:
            raise ModelError(
                f"the keys or values of a layer come in {heads} heads, and there are scales for "
                f"{len(scales)}; save the model again"
            )
        exact = numbers if numbers.dtype == torch.float64 else numbers.float()
        by_head = exact.new_tensor(scales)[:, None, None]
        return (self._inputs.nearest(exact / by_head) * by_head).to(numbers.dtype)

    @property
    def _inputs(self) -> InputGrid:
        """The same values for inputs of a matrix."""
        return InputGrid(self.element, "tensor", range="absmax")
