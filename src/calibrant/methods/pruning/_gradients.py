"""Conjugate gradients on a mask: the weights that are kept are fitted to the dense matrix's
outputs, all rows at once.

A row's loss is (w - v)ᵀH(w - v), where w is the dense row, v the pruned one, and H = Gram/mass +
λI. Rows don't depend on each other: a step is one product of all rows with H, and each row takes
the length that is best for it. Pulling towards the dense weights (λ on both sides) is what keeps
inputs that never vary where they were.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.activations import Gram
from calibrant.methods._base import finite
from calibrant.methods._elimination import by_rows
from calibrant.system.products import exact


@dataclass(frozen=True)
class Masked:
    """A pruned matrix with what its next change is judged by: which weights are kept, the pull
    (w - v)H on each, and each row's loss.
    """

    weight: Float[Tensor, "out in"]
    keep: Bool[Tensor, "out in"]
    pull: Float[Tensor, "out in"]
    loss: Float[Tensor, "out"]


def damped(gram: Gram, damp: float) -> Float[Tensor, "in in"]:
    """Return H = gram/mass + λI, computed once for all matrices that share the Gram; λ is `damp`
    times the mean diagonal of inputs that were used.

    Raises `NumericsError` for a Gram that isn't finite.
    """
    return gram.cached(("damped", damp), lambda: _damped(gram, damp))


def _damped(gram: Gram, damp: float) -> Tensor:
    diagonal = exact(finite(gram.norms(), "the squared norms of the inputs"))
    # By the upper triangle alone, which is what is kept on disk: so both give the same bits.
    hessian = gram.symmetric().div_(gram.mass)
    # `mean_square`, but λ is rounded in another order: published numbers hang on its last bit.
    used = max(1, int(diagonal.count_nonzero()))
    hessian.diagonal().add_(damp * float(diagonal.sum()) / gram.mass / used)
    return finite(hessian, "the damped Gram of the inputs")


def masked(
    dense: Float[Tensor, "out in"],
    start: Float[Tensor, "out in"],
    keep: Bool[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
) -> Masked:
    """Return `start` on the mask, beside the `dense` matrix that it is to be like. All have one
    floating type.
    """
    weight = start.masked_fill(~keep, 0)
    error = dense - weight
    # H is its own transpose, with which oneDNN's products are a third faster.
    pull = error @ hessian.T
    return Masked(weight, keep, pull, (error * pull).sum(1))


TILE: Final = 192
"""Rows that take their steps together: few enough for the cache, and enough for a product's full
speed.
"""

Advance = Callable[[Masked, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Takes a step in place, as long as is best for each row, and turns the direction: (state,
direction [out, in], product [out, in], scale [in], slope [out], least_slope [out]) -> gain [out].

`product` is direction·H, `scale` the preconditioner, `slope` how steeply each row's loss falls
along its direction; a row whose slope isn't above `least_slope` stays where it is. `gain` is what
the step takes off each row's loss.
"""


def descend(
    state: Masked,
    hessian: Float[Tensor, "in in"],
    steps: int,
    tolerance: float = 0.0,
    in_place: bool = False,
    advance: Advance | None = None,
) -> Masked:
    """Return `state` after `steps` steps towards the weights on the mask that lose least; after
    fewer if one takes off less than `tolerance` of the loss that was there at first.

    The preconditioner is the diagonal of `hessian`. A row whose curvature isn't positive, because
    the Hessian isn't positive definite, stays where it is. On the CPU `TILE` rows at a time take
    all their steps, and end together. `advance` overrides the device's own. `state` is left as it
    was, or with `in_place` written over.
    """
    on_cpu = state.weight.device.type == "cpu"
    if advance is None:
        advance = _in_rows if on_cpu else _all_rows
    if not in_place:
        state = Masked(_copy(state.weight), state.keep, _copy(state.pull), state.loss.clone())
    tile = TILE if on_cpu else max(1, len(state.weight))
    for first in range(0, len(state.weight), tile):
        rows = slice(first, first + tile)
        part = Masked(state.weight[rows], state.keep[rows], state.pull[rows], state.loss[rows])
        _descend(part, hessian, steps, tolerance, advance)
    return state


def _descend(
    state: Masked,
    hessian: Float[Tensor, "in in"],
    steps: int,
    tolerance: float,
    advance: Advance,
) -> None:
    """Do the same in place with a few rows, which stay in the cache from one step to the next."""
    diagonal = hessian.diagonal()
    # An input that was never used has no curvature, and no pull either: any scale will do.
    scale = (1 / diagonal).where(diagonal > 0, 1)
    direction = (state.pull * scale).masked_fill_(~state.keep, 0)
    slope = (direction * state.pull).sum(1)
    # A residual of nothing but rounding leads nowhere.
    least_slope = slope * torch.finfo(slope.dtype).eps ** 2
    product = torch.empty_like(direction)
    least_gain = tolerance * float(state.loss.sum())
    for _ in range(steps):
        # As in `masked`, with the transpose.
        torch.mm(direction, hessian.T, out=product)
        gain = advance(state, direction, product, scale, slope, least_slope)
        state.loss.sub_(gain)
        if not bool(gain.any()) or float(gain.sum()) < least_gain:
            break


def _copy(matrix: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    return matrix.clone(memory_format=torch.contiguous_format)


def _in_rows(
    state: Masked,
    direction: Tensor,
    product: Tensor,
    scale: Tensor,
    slope: Tensor,
    least_slope: Tensor,
) -> Float[Tensor, "out"]:
    """Step on the CPU, row after row in a compiled kernel: an `Advance`."""
    gain = torch.zeros_like(slope)
    keep = state.keep.contiguous()
    parts = (state.weight, state.pull, direction, product, keep, scale, slope, least_slope, gain)
    by_rows(_kernel(), len(gain), [part.numpy() for part in parts])
    return gain


def _all_rows(
    state: Masked,
    direction: Tensor,
    product: Tensor,
    scale: Tensor,
    slope: Tensor,
    least_slope: Tensor,
) -> Float[Tensor, "out"]:
    """Step on any device, all rows at once: an `Advance`."""
    curvature = (direction * product).sum(1)
    moving = (curvature > 0) & (slope > least_slope)
    # In exact arithmetic this is `slope`; of rounded sums it is what the step really takes off.
    measured_slope = (direction * state.pull).sum(1)
    length = (measured_slope / curvature).where(moving, 0)
    state.weight.addcmul_(length[:, None], direction)
    state.pull.addcmul_(length[:, None], product, value=-1)
    residual = (state.pull * scale).masked_fill_(~state.keep, 0)
    next_slope = (residual * state.pull).sum(1)
    direction.mul_((next_slope / slope).where(moving, 0)[:, None]).add_(residual)
    slope.copy_(next_slope)
    return length * measured_slope


@cache
def _kernel() -> Callable[..., None]:
    """Imported at the first use: numba takes longer to import than listing methods may."""
    from calibrant.methods.pruning._gradients_kernel import step

    return step
