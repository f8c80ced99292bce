"""The scales of float grids. They reach as far as the weights do, as compressed-tensors has it, and
are computed in float32 whatever the type of the weight.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from calibrant.methods._base import finite
from calibrant.packed import FloatScales
from calibrant.system.products import frexp
from calibrant.targets import E4M3, FloatGrid
from calibrant.targets.float_grid import INSTEAD_OF_ZERO


def float_absmax(weight: Float[Tensor, "out in"], grid: FloatGrid) -> FloatScales:
    """Return the scales with which the largest weight of each part becomes the largest value.

    Plain scales are max |w| over the largest value, in the weight's type. Those of e4m3 are that
    times the global scale. Of all matrices that share a global scale, it makes the largest e4m3
    scale 448. Those of e8m0 are the power of two by which the largest weight comes to lie between
    3.5 and 7; it saturates at 6. A part whose scale would be zero gets a valid one, and is zero
    throughout. In float16, scales below 6e-5 are coarse: of rows that reach less far than 0.03, the
    largest weight may be cut.

    Raises `NumericsError` if a weight is too large for float32.
    """
    reach = finite(_reach(weight, grid), "the weight")
    if grid.scale == "e8m0":
        return FloatScales(grid, _exponents(reach), None, weight.dtype)
    scales = reach / grid.element.largest
    if grid.scale == "plain":
        stored = scales.to(weight.dtype)
        stored = stored.where(stored != 0, torch.finfo(weight.dtype).eps)
        return FloatScales(grid, stored, None, weight.dtype)
    largest = reach.max() if grid.reach is None else reach.new_tensor(grid.reach)
    global_scale = E4M3.largest * grid.element.largest / largest.reshape(1)
    # Of zeros, and of numbers that are too small to be made larger.
    global_scale = global_scale.where(global_scale.isfinite(), 1.0)
    values = E4M3.nearest(global_scale * scales)
    values = values.where(values != 0, INSTEAD_OF_ZERO)
    return FloatScales(FloatGrid(grid.name), E4M3.codes_of(values), global_scale, weight.dtype)


def _reach(weight: Float[Tensor, "out in"], grid: FloatGrid) -> Float[Tensor, "part group"]:
    """Return the largest |w| of each part of a matrix that shares a scale."""
    rows, inputs = weight.shape
    grouped = weight.unflatten(1, (-1, grid.width(inputs)))
    reach_of_rows = grouped.abs().amax(2).float()
    parts = reach_of_rows.split(grid.height(rows))
    return torch.stack([part.amax(0) for part in parts])


def _exponents(reach: Float[Tensor, "part group"]) -> UInt8[Tensor, "part group"]:
    """Return the exponents of scales, 127 more than they are.

    The rule is that of compressed-tensors: the exponent of the largest weight less that of the
    largest value, which is 2, and from 1.75 times a power of two on one more. OCP's standard leaves
    the last part out.
    """
    mantissa, exponent = frexp(reach)
    exponent = exponent - 1 + (mantissa >= 1.75 / 2).int()
    exponent = exponent.where(reach > 0, -127)
    return (exponent - 2 + 127).clamp(0, 254).to(torch.uint8)
