"""RIA against loops over rows and columns in Python's own float64."""

import math

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen
from calibrant.methods.magnitude import Magnitude
from calibrant.methods.ria import RIA
from calibrant.targets import NofM, Sparsity, Target

TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.9), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


def mask_by_loops(weight: Tensor, x: Tensor, target: Target, power: float = 0.5) -> list[list[bool]]:
    """Equation 4 of the paper, one weight at a time: True where a weight stays."""
    w, inputs = [[abs(value) for value in row] for row in weight.tolist()], x.tolist()
    rows, columns = weight.shape
    lengths = [math.sqrt(math.fsum(token[i] ** 2 for token in inputs)) for i in range(columns)]
    of_columns, of_rows = [math.fsum(row[i] for row in w) for i in range(columns)], [math.fsum(row) for row in w]
    scores = [[(w[o][i] / of_columns[i] + w[o][i] / of_rows[o]) * lengths[i] ** power for i in range(columns)] for o in range(rows)]
    if isinstance(target, NofM):
        groups = [[(o, i) for i in range(at, at + target.m)] for o in range(rows) for at in range(0, columns, target.m)]
        gone = target.m - target.n
    else:
        groups = [[(o, i) for o in range(rows) for i in range(columns)]]
        gone = math.floor(round(rows * columns * target.fraction, 9))  # pyright: ignore[reportAttributeAccessIssue]
    removed = {place for group in groups for place in sorted(group, key=lambda at: (scores[at[0]][at[1]], at))[:gone]}
    return [[(o, i) not in removed for i in range(columns)] for o in range(rows)]


def pruned(weight: Tensor, x: Tensor, target: Target, method: RIA | None = None) -> Tensor:
    return (method or RIA()).compress(weight, Seen({FeatureNorms: FeatureNorms.of(x)}), target).weight


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_mask_is_exactly_that_of_the_loops_in_float64(target: Target):
    weight, x = torch.randn(40, 96, dtype=torch.float64), torch.randn(150, 96, dtype=torch.float64) * torch.rand(96, dtype=torch.float64)
    result, expected = pruned(weight, x, target), torch.tensor(mask_by_loops(weight, x, target))
    assert torch.equal(result != 0, expected)
    assert torch.equal(result, weight * expected)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_power_says_how_much_the_inputs_count(power: float):
    weight, x = torch.randn(20, 32, dtype=torch.float64), torch.randn(50, 32, dtype=torch.float64) * torch.rand(32, dtype=torch.float64)
    result = pruned(weight, x, Sparsity(0.5), RIA(power=power))
    assert torch.equal(result != 0, torch.tensor(mask_by_loops(weight, x, Sparsity(0.5), power)))


def test_no_input_is_lost_whole_as_it_is_by_size():
    """Every weight of one column is smaller than every other: beside its column each counts, and some are more than others'."""
    weight = 0.5 + torch.rand(32, 32, dtype=torch.float64)
    weight[:, 3] = torch.linspace(0, 1, 32, dtype=torch.float64) ** 2 * 1e-3 + 1e-6
    x = torch.ones(5, 32)
    assert (Magnitude().compress(weight, Seen({}), Sparsity(0.5)).weight[:, 3] == 0).all()
    assert (pruned(weight, x, Sparsity(0.5))[:, 3] != 0).any()


def test_rows_and_columns_of_zeros_go_first():
    weight = torch.randn(6, 8, dtype=torch.float64)
    weight[2], weight[:, 5] = 0, 0
    result = pruned(weight, torch.ones(3, 8), Sparsity(0.5))
    assert int((result != 0).sum()) == 24
