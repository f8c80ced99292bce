"""What AWQ tries: columns that are scaled by the size of their inputs, and grids that reach less
far.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, wide
from calibrant.methods.quantization._rounding import Scales, absmax, reaching, within
from calibrant.targets import Grid

SHARES: Final = tuple(1 - step / 20 for step in range(10))
"""How much of its reach a group's grid may keep, as in the paper's code: from all of it down to
0.55.
"""

LEAST: Final = 1e-4
"""The least power of an input's size: the paper's code divides by no less."""


def strength(sizes: Float[Tensor, "in"], alpha: float) -> Float[Tensor, "in"]:
    """Return s = m^α, between its extremes' geometric mean and that again; 1 for an input that
    was always zero.
    """
    alive = sizes > 0
    if alpha == 0 or not bool(alive.any()):
        return torch.ones_like(sizes)
    raw = sizes.pow(alpha).clamp_min(LEAST)
    middle = (raw[alive].max() * raw[alive].min()).sqrt()
    return (raw / middle).where(alive, 1.0)


def effective(
    weight: Float[Tensor, "out in"], grid: Grid, s: Float[Tensor, "in"]
) -> Float[Tensor, "out in"]:
    """Return what a matrix effectively is when its columns are multiplied by `s`, rounded, and
    divided again.
    """
    kind = wide(weight.dtype)
    scaled = (weight.to(kind) * s.to(kind)).to(weight.dtype)
    return absmax(scaled, grid).nearest(scaled).dense().to(kind) / s.to(kind)


def clipped(weight: Float[Tensor, "out in"], grid: Grid, gram: Gram) -> Scales:
    """Return for each group the scales of the reach, of `SHARES` of the largest weight, whose
    error in the group's outputs is least.
    """
    least, most = within(weight, grid)
    largest = torch.maximum(most, -least)
    width = grid.width(weight.shape[1])
    whole = gram.symmetric().to(least.dtype)
    starts = range(0, weight.shape[1], width)
    grams = torch.stack([whole[start : start + width, start : start + width] for start in starts])
    exact = weight.to(least.dtype)
    best = absmax(weight, grid)
    scales = best.scales
    zeros = best.zeros
    lowest = torch.full_like(least, torch.inf)
    for share in SHARES:
        bottom = torch.maximum(least, -largest * share)
        top = torch.minimum(most, largest * share)
        tried = reaching(bottom, top, grid, weight.dtype)
        change = (tried.nearest(weight).dense().to(least.dtype) - exact).unflatten(1, (-1, width))
        error = (torch.einsum("ogi,gij->ogj", change, grams) * change).sum(2)
        better = error < lowest
        lowest = error.where(better, lowest)
        scales = tried.scales.where(better, scales)
        if zeros is not None and tried.zeros is not None:
            zeros = tried.zeros.where(better, zeros)
    return Scales(grid, scales, zeros)
