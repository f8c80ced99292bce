"""Swaps, against losses that are computed anew in float64 and against the best of all pairs, found by trying every one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.methods._gradients import Masked, masked
from calibrant.methods._swaps import Search, _all_rows, _in_rows, swap

from tests.methods.matrices import by_threads, features

SEARCHES = pytest.mark.parametrize("search", [_in_rows, _all_rows], ids=["kernel", "torch"])
GROUPS = pytest.mark.parametrize("group", [0, 4, 8], ids=["row", "2:4", "4:8"])


def hessian_of(inputs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Correlated inputs of different sizes, a little damped."""
    x = features(3 * inputs, inputs)
    hessian = x.T @ x / len(x)
    return (hessian + 0.01 * hessian.diagonal().mean() * torch.eye(inputs)).to(dtype)


def random_mask(rows: int, inputs: int, group: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A matrix, and the half of each row or group that is largest."""
    weight = torch.randn(rows, inputs, dtype=dtype)
    grouped = weight.abs().reshape(-1, group or inputs)
    order = grouped.argsort(dim=1).argsort(dim=1)
    return weight, (order >= grouped.shape[1] // 2).reshape(weight.shape)


def swapped(weight: Tensor, keep: Tensor, hessian: Tensor, most: int, tolerance: float, group: int, search: Search) -> tuple[Masked, Tensor]:
    return swap(masked(weight, weight, keep, hessian), hessian, most, float(tolerance), group, search)


def losses(weight: Tensor, pruned: Tensor, hessian: Tensor) -> np.ndarray[Any, Any]:
    error, h = (weight.double() - pruned.double()).numpy(), hessian.double().numpy()
    return np.einsum("oi,ij,oj->o", error, h, error)


def every_pair(weight: Tensor, pruned: Tensor, keep: Tensor, hessian: Tensor, group: int) -> np.ndarray[Any, Any]:
    """The loss of one row after each swap, its new weight at the best value: [in, in], infinite where no swap is. By the definition alone."""
    w, v, kept, h = (t.double().numpy() if t.is_floating_point() else t.numpy() for t in (weight, pruned, keep, hessian))
    found = np.full((len(w), len(w)), np.inf)
    for k in np.flatnonzero(kept):
        for p in np.flatnonzero(~kept):
            if group and k // group != p // group:
                continue
            error = w - v
            error[k] += v[k]
            error[p] += v[p] - (h[p] @ error) / h[p, p]
            found[k, p] = error @ h @ error
    return found


@SEARCHES
@GROUPS
def test_each_swap_takes_off_what_it_claims_and_counts_stay(search: Search, group: int):
    weight, keep = random_mask(12, 64, group)
    hessian = hessian_of(64)
    left = losses(weight, weight * keep, hessian)
    for most in (1, 2, 3, 7, 60):
        done, counts = swapped(weight, keep, hessian, most, 0, group, search)
        now = losses(weight, done.weight, hessian)
        assert (now <= left * (1 + 1e-12)).all()
        assert np.allclose(done.loss.numpy(), now, rtol=1e-9)
        assert torch.allclose(done.pull, (weight - done.weight) @ hessian, rtol=1e-9, atol=1e-11)
        assert torch.equal(done.weight != 0, done.keep)
        assert torch.equal(done.keep.reshape(-1, group or 64).sum(1), keep.reshape(-1, group or 64).sum(1))
        assert counts.max() <= most
        assert counts.sum() > 0
        left = now


@SEARCHES
@pytest.mark.parametrize("group", [4, 8])
def test_within_groups_it_is_the_best_of_all_pairs(search: Search, group: int):
    weight, keep = random_mask(5, 32, group)
    hessian = hessian_of(32)
    done, _ = swapped(weight, keep, hessian, 1, 0, group, search)
    for row in range(5):
        best = every_pair(weight[row], weight[row] * keep[row], keep[row], hessian, group).min()
        assert losses(weight, done.weight, hessian)[row] == pytest.approx(best, rel=1e-10)


@SEARCHES
def test_in_a_row_it_is_nearly_the_best_of_all_pairs(search: Search):
    weight, keep = random_mask(20, 48)
    hessian = hessian_of(48)
    before = losses(weight, weight * keep, hessian)
    after = losses(weight, swapped(weight, keep, hessian, 1, 0, 0, search)[0].weight, hessian)
    best = np.array([every_pair(weight[i], weight[i] * keep[i], keep[i], hessian, 0).min() for i in range(20)])
    assert (after >= best * (1 - 1e-10)).all()
    assert (before - after).sum() >= 0.9 * (before - best).sum()


@GROUPS
def test_kernel_and_torch_make_the_same_swaps(group: int):
    weight, keep = random_mask(30, 160, group)
    hessian = hessian_of(160)
    (rows, counts), (together, others) = (swapped(weight, keep, hessian, 25, 1e-4, group, search) for search in (_in_rows, _all_rows))
    assert torch.equal(rows.keep, together.keep)
    assert torch.equal(counts, others)
    assert torch.allclose(rows.weight, together.weight, rtol=1e-9, atol=1e-12)
    assert torch.allclose(rows.loss, together.loss, rtol=1e-9)


@SEARCHES
def test_it_ends_when_a_swap_takes_off_too_little(search: Search):
    weight, keep = random_mask(12, 64)
    hessian = hessian_of(64)
    (_, many), (few, counts) = (swapped(weight, keep, hessian, 1000, tolerance, 0, search) for tolerance in (0, 0.02))
    assert (counts > 0).all()
    assert (counts <= many).all()
    assert counts.sum() < many.sum()
    for i in range(12):
        row = weight[i : i + 1], keep[i : i + 1]
        before, one_less, one_more = (float(swapped(*row, hessian, int(counts[i]) + more, 0, 0, search)[0].loss) for more in (-int(counts[i]), -1, 1))
        assert one_less - float(few.loss[i]) >= 0.02 * before > float(few.loss[i]) - one_more


@SEARCHES
@pytest.mark.parametrize("kept", [True, False])
def test_rows_without_a_pair_stay(search: Search, kept: bool):
    weight, keep = torch.randn(3, 20, dtype=torch.float64), torch.full((3, 20), kept)
    for group in (0, 4):
        done, counts = swapped(weight, keep, hessian_of(20), 5, 0, group, search)
        assert torch.equal(done.weight, weight * keep)
        assert int(counts.sum()) == 0


@SEARCHES
def test_inputs_without_curvature_never_come_back(search: Search):
    weight, keep = random_mask(6, 32)
    hessian = hessian_of(32)
    hessian[::4], hessian[:, ::4] = 0, 0
    keep[:, ::4] = False
    done, counts = swapped(weight, keep, hessian, 20, 0, 0, search)
    assert not bool(done.keep[:, ::4].any())
    assert int(counts.sum()) > 0


@pytest.mark.parametrize("rows", [1, 63, 200])
@pytest.mark.parametrize("group", [0, 4])
def test_threads_change_nothing(rows: int, group: int):
    weight, keep = random_mask(rows, 96, group)
    hessian = hessian_of(96)
    one, *others = by_threads(lambda: swapped(weight, keep, hessian, 10, 1e-9, group, _in_rows)[0].weight)
    for other in others:
        assert torch.allclose(one, other, rtol=1e-12)
