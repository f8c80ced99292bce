"""Another method's mask, swapped and fitted: what the losses are then, what the notes say, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureMoments, FeatureNorms, Gram, Seen
from calibrant.methods import MatrixMethod
from calibrant.methods.dsnot import DSnoT
from calibrant.methods.magnitude import Magnitude
from calibrant.methods.refined import Refined
from calibrant.methods.sparsegpt import SparseGPT
from calibrant.methods.wanda import Wanda
from calibrant.spec import canonical
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import features, seen_of

TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.8), NofM(2, 4), NofM(4, 8)]


def loss(weight: Tensor, pruned: Tensor, x: Tensor, damp: float = 0.01) -> float:
    """The damped loss of the outputs, straight from the inputs."""
    error, plain = (weight - pruned).double(), x.double()
    mean = plain.square().mean(0)
    return float((plain @ error.T).square().sum() / len(x) + damp * mean.mean() * error.square().sum())


@pytest.mark.parametrize("start", [Wanda(), SparseGPT(), Magnitude()], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_each_part_takes_off_what_the_notes_say_and_counts_stay(start: MatrixMethod, target: Target):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96)
    begun = start.compress(weight, seen_of(x), target).weight
    done = Refined(start=start).compress(weight, seen_of(x), target)
    before, after = loss(weight, begun, x), loss(weight, done.weight, x)
    assert 1 - after / before == pytest.approx(done.notes["fitted"] + done.notes["swapped"], abs=1e-5)
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
        loss(weight, method.compress(weight, seen_of(x), target).weight, x) for method in (start, Refined(start, swaps=0), Refined(start))
    )
    wanda, sparsegpt = (loss(weight, method.compress(weight, seen_of(x), target).weight, x) for method in (Wanda(), SparseGPT()))
    assert refined < fitted < alone
    assert refined < sparsegpt < wanda


def test_with_an_identity_it_is_the_mask_of_magnitude():
    weight = torch.randn(16, 64, dtype=torch.float64)
    seen = Seen({FeatureNorms: FeatureNorms(torch.ones(64).double(), 64, 64.0), Gram: Gram(torch.eye(64).double(), 64, 64.0)})
    for target in (Sparsity(0.5), NofM(2, 4)):
        done = Refined(start=Wanda(), swaps=100).compress(weight, seen, target).weight
        assert torch.equal(done, weight * target.keep(weight.abs(), "row"))


def test_with_nothing_to_swap_it_is_the_start_with_fitted_weights():
    weight, x = torch.randn(16, 64, dtype=torch.float64), features(300, 64)
    begun, done = (method.compress(weight, seen_of(x), Sparsity(0.5)) for method in (Wanda(), Refined(swaps=0)))
    assert torch.equal(begun.weight != 0, done.weight != 0)
    assert (done.notes["swapped"], done.notes["swaps"]) == (0, 0)
    assert done.notes["fitted"] > 0
    untouched = Refined(swaps=0, steps=0).compress(weight, seen_of(x), Sparsity(0.5)).weight
    assert torch.equal(untouched, begun.weight)


def test_a_few_more_swaps_and_steps_lose_less():
    """Not however many: what greedy swaps reach depends on where they came from."""
    weight, x = torch.randn(24, 128, dtype=torch.float64), features(400, 128)

    def lost(**parameters: Any) -> float:
        return loss(weight, Refined(**parameters, tolerance=0.0).compress(weight, seen_of(x), Sparsity(0.6)).weight, x)

    assert lost(swaps=10) < lost(swaps=2) < lost(swaps=0)
    assert lost(steps=10) < lost(steps=3) < lost(steps=0)


def test_the_start_is_part_of_the_identity():
    assert repr(Refined(start=Magnitude())) == "refined(start=magnitude)"
    assert canonical(Refined())["start"] == canonical(Wanda())


@pytest.mark.parametrize(
    ("start", "kinds"),
    [(Wanda(), {Gram}), (SparseGPT(), {Gram}), (Magnitude(), {Gram}), (DSnoT(), {FeatureNorms, FeatureMoments, Gram})],
    ids=["wanda", "sparsegpt", "magnitude", "dsnot"],
)
def test_it_observes_what_its_start_does_and_the_gram(start: MatrixMethod, kinds: set[type]):
    assert set(Refined(start=start).observes) == kinds
    assert len(Refined(start=start).observes) == len(kinds)
