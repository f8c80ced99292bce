"""Selection against an obvious sort of (score, index) pairs."""

import math
from decimal import Decimal
from itertools import product

import pytest
import torch
from torch import Tensor

from calibrant.errors import NumericsError, TargetError
from calibrant.targets import NofM, Sparsity, Target, keep_highest, parse_target

SHAPES = [(1, 1), (1, 24), (24, 7), (5, 48)]


def tied(shape: tuple[int, int], values: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scores of few different values, so that nearly every threshold falls on ties."""
    numbers = [
        (r * 31 + c * 17 + r * c * 5) % values for r in range(shape[0]) for c in range(shape[1])
    ]
    return torch.tensor(numbers, dtype=dtype).reshape(shape)


def lowest(scores: list[float], count: int) -> set[int]:
    return {
        index for _, index in sorted((score, index) for index, score in enumerate(scores))[:count]
    }


def by_sorting(scores: Tensor, target: Target, group: str) -> Tensor:
    kept = torch.ones(scores.shape, dtype=torch.bool)
    rows, columns = scores.shape
    if isinstance(target, NofM):
        for r in range(rows):
            for start in range(0, columns, target.m):
                for c in lowest(scores[r, start : start + target.m].tolist(), target.m - target.n):
                    kept[r, start + c] = False
    elif isinstance(target, Sparsity) and group == "row":
        for r in range(rows):
            for c in lowest(
                scores[r].tolist(), math.floor(columns * Decimal(str(target.fraction)))
            ):
                kept[r, c] = False
    elif isinstance(target, Sparsity):
        for i in lowest(
            scores.flatten().tolist(), math.floor(rows * columns * Decimal(str(target.fraction)))
        ):
            kept[i // columns, i % columns] = False
    return kept


@pytest.mark.parametrize("group", ["row", "matrix"])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.29, 0.5, 0.999])
def test_sparsity_equals_sorting(fraction: float, group: str):
    for shape, values in product(SHAPES, (1, 5, 10007)):
        scores = tied(shape, values)
        assert torch.equal(
            Sparsity(fraction).keep(scores, group), by_sorting(scores, Sparsity(fraction), group)
        )  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (7, 8), (3, 12), (23, 24), (1, 3)])
@pytest.mark.parametrize("values", [1, 2, 5, 10007])
@pytest.mark.parametrize("group", ["row", "matrix"])
def test_patterns_equal_sorting(n: int, m: int, values: int, group: str):
    scores = tied((6, 48), values)
    kept = NofM(n, m).keep(scores, group)  # pyright: ignore[reportArgumentType]
    assert torch.equal(kept, by_sorting(scores, NofM(n, m), group))
    assert (kept.reshape(6, -1, m).sum(-1) == n).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [Sparsity(0.4), NofM(2, 4), NofM(5, 24)])
def test_every_floating_type_gives_the_same_mask(target: Target, dtype: torch.dtype):
    assert torch.equal(
        target.keep(tied((9, 48), 7, dtype), "row"), target.keep(tied((9, 48), 7), "row")
    )


def test_infinite_scores_stay_longest():
    scores = torch.tensor([[math.inf, 1.0, math.inf, -math.inf]])
    assert keep_highest(scores, 2).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(
    ("fraction", "count", "gone"),
    [
        (0.29, 100, 29),
        (0.1, 10, 1),
        (0.7, 10, 7),
        (0.5, 7, 3),
        (0.57, 100, 57),
        (1e-05, 100000, 1),
        (0.0, 9, 0),
    ],
)
def test_quotas_are_those_of_the_decimal_as_written(fraction: float, count: int, gone: int):
    assert Sparsity(fraction).quota(count) == gone


def test_targets_are_values():
    assert parse_target("0.50") == parse_target(0.5) == Sparsity(0.5)
    assert parse_target(" 2:4 ") == parse_target("2 : 4") == NofM(2, 4)
    assert parse_target("0") == Sparsity(-0.0)
    assert {Sparsity(0.5), parse_target("0.5"), NofM(2, 4), NofM(2, 4)} == {
        Sparsity(0.5),
        NofM(2, 4),
    }
    for text in ("0.0", "0.5", "0.29", "1e-05", "2:4", "1:128"):
        assert str(parse_target(text)) == text


OUT_OF_RANGE = [
    1,
    1.0,
    1.2,
    -0.1,
    "1.2",
    "-0.1",
    "nan",
    "inf",
    float("nan"),
    True,
    "101",
    50,
    "50",
    62.5,
]


@pytest.mark.parametrize("given", OUT_OF_RANGE)
def test_a_sparsity_out_of_range_is_refused(given: str | float):
    with pytest.raises(TargetError) as caught:
        parse_target(given)
    assert caught.value.subject == str(float(given) if isinstance(given, str) else given)


def test_a_number_that_may_be_meant_in_bits_is_answered_with_a_grid():
    for given in (4, "4", 4.0):
        with pytest.raises(TargetError, match=r"such as 2:4; 4 bits are written w4g64$"):
            parse_target(given)
    for given in (1, 4.5, True, "9"):
        with pytest.raises(TargetError) as caught:
            parse_target(given)
        assert "bits" not in str(caught.value)


NO_PATTERNS = ["5:4", "4:4", "0:4", "0:0"]
NO_TARGETS = ["abc", "", "2:", ":4", "2:4:8", "-1:4", "1.5:4", "half"]


@pytest.mark.parametrize("given", [*NO_PATTERNS, *NO_TARGETS])
def test_what_is_no_target_is_refused(given: str):
    with pytest.raises(TargetError) as caught:
        parse_target(given)
    assert caught.value.subject == given


def test_a_pattern_that_does_not_fit_names_the_matrix():
    with pytest.raises(TargetError) as caught:
        NofM(2, 4).check((8, 30), "layers.0.up")
    assert caught.value.subject == "layers.0.up"
    with pytest.raises(TargetError, match="30"):
        NofM(2, 4).keep(torch.rand(8, 30))
    NofM(2, 4).check((8, 32), "layers.0.up")
    Sparsity(0.5).check((8, 30), "layers.0.up")


@pytest.mark.parametrize("target", [Sparsity(0.5), Sparsity(0.0), NofM(2, 4), NofM(8, 16)])
def test_scores_that_are_not_numbers_are_refused(target: Target):
    scores = torch.ones(2, 16)
    scores[1, 3] = math.nan
    with pytest.raises(NumericsError, match="1 of 32"):
        target.keep(scores)
