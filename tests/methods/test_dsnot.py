"""DSnoT against loops over rows, one swap after the other, in Python's own float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calibrant.methods.pruning.dsnot import DSnoT
from calibrant.methods.pruning.ria import RIA
from calibrant.methods.pruning.wanda import Wanda
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import seen_of

TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.9), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


def inputs(tokens: int, features: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features whose means are no zeros, and of different sizes."""
    return (torch.randn(tokens, features, dtype=dtype) + torch.randn(features, dtype=dtype)) * (
        0.1 + torch.rand(features, dtype=dtype)
    )


def row_by_loops(
    row: list[float],
    kept: list[bool],
    mean: list[float],
    variance: list[float],
    score: list[float],
    group: int,
    swaps: int,
    tolerance: float,
) -> list[bool]:
    """Swap one row's weights as the paper says it."""
    stays, effect, width = (
        list(kept),
        [w * m for w, m in zip(row, mean, strict=True)],
        range(len(row)),
    )
    lost = math.fsum(effect[i] for i in width if not kept[i])
    fresh = set(width)
    for _ in range(swaps):
        if abs(lost) <= tolerance:
            break
        sign = 1 if lost > 0 else -1
        back = [i for i in width if not kept[i] and i in fresh and sign * effect[i] > 0]
        if not back:
            break
        grown = max(back, key=lambda i: (sign * effect[i] / variance[i], -i))
        if group:
            first = grown // group * group
            out = [i for i in range(first, first + group) if kept[i] and i in fresh]
        else:
            out = [i for i in width if kept[i] and i in fresh and sign * effect[i] < 0]
        fresh.discard(grown)
        if not out:
            if group:
                continue
            break
        dropped = min(out, key=lambda i: (score[i], i))
        after = lost + effect[dropped] - effect[grown]
        if group and after * lost <= 0:
            break
        fresh.discard(dropped)
        stays[grown], stays[dropped], lost = True, False, after
    return stays


def mask_by_loops(
    weight: Tensor,
    x: Tensor,
    target: Target,
    swaps: int = 50,
    tolerance: float = 5e-5,
    start: Any = None,
) -> Tensor:
    columns = x.T.tolist()
    mean = [math.fsum(column) / len(column) for column in columns]
    variance = [
        math.fsum((value - m) ** 2 for value in column) / len(column)
        for column, m in zip(columns, mean, strict=True)
    ]
    length = [math.sqrt(math.fsum(value**2 for value in column)) for column in columns]
    kept = (start or Wanda()).compress(weight, seen_of(x), target).weight != 0
    group = target.m if isinstance(target, NofM) else 0
    rows = []
    for row, mask in zip(weight.tolist(), kept.tolist(), strict=True):
        score = [abs(w) * size for w, size in zip(row, length, strict=True)]
        rows.append(row_by_loops(row, mask, mean, variance, score, group, swaps, tolerance))
    return torch.tensor(rows)


def lost(weight: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    return ((weight * ~mask) @ x.mean(0)).abs()


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("swaps", [1, 50])
def test_the_mask_is_exactly_that_of_the_loops(target: Target, swaps: int):
    weight, x = torch.randn(40, 96, dtype=torch.float64), inputs(150, 96)
    result = DSnoT(swaps=swaps).compress(weight, seen_of(x), target).weight
    expected = mask_by_loops(weight, x, target, swaps)
    assert torch.equal(result != 0, expected)
    assert torch.equal(result, weight * expected)


@pytest.mark.parametrize("start", [RIA()], ids=str)
def test_it_starts_from_the_mask_of_another_method(start: Any):
    weight, x = torch.randn(40, 96, dtype=torch.float64), inputs(150, 96)
    result = DSnoT(start=start).compress(weight, seen_of(x), Sparsity(0.5)).weight
    assert torch.equal(result != 0, mask_by_loops(weight, x, Sparsity(0.5), start=start))
