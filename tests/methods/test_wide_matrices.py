"""What is compiled, blocked or done in tiles, at the width of a real feed-forward network, against
its definition in float64.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram
from calibrant.methods.pruning._admm import shared_scaled
from calibrant.methods.pruning._gradients import Masked, damped, descend, masked
from calibrant.methods.pruning._swaps import swap
from calibrant.methods.quantization._rounding import clipped, effective
from calibrant.targets import Grid

from tests.methods.matrices import features, seeded

WIDTH = 8_960
"""Inputs of the last matrix of a feed-forward network of Qwen2.5-Coder-1.5B."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gram() -> Gram:
    """Of fewer tokens than inputs, some of which are large."""
    inputs = features(1_500, WIDTH, torch.float32)
    inputs[:, ::500] *= 30
    return Gram.of(inputs)


def lost(dense: Tensor, done: Masked, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The pull and the loss of each row, by their definition."""
    error = (dense - done.weight).double()
    pull = error @ hessian.double()
    return pull, (pull * error).sum(1)


def test_rows_are_fitted_and_swapped_and_the_loss_is_what_is_claimed(gram: Gram):
    dense = seeded(5, WIDTH, torch.float32)
    hessian = damped(gram, 0.01)
    sizes = dense.abs() * hessian.diagonal().sqrt()
    keep = sizes >= sizes.median(1, keepdim=True).values
    start = masked(dense, dense, keep, hessian)
    fitted = descend(start, hessian, 4)
    swapped, counts = swap(fitted, hessian, 20, 0.0)
    assert counts.min() > 0
    assert (swapped.keep != keep).sum(1).min() > 0
    before = start.loss
    for done in (start, fitted, swapped):
        pull, loss = lost(dense, done, hessian)
        assert torch.allclose(done.loss.double(), loss, rtol=1e-3)
        assert (done.pull - pull).norm() <= 1e-3 * pull.norm()
        assert not done.weight[~done.keep].any()
        assert (done.loss <= before).all()
        before = done.loss


def test_what_is_left_of_a_pull_undoes_the_scaled_gram(gram: Gram):
    scaled = shared_scaled(gram, 0.01)
    rho = 0.1
    rows = [0, 4_480, WIDTH - 1]
    response = scaled.response(rho)[rows].double()
    undone = response @ scaled.hessian.double() + rho * response
    identity = torch.zeros(3, WIDTH, dtype=torch.float64)
    identity[range(3), rows] = rho
    assert (undone - identity).abs().max() <= 1e-3 * rho


def test_columns_are_scaled_and_clipped_group_by_group(gram: Gram):
    """Rows of more than one tile."""
    weight = seeded(60, WIDTH, torch.float32)
    grid = Grid(4, 128)
    scales = 0.5 + seeded(1, WIDTH, torch.float32, seed=1)[0].abs()
    column = weight[:, 128:256].double().numpy() * scales[128:256].double().numpy()
    step = abs(column).max(1, keepdims=True) / 7.5
    expected = (column / step).round().clip(-8, 7) * step / scales[128:256].double().numpy()
    found = effective(weight, grid, scales)[:, 128:256].double().numpy()
    # Half way between two codes, float32 may take the other one.
    assert np.isclose(found, expected, rtol=1e-4, atol=1e-6).mean() > 0.999
    narrow = Gram(gram.matrix[128:256, 128:256], gram.tokens, gram.mass)
    alone = clipped(weight[:, 128:256].contiguous(), grid, narrow)
    assert torch.equal(clipped(weight, grid, gram).scales[:, 1:2], alone.scales)
