"""Conjugate gradients on a mask, against the solution on the support that NumPy's solver gives, row by row in float64."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram
from calibrant.methods._gradients import TILE, Advance, _all_rows, _in_rows, damped, descend, fit_kept, masked

from tests.methods.matrices import by_threads, features

WAYS = pytest.mark.parametrize("advance", [_in_rows, _all_rows], ids=["kernel", "torch"])


def hessian_of(x: Tensor, damp: float) -> np.ndarray[Any, Any]:
    inputs = x.double().numpy()
    plain = inputs.T @ inputs / len(inputs)
    used = plain.diagonal() > 0
    return plain + damp * plain.diagonal()[used].mean() * np.eye(len(plain))


def solved(weight: Tensor, keep: Tensor, hessian: np.ndarray[Any, Any]) -> Tensor:
    """The best weights on each row's support: H_SS v_S = (H w)_S."""
    rows = np.zeros(weight.shape)
    for i, (w, kept) in enumerate(zip(weight.double().numpy(), keep.numpy(), strict=True)):
        rows[i, kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], (hessian @ w)[kept])
    return torch.from_numpy(rows)


def losses(weight: Tensor, pruned: Tensor, hessian: np.ndarray[Any, Any]) -> Tensor:
    error = (weight.double() - pruned.double()).numpy()
    return torch.from_numpy(np.einsum("oi,ij,oj->o", error, hessian, error))


def random_mask(rows: int, inputs: int, share: float = 0.5) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, inputs, dtype=torch.float64), torch.rand(rows, inputs) > share


@pytest.mark.parametrize(("share", "damp", "tokens"), [(0.2, 0.01, 300), (0.9, 0.1, 300), (0.5, 0.01, 30)])
def test_to_the_end_it_is_the_direct_solution_with_fewer_tokens_than_inputs_too(share: float, damp: float, tokens: int):
    x = features(tokens, 96)
    weight, keep = random_mask(24, 96, share)
    found = fit_kept(weight, keep, Gram.of(x), 400, damp)
    assert torch.allclose(found, solved(weight, keep, hessian_of(x, damp)), rtol=1e-6, atol=1e-8)


@WAYS
def test_each_step_takes_off_what_it_claims(advance: Advance):
    x = features(200, 64)
    weight, keep = random_mask(8, 64)
    hessian, gram = hessian_of(x, 0.01), damped(Gram.of(x), 0.01)
    start = masked(weight, weight, keep, gram)
    left = losses(weight, weight * keep, hessian)
    assert torch.allclose(start.loss, left, rtol=1e-10)
    for steps in range(1, 12):
        found = descend(start, gram, steps, advance=advance)
        now = losses(weight, found.weight, hessian)
        assert (now <= left * (1 + 1e-12)).all()
        assert torch.allclose(found.loss, now, rtol=1e-9)
        assert torch.allclose(found.pull, (weight - found.weight) @ torch.from_numpy(hessian), rtol=1e-9, atol=1e-10)
        left = now


@pytest.mark.parametrize("inputs", [1, 65, 200])
def test_kernel_and_torch_take_the_same_steps(inputs: int):
    x = features(400, inputs)
    weight, keep = random_mask(30, inputs)
    keep[0], keep[1] = False, True
    hessian = damped(Gram.of(x), 0.01)
    start = masked(weight, weight, keep, hessian)
    one, other = (descend(start, hessian, 7, advance=advance) for advance in (_in_rows, _all_rows))
    for mine, theirs in ((one.weight, other.weight), (one.pull, other.pull), (one.loss, other.loss)):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [1, TILE + 1, 1100])
def test_threads_and_tiles_change_nothing(rows: int):
    x = features(100, 24)
    weight, keep = random_mask(rows, 24)
    hessian = damped(Gram.of(x), 0.01)
    start = masked(weight, weight, keep, hessian)
    one, *others = by_threads(lambda: descend(start, hessian, 5, advance=_in_rows).weight)
    few = [slice(at, at + 100) for at in range(0, rows, 100)]  # tiles that begin at other rows
    parts = [descend(masked(weight[some], weight[some], keep[some], hessian), hessian, 5, advance=_in_rows).weight for some in few]
    for other in (*others, torch.cat(parts)):
        assert torch.allclose(one, other, rtol=1e-12)


def test_inputs_that_were_always_zero_keep_their_weights_and_touch_no_other():
    x = features(200, 64)
    weight, keep = random_mask(8, 64)
    wide, wide_keep, wide_x = torch.randn(8, 128, dtype=torch.float64), torch.rand(8, 128) > 0.5, torch.zeros(200, 128, dtype=torch.float64)
    wide[:, ::2], wide_keep[:, ::2], wide_x[:, ::2] = weight, keep, x
    found = fit_kept(wide, wide_keep, Gram.of(wide_x), 12, 0.01)
    assert torch.equal(found[:, 1::2], wide[:, 1::2] * wide_keep[:, 1::2])
    assert torch.allclose(found[:, ::2], fit_kept(weight, keep, Gram.of(x), 12, 0.01), rtol=1e-10, atol=1e-12)


def test_it_stops_when_a_step_takes_off_too_little():
    x = features(200, 64)
    weight, keep = random_mask(8, 64)
    hessian = damped(Gram.of(x), 0.01)
    start = masked(weight, weight, keep, hessian)
    left = [float(descend(start, hessian, steps).loss.sum()) for steps in range(50)]
    gains = [before - after for before, after in pairwise(left)]
    first = next(i for i, gain in enumerate(gains) if gain < 0.01 * left[0])
    assert 0 < first < 48
    assert float(descend(start, hessian, 50, tolerance=0.01).loss.sum()) == left[first + 1]


def test_a_hessian_that_bends_down_moves_nothing():
    down = torch.tensor([[1.0, 6.0], [6.0, 1.0]], dtype=torch.float64)
    weight, keep = torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.tensor([[True, True]])
    start = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(descend(masked(weight, start, keep, down), down, 10).weight, start)


def test_the_hessian_is_made_once_and_a_type_is_kept():
    gram = Gram.of(features(200, 64).float())
    assert damped(gram, 0.01) is damped(gram, 0.01)
    assert damped(gram, 0.02) is not damped(gram, 0.01)
    weight, keep = random_mask(4, 64)
    assert fit_kept(weight.bfloat16(), keep, gram, 3, 0.01).dtype == torch.bfloat16
    assert torch.equal(fit_kept(weight.bfloat16(), keep, gram, 3, 0.01), fit_kept(weight.bfloat16().float(), keep, gram, 3, 0.01).bfloat16())
