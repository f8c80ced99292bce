"""Another method's mask, swapped and fitted: what the losses are then, what the notes say, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureMoments, FeatureNorms, Gram, Seen
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.methods import MatrixMethod, methods
from calibrant.methods.dsnot import DSnoT
from calibrant.methods.magnitude import Magnitude
from calibrant.methods.refined import Refined
from calibrant.methods.sparsegpt import SparseGPT
from calibrant.methods.wanda import Wanda
from calibrant.spec import canonical
from calibrant.targets import NofM, Sparsity, Target, parse_target

TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.8), NofM(2, 4), NofM(4, 8)]


def features(tokens: int, inputs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Correlated features of different sizes."""
    x = torch.randn(tokens, inputs).double() @ (torch.eye(inputs).double() + torch.randn(inputs, inputs).double() / inputs**0.5)
    return (x * (0.1 + torch.rand(inputs).double())).to(dtype)


def seen_of(x: Tensor) -> Seen:
    return Seen({FeatureNorms: FeatureNorms.of(x), Gram: Gram.of(x)})


def loss(weight: Tensor, pruned: Tensor, x: Tensor, damp: float = 0.01) -> float:
    """The damped loss of the outputs, straight from the inputs."""
    error, plain = (weight - pruned).double(), x.double()
    mean = plain.square().mean(0)
    return float((plain @ error.T).square().sum() / len(x) + damp * mean.mean() * error.square().sum())


@pytest.mark.parametrize("start", [Wanda(), SparseGPT(), Magnitude()], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_each_part_takes_off_what_the_notes_say(start: MatrixMethod, target: Target):
    weight, x = torch.randn(24, 96, dtype=torch.float64), features(300, 96)
    begun = start.compress(weight, seen_of(x), target).weight
    done = Refined(start=start).compress(weight, seen_of(x), target)
    before, after = loss(weight, begun, x), loss(weight, done.weight, x)
    assert 1 - after / before == pytest.approx(done.notes["fitted"] + done.notes["swapped"], abs=1e-5)
    assert done.notes["fitted"] > 0
    assert done.notes["swapped"] > 0
    assert 0 < done.notes["swaps"] <= 50
    assert int((done.weight == 0).sum()) == int((begun == 0).sum())


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


@pytest.mark.parametrize("start", [Wanda(), SparseGPT(), Magnitude()], ids=str)
def test_rows_and_groups_keep_as_many_as_the_start_does(start: MatrixMethod):
    weight, x = torch.randn(16, 96, dtype=torch.float64), features(300, 96)
    for target, width in ((Sparsity(0.6), 96), (NofM(2, 4), 4), (NofM(3, 8), 8)):
        begun, done = (method.compress(weight, seen_of(x), target).weight for method in (start, Refined(start=start)))
        counts = [(found != 0).reshape(-1, width).sum(1) for found in (begun, done)]
        assert torch.equal(*counts)
        assert not torch.equal(begun != 0, done != 0)


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


def test_the_scale_of_the_statistics_changes_nothing():
    weight, x = torch.randn(16, 64, dtype=torch.float64), features(300, 64)
    once, scaled = (Refined().compress(weight, seen, Sparsity(0.5)).weight for seen in (seen_of(x), seen_of(x) * 0.25))
    assert torch.allclose(once, scaled, rtol=1e-9, atol=1e-12)


def test_bfloat16_is_computed_in_float32():
    weight, x = torch.randn(16, 64).bfloat16(), features(300, 64, torch.float32)
    narrow, wide = (Refined().compress(w, seen_of(x), Sparsity(0.5)).weight for w in (weight, weight.float()))
    assert torch.equal(narrow, wide.bfloat16())


def test_the_start_is_written_in_the_spec_and_the_identity():
    assert methods.build("refined(start=sparsegpt(damp=0.1), swaps=5)") == Refined(start=SparseGPT(damp=0.1), swaps=5)
    assert repr(Refined(start=Magnitude())) == "refined(start=magnitude)"
    assert repr(Refined(start=Wanda())) == "refined"
    assert canonical(Refined())["start"] == canonical(Wanda())


@pytest.mark.parametrize(
    ("start", "kinds"),
    [(Wanda(), {Gram}), (SparseGPT(), {Gram}), (Magnitude(), {Gram}), (DSnoT(), {FeatureNorms, FeatureMoments, Gram})],
    ids=["wanda", "sparsegpt", "magnitude", "dsnot"],
)
def test_it_observes_what_its_start_does_and_the_gram(start: MatrixMethod, kinds: set[type]):
    assert set(Refined(start=start).observes) == kinds
    assert len(Refined(start=start).observes) == len(kinds)


@pytest.mark.parametrize("start", ["none", "rtn", "gptq", "short_gpt", "rsq", "7", "nothing", "[wanda]"])
def test_a_start_that_removes_no_weights_is_refused(start: str):
    with pytest.raises(SpecError, match=r"refined\(start=.*\): start is a method that removes weights matrix by matrix; write wanda,"):
        methods.build(f"refined(start={start})")


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("swaps=-1", r"swaps=-1\): swaps must be 0 or more"),
        ("steps=-3", r"steps=-3\): steps must be 0 or more"),
        ("rounds=0", r"rounds=0\): rounds must be 1 or more"),
        ("damp=0.0", r"damp=0.0\): damp must be above 0"),
        ("damp=-0.5", r"damp=-0.5\): damp must be above 0"),
        ("tolerance=1.0", r"tolerance=1.0\): tolerance is a share of the loss, from 0 up to 1"),
        ("tolerance=-0.1", r"tolerance=-0.1\): tolerance is a share"),
    ],
)
def test_parameters_out_of_range_are_refused(parameter: str, sentence: str):
    with pytest.raises(SpecError, match=sentence):
        methods.build(f"refined({parameter})")


def test_numbers_that_are_not_finite_are_refused():
    weight, x = torch.randn(4, 8), torch.randn(20, 8)
    with pytest.raises(NumericsError, match=r"the weight holds NaN or infinity \(1 of 32 numbers\)"):
        Refined().compress(weight.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan)), seen_of(x), Sparsity(0.5))
    with pytest.raises(NumericsError, match=r"the squared norms of the inputs holds NaN or infinity"):
        Refined().compress(weight, seen_of(x.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.inf))), Sparsity(0.5))


def test_a_target_that_does_not_fit_is_refused():
    with pytest.raises(TargetError, match="the matrix has 10 inputs, and 2:4"):
        Refined().compress(torch.randn(4, 10), seen_of(torch.randn(20, 10)), NofM(2, 4))
    with pytest.raises(TargetError, match="refined can't be asked for w4g64"):
        Refined().check(parse_target("w4g64"))
