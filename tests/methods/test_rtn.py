"""Round to nearest against an obvious rounding in exact arithmetic, one weight at a time."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from calibrant.activations import Seen
from calibrant.errors import NumericsError
from calibrant.methods.quantization.rtn import RoundToNearest
from calibrant.packed import Codes
from calibrant.targets import Grid, parse_target

from tests.methods.matrices import seeded

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GRIDS = ["w2", "w3g8", "w4g16", "w5g4", "w8g16", "w8", "w2g4a", "w4g16a", "w4a", "w8g8a"]


def rounded(weight: Tensor, text: str) -> Codes:
    """What the method gives, by its packed form."""
    found = RoundToNearest().compress(weight, Seen({}), parse_target(text))
    assert isinstance(found.packed, Codes)
    assert found.packed.dense().dtype == found.weight.dtype == weight.dtype
    assert torch.equal(found.packed.dense(), found.weight)
    return found.packed


def nearest(number: Fraction, low: int, high: int) -> set[int]:
    """The nearest whole number within bounds; half way between two, as far as the arithmetic can
    tell, either.
    """
    below = number.numerator // number.denominator
    rest = number - below
    near = (
        {below, below + 1}
        if abs(rest - Fraction(1, 2)) < Fraction(1, 10**5)
        else {below + (rest > Fraction(1, 2))}
    )
    return {min(max(one, low), high) for one in near}


def as_stored(number: Fraction, dtype: torch.dtype) -> float:
    """A scale as the type can hold it; where it is zero, the type's epsilon."""
    return (
        torch.tensor(float(number), dtype=torch.float64).to(dtype).item() or torch.finfo(dtype).eps
    )


def groups_of(weight: Tensor, text: str) -> list[tuple[int, int, list[Fraction]]]:
    """Row, number and weights of each group, read from the target's text."""
    width = int(text.removesuffix("a").partition("g")[2] or weight.shape[1])
    rows = [[Fraction(w) for w in row] for row in weight.tolist()]
    return [
        (r, at // width, row[at : at + width])
        for r, row in enumerate(rows)
        for at in range(0, len(row), width)
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", GRIDS)
def test_scales_zero_points_codes_and_values_are_those_of_exact_arithmetic(
    text: str, dtype: torch.dtype
):
    """The definition (compressed-tensors), one group at a time; zero points and codes against
    the scale that is stored.
    """
    weight, symmetric, bits = seeded(7, 48, dtype), not text.endswith("a"), int(text[1])
    found, low, high = rounded(weight, text), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    dense = found.dense()
    assert (found.zeros is None) == symmetric
    for r, g, members in groups_of(weight, text):
        least, most = min(*members, Fraction(0)), max(*members, Fraction(0))
        raw = (
            max(-least, most) / (Fraction(high - low) / 2)
            if symmetric
            else (most - least) / (high - low)
        )
        assert found.scales[r, g].item() == pytest.approx(
            as_stored(raw, dtype), rel=2 * torch.finfo(dtype).eps
        )
        scale = Fraction(found.scales[r, g].item())
        zero = 0 if found.zeros is None else int(found.zeros[r, g])
        assert symmetric or zero in nearest(low - least / scale, low, high)
        for at, w in enumerate(members, g * len(members)):
            code = int(found.codes[r, at])
            assert code in nearest(w / scale + zero, low, high)
            # The float64 nearest to the product is the product itself where the type is narrower,
            # so the type's own rounding is the only one.
            assert (
                dense[r, at].item()
                == torch.tensor(float((code - zero) * scale), dtype=torch.float64).to(dtype).item()
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", ["w4g8", "w4g8a", "w8", "w2a"])
def test_zero_stays_zero(text: str, dtype: torch.dtype):
    weight = seeded(6, 16, dtype)
    weight[0], weight[1, :8], weight[2, ::2] = 0, 0, 0
    weight[3] = torch.finfo(dtype).tiny / 1024 if dtype != torch.float64 else 0
    dense = rounded(weight, text).dense()
    assert (dense[weight == 0] == 0).all()
    assert dense.isfinite().all()


@pytest.mark.parametrize(
    ("text", "dtype", "bits"),
    [
        ("w4g64", torch.bfloat16, 4.25),
        ("w4g64", torch.float32, 4.5),
        ("w4g64a", torch.float16, 4 + (16 + 4) / 64),
        ("w8", torch.bfloat16, 8 + 16 / 128),
        ("w3g32", torch.bfloat16, 3.5),
    ],
)
def test_scales_and_zero_points_count_as_bits(text: str, dtype: torch.dtype, bits: float):
    facts = rounded(seeded(6, 128, dtype), text).facts()
    assert facts == {"bits_a_weight": float(f"{bits:.6g}"), "bytes": math.ceil(6 * 128 * bits / 8)}


def test_a_reach_that_the_type_cannot_hold_is_refused():
    with pytest.raises(NumericsError) as refused:
        RoundToNearest().compress(
            torch.tensor([[3e38, -3e38]]), Seen({}), Grid(4, None, symmetric=False)
        )
    assert refused.value.subject == "the scale of a group"
