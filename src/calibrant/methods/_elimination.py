"""Column elimination: remove weights from left to right, correcting the columns that follow.

The factor of the inverse Hessian, H⁻¹ = UᵀU with U upper, says what a column's removal costs the
others. It takes one Cholesky and one triangular inverse. Rows don't depend on each other, so on the
CPU a block of columns is one call of a compiled kernel, many rows shared among as many threads as
torch has; then one matrix product corrects everything right of the block. Other devices take the
same steps column by column in torch (tests run those on the CPU; no other device was at hand).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.activations import Gram
from calibrant.errors import NumericsError
from calibrant.methods._base import finite
from calibrant.numerics import type_name
from calibrant.targets import NofM, Removal, Sparsity, keep_highest

LADDER: Final = (1, 10, 100, 1000)
"""What the damping that was asked for is multiplied by, one after the other and in float64, until
the Hessian is positive definite.
"""

HALVED_ABOVE: Final = 128
"""Width above which a triangular matrix is inverted by halves."""


@dataclass(frozen=True)
class Factor:
    """`upper` is U; `saliency` is what |W_oi| is multiplied with to give a score, 1/U_ii, and 0
    for an input that was always zero.
    """

    upper: Float[Tensor, "in in"]
    saliency: Float[Tensor, "in"]
    notes: Mapping[str, Any]


def shared_factor(gram: Gram, damp: float) -> Factor:
    """Return `factorise(gram, damp)`, computed once for all matrices that share the Gram and all
    methods that are given it.
    """
    return gram.cached(("factor", damp), lambda: factorise(gram, damp))


def factorise(gram: Gram, damp: float) -> Factor:
    """Factor H⁻¹ for H = gram/mass + λI, λ = `damp` · mean diagonal over the inputs that were ever
    used.

    Inputs that were always zero get a diagonal of 1: they are tied to no other input, so they
    neither give nor take corrections. A Hessian that isn't positive definite climbs `LADDER`;
    `notes` say which step held. Raises `NumericsError` if none does, and for a Gram that isn't
    finite.
    """
    diagonal = finite(gram.norms(), "the squared norms of the inputs")
    dead = diagonal == 0
    mean = mean_square(gram)
    ladder = [(torch.float64, multiple) for multiple in LADDER]
    if gram.matrix.dtype != torch.float64:
        # In float32 a Gram of few tokens has eigenvalues that rounding makes negative: the cure is
        # precision, which changes only rounding, and only then more damping.
        ladder.insert(0, (gram.matrix.dtype, 1))
    for dtype, multiple in ladder:
        upper = _inverse_factor(gram, dead, mean * damp * multiple, dtype)
        if upper is not None:
            # Of an input that was always zero any weight may go for nothing.
            saliency = (1 / upper.diagonal()).masked_fill(dead.to(upper.device), 0)
            notes = {
                "damp": damp * multiple,
                "precision": type_name(dtype),
                "dead_inputs": int(dead.count_nonzero()),
            }
            upper = upper.to(gram.matrix.device, gram.matrix.dtype)
            return Factor(upper, saliency.to(gram.matrix.device, gram.matrix.dtype), notes)
    lowest = float(diagonal.min())
    highest = float(diagonal.max())
    raise NumericsError(
        "the Gram of the inputs isn't positive definite, not even in float64 with "
        f"damp={damp * LADDER[-1]:g}; its diagonal reaches from {lowest:g} to {highest:g}, "
        f"look at the activations, or give a damp above {damp:g}"
    )


def mean_square(gram: Gram) -> float:
    """Return the mean of x² over tokens, and over the inputs that were ever used: what a damping is
    relative to.
    """
    diagonal = gram.norms()
    # Inputs that were always zero would only make the mean, and the damping, smaller.
    used = max(1, int(diagonal.count_nonzero()))
    return float(diagonal.double().sum()) / gram.mass / used


def _inverse_factor(gram: Gram, dead: Tensor, damping: float, dtype: torch.dtype) -> Tensor | None:
    """Return U, or None if the Hessian isn't positive definite. With J the index reversal and JHJ =
    LLᵀ, R = JLJ is upper, H = RRᵀ and U = R⁻¹.
    """
    device = gram.matrix.device
    # Apple's GPUs have no float64.
    if device.type == "mps" and dtype == torch.float64:
        device = torch.device("cpu")
    # One copy after the other: of the widest matrices of a large model each takes hundreds of
    # megabytes.
    hessian = gram.matrix.flip(0, 1).to(device, dtype)
    hessian /= gram.mass
    hessian.diagonal().add_(dead.flip(0).to(device, dtype)).add_(damping)
    lower, info = torch.linalg.cholesky_ex(hessian)
    del hessian
    if int(info) != 0:
        return None
    flipped = lower.flip(0, 1)
    del lower
    # Row by row, as kernels and those who share it want it.
    upper = flipped.contiguous()
    del flipped
    invert_upper(upper)
    is_finite = all(bool(extreme.isfinite()) for extreme in upper.aminmax())
    return upper if is_finite else None


def invert_upper(upper: Float[Tensor, "in in"]) -> None:
    """Put the inverse of an upper triangular matrix in its place, again upper, by halving: a
    third of the work of solving for a whole identity.
    """
    width = len(upper)
    if width <= HALVED_ABOVE:
        identity = torch.eye(width, dtype=upper.dtype, device=upper.device)
        upper.copy_(torch.linalg.solve_triangular(upper, identity, upper=True))
        return
    # [[A, B], [0, D]]⁻¹ = [[A⁻¹, -A⁻¹BD⁻¹], [0, D⁻¹]]
    left = slice(0, width // 2)
    right = slice(width // 2, width)
    invert_upper(upper[left, left])
    invert_upper(upper[right, right])
    # Both halves are inverted by now.
    corner = upper[left, left] @ upper[left, right] @ upper[right, right]
    upper[left, right] = corner.neg_()


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
    """Return a copy of `weight`, pruned to `target` and corrected, `block` columns at a time.

    Removed weights are exactly zero. `step` overrides the device's own.
    """
    if step is None:
        step = eliminate_rows if weight.device.type == "cpu" else eliminate_columns
    corrected = weight.detach().clone(memory_format=torch.contiguous_format)
    # The factor has the Gram's type; the elimination is in the type of the weights.
    upper = factor.upper.to(corrected.dtype)
    saliency = factor.saliency.to(corrected.dtype)
    for span in spans(corrected.shape[1], target, block):
        columns = slice(span.start, span.stop)
        removed = torch.zeros_like(corrected[:, columns], dtype=torch.bool)
        # Weights of a group are chosen by the step, when the group's turn comes.
        if not span.group:
            removed = choose(corrected[:, columns].abs() * saliency[columns], target, span)
        # Algorithm 1 of SparseGPT, lazily: inside the span column by column, right of it in one
        # product with all the span's errors.
        errors = step(corrected, upper, saliency, removed.contiguous(), span)
        if span.stop < corrected.shape[1]:
            corrected[:, span.stop :].addmm_(errors, upper[columns, span.stop :], alpha=-1)
    return corrected


def spans(columns: int, target: Removal | None, block: int) -> list[Span]:
    """Return blocks of `block` columns, the last one narrower where they don't add up; for N:M as
    wide as whole groups allow, and at least one group.
    """
    width = block
    group = 0
    drop = 0
    if isinstance(target, NofM):
        group = target.m
        drop = target.m - target.n
        width = max(block - block % group, group)
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
    arrays = [part.numpy() for part in (weight, upper, saliency, removed, errors)]
    by_rows(_kernel(), len(weight), [*arrays, span.start, span.stop, span.group, span.drop])
    return errors


def by_rows(
    kernel: Callable[..., None],
    rows: int,
    arguments: Sequence[Any],
    least_rows: int = ROWS_PER_THREAD,
) -> None:
    """Call `kernel(*arguments, first, last)` for shares of the rows, `least_rows` or more each, on
    as many threads as torch has. A kernel lets go of Python's lock, so they run side by side.
    """
    threads = torch.get_num_threads()
    share = max(-(-rows // threads), least_rows)
    others: list[Future[None]] = []
    for first in range(share, rows, share):
        last = min(first + share, rows)
        others.append(_threads(threads).submit(kernel, *arguments, first, last))
    # This thread does the first share itself.
    kernel(*arguments, 0, min(share, rows))
    for other in others:
        other.result()


def eliminate_columns(
    weight: Tensor, upper: Tensor, saliency: Tensor, removed: Tensor, span: Span
) -> Tensor:
    """Eliminate on any device: a `Step`. A column takes the corrections of all before it when its
    turn comes.
    """
    columns = slice(span.start, span.stop)
    block = weight[:, columns]
    upper = upper[columns, columns]
    original = block.clone()
    errors = torch.zeros_like(block)
    for i in range(block.shape[1]):
        if span.group and i % span.group == 0:
            members = slice(i, i + span.group)
            current = original[:, members] - errors[:, :i] @ upper[:i, members]
            scores = current.abs() * saliency[columns][members]
            removed[:, members] = ~keep_highest(scores, span.drop)
        # All at once, which on a device is one product instead of many small steps.
        column = original[:, i] - errors[:, :i] @ upper[:i, i]
        errors[:, i] = (column / upper[i, i]).where(removed[:, i], 0)
        block[:, i] = column.masked_fill(removed[:, i], 0)
    return errors


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Return threads that are kept from call to call: a matrix has a dozen blocks, and a model
    hundreds of matrices.
    """
    return ThreadPoolExecutor(count, thread_name_prefix="elimination")


@cache
def _kernel() -> Callable[..., None]:
    """Imported at the first use: numba takes longer to import than listing methods may."""
    from calibrant.methods._kernel import eliminate

    return eliminate
