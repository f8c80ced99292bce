"""What compressing did to one matrix, as a record keeps it: the error of its outputs, and a sample of its mask."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen, wide

SAMPLED: Final = 256
"""Weights of a matrix whose keeping a record says: the overlap of two masks is known from them to ±3 in a hundred."""


def output_error(before: Float[Tensor, "out in"], after: Float[Tensor, "out in"], seen: Seen) -> Mapping[str, Any]:
    """`error`, ‖(W−Ŵ)X‖²/‖WX‖², to the six digits that are sure; and `error_from`, what it was told from.

    From a `gram` it is tr((W−Ŵ)G(W−Ŵ)ᵀ)/tr(WGWᵀ). From `norms` the inputs are taken to be uncorrelated. Nothing where neither was seen, or
    where the outputs were all zero.
    """
    dtype = wide(before.dtype)
    change = before.to(dtype) - after.to(dtype)
    if Gram in seen:
        energy, told = _of_gram(seen[Gram], dtype), "gram"
    elif FeatureNorms in seen:
        energy, told = _of_norms(seen[FeatureNorms]), "norms"
    else:
        return {}
    whole = energy(before.to(dtype))
    return {"error": float(f"{energy(change) / whole:.6g}"), "error_from": told} if whole > 0 else {}


def mask_bits(name: str, matrix: Float[Tensor, "out in"]) -> str:
    """Which of 256 weights of the matrix `name` aren't zero, as 64 hexadecimal digits.

    The places are chosen by a hash of the name and are the same in every run of a model, so that the share of equal bits of two runs tells,
    within binomial error, the share of weights about which their masks agree.
    """
    places = _places(name, matrix.numel())
    rows, columns = (torch.from_numpy(at).to(matrix.device) for at in np.divmod(places, matrix.shape[1]))
    kept = (matrix[rows, columns] != 0).cpu().numpy()
    return np.packbits(kept).tobytes().hex()


def _of_gram(gram: Gram, dtype: torch.dtype):
    matrix = gram.symmetric().to(dtype)
    return lambda weight: float(((weight @ matrix) * weight).sum(1).cpu().double().sum())


def _of_norms(norms: FeatureNorms):
    squares = norms.squares.cpu().double()
    return lambda weight: float(weight.square().sum(0).cpu().double() @ squares)


@lru_cache(maxsize=4096)
def _places(name: str, size: int) -> np.ndarray:
    """Numbers below `size`, with repetition: what follows the name in an endless hash."""
    stream = hashlib.shake_256(name.encode()).digest(8 * SAMPLED)
    return (np.frombuffer(stream, dtype="<u8") % size).astype(np.int64)
