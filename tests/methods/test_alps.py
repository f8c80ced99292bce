"""ALPS against the algorithm as the paper states it, with an explicit inverse, its dual and a direct solution, in NumPy and float64."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram
from calibrant.methods import _admm
from calibrant.methods.alps import ALPS
from calibrant.methods.magnitude import Magnitude
from calibrant.methods.sparsegpt import SparseGPT
from calibrant.methods.wanda import Wanda
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import error, features, seen_of

Matrix = np.ndarray[Any, Any]

ALONE = ALPS(steps=0)
"""Without the gradients at the end."""
TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.7), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


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


def on_the_support(weight: Tensor, x: Tensor, stays: Matrix, damp: float = 0.01) -> Matrix:
    """The best weights where `stays`: of each row by a direct solution."""
    inputs, w = x.double().numpy(), weight.double().numpy()
    hessian = inputs.T @ inputs / len(inputs)
    hessian += damp * hessian.diagonal().mean() * np.eye(len(hessian))
    best = np.zeros_like(w)
    for row, at in enumerate(stays):
        best[row, at] = np.linalg.solve(hessian[np.ix_(at, at)], hessian[at] @ w[row])
    return best


def pruned(weight: Tensor, x: Tensor, target: Target, method: ALPS = ALONE) -> Tensor:
    return method.compress(weight, seen_of(x), target).weight


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("per", ["matrix", "row"])
def test_float64_agrees_with_the_paper_and_row_by_row_each_row_keeps_as_many(target: Target, per: str):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96, mixing=2)
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
    assert np.allclose(many.numpy(), on_the_support(weight, x, stays), rtol=1e-6, atol=1e-8)
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


@pytest.mark.parametrize(("rows", "inputs"), [(1, 5), (30, 96)])
def test_a_step_is_the_three_of_the_paper_in_the_kernel_and_in_torch(rows: int, inputs: int):
    """What is pulled next is B + V/ρ, with B = W̃ + (D - V/ρ - W̃)P."""
    dense, pulled, keep = torch.randn(rows, inputs).double(), torch.randn(rows, inputs).double(), torch.rand(rows, inputs) > 0.5
    half = torch.randn(inputs, inputs).double()
    response = half @ half.T
    d, u = pulled * keep, pulled * ~keep
    fits = dense + (d - u - dense) @ response
    for prepare in (_admm._in_rows, _admm._all_rows):
        rest, sparse = torch.empty_like(dense), torch.empty_like(dense)
        prepare(pulled, dense, keep, rest, sparse)
        rest.addmm_(sparse, response, alpha=2)
        assert torch.allclose(rest, fits + u, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("inputs", "alike"), [(5, False), (192, True), (193, False), (400, True)])
def test_a_response_is_that_of_an_explicit_inverse(inputs: int, alike: bool):
    """ρ(G̃ + ρI)⁻¹, in panels of 192 inputs, of which one was always zero."""
    x, damp, rho = features(3 * inputs, inputs), 0.05, 0.3
    x[:, 2] = 0
    scaled = _admm.shared_scaled(Gram.of(x), damp, alike)
    plain, live = x.numpy(), np.arange(inputs) != 2
    hessian = plain.T @ plain / len(plain)
    hessian += 0 if alike else damp * hessian.diagonal()[live].mean() * np.diag(live)
    scale = np.sqrt(hessian.diagonal())
    hessian[live] /= scale[live, None]
    hessian[:, live] /= scale[live]
    hessian += np.diag(np.where(live, damp if alike else 0, 1))
    response = scaled.response(rho).numpy()
    assert np.allclose(scaled.scale.numpy(), scale, rtol=1e-9, atol=1e-12)
    assert np.allclose(response, rho * np.linalg.inv(hessian + rho * np.eye(inputs)), rtol=1e-7, atol=1e-9)
    assert np.array_equal(response, response.T)
    assert np.allclose(response[2], np.where(live, 0, rho / (1 + rho)), atol=1e-12)


def test_a_response_of_fewer_tokens_than_inputs_takes_off_nothing_more_than_there_is():
    """Rounding may leave an eigenvalue of float32 below zero: as it is, a small ρ would turn a pull round."""
    scaled = _admm.shared_scaled(Gram.of(features(20, 96, torch.float32)), 1e-9)
    kept = torch.linalg.eigvalsh(scaled.response(1e-7).double())
    assert float(kept.min()) > -1e-6
    assert float(kept.max()) < 1 + 1e-5


def test_a_scaled_matrix_is_brought_back_and_inputs_that_were_always_zero_keep_their_weights():
    weight, x = torch.randn(6, 40, dtype=torch.float64), features(100, 40)
    x[:, ::4] = 0
    scaled = _admm.shared_scaled(Gram.of(x), 0.01)
    assert (scaled.scale[::4] == 0).all()
    assert torch.allclose(scaled.unscaled(weight * scaled.scale, weight), weight, rtol=1e-12)
    assert torch.equal(scaled.unscaled(torch.zeros_like(weight), weight)[:, ::4], weight[:, ::4])
