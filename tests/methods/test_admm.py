"""ADMM against the algorithm as the paper states it, with an explicit inverse and three matrices, in NumPy and float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram, Seen
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.methods.admm import ADMM
from calibrant.methods.alps import ALPS
from calibrant.methods.magnitude import Magnitude
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.test_alps import error, features, top

Matrix = np.ndarray[Any, Any]
TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.7), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


def ramped(sizes: Matrix, target: Target, step: int, ramp: int) -> Matrix:
    """Of those that the target would remove, the smallest go, as many as the ramp says."""
    out = np.flatnonzero(~top(sizes, target).ravel())
    count = math.floor(round(len(out) * (1 - (1 - step / ramp) ** 3), 9))
    stays = np.ones(sizes.size, bool)
    stays[out[np.argsort(sizes.ravel()[out], kind="stable")[:count]]] = False
    return stays.reshape(sizes.shape)


def by_the_paper(weight: Tensor, x: Tensor, target: Target, iterations: int = 20, ramp: int = 15, rho: float = 1.0, damp: float = 0.1) -> Matrix:
    inputs = x.double().numpy()
    gram = inputs.T @ inputs / len(inputs)
    scale = np.sqrt(gram.diagonal())
    gram = gram / np.outer(scale, scale) + damp * np.eye(len(gram))
    dense = (weight.double().numpy() * scale).T
    inverse = np.linalg.inv(gram + rho * np.eye(len(gram)))
    w, u, z, stays = dense.copy(), np.zeros_like(dense), np.zeros_like(dense), np.ones(dense.shape, bool)
    for step in range(1, iterations + 1):
        if step <= ramp:
            stays = ramped(abs(w + u).T, target, step, ramp).T
        z = (w + u) * stays
        u = u + w - z
        w = inverse @ (gram @ dense + rho * (z - u))
    return z.T / scale


def pruned(weight: Tensor, x: Tensor, target: Target, **parameters: Any) -> Tensor:
    return ADMM(**parameters).compress(weight, Seen({Gram: Gram.of(x)}), target).weight


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("parameters", [{}, {"iterations": 6, "ramp": 6, "rho": 0.5}, {"iterations": 4, "ramp": 1, "damp": 0.01}], ids=str)
def test_float64_agrees_with_the_paper(target: Target, parameters: dict[str, Any]):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96)
    result, expected = pruned(weight, x, target, **parameters), by_the_paper(weight, x, target, **parameters)
    assert torch.equal(result != 0, torch.from_numpy(expected != 0))
    assert np.allclose(result.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_float32_agrees_with_the_paper():
    weight, x = torch.randn(64, 96), features(300, 96, torch.float32)
    result, expected = pruned(weight, x, Sparsity(0.5)), torch.from_numpy(by_the_paper(weight, x, Sparsity(0.5)))
    assert float(((result != 0) == (expected != 0)).double().mean()) >= 0.999
    errors = [error(weight.double(), found.double(), x.double()) for found in (result, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 8)])
def test_every_group_keeps_exactly_n(n: int, m: int):
    result = pruned(torch.randn(16, 96, dtype=torch.float64), features(300, 96), NofM(n, m))
    assert ((result.reshape(-1, m) != 0).sum(1) == n).all()


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.29, 0.5, 0.777, 0.97])
def test_the_count_is_that_of_the_whole_matrix(fraction: float):
    result = pruned(torch.randn(7, 30, dtype=torch.float64), features(100, 30), Sparsity(fraction))
    assert int((result == 0).sum()) == Sparsity(fraction).quota(7 * 30)


def test_of_inputs_without_correlation_the_smallest_go():
    weight, x = torch.randn(16, 64, dtype=torch.float64), torch.eye(64, dtype=torch.float64)
    result = pruned(weight, x, Sparsity(0.5))
    assert torch.equal(result != 0, Magnitude().compress(weight, Seen({}), Sparsity(0.5)).weight != 0)


def test_inputs_that_were_always_zero_go_first_and_those_that_stay_keep_their_weights():
    weight, x = torch.randn(16, 64, dtype=torch.float64), features(300, 64)
    x[:, ::2] = 0
    result = pruned(weight, x, Sparsity(0.25))
    assert int((result[:, ::2] == 0).sum()) == 256
    assert torch.equal(result[:, ::2][result[:, ::2] != 0], weight[:, ::2][result[:, ::2] != 0])


def test_alps_goes_further():
    weight, x = torch.randn(64, 96, dtype=torch.float64), features(300, 96)
    seen = Seen({Gram: Gram.of(x)})
    alps, admm = (error(weight, m.compress(weight, seen, Sparsity(0.6)).weight, x) for m in (ALPS(), ADMM()))
    assert alps < admm


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"rho": 0.0}, r"admm\(rho=0.0\): rho must be above 0; 1.0 is the paper's"),
        ({"damp": math.nan}, r"admm\(damp=nan\): damp must be above 0; 0.1 is the paper's"),
        ({"ramp": 0}, r"admm\(iterations=20, ramp=0\): the ramp has at least 1"),
        ({"iterations": 10}, r"admm\(iterations=10, ramp=15\): the ramp has at least 1 of the iterations and at most all"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], said: str):
    with pytest.raises(SpecError, match=said):
        ADMM(**parameters)


def test_what_has_no_numbers_or_no_fit_is_refused():
    with pytest.raises(NumericsError, match="no token reached the matrix"):
        pruned(torch.randn(4, 8), torch.ones(0, 8), Sparsity(0.5))
    with pytest.raises(TargetError, match="the matrix has 10 inputs, and 2:4"):
        pruned(torch.randn(4, 10), torch.randn(20, 10), NofM(2, 4))
