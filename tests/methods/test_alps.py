"""ALPS against the algorithm as the paper states it, with an explicit inverse, its dual and a direct solution, in NumPy and float64."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.methods import _admm
from calibrant.methods.alps import ALPS
from calibrant.methods.magnitude import Magnitude
from calibrant.methods.sparsegpt import SparseGPT
from calibrant.methods.wanda import Wanda
from calibrant.targets import NofM, Sparsity, Target

Matrix = np.ndarray[Any, Any]

ALONE = ALPS(steps=0)
"""Without the gradients at the end."""
TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.7), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


def features(tokens: int, inputs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Correlated features of different sizes."""
    x = torch.randn(tokens, inputs, dtype=dtype) @ (torch.eye(inputs, dtype=dtype) + 2 * torch.randn(inputs, inputs, dtype=dtype) / inputs**0.5)
    return x * (0.1 + torch.rand(inputs, dtype=dtype))


def top(sizes: Matrix, target: Target) -> Matrix:
    """True where a weight is one of the largest: of the matrix, or of its group."""
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


def by_the_paper(weight: Tensor, x: Tensor, target: Target, damp: float = 0.01) -> tuple[Matrix, Matrix]:
    """The sparse weights and which they are. B, D and V are those of the paper, transposed."""
    inputs = x.double().numpy()
    hessian = inputs.T @ inputs / len(inputs)
    hessian += damp * hessian.diagonal().mean() * np.eye(len(hessian))
    scale = np.sqrt(hessian.diagonal())
    hessian = hessian / np.outer(scale, scale)
    w = weight.double().numpy() * scale
    d = np.where(top(abs(w), target), w, 0)
    first, v, rho, grown, before, kept = d.copy(), np.zeros_like(w), 0.1, False, d != 0, (d != 0).sum()
    stays = before
    for done in range(3, 301, 3):
        inverse = np.linalg.inv(hessian + rho * np.eye(len(hessian)))
        for _ in range(3):
            b = (w @ hessian - v + rho * d) @ inverse
            pulled = b + v / rho
            stays = top(abs(pulled), target)
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
    return method.compress(weight, Seen({Gram: Gram.of(x)}), target).weight


def error(weight: Tensor, result: Tensor, x: Tensor) -> float:
    """‖(W - Ŵ)Xᵀ‖²/‖WXᵀ‖²."""
    return float((x @ (weight - result).T).square().sum() / (x @ weight.T).square().sum())


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_float64_agrees_with_the_paper(target: Target):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96)
    result, (expected, stays) = pruned(weight, x, target), by_the_paper(weight, x, target)
    assert torch.equal(result != 0, torch.from_numpy(stays))
    assert np.allclose(result.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("target", [Sparsity(0.5), NofM(2, 4)], ids=str)
def test_float32_agrees_with_the_paper(target: Target):
    """A near tie may fall the other way, and others follow it: the errors of the outputs are what must agree."""
    weight, x = torch.randn(64, 96), features(300, 96, torch.float32)
    result, (expected, stays) = pruned(weight, x, target), by_the_paper(weight, x, target)
    assert float(((result != 0) == torch.from_numpy(stays)).double().mean()) >= 0.999
    errors = [error(weight.double(), found.double(), x.double()) for found in (result, torch.from_numpy(expected))]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize("target", [Sparsity(0.6), NofM(2, 4)], ids=str)
def test_with_enough_steps_the_weights_are_the_best_on_their_support(target: Target):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96)
    result = pruned(weight, x, target, ALPS(steps=400))
    stays = (result != 0).numpy()
    assert np.array_equal(stays, by_the_paper(weight, x, target)[1])
    assert np.allclose(result.numpy(), on_the_support(weight, x, stays), rtol=1e-6, atol=1e-8)


def test_few_steps_bring_most_of_what_the_best_weights_would():
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96)
    none, ten, many = (error(weight, pruned(weight, x, Sparsity(0.6), ALPS(steps=steps)), x) for steps in (0, 10, 400))
    assert many <= ten * (1 + 1e-9) <= none
    assert ten - many <= 0.1 * (none - many) + 1e-12


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_support_settles(target: Target):
    weight, seen = torch.randn(48, 96, dtype=torch.float64), Seen({Gram: Gram.of(features(300, 96))})
    notes = ALPS().compress(weight, seen, target).notes
    assert notes["changing"] < 3e-4
    assert notes["iterations"] < 300
    assert notes["rho"] > 0.1


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 8)])
def test_every_group_keeps_exactly_n(n: int, m: int):
    result = pruned(torch.randn(16, 96, dtype=torch.float64), features(300, 96), NofM(n, m), ALPS())
    assert ((result.reshape(-1, m) != 0).sum(1) == n).all()


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.29, 0.5, 0.777, 0.97])
def test_the_count_is_that_of_the_whole_matrix(fraction: float):
    weight, x = torch.randn(7, 30, dtype=torch.float64), features(100, 30)
    result = pruned(weight, x, Sparsity(fraction), ALPS())
    assert int((result == 0).sum()) == Sparsity(fraction).quota(7 * 30)
    assert fraction > 0.001 or torch.equal(result, weight)


@pytest.mark.parametrize("target", [Sparsity(0.5), NofM(2, 4)], ids=str)
def test_of_inputs_without_correlation_the_smallest_go_and_the_others_stay(target: Target):
    weight, seen = torch.randn(16, 64, dtype=torch.float64), Seen({Gram: Gram.of(torch.eye(64, dtype=torch.float64))})
    result = ALPS().compress(weight, seen, target).weight
    assert torch.equal(result != 0, Magnitude().compress(weight, Seen({}), target).weight != 0)
    assert torch.allclose(result[result != 0], weight[result != 0], rtol=1e-9)


@pytest.mark.parametrize("target", [Sparsity(0.5), Sparsity(0.7), NofM(2, 4)], ids=str)
def test_outputs_are_closer_than_sparsegpt_brings_them_and_those_closer_than_wanda(target: Target):
    weight, x = torch.randn(64, 96, dtype=torch.float64), features(300, 96)
    seen = Seen({Gram: Gram.of(x), FeatureNorms: FeatureNorms.of(x)})
    alps, sparsegpt, wanda = (error(weight, m.compress(weight, seen, target).weight, x) for m in (ALPS(), SparseGPT(), Wanda()))
    assert alps < 0.9 * sparsegpt
    assert sparsegpt < wanda


def test_inputs_that_were_always_zero_go_first_and_those_that_stay_keep_their_weights():
    weight, x = torch.randn(16, 64, dtype=torch.float64), features(300, 64)
    x[:, ::2] = 0
    most, half = (pruned(weight, x, Sparsity(fraction), ALPS()) for fraction in (0.25, 0.75))
    assert int((most[:, ::2] == 0).sum()) == 256
    assert torch.equal(most[:, ::2][most[:, ::2] != 0], weight[:, ::2][most[:, ::2] != 0])
    assert torch.allclose(most[:, 1::2], weight[:, 1::2], rtol=1e-9)
    assert (half[:, ::2] == 0).all()
    assert torch.allclose(half[:, 1::2], pruned(weight[:, 1::2].contiguous(), x[:, 1::2], Sparsity(0.5), ALPS()), rtol=1e-7, atol=1e-12)


def test_fewer_tokens_than_inputs_give_finite_weights():
    weight, x = torch.randn(16, 96), features(20, 96, torch.float32)
    result = pruned(weight, x, Sparsity(0.5), ALPS())
    assert result.isfinite().all()
    assert error(weight, result, x) < 0.05


def test_the_scale_of_the_statistics_changes_nothing():
    weight, gram = torch.randn(16, 64, dtype=torch.float64), Gram.of(features(200, 64))
    once, scaled = (ALPS().compress(weight, Seen({Gram: g}), Sparsity(0.5)).weight for g in (gram, gram * 0.25))
    assert torch.allclose(once, scaled, rtol=1e-7, atol=1e-12)


def test_bfloat16_is_computed_in_float32():
    weight, x = torch.randn(16, 64).bfloat16(), features(200, 64, torch.float32)
    assert torch.equal(pruned(weight, x, Sparsity(0.5), ALPS()), pruned(weight.float(), x, Sparsity(0.5), ALPS()).bfloat16())


def test_one_eigendecomposition_for_each_distinct_input(monkeypatch: pytest.MonkeyPatch):
    calls, eigh = Counter[str](), torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda *a: calls.update(["eigh"]) or eigh(*a))
    shared = Seen({Gram: Gram.of(features(200, 48))})
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


@pytest.mark.parametrize("inputs", [5, 192, 193, 400])
@pytest.mark.parametrize("alike", [False, True])
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


def test_numbers_that_are_not_finite_are_refused():
    weight, x = torch.randn(4, 8), torch.randn(20, 8)
    with pytest.raises(NumericsError, match=r"the weight holds NaN or infinity \(1 of 32 numbers\)"):
        pruned(weight.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan)), x, Sparsity(0.5))
    with pytest.raises(NumericsError, match=r"the squared norms of the inputs holds NaN or infinity \(1 of 8 numbers\)"):
        pruned(weight, x.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.inf)), Sparsity(0.5))
    with pytest.raises(NumericsError, match="no token reached the matrix"):
        pruned(weight, torch.ones(0, 8), Sparsity(0.5))


def test_a_pattern_that_does_not_fit_is_refused():
    with pytest.raises(TargetError, match="the matrix has 10 inputs, and 2:4"):
        pruned(torch.randn(4, 10), torch.randn(20, 10), NofM(2, 4))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"rho": 0.0}, r"alps\(rho=0.0\): rho must be above 0; 0.1 is the paper's"),
        ({"damp": math.inf}, r"alps\(damp=inf\): damp must be above 0; 0.01 is the paper's"),
        ({"iterations": 0}, r"alps\(iterations=0\): at least 1 iteration is made"),
        ({"steps": -1}, r"alps\(steps=-1\): steps must be 0 or more"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], said: str):
    with pytest.raises(SpecError, match=said):
        ALPS(**parameters)
