import torch

from calibrant.activations import Seen
from calibrant.methods.magnitude import Magnitude
from calibrant.targets import NofM, Sparsity

NOTHING = Seen({})


def test_the_smallest_of_the_whole_matrix_go_and_of_a_pattern_those_within_each_group():
    weight = torch.tensor([[9.0, -8.0, 7.0, -6.0], [1.0, -2.0, 3.0, -4.0]])
    assert Magnitude().compress(weight, NOTHING, Sparsity(0.5)).weight.tolist() == [[9, -8, 7, -6], [0, 0, 0, 0]]
    assert Magnitude().compress(weight, NOTHING, NofM(2, 4)).weight.tolist() == [[9, -8, 0, 0], [0, 0, 3, -4]]


def test_of_equal_weights_the_first_go_and_the_count_is_exact():
    weight = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]], dtype=torch.bfloat16)
    assert Magnitude().compress(weight, NOTHING, Sparsity(0.67)).weight.tolist() == [[0, 0, 0], [0, 1, -1]]
