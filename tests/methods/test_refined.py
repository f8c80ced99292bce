"""Another method's mask, swapped and fitted: what the losses are then, what the notes say, and
what it refuses.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.methods import MatrixMethod
from calibrant.methods.pruning.magnitude import Magnitude
from calibrant.methods.pruning.refined import Refined
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.methods.pruning.wanda import Wanda
from calibrant.spec import canonical
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import best_where_kept, features, seen_of

Matrix = np.ndarray[Any, Any]

TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.8), NofM(2, 4), NofM(4, 8)]


def loss(weight: Tensor, pruned: Tensor, x: Tensor, damp: float = 0.01) -> float:
    """The damped loss of the outputs, straight from the inputs."""
    error, plain = (weight - pruned).double(), x.double()
    mean = plain.square().mean(0)
    return float(
        (plain @ error.T).square().sum() / len(x) + damp * mean.mean() * error.square().sum()
    )


@pytest.mark.parametrize("start", [Wanda(), SparseGPT(), Magnitude()], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_each_part_takes_off_what_the_notes_say_and_counts_stay(
    start: MatrixMethod, target: Target
):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96)
    begun = start.compress(weight, seen_of(x), target).weight
    done = Refined(start=start).compress(weight, seen_of(x), target)
    before, after = loss(weight, begun, x), loss(weight, done.weight, x)
    assert 1 - after / before == pytest.approx(
        done.notes["fitted"] + done.notes["swapped"], abs=1e-5
    )
    assert done.notes["fitted"] > 0
    assert done.notes["swapped"] > 0
    assert 0 < done.notes["swaps"] <= 50
    width = target.m if isinstance(target, NofM) else 96
    assert torch.equal(*((found != 0).reshape(-1, width).sum(1) for found in (begun, done.weight)))
    assert not torch.equal(begun != 0, done.weight != 0)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("start", [Wanda(), SparseGPT()], ids=str)
def test_it_loses_less_than_sparsegpt_and_wanda(start: MatrixMethod, target: Target):
    weight, x = torch.randn(48, 160, dtype=torch.float64), features(400, 160)
    alone, fitted, refined = (
        loss(weight, method.compress(weight, seen_of(x), target).weight, x)
        for method in (start, Refined(start, swaps=0), Refined(start))
    )
    wanda, sparsegpt = (
        loss(weight, method.compress(weight, seen_of(x), target).weight, x)
        for method in (Wanda(), SparseGPT())
    )
    assert refined < fitted < alone
    assert refined < sparsegpt < wanda


@pytest.mark.parametrize(
    ("sparsity", "damp", "tokens"), [(0.2, 0.01, 300), (0.9, 0.1, 300), (0.5, 0.01, 30)]
)
def test_with_enough_steps_and_no_swaps_the_weights_are_the_best_on_the_mask_of_the_start(
    sparsity: float, damp: float, tokens: int
):
    weight, x, target = (
        torch.randn(24, 96, dtype=torch.float64),
        features(tokens, 96),
        Sparsity(sparsity),
    )
    keep = Wanda().compress(weight, seen_of(x), target).weight != 0
    done = Refined(swaps=0, steps=400, damp=damp, tolerance=0.0).compress(
        weight, seen_of(x), target
    )
    assert torch.allclose(done.weight, best_where_kept(weight, x, keep, damp), rtol=1e-6, atol=1e-8)
    assert (done.notes["swapped"], done.notes["swaps"]) == (0, 0)
    untouched = Refined(swaps=0, steps=0).compress(weight, seen_of(x), target).weight
    assert torch.equal(untouched, weight * keep)


def every_pair(w: Matrix, kept: Matrix, hessian: Matrix, group: int) -> Matrix:
    """The loss of one row after each swap, its new weight at the best value: [in, in], infinite
    where no swap is. By the definition alone.
    """
    found, v = np.full((len(w), len(w)), np.inf), w * kept
    for k in np.flatnonzero(kept):
        for p in np.flatnonzero(~kept):
            if k // group == p // group:
                error = w - v
                error[k] += v[k]
                error[p] += v[p] - (hessian[p] @ error) / hessian[p, p]
                found[k, p] = error @ hessian @ error
    return found


@pytest.mark.parametrize(
    ("target", "group", "share"),
    [(NofM(2, 4), 4, 1), (NofM(4, 8), 8, 1), (Sparsity(0.5), 48, 0.9)],
    ids=str,
)
def test_a_swap_is_the_best_of_all_pairs_in_groups_and_nearly_so_in_rows(
    target: Target, group: int, share: float
):
    weight, x = torch.randn(12, 48, dtype=torch.float64), features(150, 48)
    keep = Wanda().compress(weight, seen_of(x), target).weight != 0
    done = Refined(swaps=1, steps=0, tolerance=0.0).compress(weight, seen_of(x), target).weight
    plain = x.T @ x / 150
    hessian = (plain + 0.01 * plain.diagonal().mean() * torch.eye(48)).numpy()
    before, after = (
        np.einsum("oi,ij,oj->o", *((weight - found).numpy(), hessian, (weight - found).numpy()))
        for found in (weight * keep, done)
    )
    best = np.array(
        [
            every_pair(row, kept, hessian, group).min()
            for row, kept in zip(weight.numpy(), keep.numpy(), strict=True)
        ]
    )
    best = np.minimum(best, before)
    assert (after >= best * (1 - 1e-10)).all()
    assert (before - after).sum() >= share * (before - best).sum() * (1 - 1e-9)


def test_the_start_is_part_of_the_identity():
    assert repr(Refined(start=Magnitude())) == "refined(start=magnitude)"
    assert canonical(Refined())["start"] == canonical(Wanda())
