"""Column elimination: remove weights from left to right, correcting the columns that follow.

Rows don't depend on each other, so on the CPU a block of columns is one call of a compiled kernel,
many rows shared among as many threads as torch has; then one matrix product corrects everything
right of the block. Other devices take the same steps column by column in torch (run on the CPU in
the tests; no other device was at hand).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.methods._factor import Factor
from calibrant.targets import NofM, Removal, Sparsity, keep_highest


@dataclass(frozen=True)
class Span:
    """The columns `start` to `stop`, and how weights in them are chosen: beforehand (`group` 0),
    or `drop` of every `group` as they come.
    """

    start: int
    stop: int
    group: int = 0
    drop: int = 0


ROWS_PER_THREAD: Final = 1024
"""Rows worth another thread. Torch's own threads go on turning for a moment after a product, and
fewer rows are done before they rest.
"""

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Span], Tensor]
"""Eliminates within a span, in place: (weight, upper, saliency, removed [out, span], span) ->
errors [out, span]. Fills `removed` if it chooses.
"""


def eliminate(
    weight: Float[Tensor, "out in"],
    factor: Factor,
    target: Removal,
    block: int,
    step: Step | None = None,
) -> Float[Tensor, "out in"]:
    """Return a copy of `weight`, pruned to `target` and corrected. Removed weights are exactly
    zero. `step` overrides the device's own.
    """
    step = step or (eliminate_rows if weight.device.type == "cpu" else eliminate_columns)
    work = weight.detach().clone(memory_format=torch.contiguous_format)
    upper, saliency = factor.upper.to(work.dtype), factor.saliency.to(work.dtype)
    for span in spans(work.shape[1], target, block):
        columns = slice(span.start, span.stop)
        removed = (
            torch.zeros_like(work[:, columns], dtype=torch.bool)
            if span.group
            else choose(work[:, columns].abs() * saliency[columns], target, span)
        )
        # Algorithm 1 of SparseGPT, lazily: inside the span column by column, right of it in one
        # product with all the span's errors.
        errors = step(work, upper, saliency, removed.contiguous(), span)
        if span.stop < work.shape[1]:
            work[:, span.stop :].addmm_(errors, upper[columns, span.stop :], alpha=-1)
    return work


def spans(columns: int, target: Removal | None, block: int) -> list[Span]:
    """Return blocks of columns; for N:M as wide as whole groups allow, and at least one group."""
    group, drop = (target.m, target.m - target.n) if isinstance(target, NofM) else (0, 0)
    width = max(block - block % group, group) if group else block
    return [
        Span(start, min(start + width, columns), group, drop) for start in range(0, columns, width)
    ]


def choose(
    scores: Float[Tensor, "out span"], target: Removal, span: Span
) -> Bool[Tensor, "out span"]:
    """Return which weights of the span go. Quotas are differences of the quota up to here, so
    that they add up to the matrix's.
    """
    if not isinstance(target, Sparsity):
        return ~target.keep(scores, "matrix")
    rows = scores.shape[0]
    quota = target.quota(rows * span.stop) - target.quota(rows * span.start)
    return ~keep_highest(scores.reshape(1, -1), quota).reshape(scores.shape)


def eliminate_rows(
    weight: Tensor, upper: Tensor, saliency: Tensor, removed: Tensor, span: Span
) -> Tensor:
    """Eliminate on the CPU, in float32 or float64: a `Step`."""
    errors = torch.zeros(removed.shape, dtype=weight.dtype)
    arrays = [t.numpy() for t in (weight, upper, saliency, removed, errors)]
    kernel = _kernel()
    by_rows(
        weight.shape[0],
        lambda first, last: kernel(
            *arrays, first, last, span.start, span.stop, span.group, span.drop
        ),
    )
    return errors


def by_rows(rows: int, run: Callable[[int, int], None], least: int = ROWS_PER_THREAD) -> None:
    """Call `run(first, last)` for shares of the rows, `least` or more, on as many threads as
    torch has; it lets go of Python's lock.
    """
    threads = torch.get_num_threads()
    share = max(-(-rows // threads), least)
    others = [
        _threads(threads).submit(run, first, min(first + share, rows))
        for first in range(share, rows, share)
    ]
    run(0, min(share, rows))
    for other in others:
        other.result()


def eliminate_columns(
    weight: Tensor, upper: Tensor, saliency: Tensor, removed: Tensor, span: Span
) -> Tensor:
    """Eliminate on any device: a `Step`, left-looking, each column takes the corrections of all
    before it at once.
    """
    block, u = (
        weight[:, span.start : span.stop],
        upper[span.start : span.stop, span.start : span.stop],
    )
    s, original = saliency[span.start : span.stop], block.clone()
    errors = torch.zeros_like(block)
    for i in range(block.shape[1]):
        if span.group and i % span.group == 0:
            members = slice(i, i + span.group)
            scores = (original[:, members] - errors[:, :i] @ u[:i, members]).abs() * s[members]
            removed[:, members] = ~keep_highest(scores, span.drop)
        column = original[:, i] - errors[:, :i] @ u[:i, i]
        errors[:, i] = (column / u[i, i]).where(removed[:, i], 0)
        block[:, i] = column.masked_fill(removed[:, i], 0)
    return errors


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Kept from call to call: a matrix has a dozen blocks, and a model hundreds of matrices."""
    return ThreadPoolExecutor(count, thread_name_prefix="elimination")


@cache
def _kernel() -> Callable[..., None]:
    """Imported at the first use: numba takes longer to import than listing methods may."""
    from calibrant.methods._kernel import eliminate

    return eliminate
