"""Rounding weights to a grid: the scales of its groups, and the nearest code of each weight.

The convention is that of the compressed-tensors format, so that what is chosen here can be stored as it is. Scales are rounded to the type of
the weight before anything is chosen with them: codes that are right for a finer scale are the wrong ones for the scale that is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from calibrant.activations import wide
from calibrant.errors import SpecError
from calibrant.methods._base import finite
from calibrant.packed import Codes
from calibrant.targets import Grid

RULES: Final = ("absmax", "mse", "importance")
"""How scales can be chosen."""

_TRIED_AT_ONCE: Final = 2**17
"""Weights whose errors on one grid are computed at once."""


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


def scales_by(how: str, weight: Float[Tensor, "out in"], grid: Grid, importance: Float[Tensor, "in"] | None = None) -> Scales:
    """Return the scales of each group by the rule `how`, one of `RULES`.

    `absmax` reaches as far as the weights do. `mse` and `importance` try grids that reach less far, and keep the one whose error is least, of
    equal ones the farthest: Σ |w - ŵ|^2.4 for p = 1, 0.99 … 0.21 of the reach (the search in the code of GPTQ), and Σ x²·|w - ŵ|³ for twenty
    steps from 1 down to 0.0975 (llm-compressor's search of that name), where x² is `importance`. Errors are those of the scales as stored.

    Raises `NumericsError` if a scale or the importance isn't finite.
    """
    if how == "mse":
        return _searched(weight, grid, [1 - i / 100 for i in range(80)], 2.4, None)
    if how == "importance":
        if importance is None:
            raise SpecError("scales=importance needs the sizes of the inputs, and nothing was observed", subject="scales")
        return _searched(weight, grid, [1 - 0.95 * i / 20 for i in range(20)], 3.0, finite(importance, "the squared norms of the inputs"))
    return absmax(weight, grid)


def check_rule(method: str, how: str) -> None:
    """Raise `SpecError` if a method is asked for scales by a rule that there isn't."""
    if how not in RULES:
        raise SpecError(f"{method}(scales={how!r}): scales are chosen by {', '.join(RULES)}; write one of these", subject="scales")


def absmax(weight: Float[Tensor, "out in"], grid: Grid) -> Scales:
    """Return the scales whose grid reaches as far as the weights of each group do.

    Symmetric: max |w| over half of the span of the codes, 7.5 for 4 bits. Otherwise the range from the least to the largest weight, widened to
    hold zero, over the span, and the zero point the code at which zero comes to lie. A group whose scale would be zero, because its weights
    are or are too small for their type, gets that type's epsilon, and is zero throughout.

    Raises `NumericsError` if a scale isn't finite.
    """
    return reaching(*within(weight, grid), grid, weight.dtype)


def within(weight: Float[Tensor, "out in"], grid: Grid) -> tuple[Float[Tensor, "out group"], Float[Tensor, "out group"]]:
    """Return the least and the largest weight of each group, widened to hold zero."""
    grouped = weight.to(wide(weight.dtype)).unflatten(1, (-1, grid.width(weight.shape[1])))
    return grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)


def reaching(least: Float[Tensor, "out group"], most: Float[Tensor, "out group"], grid: Grid, dtype: torch.dtype) -> Scales:
    """Return the scales of a grid that reaches from `least` to `most`. Raises `NumericsError` if one isn't finite."""
    span = grid.highest - grid.lowest
    # As compressed-tensors does it: over half of the span of the codes (15 of 4 bits), though the highest code is 7.
    raw = torch.maximum(most, -least) / (span / 2) if grid.symmetric else (most - least) / span
    scales = finite(raw.to(dtype), "the scale of a group")
    scales = scales.where(scales != 0, torch.finfo(dtype).eps)
    if grid.symmetric:
        return Scales(grid, scales, None)
    zeros = (grid.lowest - least / scales.to(least.dtype)).clamp(grid.lowest, grid.highest).round()
    return Scales(grid, scales, zeros.to(torch.int8))


def _searched(weight: Float[Tensor, "out in"], grid: Grid, shares: Sequence[float], power: float, importance: Tensor | None) -> Scales:
    """For each group the best of the grids that reach these shares as far as its weights do; rows by rows, so that one try stays in the cache."""
    rows = max(1, _TRIED_AT_ONCE // weight.shape[1])
    parts = [_best(weight[at : at + rows], grid, shares, power, importance) for at in range(0, len(weight), rows)]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Scales(grid, torch.cat([part.scales for part in parts]), torch.cat(zeros) if zeros else None)


def _best(weight: Float[Tensor, "out in"], grid: Grid, shares: Sequence[float], power: float, importance: Tensor | None) -> Scales:
    least, most = within(weight, grid)
    best = absmax(weight, grid)
    scales, zeros, lowest = best.scales, best.zeros, torch.full_like(least, torch.inf)
    exact = weight.to(least.dtype)
    counts = None if importance is None else (importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)).to(least.dtype)
    for share in shares:
        tried = reaching(least * share, most * share, grid, weight.dtype)
        errors = (tried.nearest(weight).dense().to(least.dtype) - exact).abs().pow(power)
        error = (errors if counts is None else errors * counts).unflatten(1, (least.shape[1], -1)).sum(2)
        better = error < lowest
        lowest, scales = error.where(better, lowest), tried.scales.where(better, scales)
        zeros = None if zeros is None or tried.zeros is None else tried.zeros.where(better, zeros)
    return Scales(grid, scales, zeros)
