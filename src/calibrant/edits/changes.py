"""What compressing did to one matrix, as a record keeps it: the error of its outputs, and
samples of its mask and of what it saw.
"""

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, wide
from calibrant.models.compact import AS_INTEGERS
from calibrant.numerics import ceil_div, finite_number, six_digits
from calibrant.packed import Change, gram_energy
from calibrant.system.products import full_speed

SAMPLED: Final = 256
"""Weights of a matrix of which a record says whether they are kept: the overlap of two masks is
known from them to ±3 in a hundred.
"""

FEATURES: Final = 32
"""Input features of a matrix whose sizes a record says. A block has several matrices, so of a block
some hundreds are known.
"""

SILENT: Final = -20.0
"""The logarithm that stands for nothing: a feature that was always zero."""

_ROWS: Final = 256
"""Rows of a matrix that are done at a time."""


def output_error(
    before: Float[Tensor, "out in"],
    after: Float[Tensor, "out in"],
    seen: Seen,
    name: str = "the matrix",
    change: Change | None = None,
) -> Mapping[str, Any]:
    """Return `error`, ‖(W−Ŵ)X‖²/‖WX‖², to the six digits that are sure, and `error_from`, the
    statistic that it follows from.

    From a `gram` it is tr((W−Ŵ)G(W−Ŵ)ᵀ)/tr(WGWᵀ). From `norms` the inputs are taken to be
    uncorrelated. Nothing where neither was seen, or where the outputs were all zero. A `change`
    that is known isn't computed again. Raises `NumericsError`, with the matrix's `name`, where the
    outputs overflow.
    """
    dtype = wide(before.dtype)
    if change is not None:
        statistic = "gram" if Gram in seen else "norms"
        size = change.size
        lost = change.lost
    elif Gram in seen:
        statistic = "gram"
        energy = gram_energy(seen[Gram], dtype)
        untouched = before.to(dtype)
        with full_speed():
            size = energy(untouched)
            lost = energy(untouched - after.to(dtype))
    elif FeatureNorms in seen:
        statistic = "norms"
        squares = seen[FeatureNorms].squares.cpu().double()
        # Of uncorrelated inputs only the squares of weights matter, summed for each input.
        size_by_input, lost_by_input = _squared(before, after, dtype)
        size = float(size_by_input @ squares)
        lost = float(lost_by_input @ squares)
    else:
        return {}
    # Beside infinite outputs any loss would look like none.
    finite_number(size, f"the size of the outputs of {name}", name)
    if size <= 0:
        return {}
    return {"error": six_digits(lost / size), "error_from": statistic}


def zeros_of(matrix: Float[Tensor, "out in"]) -> int:
    """Return how many of its numbers are zero."""
    # Not `count_nonzero`: torch counts a bfloat16 tensor's numbers one by one, and adds up a mask
    # many at a time.
    return matrix.numel() - int((matrix != 0).sum())


def nonzero_bits(matrix: Float[Tensor, "out in"]) -> UInt8[Tensor, "byte"] | None:
    """Return which numbers of a matrix aren't zero, a bit each. None where one is a negative zero:
    it may have been there before, or be what multiplying by a mask made of a negative number.
    """
    as_integers = matrix.contiguous().view(AS_INTEGERS[matrix.element_size()])
    lowest = torch.iinfo(as_integers.dtype).min
    # A comparison of all numbers with that of a negative zero would take sixty times as long.
    if as_integers.numel() and int(as_integers.min()) == lowest:
        return None
    nonzero = (as_integers != 0).cpu().numpy()
    return torch.from_numpy(np.packbits(nonzero))


def kept_alone(
    matrix: Float[Tensor, "out in"], bits: UInt8[Tensor, "byte"]
) -> Float[Tensor, "out in"]:
    """Return a copy of a matrix with zeros where `nonzero_bits` says so. Raises `ValueError` for
    the bits of another shape.
    """
    count = matrix.numel()
    if len(bits) != ceil_div(count, 8):
        raise ValueError(f"{len(bits)} bytes are no mask of {count} numbers")
    nonzero = np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)
    nonzero = nonzero.reshape(tuple(matrix.shape))
    kept = torch.from_numpy(nonzero).to(matrix.device)
    return matrix.masked_fill(~kept, 0)


def mask_bits(name: str, matrix: Float[Tensor, "out in"]) -> str:
    """Return which of 256 weights of the matrix `name` aren't zero, as 64 hexadecimal digits.

    The places are chosen by a hash of the name and are the same in every run of a model, so that
    the share of equal bits of two runs tells, within binomial error, the share of weights about
    which their masks agree.
    """
    places = _places(name, matrix.numel(), SAMPLED)
    row_numbers, column_numbers = np.divmod(places, matrix.shape[1])
    rows = torch.from_numpy(row_numbers).to(matrix.device)
    columns = torch.from_numpy(column_numbers).to(matrix.device)
    nonzero = (matrix[rows, columns] != 0).cpu().numpy()
    return np.packbits(nonzero).tobytes().hex()


def input_sizes(name: str, seen: Seen) -> Mapping[str, str]:
    """Return `inputs`: how large 32 of the matrix's input features were, ln √(Σw·x²/Σw) of each,
    as little-endian float16 in 128 hexadecimal digits.

    The features are chosen by a hash of the name, as the places of `mask_bits` are, so two runs of
    a model can be compared feature by feature. Nothing where no inputs were seen.
    """
    if FeatureNorms in seen:
        statistic = seen[FeatureNorms]
    elif Gram in seen:
        statistic = seen[Gram]
    else:
        return {}
    if statistic.mass <= 0:
        return {}
    norms = statistic.norms()
    places = torch.from_numpy(_places(f"{name} inputs", len(norms), FEATURES))
    chosen = norms[places.to(norms.device)].cpu().double()
    # The norms are squared: half of their logarithm is that of their roots.
    sizes = (chosen / statistic.mass).clamp_min(math.exp(2 * SILENT)).log() / 2
    return {"inputs": sizes.numpy().astype("<f2").tobytes().hex()}


def _squared(before: Tensor, after: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return for each input the squared numbers of a matrix, summed over its outputs in float64,
    and those of what was changed.
    """
    sizes = torch.zeros(before.shape[1], dtype=torch.float64)
    lost = torch.zeros(before.shape[1], dtype=torch.float64)
    # Few rows at a time, so that what is computed of them stays in the processor's cache.
    rows = _ROWS if before.device.type == "cpu" else len(before)
    for untouched, changed in zip(before.split(rows), after.split(rows), strict=True):
        untouched = untouched.to(dtype)
        sizes += untouched.square().sum(0).cpu()
        lost += (untouched - changed).square_().sum(0).cpu()
    return sizes, lost


@lru_cache(maxsize=4096)
def _places(name: str, size: int, count: int) -> np.ndarray:
    """Return `count` numbers below `size`, with repetition, from an endless hash of the name."""
    # Eight bytes a number.
    stream = hashlib.shake_256(name.encode()).digest(8 * count)
    numbers = np.frombuffer(stream, dtype="<u8")
    return (numbers % size).astype(np.int64)
