"""What methods that go matrix by matrix have in common beside their contract: the numbers that
they refuse, and what they don't depend on.
"""

import math

import pytest
import torch

from calibrant.activations import Seen
from calibrant.errors import NumericsError, TargetError
from calibrant.methods import MatrixMethod, methods
from calibrant.targets import NofM, Sparsity, parse_target

from tests.methods.matrices import features, seen_of, spoilt

FITTING = ("sparsegpt", "alps", "admm", "refined", "robust")
PRUNING = ("magnitude", "wanda", "ria", "dsnot", *FITTING)
ROUNDING = ("rtn", "rtn(scales=importance)", "gptq")


def built(method: str) -> MatrixMethod:
    found = methods.build(method)
    assert isinstance(found, MatrixMethod)
    return found


@pytest.mark.parametrize("name", [*PRUNING, *ROUNDING])
def test_numbers_that_are_none_and_shapes_that_do_not_fit_are_refused(name: str):
    method = built(name)
    target = parse_target("w4g4" if name in ROUNDING else "2:4")
    weight, x = torch.randn(4, 8), torch.randn(20, 8)
    for bad in (math.nan, math.inf):
        with pytest.raises(NumericsError) as refused:
            method.compress(spoilt(weight, bad), seen_of(x), target)
        assert refused.value.subject == "the weight"
    with pytest.raises(TargetError) as unfit:
        method.compress(torch.randn(4, 10), seen_of(torch.randn(20, 10)), target)
    assert unfit.value.subject == "the matrix"
    if method.looks:
        with pytest.raises(NumericsError) as infinite:
            method.compress(weight, seen_of(spoilt(x, math.inf)), target)
        assert infinite.value.subject == "the squared norms of the inputs"
        with pytest.raises(NumericsError, match="0 tokens"):
            method.compress(weight, seen_of(torch.ones(0, 8)), target)


@pytest.mark.parametrize("name", [*PRUNING, *ROUNDING])
def test_a_target_of_another_kind_is_refused(name: str):
    other = parse_target("0.5" if name in ROUNDING else "w4g4")
    with pytest.raises(TargetError) as refused:
        built(name).check(other)
    assert refused.value.subject == str(other)
    with pytest.raises(TargetError) as unchecked:
        built(name).compress(torch.randn(4, 8), seen_of(torch.randn(20, 8)), other)
    assert unchecked.value.subject == str(other)


@pytest.mark.parametrize("name", PRUNING)
def test_bfloat16_is_computed_in_float32(name: str):
    weight, seen = torch.randn(16, 64).bfloat16(), seen_of(features(200, 64, torch.float32))
    narrow, wide = (
        built(name).compress(one, seen, Sparsity(0.5)).weight for one in (weight, weight.float())
    )
    assert torch.equal(narrow, wide.bfloat16())


@pytest.mark.parametrize("name", FITTING)
def test_the_scale_of_the_statistics_changes_nothing(name: str):
    weight, seen = torch.randn(16, 64, dtype=torch.float64), seen_of(features(200, 64))
    once, scaled = (
        built(name).compress(weight, one, Sparsity(0.5)).weight for one in (seen, seen * 0.25)
    )
    assert torch.allclose(once, scaled, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["sparsegpt", "alps", "admm"])
@pytest.mark.parametrize("target", [Sparsity(0.25), NofM(3, 4)], ids=str)
def test_inputs_that_were_always_zero_go_first_and_those_that_stay_keep_their_weights(
    name: str, target: Sparsity | NofM
):
    weight, x = torch.randn(16, 64, dtype=torch.float64), features(300, 64)
    x[:, ::2] = 0
    silent, found = weight[:, ::2], built(name).compress(weight, seen_of(x), target).weight[:, ::2]
    assert int((found == 0).sum()) == 256
    assert torch.equal(found[found != 0], silent[found != 0])


def test_none_returns_the_weight_unchanged_even_where_it_is_nan():
    weight = torch.tensor([[0.0, math.nan, 3.0, 1.0]])
    for target in (Sparsity(0.5), NofM(2, 4)):
        torch.testing.assert_close(
            built("none()").compress(weight, Seen({}), target).weight,
            weight,
            rtol=0,
            atol=0,
            equal_nan=True,
        )
    assert not built("none()").prunes
