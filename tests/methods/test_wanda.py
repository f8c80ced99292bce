"""Wanda against loops over rows and columns in Python's own float64."""

import math

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen
from calibrant.methods.wanda import Wanda
from calibrant.targets import NofM, Sparsity, Target

TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.9), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


def mask_by_loops(weight: Tensor, x: Tensor, target: Target) -> list[list[bool]]:
    """Equation 1, one weight at a time: True where a weight stays."""
    rows, columns, inputs = weight.tolist(), weight.shape[1], x.tolist()
    lengths = [math.sqrt(math.fsum(token[i] * token[i] for token in inputs)) for i in range(columns)]
    group, gone = (target.m, target.m - target.n) if isinstance(target, NofM) else (columns, math.floor(round(columns * target.fraction, 9)))  # pyright: ignore[reportAttributeAccessIssue]
    mask = []
    for row in rows:
        stays = [True] * columns
        for start in range(0, columns, group):
            members = sorted(range(start, start + group), key=lambda i: (abs(row[i]) * lengths[i], i))
            for i in members[:gone]:
                stays[i] = False
        mask.append(stays)
    return mask


def pruned(weight: Tensor, x: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    return Wanda().compress(weight, Seen({FeatureNorms: FeatureNorms.of(x, weights)}), target).weight


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_mask_is_exactly_that_of_the_loops_in_float64(target: Target):
    weight, x = torch.randn(40, 96, dtype=torch.float64), torch.randn(150, 96, dtype=torch.float64) * torch.rand(96, dtype=torch.float64)
    result = pruned(weight, x, target)
    expected = torch.tensor(mask_by_loops(weight, x, target))
    assert torch.equal(result != 0, expected)
    assert torch.equal(result, weight * expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_in_narrower_types_is_that_of_the_loops(dtype: torch.dtype):
    weight, x = torch.randn(120, 96).to(dtype), (torch.randn(150, 96) * torch.rand(96)).to(dtype)
    expected = torch.tensor(mask_by_loops(weight.double(), x.double(), Sparsity(0.5)))
    assert ((pruned(weight, x, Sparsity(0.5)) != 0) == expected).double().mean() >= 0.9999


def test_of_equal_scores_the_lowest_column_goes_and_before_all_an_input_that_was_always_zero():
    assert pruned(torch.ones(2, 4), torch.ones(3, 4), Sparsity(0.5)).tolist() == [[0, 0, 1, 1]] * 2
    silent = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 3)
    assert pruned(torch.tensor([[1.0, 2.0, 3.0, 100.0]]), silent, Sparsity(0.5)).tolist() == [[0, 2, 3, 0]]


def test_token_weights_count():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert pruned(torch.ones(1, 2), x, Sparsity(0.5)).tolist() == [[0, 1]]
    assert pruned(torch.ones(1, 2), x, Sparsity(0.5), torch.tensor([1.0, 0.1])).tolist() == [[1, 0]]
