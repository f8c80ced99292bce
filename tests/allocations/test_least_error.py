"""The share with the least sum of errors: against every other one, on models small enough to try
them all.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.activations import Gram, Seen
from calibrant.allocations import allocations
from calibrant.allocations._sharing import cheapest
from calibrant.allocations.least_error import LeastError
from calibrant.compress import prune, quantize
from calibrant.errors import TargetError
from calibrant.models import Weight
from calibrant.targets import Grid, NofM, Sparsity, Target, parse_target
from calibrant.testing import tiny_folder
from calibrant.walk.statistics import SeenByMatrix

from tests.allocations.seen import matrices, size
from tests.usual import usually

ADVICE = "leave the allocation out"
SMALL = {"samples": 4, "length": 16, "dtype": "float32"}


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 2),
    st.integers(0, 2**32 - 1),
)
def test_the_search_finds_what_trying_everything_finds(sizes: list[int], reach: int, seed: int):
    steps = list(range(-reach, reach + 1))
    costs = np.random.default_rng(seed).integers(0, 50, (len(sizes), len(steps))).astype(float)
    allowed = [
        ways
        for ways in itertools.product(range(len(steps)), repeat=len(sizes))
        if sum(size * steps[choice] for size, choice in zip(sizes, ways, strict=True)) == 0
    ]

    def cost(ways: tuple[int, ...]) -> float:
        return sum(costs[part, choice] for part, choice in enumerate(ways))

    found = tuple(cheapest(costs, steps, sizes, ADVICE))
    assert found in allowed
    assert cost(found) == min(map(cost, allowed))


@pytest.mark.parametrize(
    ("spec", "target", "advised"),
    [
        ("least_error(per='matrix', reach=3)", "0.5", {"per=block", "reach"}),
        ("least_error(per='block', reach=1)", "0.5", {"leave the allocation out"}),
        ("owl", "4:8", {"smaller M", "leave the allocation out"}),
    ],
)
def test_of_a_search_that_would_take_too_long_it_is_advised_what_can_be_done(
    monkeypatch: pytest.MonkeyPatch, spec: str, target: str, advised: set[str]
):
    monkeypatch.setattr("calibrant.allocations._sharing.MOST_COMPARISONS", 0)
    with pytest.raises(TargetError) as refused:
        allocations.build(spec).share(matrices(), parse_target(target))
    known = ("per=block", "reach", "smaller M", "leave the allocation out")
    assert {way for way in known if way in str(refused.value)} == advised


def wanda_error(weight: Weight, seen: Seen, share: float, relative: bool) -> float:
    """The error of Wanda's result in float64, with a sort, from the Gram as it is."""
    matrix, gram = weight.get().double(), seen[Gram].matrix.double()
    removed = math.floor(matrix.shape[1] * share + 1e-9)
    order = (matrix.abs() * gram.diagonal().sqrt()).argsort(dim=1, stable=True)
    gone = matrix.gather(1, order[:, :removed])
    change = torch.zeros_like(matrix).scatter(1, order[:, :removed], gone)
    error = float(torch.einsum("oi,ij,oj->", change, gram, change))
    return error / (
        float(torch.einsum("oi,ij,oj->", matrix, gram, matrix)) if relative else seen[Gram].mass
    )


@pytest.mark.parametrize("errors", ["relative", "absolute"])
def test_shares_by_matrix_are_the_best_of_all(errors: str):
    of = matrices(blocks=1)
    shared = LeastError(step=0.125, reach=1, errors=errors).share(of, Sparsity(0.5))
    costs = {
        weight: [
            wanda_error(weight, seen, share, errors == "relative") for share in (0.375, 0.5, 0.625)
        ]
        for weight, seen in of.items()
    }
    every = [
        w
        for w in itertools.product((-1, 0, 1), repeat=len(of))
        if sum(size(m) * step for m, step in zip(of, w, strict=True)) == 0
    ]
    assert len(every) > 100
    best = min(
        every, key=lambda ways: sum(costs[m][step + 1] for m, step in zip(of, ways, strict=True))
    )
    assert any(best)
    assert [shared[m.name].amount for m in of] == [0.5 + 0.125 * step for step in best]


def test_shares_by_block_are_the_best_of_all():
    of = matrices()
    shared = LeastError(step=0.125, reach=2, per="block").share(of, Sparsity(0.5))
    every = [ways for ways in itertools.product(range(-2, 3), repeat=3) if sum(ways) == 0]
    costs = {
        (m, step): wanda_error(m, seen, 0.5 + 0.125 * step, True)
        for m, seen in of.items()
        for step in range(-2, 3)
    }
    best = min(every, key=lambda ways: sum(costs[m, ways[m.block]] for m in of))
    assert {m.name: shared[m.name].amount for m in of} == {
        m.name: 0.5 + 0.125 * best[m.block] for m in of
    }
    assert any(best)


SIZES = {"llama": {"intermediate_size": 96}}
"""Of which a share isn't always a number that is written in two-power steps: its decimal may lie
just below it.
"""


@pytest.mark.parametrize(
    "family", usually(["llama", "gpt2", "mixtral", "gemma3"], {"llama", "mixtral"})
)
@pytest.mark.parametrize(("per", "sparsity"), [("matrix", 0.5), ("block", 0.63)])
def test_counts_add_up_to_the_weight(family: str, per: str, sparsity: float):
    of, target = matrices(family, **SIZES.get(family, {})), Sparsity(sparsity)
    shared = LeastError(per=per, reach=2).share(of, target)
    counts = [
        one.quota(size(weight)) for weight in of if isinstance(one := shared[weight.name], Sparsity)
    ]
    assert len(counts) == len(of)
    assert len(set(shared.values())) > 1
    assert sum(counts) == target.quota(sum(map(size, of)))


@pytest.mark.parametrize("target", [Grid(4, 16), Grid(3, 8, False), NofM(2, 4), NofM(4, 8)])
def test_bits_and_patterns_have_the_mean_that_was_asked(target: Target):
    of = matrices()
    shared = LeastError().share(of, target)
    amounts = {weight: shared[weight.name].amount for weight in of}
    assert sum(
        size(weight) * float(amount or 0) for weight, amount in amounts.items()
    ) == pytest.approx(float(target.amount or 0) * sum(map(size, of)), rel=1e-12)
    assert len(set(amounts.values())) > 1
    same = {**vars(target), "bits": 0, "n": 0}
    assert all({**vars(one), "bits": 0, "n": 0} == same for one in shared.values())


def test_what_no_token_reached_gets_what_was_asked():
    of = {weight: Seen({}) if weight.block == 2 else seen for weight, seen in matrices().items()}
    shared = LeastError().share(of, Grid(4))
    assert {shared[weight.name] for weight in of if weight.block == 2} == {Grid(4)}
    assert LeastError().share({weight: Seen({}) for weight in of}, Sparsity(0.6)) == {
        weight.name: Sparsity(0.6) for weight in of
    }


def test_a_pruned_model_has_as_many_zeros_as_were_asked(tmp_path: Path):
    record = prune(
        str(tiny_folder(tmp_path / "model")),
        data="python_docs",
        method="sparsegpt",
        target=0.6,
        allocation="least_error",
        **SMALL,
    ).record
    total = sum(math.prod(matrix["shape"]) for matrix in record.weights)
    assert sum(matrix["zeros"] for matrix in record.weights) == Sparsity(0.6).quota(total)
    assert len({round(matrix["sparsity"], 3) for matrix in record.weights}) > 2
    assert record.run.allocation["method"] is None


def test_a_quantized_model_has_as_many_bits_as_were_asked(tmp_path: Path):
    done = quantize(
        str(tiny_folder(tmp_path / "model")),
        data="python_docs",
        method="gptq",
        target="w4g16",
        allocation="least_error(method=gptq)",
        **SMALL,
    )
    stored = [
        (math.prod(matrix["shape"]), matrix["bits_a_weight"]) for matrix in done.record.weights
    ]
    assert len({bits for _, bits in stored}) > 1
    assert sum(count * bits for count, bits in stored) / sum(
        count for count, _ in stored
    ) == pytest.approx(4 + 32 / 16, abs=1e-4)


def test_what_no_token_reached_comes_last_and_empty():
    of = matrices()
    first, *others = of
    whole = SeenByMatrix([*of], lambda: ((weight, of[weight]) for weight in others))
    items = list(whole.items())
    assert [weight for weight, _ in items] == [*others, first]
    assert len(items[-1][1]) == len(whole[first]) == 0
    assert whole[others[0]][Gram] is of[others[0]][Gram]
    assert (list(whole), len(whole)) == (list(of), len(of))
