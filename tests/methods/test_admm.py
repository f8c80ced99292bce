"""ALPS and ADMM against the algorithms as the papers state them, with explicit inverses and a
direct solution, in NumPy and float64.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram
from calibrant.methods import MatrixMethod
from calibrant.methods.pruning._admm import invert, shared_scaled
from calibrant.methods.pruning.admm import ADMM
from calibrant.methods.pruning.alps import ALPS
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.methods.pruning.wanda import Wanda
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import best_where_kept, features, relative_error, seen_of

Matrix = np.ndarray[Any, Any]

ALONE = ALPS(steps=0)
"""Without the gradients at the end."""
TARGETS = [Sparsity(0.29), Sparsity(0.7), NofM(2, 4), NofM(4, 8)]


def top(sizes: Matrix, target: Target, per: str = "matrix") -> Matrix:
    """True where a weight is one of the largest: of the matrix, or of its row or group."""
    if per == "row" and not isinstance(target, NofM):
        return np.vstack([top(row[None], target) for row in sizes])
    stays = np.ones(sizes.shape, bool)
    if isinstance(target, NofM):
        for row in range(len(sizes)):
            for at in range(0, sizes.shape[1], target.m):
                lowest = np.argsort(sizes[row, at : at + target.m], kind="stable")[
                    : target.m - target.n
                ]
                stays[row, at + lowest] = False
    else:
        gone = math.floor(round(sizes.size * target.fraction, 6))  # pyright: ignore[reportAttributeAccessIssue]
        stays.ravel()[np.argsort(sizes.ravel(), kind="stable")[:gone]] = False
    return stays


def alps_by_the_paper(
    weight: Tensor, x: Tensor, target: Target, damp: float = 0.01, per: str = "matrix"
) -> tuple[Matrix, Matrix]:
    """The sparse weights and which they are. B, D and V are those of the paper, transposed."""
    inputs = x.double().numpy()
    hessian = inputs.T @ inputs / len(inputs)
    hessian += damp * hessian.diagonal().mean() * np.eye(len(hessian))
    scale = np.sqrt(hessian.diagonal())
    hessian = hessian / np.outer(scale, scale)
    w = weight.double().numpy() * scale
    d = np.where(top(abs(w), target, per), w, 0)
    first, v, rho, grown, before, kept = (
        d.copy(),
        np.zeros_like(w),
        0.1,
        False,
        d != 0,
        (d != 0).sum(),
    )
    stays = before
    for done in range(3, 301, 3):
        inverse = np.linalg.inv(hessian + rho * np.eye(len(hessian)))
        for _ in range(3):
            b = (w @ hessian - v + rho * d) @ inverse
            pulled = b + v / rho
            stays = top(abs(pulled), target, per)
            d = np.where(stays, pulled, 0)
            v = v + rho * (b - d)
        change, before = (stays != before).sum() / kept, stays
        if not grown and change <= 0.005 and rho > 1e-4:
            rho, d, v, before = rho / 5, first.copy(), np.zeros_like(w), first != 0
            continue
        if change == 0 or (done > 30 and change < 3e-4):
            break
        grown, rho = True, rho * (1.3 if change > 0.1 else 1.2 if change > 0.005 else 1.1)
    return d / scale, stays


def ramped(sizes: Matrix, target: Target, step: int, ramp: int) -> Matrix:
    """Of those that the target would remove, the smallest go, as many as the ramp says."""
    out = np.flatnonzero(~top(sizes, target).ravel())
    count = math.floor(round(len(out) * (1 - (1 - step / ramp) ** 3), 9))
    stays = np.ones(sizes.size, bool)
    stays[out[np.argsort(sizes.ravel()[out], kind="stable")[:count]]] = False
    return stays.reshape(sizes.shape)


def admm_by_the_paper(
    weight: Tensor,
    x: Tensor,
    target: Target,
    iterations: int = 20,
    ramp: int = 15,
    rho: float = 1.0,
    damp: float = 0.1,
) -> Matrix:
    """The sparse weights, in three matrices with an explicit inverse."""
    inputs = x.double().numpy()
    gram = inputs.T @ inputs / len(inputs)
    scale = np.sqrt(gram.diagonal())
    gram = gram / np.outer(scale, scale) + damp * np.eye(len(gram))
    dense = (weight.double().numpy() * scale).T
    inverse = np.linalg.inv(gram + rho * np.eye(len(gram)))
    w, u, z, stays = (
        dense.copy(),
        np.zeros_like(dense),
        np.zeros_like(dense),
        np.ones(dense.shape, bool),
    )
    for step in range(1, iterations + 1):
        if step <= ramp:
            stays = ramped(abs(w + u).T, target, step, ramp).T
        z = (w + u) * stays
        u = u + w - z
        w = inverse @ (gram @ dense + rho * (z - u))
    return z.T / scale


def pruned(weight: Tensor, x: Tensor, target: Target, method: MatrixMethod = ALONE) -> Tensor:
    return method.compress(weight, seen_of(x), target).weight


@pytest.mark.parametrize(("per", "inputs"), [("matrix", 96), ("row", 96), ("matrix", 200)])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_in_float64_alps_agrees_with_the_paper_and_row_by_row_each_row_keeps_as_many(
    target: Target, per: str, inputs: int
):
    weight, x = torch.randn(24, inputs, dtype=torch.float64), features(500, inputs, mixing=2)
    result = pruned(weight, x, target, ALPS(steps=0, per=per))
    expected, stays = alps_by_the_paper(weight, x, target, per=per)
    assert torch.equal(result != 0, torch.from_numpy(stays))
    assert np.allclose(result.numpy(), expected, rtol=1e-8, atol=1e-10)
    assert per == "matrix" or len(set(stays.sum(1).tolist())) == 1


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(
    "parameters",
    [{}, {"iterations": 6, "ramp": 6, "rho": 0.5}, {"iterations": 4, "ramp": 1, "damp": 0.01}],
    ids=str,
)
def test_in_float64_admm_agrees_with_the_paper(target: Target, parameters: dict[str, Any]):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96, mixing=2)
    result, expected = (
        pruned(weight, x, target, ADMM(**parameters)),
        admm_by_the_paper(weight, x, target, **parameters),
    )
    assert torch.equal(result != 0, torch.from_numpy(expected != 0))
    assert np.allclose(result.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("target", [Sparsity(0.6), NofM(2, 4)], ids=str)
def test_with_enough_steps_the_weights_are_the_best_on_their_support_and_few_bring_most_of_that(
    target: Target,
):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96, mixing=2)
    none, ten, many = (pruned(weight, x, target, ALPS(steps=steps)) for steps in (0, 10, 400))
    stays = (many != 0).numpy()
    assert np.array_equal(stays, alps_by_the_paper(weight, x, target)[1])
    assert np.allclose(
        many.numpy(), best_where_kept(weight, x, many != 0).numpy(), rtol=1e-6, atol=1e-8
    )
    lost = [relative_error(weight, found, x) for found in (none, ten, many)]
    assert lost[2] * (1 - 1e-4) <= lost[1] <= lost[0]  # the best is that of damped errors
    assert lost[1] - lost[2] <= 0.1 * (lost[0] - lost[2]) + 1e-12


@pytest.mark.parametrize("target", [Sparsity(0.6), NofM(2, 4)], ids=str)
def test_alps_brings_outputs_closer_than_sparsegpt_and_admm_and_those_closer_than_wanda(
    target: Target,
):
    weight, x = torch.randn(64, 96, dtype=torch.float64), features(300, 96, mixing=2)
    alps, sparsegpt, admm, wanda = (
        relative_error(weight, pruned(weight, x, target, m), x)
        for m in (ALPS(), SparseGPT(), ADMM(), Wanda())
    )
    assert alps < 0.9 * sparsegpt
    assert alps < admm
    assert sparsegpt < wanda


@pytest.mark.parametrize("width", [1, 255, 300, 1100])
def test_what_is_left_of_a_pull_is_that_of_an_explicit_inverse(width: int):
    scaled = shared_scaled(Gram.of(features(2 * width, width)), 0.01)
    identity = torch.eye(width, dtype=torch.float64)
    for rho in (1.0, 1e-3):
        response = scaled.response(rho)
        expected = rho * np.linalg.inv((scaled.hessian + rho * identity).numpy())
        assert np.allclose(response.numpy(), expected, rtol=1e-8, atol=1e-12)
        assert torch.equal(response, response.T)


def test_of_fewer_tokens_than_inputs_and_hardly_any_damping_something_is_left():
    """In float32 the Gram isn't positive definite, and its eigenvalues below zero count as zero."""
    inputs = features(20, 400, torch.float32)
    scaled = shared_scaled(Gram.of(inputs), 1e-12)
    assert not invert(scaled.hessian.clone())
    eigenvalues = torch.linalg.eigvalsh(scaled.response(1e-9).double())
    assert eigenvalues.isfinite().all()
    assert eigenvalues.min() > -1e-3
    assert eigenvalues.max() < 1 + 1e-3
