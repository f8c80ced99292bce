"""How inputs come to be rounded, once the weights are compressed: matrix by matrix, so that those
behind a matrix already see what its rounded inputs lead to.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import groupby
from typing import Any, Final

import torch

from calibrant.activations import (
    FeatureMaxima,
    InputStatistic,
    MagnitudeCounts,
    Propagation,
    Seen,
)
from calibrant.edits import Edit, QuantizeInputs
from calibrant.job import Job
from calibrant.models import ModelView, Weight
from calibrant.models.rounded_inputs import has_inputs, rounding_of
from calibrant.targets import InputGrid, Range
from calibrant.walk import walk
from calibrant.walk.products import grouped
from calibrant.walk.rehearsal import rehearse

NEARLY_ALL: Final = 0.9999
"""The share of inputs that a range by `percentile` reaches to."""
CANDIDATES: Final = 100
"""Ranges that are tried for the least error, from a hundredth of the largest input up to it."""
OBSERVED: Final[Mapping[Range, tuple[type[InputStatistic], ...]]] = {
    "absmax": (FeatureMaxima,),
    "percentile": (FeatureMaxima, MagnitudeCounts),
    "mse": (FeatureMaxima, MagnitudeCounts),
}
"""What is gathered of a matrix's inputs, by how its range is found."""


def quantized_inputs(
    job: Job, grid: InputGrid, propagate: Propagation, compressed: Collection[str]
) -> Iterator[Edit]:
    """Yield for each of the `compressed` matrices, given by name, the edit that rounds its inputs.
    Edits of before an interruption are in `job.done`; each is applied before the next is asked for.

    Without static scales nothing is run. Matrices that have no module of their own are left out,
    and so are those that no token reaches and that share no input with others.
    """
    begun = [edit for edit in job.done if isinstance(edit, QuantizeInputs)]
    start = max((edit.weight.block for edit in begun), default=-1) + 1
    left = without_inputs(job.view)
    wanted: dict[str, Weight] = {}
    for weight in job.view.weights:
        if weight.block >= start and weight.name in compressed and weight.name not in left:
            wanted[weight.name] = weight
    if grid.range is None:
        for weight in wanted.values():
            yield QuantizeInputs(weight, grid)
        return
    observes = OBSERVED[grid.range]
    arrivals = walk(job.view, job.batch, observes, propagate, start=start, ranks=job.ranks)
    for index, in_block in groupby(arrivals, _block_of):
        reaches: dict[str, float] = {}
        for weight, seen in in_block:
            if weight.name not in wanted:
                continue
            reach = range_of(seen, grid)
            reaches[weight.name] = reach
            notes = {"reach": reach, "largest": seen[FeatureMaxima].largest()}
            yield QuantizeInputs(weight, grid, _static_scale(weight, grid, reach), notes)
        for weight in job.view.blocks[index].weights:
            if weight.name in wanted and weight.name not in reaches:
                yield from _from_others(weight, job.view, grid, reaches)


def without_inputs(view: ModelView) -> dict[str, str]:
    """Return the matrices whose inputs can't be rounded, by name, each with the reason."""
    reasons: dict[str, str] = {}
    past_module = rehearse(view).past_module
    for weight in view.weights:
        if weight.expert is not None:
            reasons[weight.name] = "its inputs are those of a layer of experts, in one module"
        elif not has_inputs(weight):
            reasons[weight.name] = f"it is no linear layer but in a {type(weight.owner).__name__}"
        elif weight.name in past_module:
            reasons[weight.name] = "the model multiplies with it without calling its module"
    return reasons


def inputs_left(
    view: ModelView, compressed: Collection[str], propagate: Propagation
) -> dict[str, Any] | None:
    """Return what the record says of matrices whose inputs stay as they are, though their weights
    were compressed; None where there are none.
    """
    reasons = {**rehearse(view).left(propagate), **without_inputs(view)}
    left: dict[str, str] = {}
    for weight in view.weights:
        if weight.name in compressed and rounding_of(weight.owner) is None:
            left[weight.name] = reasons.get(weight.name, "no calibration token reached it")
    if not left:
        return None
    return {"edit": "inputs_left", "matrices": left}


def range_of(seen: Seen, grid: InputGrid) -> float:
    """Return how far the static scale of a matrix's inputs reaches, by what it saw."""
    largest = seen[FeatureMaxima].largest()
    if grid.range == "percentile":
        return min(largest, seen[MagnitudeCounts].quantile(NEARLY_ALL))
    if grid.range == "mse":
        return _least_error(seen[MagnitudeCounts], grid, largest)
    return largest


def _least_error(sizes: MagnitudeCounts, grid: InputGrid, largest: float) -> float:
    """The range up to `largest` where the sum of squared errors is least. Inputs count as the
    middles of their sizes.
    """
    middles = sizes.middles().clamp_max(largest)
    counts = sizes.counts.cpu().double()
    best = largest
    least = torch.inf
    for step in range(1, CANDIDATES + 1):
        reach = largest * step / CANDIDATES
        static_scale = grid.static_scale(reach, torch.float64)
        errors = (grid.rounded(middles, static_scale) - middles).square()
        error = float(counts @ errors)
        # Of equal ones the farthest.
        if error <= least:
            least = error
            best = reach
    return best


def _static_scale(weight: Weight, grid: InputGrid, reach: float) -> float:
    """The static scale, in the type in which an export stores it."""
    return grid.static_scale(reach, weight.stored.dtype)


def _from_others(
    weight: Weight, view: ModelView, grid: InputGrid, reaches: Mapping[str, float]
) -> Iterator[Edit]:
    """Yield the edit of an expert's matrix that no token reached, with the range of what the other
    experts' matrices of the same use saw; `reaches` has those of the block, by name. Yields nothing
    for a matrix that no others are like.
    """
    block = view.blocks[weight.block]
    group, _, use = grouped(weight, block)
    alike: dict[str, float] = {}
    for other in block.weights:
        other_group, _, other_use = grouped(other, block)
        if use and (other_group, other_use) == (group, use) and other.name in reaches:
            alike[other.name] = reaches[other.name]
    if alike:
        reach = max(alike.values())
        notes = {"reach": reach, "from": sorted(alike)}
        yield QuantizeInputs(weight, grid, _static_scale(weight, grid, reach), notes)


def _block_of(arrival: tuple[Weight, Seen]) -> int:
    return arrival[0].block
