"""Rounding weights to a grid: the scales of its groups, and the nearest code of each weight.

The convention is that of the compressed-tensors format, so that what is chosen here can be stored as it is. Scales are rounded to the type of
the weight before anything is chosen with them: codes that are right for a finer scale are the wrong ones for the scale that is kept.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from calibrant.activations import wide
from calibrant.methods._base import finite
from calibrant.packed import Codes
from calibrant.targets import Grid


@dataclass(frozen=True)
class Scales:
    """What a grid is for the groups of one matrix: a scale each, in the weight's type, and without symmetry a zero point."""

    grid: Grid
    scales: Float[Tensor, "out group"]
    zeros: Int8[Tensor, "out group"] | None

    def nearest(self, weight: Float[Tensor, "out in"]) -> Codes:
        """Return the nearest code of each weight; half way between two, the even one."""
        exact = weight.to(wide(weight.dtype)).unflatten(1, (self.scales.shape[1], -1)) / self.scales[:, :, None].to(wide(weight.dtype))
        placed = exact.round() if self.zeros is None else (exact + self.zeros[:, :, None]).round()
        codes = placed.clamp(self.grid.lowest, self.grid.highest).to(torch.int8)
        return Codes(self.grid, codes.flatten(1), self.scales, self.zeros)


def absmax(weight: Float[Tensor, "out in"], grid: Grid) -> Scales:
    """Return the scales whose grid reaches as far as the weights of each group do.

    Symmetric: max |w| over half of the span of the codes, 7.5 for 4 bits. Otherwise the range from the least to the largest weight, widened to
    hold zero, over the span, and the zero point the code at which zero comes to lie. A group whose scale would be zero, because its weights
    are or are too small for their type, gets that type's epsilon, and is zero throughout.

    Raises `NumericsError` if a scale isn't finite.
    """
    grouped = weight.to(wide(weight.dtype)).unflatten(1, (-1, grid.width(weight.shape[1])))
    span = grid.highest - grid.lowest
    least, most = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
    # As compressed-tensors does it: over half of the span of the codes (15 of 4 bits), though the highest code is 7.
    raw = torch.maximum(most, -least) / (span / 2) if grid.symmetric else (most - least) / span
    scales = finite(raw.to(weight.dtype), "the scale of a group")
    scales = scales.where(scales != 0, torch.finfo(weight.dtype).eps)
    if grid.symmetric:
        return Scales(grid, scales, None)
    zeros = (grid.lowest - least / scales.to(least.dtype)).clamp(grid.lowest, grid.highest).round()
    return Scales(grid, scales, zeros.to(torch.int8))
