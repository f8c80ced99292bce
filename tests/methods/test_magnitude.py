import pytest
import torch

from calibrant.activations import Seen
from calibrant.errors import NumericsError, TargetError
from calibrant.methods.magnitude import Magnitude
from calibrant.targets import NofM, Sparsity

NOTHING = Seen({})


def test_the_smallest_of_the_whole_matrix_go():
    weight = torch.tensor([[9.0, -8.0, 7.0, -6.0], [1.0, -2.0, 3.0, -4.0]])
    assert Magnitude().compress(weight, NOTHING, Sparsity(0.5)).weight.tolist() == [[9, -8, 7, -6], [0, 0, 0, 0]]


def test_patterns_are_kept_within_rows():
    weight = torch.tensor([[9.0, -8.0, 7.0, -6.0], [1.0, -2.0, 3.0, -4.0]])
    assert Magnitude().compress(weight, NOTHING, NofM(2, 4)).weight.tolist() == [[9, -8, 0, 0], [0, 0, 3, -4]]


def test_of_equal_weights_the_first_go_and_the_count_is_exact():
    weight = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]], dtype=torch.bfloat16)
    assert Magnitude().compress(weight, NOTHING, Sparsity(0.67)).weight.tolist() == [[0, 0, 0], [0, 1, -1]]


def test_a_weight_that_is_not_finite_is_refused():
    weight = torch.tensor([[1.0, float("inf")], [float("nan"), 2.0]])
    with pytest.raises(NumericsError, match=r"the weight holds NaN or infinity \(2 of 4 numbers\)"):
        Magnitude().compress(weight, NOTHING, Sparsity(0.5))


def test_a_pattern_that_does_not_fit_is_refused():
    with pytest.raises(TargetError, match="6 inputs, and 2:4"):
        Magnitude().compress(torch.rand(4, 6), NOTHING, NofM(2, 4))
