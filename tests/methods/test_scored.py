"""Magnitude, Wanda and RIA against loops over rows and columns in Python's own float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen
from calibrant.methods import MatrixMethod
from calibrant.methods.pruning import _lowest
from calibrant.methods.pruning.magnitude import Magnitude
from calibrant.methods.pruning.ria import RIA
from calibrant.methods.pruning.wanda import Wanda
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import by_threads, seen_of

TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.9), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


def scores_by_loops(method: MatrixMethod, weight: Tensor, x: Tensor) -> list[list[float]]:
    """Each weight's score by the formula of the paper, one weight at a time."""
    w, inputs = [[abs(value) for value in row] for row in weight.tolist()], x.tolist()
    rows, columns = range(weight.shape[0]), range(weight.shape[1])
    lengths = [math.sqrt(math.fsum(token[i] ** 2 for token in inputs)) for i in columns]
    if isinstance(method, Wanda):
        return [[w[o][i] * lengths[i] for i in columns] for o in rows]
    if not isinstance(method, RIA):
        return w
    of_columns, of_rows = (
        [math.fsum(row[i] for row in w) for i in columns],
        [math.fsum(row) for row in w],
    )
    return [
        [
            (w[o][i] / of_columns[i] + w[o][i] / of_rows[o]) * lengths[i] ** method.power
            for i in columns
        ]
        for o in rows
    ]


def mask_by_loops(method: MatrixMethod, weight: Tensor, x: Tensor, target: Target) -> Tensor:
    """True where a weight stays: of each group the lowest scores go, and of equal ones the
    first. Wanda's groups are rows.
    """
    rows, columns = weight.shape
    width = columns if isinstance(method, Wanda) else rows * columns
    scores = [score for row in scores_by_loops(method, weight, x) for score in row]
    if isinstance(target, NofM):
        width, gone = target.m, target.m - target.n
    else:
        gone = math.floor(round(width * float(target.amount or 0), 9))
    stays = [True] * len(scores)
    for start in range(0, len(scores), width):
        for place in sorted(range(start, start + width), key=lambda place: (scores[place], place))[
            :gone
        ]:
            stays[place] = False
    return torch.tensor(stays).reshape(rows, columns)


def pruned(
    method: MatrixMethod, weight: Tensor, x: Tensor, target: Target, weights: Tensor | None = None
) -> Tensor:
    return method.compress(weight, seen_of(x, weights), target).weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "target", [Sparsity(0), Sparsity(0.5), Sparsity(0.99), NofM(2, 4), NofM(7, 16), NofM(3, 32)]
)
def test_in_one_pass_the_mask_and_what_is_lost_are_those_of_loops(
    dtype: torch.dtype, target: Target, monkeypatch: pytest.MonkeyPatch
):
    """With equal scores, zeros of both signs, and inputs that were always zero."""
    weight = (torch.randn(70, 96).mul(4).round() / 4).to(dtype)
    weight[3] = 0
    weight[5] = -0.0
    squares = torch.rand(96, dtype=torch.float64).mul(8).round()
    seen = Seen({FeatureNorms: FeatureNorms(squares, 9, 9.0)})
    found = Wanda().compress(weight, seen, target)
    monkeypatch.setattr(_lowest, "LEAST_NUMBERS", 1)
    width, gone = 96, math.floor(round(96 * float(target.amount or 0), 9))
    if isinstance(target, NofM):
        width, gone = target.m, target.m - target.n
    expected, size, lost = weight.clone(), [], []
    for row, values in enumerate(weight.double().tolist()):
        scores = [
            float(np.float32(abs(value)) * np.float32(math.sqrt(square)))
            for value, square in zip(values, squares.tolist(), strict=True)
        ]
        for start in range(0, 96, width):
            group = range(start, start + width)
            for place in sorted(group, key=lambda place: (scores[place], place))[:gone]:
                expected[row, place] = 0
                lost.append(values[place] ** 2 * float(squares[place]))
        size += [v**2 * s for v, s in zip(values, squares.tolist(), strict=True)]
    assert torch.equal(found.weight.view(torch.uint8), expected.view(torch.uint8))
    assert found.change is not None
    assert found.change.zeros == int((expected == 0).sum())
    assert found.change.size == pytest.approx(math.fsum(size), rel=1e-12)
    assert found.change.lost == pytest.approx(math.fsum(lost), rel=1e-12)
    assert all(
        torch.equal(found.weight, other)
        for other in by_threads(lambda: Wanda().compress(weight, seen, target).weight)
    )


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(
    "method", [Magnitude(), Wanda(), RIA(), RIA(power=0.0), RIA(power=1.0)], ids=str
)
def test_the_mask_is_exactly_that_of_the_loops_in_float64_and_nearly_in_bfloat16(
    method: MatrixMethod, target: Target
):
    weight, x = (
        torch.randn(40, 96, dtype=torch.float64),
        torch.randn(150, 96, dtype=torch.float64) * torch.rand(96, dtype=torch.float64),
    )
    result, expected = pruned(method, weight, x, target), mask_by_loops(method, weight, x, target)
    assert torch.equal(result != 0, expected)
    assert torch.equal(result, weight * expected)
    narrow, few = weight.bfloat16(), x.bfloat16()
    nearly = mask_by_loops(method, narrow.double(), few.double(), target)
    assert ((pruned(method, narrow, few, target) != 0) == nearly).double().mean() >= 0.999


def test_of_equal_scores_the_first_go_and_before_all_an_input_that_was_always_zero():
    for method, kept in (
        (Magnitude(), [[0, 0, 0, 0], [1, 1, 1, 1]]),
        (Wanda(), [[0, 0, 1, 1]] * 2),
        (RIA(), [[0, 0, 0, 0], [1, 1, 1, 1]]),
    ):
        assert pruned(method, torch.ones(2, 4), torch.ones(3, 4), Sparsity(0.5)).tolist() == kept
    silent = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 3)
    assert pruned(
        Wanda(), torch.tensor([[1.0, 2.0, 3.0, 100.0]]), silent, Sparsity(0.5)
    ).tolist() == [[0, 2, 3, 0]]


def test_token_weights_count():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert pruned(Wanda(), torch.ones(1, 2), x, Sparsity(0.5)).tolist() == [[0, 1]]
    assert pruned(
        Wanda(), torch.ones(1, 2), x, Sparsity(0.5), torch.tensor([1.0, 0.1])
    ).tolist() == [[1, 0]]


def test_by_ria_no_input_is_lost_whole_as_it_is_by_size_and_rows_and_columns_of_zeros_go_first():
    """Every weight of one column is smaller than every other: beside its column each counts, and
    some are more than others'.
    """
    weight = 0.5 + torch.rand(32, 32, dtype=torch.float64)
    weight[:, 3] = torch.linspace(0, 1, 32, dtype=torch.float64) ** 2 * 1e-3 + 1e-6
    assert (Magnitude().compress(weight, Seen({}), Sparsity(0.5)).weight[:, 3] == 0).all()
    assert (pruned(RIA(), weight, torch.ones(5, 32), Sparsity(0.5))[:, 3] != 0).any()
    weight[2], weight[:, 5] = 0, 0
    assert int((pruned(RIA(), weight, torch.ones(3, 32), Sparsity(0.5)) != 0).sum()) == 512
