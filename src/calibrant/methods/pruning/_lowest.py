"""Wanda's choice in one pass over a matrix, by a kernel for processors."""

import math
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.methods._elimination import by_rows
from calibrant.numerics import ceil_div
from calibrant.packed import Change, Compressed
from calibrant.targets import NofM, Removal, Sparsity

LEAST_NUMBERS: Final = 2**22
"""Weights that are worth another thread: two milliseconds of work. A thread may have to wait that
long for those of torch, which stay busy for a moment after a product.
"""


def without_lowest(
    weight: Float[Tensor, "out in"], squares: Float[Tensor, "in"], target: Removal
) -> Compressed | None:
    """Return the matrix without the weights of each row that score lowest, and what it lost by
    that. A score is |W_oi|·√`squares`_i. The mask is that of `target.keep`.

    None where the kernel can't do it: on a device, for float64, for other targets, and for numbers
    that aren't finite. Raises `TargetError` if `target` doesn't fit.
    """
    if weight.device.type != "cpu" or weight.dtype == torch.float64:
        return None
    rows, width = weight.shape
    if isinstance(target, Sparsity):
        group = width
        quota = target.quota(width)
    elif isinstance(target, NofM):
        target.check((rows, width), "the matrix")
        group = target.m
        quota = target.m - target.n
    else:
        return None
    roots = squares.sqrt().float()
    if not bool(roots.isfinite().all()):
        return None
    # numba has no numbers of 16 bits. Those of bfloat16 are the upper half of a float32.
    numbers = weight.detach().contiguous()
    integers = torch.int16
    shift = 16
    if weight.dtype != torch.bfloat16:
        numbers = numbers.float()
        integers = torch.int32
        shift = 0
    kept = torch.empty_like(numbers)
    sums = np.zeros((rows, 3))
    arguments = [
        numbers.view(integers).numpy(),
        shift,
        roots.numpy(),
        squares.double().numpy(),
        group,
        quota,
        kept.view(integers).numpy(),
        sums,
    ]
    by_rows(_kernel(), rows, arguments, least_rows=ceil_div(LEAST_NUMBERS, width))
    zeros, size, lost = sums.sum(0).tolist()
    # It is finite if all weights are, since their squares can't overflow in float64.
    if not math.isfinite(size):
        return None
    change = Change(int(zeros), size, lost)
    return Compressed(kept.to(weight.dtype), change=change, only_removes=True)


@cache
def _kernel() -> Callable[..., None]:
    """Imported at the first use: numba takes longer to import than listing methods may."""
    from calibrant.methods.pruning._lowest_kernel import remove

    return remove
