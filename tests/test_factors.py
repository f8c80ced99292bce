"""Factors of matrices: what they stand for, that it doesn't depend on how it is added up, and
what they take.
"""

import json
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from calibrant.packed import Factors, exact_factor, from_stored, to_stored

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def factors(dtype: torch.dtype, rank: int = 40, spread: float = 6.0) -> tuple[Tensor, Tensor]:
    """Two factors whose numbers lie many powers of ten apart, one with a row and one with a
    column of zeros.
    """
    torch.manual_seed(rank)
    sizes = torch.logspace(-spread, spread / 2, rank)
    left, right = (
        torch.randn(7, rank) * sizes,
        torch.randn(rank, 9) / sizes[:, None].clamp(1e-4, 1e2),
    )
    left[3], right[:, 5] = 0, 0
    return exact_factor(left, 1, rank, dtype), exact_factor(right, 0, rank, dtype)


def by_hand(left: Tensor, right: Tensor) -> list[list[Fraction]]:
    """The product in rational numbers."""
    rows = [[Fraction(x) for x in row] for row in left.double().tolist()]
    columns = [[Fraction(x) for x in column] for column in right.double().T.tolist()]
    return [
        [sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0)) for column in columns]
        for row in rows
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_exact_in_whatever_order(dtype: torch.dtype):
    left, right = factors(dtype)
    assert left.dtype == right.dtype == dtype
    wanted = by_hand(left, right)
    for seed in range(2):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        one_by_one = torch.zeros(7, 9, dtype=torch.float64)
        for k in order.tolist():
            one_by_one += torch.outer(left[:, k].double(), right[k].double())
        assert [[Fraction(x) for x in row] for row in one_by_one.tolist()] == wanted
    assert [
        [Fraction(x) for x in row] for row in (left.double() @ right.double()).tolist()
    ] == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_moves_a_number_by_little_beside_the_largest_of_its_row(dtype: torch.dtype):
    torch.manual_seed(0)
    numbers = torch.randn(6, 576, dtype=torch.float64) * torch.logspace(-4, 3, 576)
    found = exact_factor(numbers, 1, 576, dtype).double()
    rounded = numbers.to(dtype).double()
    assert bool(((found - rounded).abs() <= rounded.abs().amax(1, keepdim=True) * 2.0**-21).all())
    assert torch.equal(exact_factor(found, 1, 576, dtype).double(), found)


def test_zeros_stay_zeros_and_numbers_near_the_ends_of_their_type_stay_finite():
    sparse = torch.tensor([[0.0, 3.0, 0.0], [0.25, 0.0, 0.0]])
    for dtype in DTYPES:
        assert torch.equal(exact_factor(sparse, 0, 2, dtype) == 0, sparse == 0)
        ends = torch.tensor(
            [
                [torch.finfo(dtype).tiny, torch.finfo(dtype).max / 4],
                [torch.finfo(dtype).tiny, -torch.finfo(dtype).tiny],
            ],
            dtype=dtype,
        )
        assert bool(exact_factor(ends, 1, 2, dtype).isfinite().all())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_was_kept_is_the_same_again(dtype: torch.dtype, turned: bool):
    left, right = factors(dtype, spread=1.0)
    first = Factors("model.layers.0.mlp.up_proj", left, right, 6, turned)
    assert first.dense().dtype == dtype
    assert tuple(first.dense().shape) == ((9, 7) if turned else (7, 9))
    wanted = torch.tensor(
        [[float(x) for x in row] for row in by_hand(left, right)], dtype=torch.float64
    )
    wanted = wanted if dtype == torch.float64 else wanted.float().to(dtype)
    assert torch.equal(first.dense(), wanted.T if turned else wanted)
    facts, tensors = to_stored(first)
    assert (
        json.loads(json.dumps(facts))
        == facts
        == {
            "form": "factors",
            "shared": "model.layers.0.mlp.up_proj",
            "sharing": 6,
            "turned": turned,
        }
    )
    again = from_stored(facts, tensors)
    assert isinstance(again, Factors)
    assert torch.equal(again.dense(), first.dense())
    assert (again.weights, again.facts()) == (63, first.facts())


def test_a_record_counts_both_factors_and_where_numbers_are():
    own = torch.zeros(4, 8, dtype=torch.bfloat16)
    own[0] = 1
    shared = torch.ones(2, 4, dtype=torch.bfloat16)
    assert Factors("a", shared, own, 1, False).bits == 8 * 16 + 8 * 16 + 32
    assert Factors("a", shared, own, 3, False).bits == 43 + 8 * 16 + 32, (
        "a third of the shared numbers, rounded up"
    )
    assert Factors("a", shared, torch.ones_like(own), 2, False).bits == 4 * 16 + 32 * 16, (
        "a factor without zeros needs no indices"
    )
    assert Factors("a", shared, own, 1, False).facts() == {"bits_a_weight": 18.0, "bytes": 36}


@pytest.mark.parametrize(
    ("facts", "shapes"),
    [
        ({"shared": 3, "sharing": 2, "turned": False}, ((2, 3), (3, 4))),
        ({"shared": "a", "sharing": 0, "turned": False}, ((2, 3), (3, 4))),
        ({"shared": "a", "sharing": 2, "turned": "no"}, ((2, 3), (3, 4))),
        ({"shared": "a", "sharing": 2, "turned": False}, ((2, 3), (4, 3))),
        ({"sharing": 2, "turned": False}, ((2, 3), (3, 4))),
    ],
)
def test_what_is_no_pair_of_factors_is_refused(
    facts: dict[str, object], shapes: tuple[tuple[int, ...], tuple[int, ...]]
):
    shared, own = (torch.ones(shape) for shape in shapes)
    with pytest.raises((KeyError, ValueError)):
        from_stored({"form": "factors", **facts}, {"shared": shared, "own": own})
