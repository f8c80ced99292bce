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
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, wide
from calibrant.numerics import finite_number
from calibrant.packed import gram_energy

SAMPLED: Final = 256
"""Weights of a matrix whose keeping a record says: the overlap of two masks is known from them
to ±3 in a hundred.
"""

FEATURES: Final = 32
"""Input features of a matrix whose size a record says. A block has several matrices, so it is
known from some hundreds.
"""

SILENT: Final = -20.0
"""What stands for the logarithm of nothing: a feature that was always zero."""

_ROWS: Final = 256
"""Rows of a matrix that are done at a time."""


def output_error(
    before: Float[Tensor, "out in"],
    after: Float[Tensor, "out in"],
    seen: Seen,
    name: str = "the matrix",
) -> Mapping[str, Any]:
    """`error`, ‖(W−Ŵ)X‖²/‖WX‖², to the six digits that are sure; and `error_from`, what it was told
    from.

    From a `gram` it is tr((W−Ŵ)G(W−Ŵ)ᵀ)/tr(WGWᵀ). From `norms` the inputs are taken to be
    uncorrelated. Nothing where neither was seen, or where the outputs were all zero. Raises
    `NumericsError` where these overflow, with the matrix's `name`.
    """
    dtype = wide(before.dtype)
    if Gram in seen:
        energy, source = gram_energy(seen[Gram], dtype), "gram"
        untouched = before.to(dtype)
        whole, lost = energy(untouched), energy(untouched - after.to(dtype))
    elif FeatureNorms in seen:
        squares, source = seen[FeatureNorms].squares.cpu().double(), "norms"
        whole, lost = (float(summed @ squares) for summed in _squared(before, after, dtype))
    else:
        return {}
    # Whatever was lost is nothing of an infinity.
    finite_number(whole, f"the size of the outputs of {name}", name)
    if whole <= 0:
        return {}
    return {"error": float(f"{lost / whole:.6g}"), "error_from": source}


def zeros_of(matrix: Float[Tensor, "out in"]) -> int:
    """Return how many of its numbers are zero."""
    return matrix.numel() - int(
        (matrix != 0).sum()
    )  # torch counts a bfloat16 tensor's numbers one by one, and a mask's many at a time


def mask_bits(name: str, matrix: Float[Tensor, "out in"]) -> str:
    """Return which of 256 weights of the matrix `name` aren't zero, as 64 hexadecimal digits.

    The places are chosen by a hash of the name and are the same in every run of a model, so that
    the share of equal bits of two runs tells, within binomial error, the share of weights about
    which their masks agree.
    """
    places = _places(name, matrix.numel(), SAMPLED)
    rows, columns = (
        torch.from_numpy(at).to(matrix.device) for at in np.divmod(places, matrix.shape[1])
    )
    nonzero = (matrix[rows, columns] != 0).cpu().numpy()
    return np.packbits(nonzero).tobytes().hex()


def input_sizes(name: str, seen: Seen) -> Mapping[str, str]:
    """`inputs`: how large 32 of the matrix's input features were, ln √(Σw·x²/Σw) of each, as
    little-endian float16 in 128 hexadecimal digits.

    The features are chosen by a hash of the name, as the places of `mask_bits` are, so two runs of
    a model can be compared feature by feature. Nothing where no inputs were seen.
    """
    statistic = next((seen[kind] for kind in (FeatureNorms, Gram) if kind in seen), None)
    if statistic is None or statistic.mass <= 0:
        return {}
    norms = statistic.norms()
    chosen = (
        norms[torch.from_numpy(_places(f"{name} inputs", len(norms), FEATURES)).to(norms.device)]
        .cpu()
        .double()
    )
    sizes = (chosen / statistic.mass).clamp_min(math.exp(2 * SILENT)).log() / 2
    return {"inputs": sizes.numpy().astype("<f2").tobytes().hex()}


def _squared(before: Tensor, after: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For each input the squared numbers of a matrix, summed over its outputs in float64, and
    those of what was changed.
    """
    whole, lost = (torch.zeros(before.shape[1], dtype=torch.float64) for _ in range(2))
    rows = (
        _ROWS if before.device.type == "cpu" else len(before)
    )  # what is made of few rows stays in a processor's cache
    for untouched, changed in zip(before.split(rows), after.split(rows), strict=True):
        untouched = untouched.to(dtype)
        whole += untouched.square().sum(0).cpu()
        lost += (untouched - changed).square_().sum(0).cpu()
    return whole, lost


@lru_cache(maxsize=4096)
def _places(name: str, size: int, count: int) -> np.ndarray:
    """`count` numbers below `size`, with repetition: what follows the name in an endless hash."""
    stream = hashlib.shake_256(name.encode()).digest(8 * count)
    return (np.frombuffer(stream, dtype="<u8") % size).astype(np.int64)
