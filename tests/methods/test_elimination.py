"""The root of a Hessian against NumPy's Cholesky in float64, and what is read of it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.methods._elimination import take_root

from tests.methods.matrices import features


def hessian_of(width: int) -> Tensor:
    x = features(3 * width, width)
    return x.T @ x / len(x) + 0.01 * torch.eye(width, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 255, 256, 257, 700])
@pytest.mark.parametrize(("dtype", "distance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_a_root_is_upper_and_comes_of_the_upper_triangle_alone(
    width: int, dtype: torch.dtype, distance: float
):
    hessian = hessian_of(width)
    # R is unique: JLJ with JHJ = LLᵀ, and J the index reversal.
    expected = np.linalg.cholesky(hessian.numpy()[::-1, ::-1])[::-1, ::-1]
    below = torch.ones(width, width, dtype=torch.bool).tril(-1)
    root = hessian.to(dtype).masked_fill(below, torch.nan)
    assert take_root(root)
    difference = root.triu().double().numpy() - expected
    assert np.linalg.norm(difference) <= distance * np.linalg.norm(expected)


@pytest.mark.parametrize("place", [3, 300, 599])
def test_what_is_not_positive_definite_has_no_root(place: int):
    """In the block of columns that is done last, in the middle, and first."""
    hessian = hessian_of(600)
    hessian[place, place] = -1
    assert not take_root(hessian)
