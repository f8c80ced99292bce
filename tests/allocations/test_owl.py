"""OWL: shares by outliers, as the paper's formula gives them, and counts that add up to the
weight.
"""

import math
from pathlib import Path

import numpy as np
import pytest

from calibrant.activations import FeatureNorms, Seen
from calibrant.allocations.owl import OWL
from calibrant.compress import prune
from calibrant.models import Weight
from calibrant.targets import NofM, Sparsity, Target
from calibrant.testing import tiny_folder

from tests.allocations.seen import matrices, size
from tests.usual import usually

SMALL = {"samples": 4, "length": 16, "dtype": "float32"}


def literal(
    of: dict[Weight, Seen], sparsity: float, times: float, spread: float
) -> dict[int, float]:
    """The sparsity of each block by the paper's formula, with loops, in float64; blocks of equal
    size.
    """
    shares: dict[int, float] = {}
    for block in sorted({weight.block for weight in of}):
        scores: list[float] = []
        for weight, seen in of.items():
            if weight.block == block:
                norms = np.sqrt(seen[FeatureNorms].norms().double().numpy())
                scores += (np.abs(weight.get().double().numpy()) * norms[None]).ravel().tolist()
        mean = sum(scores) / len(scores)
        shares[block] = 100 * sum(score > times * mean for score in scores) / len(scores)
    low, high = min(shares.values()), max(shares.values())
    scaled = {block: (share - low) / (high - low) * 2 * spread for block, share in shares.items()}
    middle = sum(scaled.values()) / len(scaled)
    return {block: 1 - (share - middle + (1 - sparsity)) for block, share in scaled.items()}


def gone(shared: dict[str, Target], of: dict[Weight, Seen]) -> tuple[int, int]:
    """How many weights go where a method chooses within the matrix, and within each row."""
    targets = [(weight, Sparsity(float(shared[weight.name].amount or 0))) for weight in of]
    within_rows = sum(weight.shape[0] * target.quota(weight.shape[1]) for weight, target in targets)
    return sum(target.quota(size(weight)) for weight, target in targets), within_rows


@pytest.mark.parametrize(("times", "spread"), [(5.0, 0.08), (3.0, 0.15), (2.0, 0.01)])
def test_shares_are_those_of_the_formula(times: float, spread: float):
    of = matrices()
    shared = OWL(times, spread).share(of, Sparsity(0.6))
    expected = literal(of, 0.6, times, spread)
    assert len({round(share, 4) for share in expected.values()}) == 3
    for weight in of:
        target = shared[weight.name]
        assert isinstance(target, Sparsity)
        # A whole number of weights of each row, rounded down or up; one matrix takes what is left.
        assert abs(target.fraction - expected[weight.block]) < 1.001 / weight.shape[1]


@pytest.mark.parametrize(
    "family", usually(["llama", "gpt2", "mixtral", "gemma3"], {"llama", "mixtral"})
)
@pytest.mark.parametrize("sparsity", [0.6, 0.333])
def test_counts_add_up_to_the_weight(family: str, sparsity: float):
    of, target = matrices(family), Sparsity(sparsity)
    shared = OWL(times=3.0, spread=0.05).share(of, target)
    asked = target.quota(sum(map(size, of)))
    within_matrix, within_rows = gone(dict(shared), of)
    assert within_matrix == asked
    assert 0 <= asked - within_rows < min(weight.shape[0] for weight in of)


@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_a_pruned_model_has_as_many_zeros_as_were_asked(method: str, tmp_path: Path):
    record = prune(
        str(tiny_folder(tmp_path / "model")),
        data="python_docs",
        method=method,
        target=0.65,
        allocation="owl(times=3.0)",
        **SMALL,
    ).record
    total = sum(math.prod(matrix["shape"]) for matrix in record.weights)
    zeros, asked = sum(matrix["zeros"] for matrix in record.weights), Sparsity(0.65).quota(total)
    assert asked - zeros in (range(16) if method == "wanda" else [0])
    assert len({round(matrix["sparsity"], 2) for matrix in record.weights}) > 1
    assert record.run.allocation == {"spec": "owl", "revision": 1, "times": 3.0, "spread": 0.08}


def test_without_spread_or_differences_every_matrix_gets_the_request():
    of, target = matrices(), Sparsity(0.7)
    assert OWL(spread=0.0).share(of, target) == {weight.name: target for weight in of}
    assert OWL(times=1e9).share(of, target) == {weight.name: target for weight in of}
    assert OWL().share({weight: Seen({}) for weight in of}, target) == {
        weight.name: target for weight in of
    }


def test_a_block_that_no_token_reached_gets_the_mean():
    of = {weight: Seen({}) if weight.block == 1 else seen for weight, seen in matrices().items()}
    shared = OWL().share(of, Sparsity(0.6))
    assert gone(dict(shared), of)[0] == Sparsity(0.6).quota(sum(map(size, of)))
    for weight in of:
        if weight.block == 1:
            assert abs(float(shared[weight.name].amount or 0) - 0.6) < 1.001 / weight.shape[1]


@pytest.mark.parametrize("target", [NofM(4, 8), NofM(2, 4)])
def test_n_of_m_differs_by_block_and_has_the_same_mean(target: NofM):
    of = matrices()
    shared = OWL(times=3.0, spread=0.3).share(of, target)
    kept = {weight.block: shared[weight.name] for weight in of}
    assert all(isinstance(one, NofM) and one.m == target.m for one in kept.values())
    assert sum(one.n for one in kept.values() if isinstance(one, NofM)) == target.n * len(kept)
    assert len(set(kept.values())) > 1
    expected = literal(of, float(target.amount), 3.0, 0.3)
    assert sorted(kept, key=lambda block: (kept[block].amount, expected[block])) == sorted(
        expected, key=expected.__getitem__
    )
