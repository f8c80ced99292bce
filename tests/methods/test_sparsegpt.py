"""SparseGPT against the algorithm as the paper states it: an explicit inverse, and one column
after the other, in NumPy and float64.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram, Seen
from calibrant.errors import NumericsError
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.spec import canonical
from calibrant.targets import NofM, Sparsity, Target

from tests.methods.matrices import features, seen_of

PLAIN = SparseGPT()
TARGETS = [Sparsity(0.5), Sparsity(0.29), NofM(2, 4), NofM(3, 5), NofM(1, 160)]


def column_by_column(
    weight: Tensor, x: Tensor, target: Target, damp: float = 0.01, block: int = 128
) -> np.ndarray[Any, Any]:
    w, inputs = weight.double().numpy().copy(), x.double().numpy()
    rows, columns = w.shape
    hessian = inputs.T @ inputs / len(inputs)
    dead = hessian.diagonal() == 0
    damping = damp * hessian.diagonal()[~dead].mean()
    hessian[dead, dead] = 1
    upper = np.linalg.cholesky(np.linalg.inv(hessian + damping * np.eye(columns))).T

    def scores(start: int, stop: int) -> np.ndarray[Any, Any]:
        return np.where(dead[start:stop], 0, (w[:, start:stop] / upper.diagonal()[start:stop]) ** 2)

    def first(of: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
        chosen = np.zeros(of.size, bool)
        chosen[np.argsort(of.ravel(), kind="stable")[:count]] = True
        return chosen.reshape(of.shape)

    gone = np.zeros(w.shape, bool)
    for i in range(columns):
        if isinstance(target, NofM) and i % target.m == 0:
            for r in range(rows):
                gone[r, i : i + target.m] = first(scores(i, i + target.m)[r], target.m - target.n)
        elif isinstance(target, Sparsity) and i % block == 0:
            stop = min(i + block, columns)
            share = [math.floor(round(rows * c * target.fraction, 6)) for c in (i, stop)]
            gone[:, i:stop] = first(scores(i, stop), share[1] - share[0])
        error = np.where(gone[:, i], w[:, i] / upper[i, i], 0)
        w[:, i] = np.where(gone[:, i], 0, w[:, i])
        w[:, i + 1 :] -= np.outer(error, upper[i, i + 1 :])
    return w


def pruned(weight: Tensor, x: Tensor, target: Target, method: SparseGPT = PLAIN) -> Tensor:
    return method.compress(weight, seen_of(x), target).weight


def agreement(result: Tensor, expected: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Share of the mask that agrees, and the relative distance of the weights."""
    reference = torch.from_numpy(expected)
    return float(((result != 0) == (reference != 0)).double().mean()), float(
        (result.double() - reference).norm() / reference.norm()
    )


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("block", [128, 48, 1, 1000])
def test_float64_agrees_with_the_paper_column_by_column(target: Target, block: int):
    weight, x = torch.randn(48, 320, dtype=torch.float64), features(800, 320)
    mask, distance = agreement(
        pruned(weight, x, target, SparseGPT(block=block)),
        column_by_column(weight, x, target, block=block),
    )
    assert mask >= 0.9999
    assert distance <= 1e-4


@pytest.mark.parametrize("target", [Sparsity(0.5), NofM(2, 4)], ids=str)
def test_float32_agrees_with_the_paper_column_by_column(target: Target):
    weight, x = torch.randn(160, 320), features(800, 320, torch.float32)
    mask, distance = agreement(pruned(weight, x, target), column_by_column(weight, x, target))
    assert mask >= 0.9999
    assert distance <= 2e-3  # one flipped weight is worth about 1e-3 here


@pytest.mark.parametrize("target", [Sparsity(0.5), NofM(3, 4)], ids=str)
def test_fewer_tokens_than_inputs_and_inputs_that_were_always_zero_agree_too(target: Target):
    weight, few, silent = (
        torch.randn(32, 160, dtype=torch.float64),
        features(40, 160),
        features(400, 160),
    )
    silent[:, ::2] = 0
    for x in (few, silent):
        mask, distance = agreement(pruned(weight, x, target), column_by_column(weight, x, target))
        assert mask >= 0.9999
        assert distance <= 1e-4


def noted(gram: Gram, damp: float = 0.01) -> dict[str, Any]:
    return dict(
        SparseGPT(damp=damp)
        .compress(torch.randn(4, gram.matrix.shape[0]), Seen({Gram: gram}), Sparsity(0.5))
        .notes
    )


def test_an_ordinary_gram_is_factored_as_it_is_and_one_that_rounding_spoils_in_float64():
    x = features(200, 32, torch.float32)
    x[:, 3] = 0
    assert noted(Gram.of(x)) == {"damp": 0.01, "precision": "float32", "dead_inputs": 1}
    # Whole numbers: the Gram is exact, of rank 20, and only the rounding of a float32 factorisation
    # makes it indefinite.
    whole = torch.randint(-3, 4, (20, 64)).float()
    assert noted(Gram.of(whole), damp=1e-8) == {
        "damp": 1e-8,
        "precision": "float64",
        "dead_inputs": 0,
    }


@pytest.mark.parametrize(
    ("overlap", "damp", "dtype"),
    [(1.05, 0.1, torch.float32), (1.5, 1.0, torch.float64), (6.0, 10.0, torch.float32)],
)
def test_the_ladder_then_damps_more(overlap: float, damp: float, dtype: torch.dtype):
    gram = Gram(torch.tensor([[1.0, overlap], [overlap, 1.0]], dtype=dtype), tokens=1, mass=1.0)
    assert noted(gram) == {"damp": damp, "precision": "float64", "dead_inputs": 0}


def test_where_the_ladder_ends_and_where_a_result_is_too_large_for_its_type_it_is_refused():
    beyond = Gram(torch.tensor([[1.0, 20.0], [20.0, 1.0]]), tokens=1, mass=1.0)
    with pytest.raises(NumericsError, match="damp=10"):
        noted(beyond)
    with pytest.raises(NumericsError) as refused:
        pruned(torch.full((4, 8), 6e4).half(), torch.ones(20, 8), Sparsity(0.5))
    assert refused.value.subject == "the corrected weight"


def in_order_of_loss(weight: Tensor, x: Tensor, target: Target, block: int) -> list[int]:
    """ROSE, one column at a time: what each block removes by Wanda's scores, blocks and their
    columns by falling loss.
    """
    lengths = x.double().square().sum(0).sqrt()
    scores = (weight.double().abs() * lengths).numpy()
    width = target.m if isinstance(target, NofM) else block
    blocks = [
        list(range(start, min(start + width, scores.shape[1])))
        for start in range(0, scores.shape[1], width)
    ]
    losses, before = dict[int, float](), 0
    for columns in blocks:
        here = scores[:, columns]
        gone = np.zeros(here.shape, bool)
        if isinstance(target, NofM):
            for row in range(len(here)):
                gone[row, np.argsort(here[row], kind="stable")[: target.m - target.n]] = True
        else:
            until = math.floor(round(len(scores) * (columns[-1] + 1) * target.fraction, 6))  # pyright: ignore[reportAttributeAccessIssue]
            gone.ravel()[np.argsort(here.ravel(), kind="stable")[: until - before]] = True
            before = until
        losses |= dict(zip(columns, np.where(gone, here, 0).sum(0), strict=True))
    totals = [sum(losses[c] for c in columns) for columns in blocks]
    if max(totals) - min(totals) <= 0.5 * max(totals):
        return list(range(scores.shape[1]))
    inside = [
        columns if isinstance(target, NofM) else sorted(columns, key=lambda c: -losses[c])
        for columns in blocks
    ]
    return [
        c
        for _, columns in sorted(zip(totals, inside, strict=True), key=lambda pair: -pair[0])
        for c in columns
    ]


@pytest.mark.parametrize("target", [Sparsity(0.5), Sparsity(0.8), NofM(2, 4), NofM(4, 8)], ids=str)
@pytest.mark.parametrize("block", [128, 48])
def test_in_order_of_loss_it_is_the_algorithm_on_permuted_columns(target: Target, block: int):
    weight, x = (
        torch.randn(24, 296, dtype=torch.float64),
        features(600, 296) * torch.linspace(0, 1, 296, dtype=torch.float64).pow(6).add(0.05),
    )
    order = in_order_of_loss(weight, x, target, block)
    assert order != list(range(296))
    expected = np.empty((24, 296))
    expected[:, order] = column_by_column(weight[:, order], x[:, order], target, block=block)
    mask, distance = agreement(
        pruned(weight, x, target, SparseGPT(block=block, order="loss")), expected
    )
    assert mask >= 0.9999
    assert distance <= 1e-4


def test_where_blocks_lose_alike_the_order_stays():
    weight, x = (
        torch.randn(64, 256, dtype=torch.float64),
        torch.randn(400, 256, dtype=torch.float64),
    )
    seen = seen_of(x)
    natural, ordered = (
        SparseGPT(order=order).compress(weight, seen, Sparsity(0.5))
        for order in ("natural", "loss")
    )
    assert torch.equal(natural.weight, ordered.weight)
    assert ordered.notes == {**natural.notes, "reordered": False}


def test_the_identity_of_what_was_released_is_what_it_was():
    assert canonical(SparseGPT()) == {
        "spec": "sparsegpt",
        "revision": SparseGPT.revision,
        "damp": 0.01,
        "block": 128,
    }
    assert canonical(SparseGPT(order="loss"))["order"] == "loss"
