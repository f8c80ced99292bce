"""GPTQ's elimination: columns are rounded from left to right, and those that follow corrected for
the error that this makes in the outputs.

The grid of each group is chosen beforehand, from the weights as they came (static groups), so
columns may be taken in any order. With a target that also removes, weights are chosen as SparseGPT
chooses them, and become the code of zero. On a float grid columns become values of its element.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from calibrant.activations import Gram, wide
from calibrant.methods._base import Compressed, Method, check_choice, check_positive, finite
from calibrant.methods._elimination import (
    Factor,
    Span,
    by_rows,
    choose,
    factorise_in_order,
    inverse_of,
    shared_factor,
    spans,
    up_to_date,
)
from calibrant.methods.quantization._rounding import RULES, Scales, scales_of
from calibrant.packed import Codes, FloatCodes, FloatScales
from calibrant.targets import Element, FloatGrid, Grid, Removal, keep_highest

BLOCK: Final = 128
"""Columns between which corrections are made one by one; those behind them take them all in one
product.
"""


@dataclass(frozen=True)
class Work:
    """A matrix on its way. `original` is the matrix as it came, in the order in which its columns
    are taken, and `changes` what rounding changed of the columns so far. `groups` says which row of
    `scales` and `zeros` is a column's. On an even grid `codes` are whole numbers from `lowest` to
    `highest`; on a float grid they are values of its `element`.
    """

    original: Float[Tensor, "out in"]
    changes: Float[Tensor, "out in"]
    root: Float[Tensor, "in in"]
    saliency: Float[Tensor, "in"]
    codes: Shaped[Tensor, "out in"]
    scales: Float[Tensor, "group out"]
    zeros: Float[Tensor, "group out"]
    groups: Int[Tensor, "in"]
    lowest: int = 0
    highest: int = 0
    element: Element | None = None


Step = Callable[[Work, Tensor, Tensor, Tensor, Span], None]
"""Rounds the columns of a span, in place: (work, current [out, span], inverse [span, span],
removed [out, span], span). Fills `removed` where N of M are chosen.
"""


def check_updates(method: Method) -> None:
    """Raise `SpecError` for a `damp`, an `order` or `scales` that `rounded` doesn't know."""
    check_positive(method, damp="0.01 is the paper's")
    check_choice(method, order=("natural", "activation"), scales=RULES)


def rounded(
    weight: Float[Tensor, "out in"],
    gram: Gram,
    grid: Grid | FloatGrid,
    damp: float,
    order: str,
    scales: str,
) -> Compressed:
    """Return the weight on the grid, with `scales` by that rule. The columns that follow a rounded
    one are corrected for what its error does to the outputs, given `gram`'s inputs.

    Raises `TargetError` for a grid that doesn't fit the shape, `NumericsError` for a weight or Gram
    that isn't finite or a Gram beyond repair.
    """
    grid.check((weight.shape[0], weight.shape[1]), "the matrix")
    checked = finite(weight, "the weight")
    group_scales = scales_of(scales, checked, grid, gram.norms())
    if order == "activation":
        inputs, factor = by_activation(gram, damp)
        packed = quantize(checked, factor, group_scales, order=inputs)
    else:
        factor = shared_factor(gram, damp)
        packed = quantize(checked, factor, group_scales)
    return Compressed(finite(packed.dense(), "the rounded weight"), factor.notes, packed)


def by_activation(gram: Gram, damp: float) -> tuple[Int[Tensor, "in"], Factor]:
    """Return the inputs by falling size, equal ones as they came, and the factor of the Gram in
    that order. Both are computed once for each Gram.
    """

    def compute() -> tuple[Tensor, Factor]:
        # Stable, so that ties don't depend on the device.
        order = gram.norms().argsort(descending=True, stable=True)
        return order, factorise_in_order(gram, order, damp)

    return gram.cached(("factor", damp, "activation"), compute)


def quantize(
    weight: Float[Tensor, "out in"],
    factor: Factor,
    scales: Scales | FloatScales,
    removal: Removal | None = None,
    order: Int[Tensor, "in"] | None = None,
    block: int = BLOCK,
    step: Step | None = None,
) -> Codes | FloatCodes:
    """Return the codes of `weight` on the grid of `scales`, chosen column by column, each when all
    before it are. `factor` is that of the inputs in `order`.

    `removal` says which weights become zero besides; N:M needs the inputs as they came. `step`
    overrides the device's own.
    """
    if step is None:
        step = round_rows if weight.device.type == "cpu" else round_columns
    work = _work(weight, factor, scales, order)
    for span in spans(weight.shape[1], removal, block):
        columns = slice(span.start, span.stop)
        inverse = inverse_of(work.root[columns, columns])
        current = up_to_date(work.original, work.changes, work.root, inverse, span)
        removed = torch.zeros_like(current, dtype=torch.bool)
        if removal is not None and not span.group:
            removed = choose(current.abs() * work.saliency[columns], removal, span)
        step(work, current, inverse, removed.contiguous(), span)
        work.changes[:, columns] = current - work.original[:, columns]
    codes = work.codes
    if order is not None:
        codes = codes[:, order.argsort()]
    if isinstance(scales, FloatScales):
        return scales.coded(codes)
    return Codes(scales.grid, codes, scales.scales, scales.zeros)


def _work(
    weight: Tensor, factor: Factor, scales: Scales | FloatScales, order: Tensor | None
) -> Work:
    dtype = wide(weight.dtype)
    rows, columns = weight.shape
    is_float = isinstance(scales, FloatScales)
    group_scales = scales.factors(rows) if is_float else scales.scales
    groups_in_row = group_scales.shape[1]
    width = columns // groups_in_row
    groups = torch.arange(columns, device=weight.device) // width
    current = weight.detach()
    if order is not None:
        groups = groups[order]
        current = current[:, order]
    zeros = None if is_float else scales.zeros
    if zeros is None:
        zeros = torch.zeros(rows, groups_in_row, device=weight.device)
    work = Work(
        original=current.to(dtype),
        changes=torch.empty(rows, columns, dtype=dtype, device=weight.device),
        root=factor.root.to(dtype),
        saliency=factor.saliency.to(dtype),
        codes=torch.zeros(rows, columns, dtype=torch.int8, device=weight.device),
        # Group by group, so that the scales of a column lie side by side.
        scales=group_scales.T.to(dtype).contiguous(),
        zeros=zeros.T.to(dtype).contiguous(),
        groups=groups,
    )
    if is_float:
        return replace(work, codes=work.codes.float(), element=scales.grid.element)
    return replace(work, lowest=scales.grid.lowest, highest=scales.grid.highest)


def round_rows(work: Work, current: Tensor, inverse: Tensor, removed: Tensor, span: Span) -> None:
    """Round on the CPU, in float32 or float64: a `Step`."""
    columns = slice(span.start, span.stop)
    codes = work.codes[:, columns]
    inputs = (current, inverse, work.saliency[columns], removed)
    grids = (codes, work.scales, work.zeros, work.groups[columns])
    arrays = [part.numpy() for part in (*inputs, *grids)]
    # Without an element steps are even.
    element = (0.0, 0.0, 0.0)
    if work.element is not None:
        element = (2.0**-work.element.mantissa, work.element.least, work.element.largest)
    numbers = (work.lowest, work.highest, *element, span.group, span.drop)
    by_rows(_kernel(), len(removed), [*arrays, *numbers])


def round_columns(
    work: Work, current: Tensor, inverse: Tensor, removed: Tensor, span: Span
) -> None:
    """Round on any device: a `Step`. A column takes the corrections of all before it when its turn
    comes.
    """
    saliency = work.saliency[span.start : span.stop]
    original = current.clone()
    errors = torch.zeros_like(original)
    for i in range(original.shape[1]):
        if span.group and i % span.group == 0:
            members = slice(i, i + span.group)
            corrected = original[:, members] - errors[:, :i] @ inverse[:i, members]
            removed[:, members] = ~keep_highest(corrected.abs() * saliency[members], span.drop)
        column = original[:, i] - errors[:, :i] @ inverse[:i, i]
        group = work.groups[span.start + i]
        scale = work.scales[group]
        zero = work.zeros[group]
        if work.element is None:
            code = (column / scale + zero).round().clamp(work.lowest, work.highest)
        else:
            code = work.element.nearest(column / scale)
        # What goes gets the code of zero, and so is exactly zero.
        code = code.where(~removed[:, i], zero)
        value = (code - zero) * scale
        errors[:, i] = (column - value) / inverse[i, i]
        current[:, i] = value
        work.codes[:, span.start + i] = code.to(work.codes.dtype)


@cache
def _kernel() -> Callable[..., None]:
    """Imported at the first use: numba takes longer to import than listing methods may."""
    from calibrant.methods.quantization._rounding_kernel import round_columns

    return round_columns
