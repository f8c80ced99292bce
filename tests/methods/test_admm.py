"""ADMM against the algorithm as the paper states it, with an explicit inverse and three matrices, in NumPy and float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.methods.admm import ADMM
from calibrant.methods.alps import ALPS
from calibrant.methods.magnitude import Magnitude
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import error, features, seen_of
from tests.methods.test_alps import top

Matrix = np.ndarray[Any, Any]
TARGETS = [Sparsity(0.0), Sparsity(0.29), Sparsity(0.7), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


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
    return ADMM(**parameters).compress(weight, seen_of(x), target).weight


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("parameters", [{}, {"iterations": 6, "ramp": 6, "rho": 0.5}, {"iterations": 4, "ramp": 1, "damp": 0.01}], ids=str)
def test_float64_agrees_with_the_paper(target: Target, parameters: dict[str, Any]):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96, mixing=2)
    result, expected = pruned(weight, x, target, **parameters), by_the_paper(weight, x, target, **parameters)
    assert torch.equal(result != 0, torch.from_numpy(expected != 0))
    assert np.allclose(result.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_float32_agrees_with_the_paper():
    weight, x = torch.randn(64, 96), features(300, 96, torch.float32, mixing=2)
    result, expected = pruned(weight, x, Sparsity(0.5)), torch.from_numpy(by_the_paper(weight, x, Sparsity(0.5)))
    assert float(((result != 0) == (expected != 0)).double().mean()) >= 0.999
    errors = [error(weight.double(), found.double(), x.double()) for found in (result, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_of_inputs_without_correlation_the_smallest_go():
    weight, x = torch.randn(16, 64, dtype=torch.float64), torch.eye(64, dtype=torch.float64)
    result = pruned(weight, x, Sparsity(0.5))
    assert torch.equal(result != 0, Magnitude().compress(weight, seen_of(x), Sparsity(0.5)).weight != 0)


def test_alps_goes_further():
    weight, x = torch.randn(64, 96, dtype=torch.float64), features(300, 96, mixing=2)
    alps, admm = (error(weight, m.compress(weight, seen_of(x), Sparsity(0.6)).weight, x) for m in (ALPS(), ADMM()))
    assert alps < admm
