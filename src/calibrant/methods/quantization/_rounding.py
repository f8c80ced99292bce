"""Rounding weights to a grid: the scales of its groups, by several rules and by what AWQ tries, and
the nearest code of each weight.

The convention is that of the compressed-tensors format, so that what is chosen here can be stored
as it is. Scales are rounded to the type of the weight before anything is chosen with them: codes
that are right for a finer scale are the wrong ones for the scale that is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from calibrant.activations import Gram, wide
from calibrant.errors import SpecError, TargetError
from calibrant.methods._base import finite
from calibrant.methods._elimination import by_rows
from calibrant.methods.quantization._float_scales import float_absmax
from calibrant.packed import TILE_NUMBERS, Codes, FloatScales
from calibrant.targets import FloatGrid, Grid, Target, WithCache

RULES: Final = ("absmax", "mse", "importance")
"""How scales can be chosen."""

_GPTQ_POWER: Final = 2.4
"""The power of errors whose sum `mse` makes least, as the search in GPTQ's code does."""

_LLM_COMPRESSOR_POWER: Final = 3.0
"""That of `importance`, as in llm-compressor's `imatrix_mse`."""

SHARES: Final = tuple(1 - step / 20 for step in range(10))
"""How much of its reach a clipped grid may keep, as in the code of AWQ's paper: from all of it down
to 0.55.
"""

LEAST: Final = 1e-4
"""The least m^α of an input: the code of AWQ's paper divides by no less."""

_ROWS_PER_THREAD: Final = 128
"""Rows whose search is worth another thread."""


def check_rule(rule: str, target: Target) -> None:
    """Raise `TargetError` where the scales of a target can't be chosen by a `rule`."""
    if isinstance(target, WithCache) and rule != "absmax":
        raise TargetError(
            f"scales={rule} searches for the scales of weights, and {target} leaves them as they "
            "are; leave scales out",
            subject=str(target),
        )
    if isinstance(target, FloatGrid) and rule != "absmax":
        raise TargetError(
            f"scales={rule} searches for the scales of even grids, such as w4g64, and {target} is "
            "none; leave scales out",
            subject=str(target),
        )


@dataclass(frozen=True)
class Scales:
    """What a grid is for the groups of one matrix: a scale each, in the weight's type, and
    without symmetry a zero point.
    """

    grid: Grid
    scales: Float[Tensor, "out group"]
    zeros: Int8[Tensor, "out group"] | None

    def nearest(self, weight: Float[Tensor, "out in"]) -> Codes:
        """Return the nearest code of each weight; half way between two, the even one."""
        dtype = wide(weight.dtype)
        # In float32 or better: the quotient of two bfloat16 numbers would miss codes.
        grouped = weight.to(dtype).unflatten(1, (self.scales.shape[1], -1))
        placed = grouped / self.scales[:, :, None].to(dtype)
        if self.zeros is not None:
            placed = placed + self.zeros[:, :, None]
        codes = placed.round().clamp(self.grid.lowest, self.grid.highest).to(torch.int8)
        return Codes(self.grid, codes.flatten(1), self.scales, self.zeros)


def scales_of(
    rule: str,
    weight: Float[Tensor, "out in"],
    grid: Grid | FloatGrid,
    importance: Float[Tensor, "in"] | None = None,
) -> Scales | FloatScales:
    """Return the scales of an even grid by a `rule`, one of `RULES`, or of a float grid by the only
    one that it has, `absmax`.

    Raises what `scales_by` does, and `TargetError` for another rule and a float grid.
    """
    check_rule(rule, grid)
    if isinstance(grid, FloatGrid):
        return float_absmax(weight, grid)
    return scales_by(rule, weight, grid, importance)


def scales_by(
    rule: str,
    weight: Float[Tensor, "out in"],
    grid: Grid,
    importance: Float[Tensor, "in"] | None = None,
) -> Scales:
    """Return the scales of each group by a `rule`, one of `RULES`.

    `absmax` reaches as far as the weights do. `mse` and `importance` try grids that reach less far,
    and keep the one whose error is least, of equal ones the farthest. For `mse` the error is
    Σ |w - ŵ|^2.4, of 1, 0.99 … 0.21 of the reach (the search in the code of GPTQ). For `importance`
    it is Σ x²·|w - ŵ|³, where x² is `importance`, of 1, 0.9525 … 0.0975. llm-compressor's search
    by importance tries 1, 0.95 … 0.05, and ends after five steps that improve no group. Errors are
    those of the scales as stored.

    Raises `NumericsError` if a scale or the importance isn't finite, `SpecError` for the rule
    `importance` without one.
    """
    if rule == "mse":
        return _searched(weight, grid, [1 - step / 100 for step in range(80)], _GPTQ_POWER)
    if rule == "importance":
        if importance is None:
            needs = "the sizes of the inputs, and nothing was observed"
            raise SpecError(f"scales=importance needs {needs}", subject="scales")
        squares = finite(importance, "the squared norms of the inputs")
        shares = [1 - 0.95 * step / 20 for step in range(20)]
        return _searched(weight, grid, shares, _LLM_COMPRESSOR_POWER, squares)
    return absmax(weight, grid)


def absmax(weight: Float[Tensor, "out in"], grid: Grid) -> Scales:
    """Return the scales whose grid reaches as far as the weights of each group do.

    Symmetric: max |w| over half of the span of the codes, 7.5 for 4 bits. Otherwise the range from
    the least to the largest weight, widened to hold zero, over the span, and the zero point the
    code at which zero comes to lie. A group whose scale would be zero, because its weights are zero
    or too small for their type, gets that type's epsilon, and is zero throughout.

    Raises `NumericsError` if a scale isn't finite.
    """
    return scales_reaching(*extremes(weight, grid), grid, weight.dtype)


def extremes(
    weight: Float[Tensor, "out in"], grid: Grid
) -> tuple[Float[Tensor, "out group"], Float[Tensor, "out group"]]:
    """Return the least and the largest weight of each group, widened to hold zero."""
    grouped = weight.to(wide(weight.dtype)).unflatten(1, (-1, grid.width(weight.shape[1])))
    return grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)


def scales_reaching(
    smallest: Float[Tensor, "out group"],
    largest: Float[Tensor, "out group"],
    grid: Grid,
    dtype: torch.dtype,
) -> Scales:
    """Return the scales of a grid that reaches from the `smallest` to the `largest` weight of each
    group. Raises `NumericsError` if one isn't finite.
    """
    span = grid.highest - grid.lowest
    raw = (largest - smallest) / span
    if grid.symmetric:
        # As compressed-tensors does it: over half of the span of the codes (15 of 4 bits), though
        # the highest code is 7.
        raw = torch.maximum(largest, -smallest) / (span / 2)
    scales = finite(raw.to(dtype), "the scale of a group")
    # A group of zeros has no scale of its own, and stays zero with any.
    scales = scales.where(scales != 0, torch.finfo(dtype).eps)
    if grid.symmetric:
        return Scales(grid, scales, None)
    # By the scale that is stored, which may differ from the one that was computed.
    zeros = grid.lowest - smallest / scales.to(smallest.dtype)
    zeros = zeros.clamp(grid.lowest, grid.highest).round()
    return Scales(grid, scales, zeros.to(torch.int8))


def input_scales(sizes: Float[Tensor, "in"], alpha: float) -> Float[Tensor, "in"]:
    """Return what AWQ multiplies columns by: s = m^α of their inputs' `sizes` m, divided by the
    geometric mean of the largest and the smallest; 1 for an input that was always zero.
    """
    used = sizes > 0
    if alpha == 0 or not bool(used.any()):
        return torch.ones_like(sizes)
    # Around 1, so that scaled weights stay within the range of their type.
    raw = sizes.pow(alpha).clamp_min(LEAST)
    middle = (raw[used].max() * raw[used].min()).sqrt()
    return (raw / middle).where(used, 1.0)


def effective(
    weight: Float[Tensor, "out in"], grid: Grid | FloatGrid, column_scales: Float[Tensor, "in"]
) -> Float[Tensor, "out in"]:
    """Return what a matrix comes to when its columns are multiplied by `column_scales`, rounded,
    and divided by them again: in float32, or float64 for a float64 weight.
    """
    dtype = wide(weight.dtype)
    column_scales = column_scales.to(dtype)
    result = torch.empty_like(weight, dtype=dtype)
    # Of some float grids rows share a scale.
    tiles = [slice(None)] if isinstance(grid, FloatGrid) else _tiles(weight)
    for rows in tiles:
        scaled = (weight[rows].to(dtype) * column_scales).to(weight.dtype)
        rounded = scales_of("absmax", scaled, grid).nearest(scaled).dense()
        result[rows] = rounded.to(dtype) / column_scales
    return result


def clipped(weight: Float[Tensor, "out in"], grid: Grid, gram: Gram) -> Scales:
    """Return for each group the scales of the reach, of `SHARES` of the largest weight, whose
    error in the group's outputs is least.
    """
    width = grid.width(weight.shape[1])
    grams = torch.stack(list(_blocks(gram.upper, width))).to(wide(weight.dtype))
    tiles: list[Scales] = []
    for rows in _tiles(weight):
        tiles.append(_clipped(weight[rows], grid, grams))
    scales = torch.cat([tile.scales for tile in tiles])
    zeros: list[Tensor] = []
    for tile in tiles:
        if tile.zeros is not None:
            zeros.append(tile.zeros)
    zero_points = torch.cat(zeros) if zeros else None
    return Scales(grid, scales, zero_points)


def _clipped(
    weight: Float[Tensor, "out in"], grid: Grid, grams: Float[Tensor, "group width width"]
) -> Scales:
    """Return what `clipped` does, for a few rows, given the Grams of the groups."""
    smallest, largest = extremes(weight, grid)
    reach = torch.maximum(largest, -smallest)
    width = grams.shape[-1]
    dense = weight.to(smallest.dtype)
    best = absmax(weight, grid)
    scales = best.scales
    zeros = best.zeros
    least_error = torch.full_like(smallest, torch.inf)
    for share in SHARES:
        bottom = torch.maximum(smallest, -reach * share)
        top = torch.minimum(largest, reach * share)
        candidate = scales_reaching(bottom, top, grid, weight.dtype)
        rounded = candidate.nearest(weight).dense().to(smallest.dtype)
        change = (rounded - dense).unflatten(1, (-1, width))
        error = (torch.einsum("ogi,gij->ogj", change, grams) * change).sum(2)
        # Of equally good reaches the first, which is the farthest, stays.
        better = error < least_error
        least_error = error.where(better, least_error)
        scales = candidate.scales.where(better, scales)
        if zeros is not None and candidate.zeros is not None:
            zeros = candidate.zeros.where(better, zeros)
    return Scales(grid, scales, zeros)


def _tiles(weight: Float[Tensor, "out in"]) -> Iterator[slice]:
    """Yield rows that are worked on together: on the CPU few, which stay in the cache."""
    tile = len(weight)
    if weight.device.type == "cpu":
        tile = max(1, TILE_NUMBERS // weight.shape[1])
    for start in range(0, len(weight), tile):
        yield slice(start, start + tile)


def _blocks(matrix: Float[Tensor, "in in"], width: int) -> Iterator[Float[Tensor, "width width"]]:
    """Yield the squares of `width` along the diagonal, each with its upper triangle mirrored, which
    alone is read.
    """
    for start in range(0, len(matrix), width):
        columns = slice(start, start + width)
        square = matrix[columns, columns]
        yield square.triu() + square.triu(1).T


def _searched(
    weight: Float[Tensor, "out in"],
    grid: Grid,
    shares: Sequence[float],
    power: float,
    importance: Tensor | None = None,
) -> Scales:
    """Return of each group the best of the grids that reach these `shares` as far as its weights
    do: that whose sum of errors to this `power`, each times its input's `importance`, is least.
    """
    smallest, largest = extremes(weight, grid)
    # The search compares errors, and NaN is never the least: what isn't finite is refused here.
    scales_reaching(smallest, largest, grid, weight.dtype)
    dtype = smallest.dtype
    error_weights = torch.ones_like(weight[0], dtype=dtype)
    if importance is not None:
        # Shares of their mean, so that a float32 sum of errors neither over- nor underflows.
        mean = importance.mean().clamp_min(torch.finfo(dtype).tiny)
        error_weights = (importance / mean).to(dtype)
    compilable = weight.dtype in (torch.float32, torch.bfloat16)
    search = _best_compiled if weight.device.type == "cpu" and compilable else _best
    # The reach is computed anew from the best share: the searches give no scales.
    best = search(weight, smallest, largest, grid, shares, power, error_weights)
    best_shares = torch.tensor(shares, dtype=dtype, device=weight.device)[best]
    return scales_reaching(smallest * best_shares, largest * best_shares, grid, weight.dtype)


def _best_compiled(
    weight: Tensor,
    smallest: Tensor,
    largest: Tensor,
    grid: Grid,
    shares: Sequence[float],
    power: float,
    error_weights: Tensor,
) -> Int[Tensor, "out group"]:
    """Return with which share each group errs least: on the CPU, for float32 or bfloat16."""
    best = torch.zeros(smallest.shape, dtype=torch.int32)
    parts = (weight, smallest, largest, torch.tensor(shares), error_weights)
    arrays = [part.detach().float().contiguous().numpy() for part in parts]
    cubed = power == _LLM_COMPRESSOR_POWER
    bfloat16 = weight.dtype == torch.bfloat16
    epsilon = np.float32(torch.finfo(weight.dtype).eps)
    codes = (grid.symmetric, grid.lowest, grid.highest)
    arguments = [*arrays, cubed, *codes, bfloat16, epsilon, best.numpy()]
    by_rows(_kernel(), len(weight), arguments, _ROWS_PER_THREAD)
    return best.long()


def _best(
    weight: Tensor,
    smallest: Tensor,
    largest: Tensor,
    grid: Grid,
    shares: Sequence[float],
    power: float,
    error_weights: Tensor,
) -> Int[Tensor, "out group"]:
    """Return with which share each group errs least: on any device, for any type."""
    least_error = torch.full_like(smallest, torch.inf)
    best = torch.zeros_like(smallest, dtype=torch.long)
    for number, share in enumerate(shares):
        candidate = scales_reaching(smallest * share, largest * share, grid, weight.dtype)
        rounded = candidate.nearest(weight).dense().to(smallest.dtype)
        errors = (rounded - weight.to(smallest.dtype)).abs().pow(power) * error_weights
        error = errors.unflatten(1, (smallest.shape[1], -1)).sum(2)
        better = error < least_error
        least_error = error.where(better, least_error)
        best = best.masked_fill(better, number)
    return best


@cache
def _kernel() -> Callable[..., None]:
    """Imported at the first use: numba takes longer to import than listing methods may."""
    from calibrant.methods.quantization._rounding_kernel import best_reach

    return best_reach
