"""ALPS against the algorithm as the paper states it, with an explicit inverse, its dual and a direct solution, in NumPy and float64."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.methods.alps import ALPS
from calibrant.methods.magnitude import Magnitude
from calibrant.methods.sparsegpt import SparseGPT
from calibrant.methods.wanda import Wanda
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import error, features, on_the_support, seen_of

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
                lowest = np.argsort(sizes[row, at : at + target.m], kind="stable")[: target.m - target.n]
                stays[row, at + lowest] = False
    else:
        gone = math.floor(round(sizes.size * target.fraction, 6))  # pyright: ignore[reportAttributeAccessIssue]
        stays.ravel()[np.argsort(sizes.ravel(), kind="stable")[:gone]] = False
    return stays


def by_the_paper(weight: Tensor, x: Tensor, target: Target, damp: float = 0.01, per: str = "matrix") -> tuple[Matrix, Matrix]:
    """The sparse weights and which they are. B, D and V are those of the paper, transposed."""
    inputs = x.double().numpy()
    hessian = inputs.T @ inputs / len(inputs)
    hessian += damp * hessian.diagonal().mean() * np.eye(len(hessian))
    scale = np.sqrt(hessian.diagonal())
    hessian = hessian / np.outer(scale, scale)
    w = weight.double().numpy() * scale
    d = np.where(top(abs(w), target, per), w, 0)
    first, v, rho, grown, before, kept = d.copy(), np.zeros_like(w), 0.1, False, d != 0, (d != 0).sum()
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


def pruned(weight: Tensor, x: Tensor, target: Target, method: ALPS = ALONE) -> Tensor:
    return method.compress(weight, seen_of(x), target).weight


@pytest.mark.parametrize(("per", "inputs"), [("matrix", 96), ("row", 96), ("matrix", 200)])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_float64_agrees_with_the_paper_and_row_by_row_each_row_keeps_as_many(target: Target, per: str, inputs: int):
    weight, x = torch.randn(24, inputs, dtype=torch.float64), features(500, inputs, mixing=2)
    result = pruned(weight, x, target, ALPS(steps=0, per=per))
    expected, stays = by_the_paper(weight, x, target, per=per)
    assert torch.equal(result != 0, torch.from_numpy(stays))
    assert np.allclose(result.numpy(), expected, rtol=1e-8, atol=1e-10)
    assert per == "matrix" or len(set(stays.sum(1).tolist())) == 1


@pytest.mark.parametrize("target", [Sparsity(0.5), NofM(2, 4)], ids=str)
def test_float32_agrees_with_the_paper(target: Target):
    """A near tie may fall the other way, and others follow it: the errors of the outputs are what must agree."""
    weight, x = torch.randn(64, 96), features(300, 96, torch.float32, mixing=2)
    result, (expected, stays) = pruned(weight, x, target), by_the_paper(weight, x, target)
    assert float(((result != 0) == torch.from_numpy(stays)).double().mean()) >= 0.999
    errors = [error(weight.double(), found.double(), x.double()) for found in (result, torch.from_numpy(expected))]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize("target", [Sparsity(0.6), NofM(2, 4)], ids=str)
def test_with_enough_steps_the_weights_are_the_best_on_their_support_and_few_bring_most_of_that(target: Target):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96, mixing=2)
    none, ten, many = (pruned(weight, x, target, ALPS(steps=steps)) for steps in (0, 10, 400))
    stays = (many != 0).numpy()
    assert np.array_equal(stays, by_the_paper(weight, x, target)[1])
    assert np.allclose(many.numpy(), on_the_support(weight, x, many != 0).numpy(), rtol=1e-6, atol=1e-8)
    lost = [error(weight, found, x) for found in (none, ten, many)]
    assert lost[2] * (1 - 1e-4) <= lost[1] <= lost[0]  # the best is that of damped errors
    assert lost[1] - lost[2] <= 0.1 * (lost[0] - lost[2]) + 1e-12


@pytest.mark.parametrize("target", [Sparsity(0.5), NofM(2, 4)], ids=str)
def test_the_support_settles(target: Target):
    weight, seen = torch.randn(48, 96, dtype=torch.float64), seen_of(features(300, 96, mixing=2))
    notes = ALPS().compress(weight, seen, target).notes
    assert notes["changing"] < 3e-4
    assert notes["iterations"] < 300
    assert notes["rho"] > 0.1


@pytest.mark.parametrize("target", [Sparsity(0.5), NofM(2, 4)], ids=str)
def test_of_inputs_without_correlation_the_smallest_go_and_the_others_stay(target: Target):
    weight, seen = torch.randn(16, 64, dtype=torch.float64), seen_of(torch.eye(64, dtype=torch.float64))
    result = ALPS().compress(weight, seen, target).weight
    assert torch.equal(result != 0, Magnitude().compress(weight, seen, target).weight != 0)
    assert torch.allclose(result[result != 0], weight[result != 0], rtol=1e-9)


@pytest.mark.parametrize("target", [Sparsity(0.5), Sparsity(0.7), NofM(2, 4)], ids=str)
def test_outputs_are_closer_than_sparsegpt_brings_them_and_those_closer_than_wanda(target: Target):
    weight, x = torch.randn(64, 96, dtype=torch.float64), features(300, 96, mixing=2)
    seen = seen_of(x)
    alps, sparsegpt, wanda = (error(weight, m.compress(weight, seen, target).weight, x) for m in (ALPS(), SparseGPT(), Wanda()))
    assert alps < 0.9 * sparsegpt
    assert sparsegpt < wanda


def test_without_inputs_that_were_always_zero_the_others_come_out_the_same():
    weight, x = torch.randn(16, 64, dtype=torch.float64), features(300, 64, mixing=2)
    x[:, ::2] = 0
    result = pruned(weight, x, Sparsity(0.75), ALPS())
    assert (result[:, ::2] == 0).all()
    assert torch.allclose(result[:, 1::2], pruned(weight[:, 1::2].contiguous(), x[:, 1::2], Sparsity(0.5), ALPS()), rtol=1e-7, atol=1e-12)


def test_one_eigendecomposition_for_each_distinct_input(monkeypatch: pytest.MonkeyPatch):
    calls, eigh = Counter[str](), torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda *a: calls.update(["eigh"]) or eigh(*a))
    shared = seen_of(features(200, 48))
    for rows, target in ((48, Sparsity(0.5)), (16, Sparsity(0.7)), (16, NofM(2, 4))):
        ALPS().compress(torch.randn(rows, 48), shared, target)
    assert calls == {"eigh": 1}
