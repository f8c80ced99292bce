"""Column elimination: remove weights from left to right, correcting the columns that follow.

The root of the Hessian, H = RRᵀ with R upper, says what the changes of some columns do to those
right of them. It takes one Cholesky from the last column to the first. When a block of columns has
its turn, one matrix product with the changes of all before it brings it up to date. Inside a block
the inverse of its own part of R is enough: H⁻¹ = UᵀU with U = R⁻¹, whose blocks on the diagonal are
the inverses of R's. Rows don't depend on each other, so on the CPU a block is one call of a
compiled kernel, many rows shared among as many threads as torch has. Other devices take the same
steps column by column in torch (tests run those on the CPU; no other device was at hand).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calibrant.activations import Gram
from calibrant.errors import NumericsError
from calibrant.methods._base import finite
from calibrant.numerics import ceil_div, type_name
from calibrant.system.products import exact, where_exact
from calibrant.targets import NofM, Removal, Sparsity, keep_highest

LADDER: Final = (1, 10, 100, 1000)
"""What the damping that was asked for is multiplied by, one after the other and in float64, until
the Hessian is positive definite.
"""

ROOT_BLOCK: Final = 256
"""Columns of a root that are computed together: enough for the full speed of products."""


@dataclass(frozen=True)
class Factor:
    """`root` is R, of which the upper triangle counts: what is below may be anything. `saliency` is
    what |W_oi| is multiplied with to give a score, R_ii, and 0 for an input that was always zero.
    """

    root: Float[Tensor, "in in"]
    saliency: Float[Tensor, "in"]
    notes: Mapping[str, Any]


def shared_factor(gram: Gram, damp: float) -> Factor:
    """Return `factorise(gram, damp)`, computed once for all matrices that share the Gram and all
    methods that are given it.
    """
    return gram.cached(("factor", damp), lambda: factorise(gram, damp))


def factorise(gram: Gram, damp: float) -> Factor:
    """Factor H = gram/mass + λI, λ = `damp` · mean diagonal over the inputs that were ever
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
    if gram.upper.dtype != torch.float64:
        # In float32 a Gram of few tokens has eigenvalues that rounding makes negative: the cure is
        # precision, which changes only rounding, and only then more damping.
        ladder.insert(0, (gram.upper.dtype, 1))
    for dtype, multiple in ladder:
        root = _root(gram, dead, mean * damp * multiple, dtype)
        if root is not None:
            root = root.to(gram.upper.device, gram.upper.dtype)
            # Of an input that was always zero any weight may go for nothing.
            saliency = root.diagonal().masked_fill(dead, 0)
            notes = {
                "damp": damp * multiple,
                "precision": type_name(dtype),
                "dead_inputs": int(dead.count_nonzero()),
            }
            return Factor(root, saliency, notes)
    lowest = float(diagonal.min())
    highest = float(diagonal.max())
    raise NumericsError(
        "the Gram of the inputs isn't positive definite, not even in float64 with "
        f"damp={damp * LADDER[-1]:g}; its diagonal reaches from {lowest:g} to {highest:g}, "
        f"look at the activations, or give a damp above {damp:g}"
    )


def factorise_in_order(gram: Gram, order: Int[Tensor, "in"], damp: float) -> Factor:
    """Factor the Gram of the inputs in this order, as `factorise` does. The Gram in that order is
    let go before the factor is used.
    """
    reordered = Gram(gram.matrix[order][:, order], gram.tokens, gram.mass)
    return factorise(reordered, damp)


def mean_square(gram: Gram) -> float:
    """Return the mean of x² over tokens, and over the inputs that were ever used: what a damping is
    relative to.
    """
    diagonal = gram.norms()
    # Inputs that were always zero would only make the mean, and the damping, smaller.
    used = max(1, int(diagonal.count_nonzero()))
    return float(exact(diagonal).sum()) / gram.mass / used


def _root(gram: Gram, dead: Tensor, damping: float, dtype: torch.dtype) -> Tensor | None:
    """Return R, or None if the Hessian isn't positive definite."""
    device = gram.upper.device
    if dtype == torch.float64:
        device = where_exact(device)
    # One copy, which becomes the root: of the widest matrices of a large model it takes hundreds of
    # megabytes.
    hessian = gram.upper.to(device, dtype, copy=True)
    hessian /= gram.mass
    hessian.diagonal().add_(dead.to(device, dtype)).add_(damping)
    return hessian if take_root(hessian) else None


def take_root(hessian: Float[Tensor, "in in"]) -> bool:
    """Put R into the upper triangle of H, which alone is read. Return whether H is positive
    definite; if it isn't, what is left in it is of no use.
    """
    width = len(hessian)
    last = (width - 1) // ROOT_BLOCK * ROOT_BLOCK
    for start in range(last, -1, -ROOT_BLOCK):
        stop = min(start + ROOT_BLOCK, width)
        columns = slice(start, stop)
        above = slice(0, start)
        done = slice(stop, width)
        # What is right of these columns is R already.
        hessian[:stop, columns].addmm_(hessian[:stop, done], hessian[columns, done].T, alpha=-1)
        # With J the index reversal and JHJ = LLᵀ, R is JLJ.
        lower, info = torch.linalg.cholesky_ex(hessian[columns, columns].flip(0, 1))
        root = lower.flip(0, 1)
        if int(info) != 0 or not bool(root.isfinite().all()):
            return False
        hessian[columns, columns] = root
        hessian[above, columns] = hessian[above, columns] @ inverse_of(root).T
    return True


def inverse_of(root: Float[Tensor, "span span"]) -> Float[Tensor, "span span"]:
    """Return the inverse of an upper triangular matrix, of which the upper triangle alone is read.
    For more than a few hundred columns it is slow.
    """
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    return torch.linalg.solve_triangular(root, identity, upper=True).contiguous()


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

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Span], None]
"""Eliminates within a span, in place: (current [out, span], inverse [span, span], saliency [span],
removed [out, span], span). Fills `removed` if it chooses.
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
    # The factor has the Gram's type; the elimination is in the type of the weights.
    root = factor.root.to(weight.dtype)
    saliency = factor.saliency.to(weight.dtype)
    original = weight.detach()
    pruned = torch.empty_like(original, memory_format=torch.contiguous_format)
    changes = torch.empty_like(pruned)
    for span in spans(original.shape[1], target, block):
        columns = slice(span.start, span.stop)
        inverse = inverse_of(root[columns, columns])
        current = up_to_date(original, changes, root, inverse, span)
        removed = torch.zeros_like(current, dtype=torch.bool)
        # Weights of a group are chosen by the step, when the group's turn comes.
        if not span.group:
            removed = choose(current.abs() * saliency[columns], target, span)
        step(current, inverse, saliency[columns], removed.contiguous(), span)
        pruned[:, columns] = current
        changes[:, columns] = current - original[:, columns]
    return pruned


def up_to_date(
    original: Float[Tensor, "out in"],
    changes: Float[Tensor, "out in"],
    root: Float[Tensor, "in in"],
    inverse: Float[Tensor, "span span"],
    span: Span,
) -> Float[Tensor, "out span"]:
    """Return the columns of a span corrected for the `changes` of all columns before it.

    Changes D of all columns lose ‖DR‖² of the outputs. The `residual` is D[:, :start] · R[:start,
    span]: the part of DR in the span's columns that is fixed already. Weights w of the span that
    become w - `residual`·U, U the `inverse` of the span's own part of R, make DR zero there. This
    is algorithm 1 of SparseGPT, put off until the span's turn.
    """
    columns = slice(span.start, span.stop)
    # Row by row in memory, a narrow panel is multiplied a quarter faster.
    panel = root[: span.start, columns].contiguous()
    residual = changes[:, : span.start] @ panel
    return torch.addmm(original[:, columns], residual, inverse, alpha=-1)


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
    found: list[Span] = []
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        found.append(Span(start, stop, group, drop))
    return found


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
    current: Tensor, inverse: Tensor, saliency: Tensor, removed: Tensor, span: Span
) -> None:
    """Eliminate on the CPU, in float32 or float64: a `Step`."""
    arrays = [part.numpy() for part in (current, inverse, saliency, removed)]
    by_rows(_kernel(), len(current), [*arrays, span.group, span.drop])


def by_rows(
    kernel: Callable[..., None],
    rows: int,
    arguments: Sequence[Any],
    least_rows: int = ROWS_PER_THREAD,
) -> None:
    """Call `kernel(*arguments, first, last)` for parts of the rows, `least_rows` or more each, on
    as many threads as torch has. A kernel lets go of Python's lock, so they run side by side.
    """
    threads = torch.get_num_threads()
    rows_of_part = max(ceil_div(rows, threads), least_rows)
    others: list[Future[None]] = []
    for first in range(rows_of_part, rows, rows_of_part):
        last = min(first + rows_of_part, rows)
        others.append(_threads(threads).submit(kernel, *arguments, first, last))
    # This thread does the first part itself.
    kernel(*arguments, 0, min(rows_of_part, rows))
    for other in others:
        other.result()


def eliminate_columns(
    current: Tensor, inverse: Tensor, saliency: Tensor, removed: Tensor, span: Span
) -> None:
    """Eliminate on any device: a `Step`. A column takes the corrections of all before it when its
    turn comes.
    """
    original = current.clone()
    errors = torch.zeros_like(current)
    for i in range(current.shape[1]):
        begins_group = span.group > 0 and i % span.group == 0
        if begins_group:
            members = slice(i, i + span.group)
            corrected = original[:, members] - errors[:, :i] @ inverse[:i, members]
            scores = corrected.abs() * saliency[members]
            removed[:, members] = ~keep_highest(scores, span.drop)
        # All at once, which on a device is one product instead of many small steps.
        column = original[:, i] - errors[:, :i] @ inverse[:i, i]
        errors[:, i] = (column / inverse[i, i]).where(removed[:, i], 0)
        current[:, i] = column.masked_fill(removed[:, i], 0)


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
