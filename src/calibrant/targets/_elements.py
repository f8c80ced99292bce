"""Floating-point numbers of 4 and 8 bits: which there are, the nearest one, and their codes."""

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from calibrant.system.products import frexp


@dataclass(frozen=True)
class Element:
    """Numbers of a sign, an exponent, and `mantissa` bits behind the leading one. `least` is the
    smallest number with a leading one; below it steps stay equal, down to zero. Above `largest`
    there is none, neither infinity nor NaN.

    A code is the place of a magnitude among all of them; the highest of its `bits` is the sign.

    >>> E2M1.values_of(torch.arange(8, dtype=torch.uint8)).tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    >>> E2M1.nearest(torch.tensor([0.75, -2.5, 100.0])).tolist()
    [1.0, -2.0, 6.0]
    """

    bits: int
    mantissa: int
    least: float
    largest: float

    def nearest(self, numbers: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the nearest value of each number; half way between two, the one with the even
        code. What is beyond the largest becomes the largest.

        In float32 or float64, whose own subnormal numbers become zero.
        """
        magnitudes = numbers.abs().clamp_max(self.largest)
        # The next power of two above, by the mantissa: exact, as `pow` needn't be.
        mantissa, _ = frexp(magnitudes)
        power = magnitudes / mantissa
        power = power.where(magnitudes > 0, 0.0)
        steps = (power / 2).clamp_min(self.least) / 2**self.mantissa
        return ((magnitudes / steps).round() * steps).copysign(numbers)

    def codes_of(self, values: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        """Return the codes of numbers that are values of this kind."""
        table = _magnitudes(self).to(values.device)
        magnitudes = values.abs().float().contiguous()
        places = torch.bucketize(magnitudes, table, out_int32=True).to(torch.uint8)
        signs = values.signbit().to(torch.uint8)
        return places + signs * 2 ** (self.bits - 1)

    def values_of(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return what codes stand for, in float32."""
        magnitudes = _magnitudes(self)
        # E4M3 has one code more, which stands for no number.
        no_number = torch.full((2 ** (self.bits - 1) - len(magnitudes),), torch.nan)
        half = torch.cat([magnitudes, no_number])
        table = torch.cat([half, -half]).to(codes.device)
        return table[codes.int()]


E2M1: Final = Element(bits=4, mantissa=1, least=1.0, largest=6.0)
E4M3: Final = Element(bits=8, mantissa=3, least=2.0**-6, largest=448.0)


@cache
def _magnitudes(element: Element) -> Float[Tensor, "code"]:
    """Every magnitude, in order."""
    count = 2**element.mantissa
    magnitudes: list[float] = []
    for place in range(count):
        magnitudes.append(element.least * place / count)
    power = element.least
    while power <= element.largest:
        for place in range(count):
            magnitude = power * (1 + place / count)
            if magnitude <= element.largest:
                magnitudes.append(magnitude)
        power *= 2
    return torch.tensor(magnitudes)
