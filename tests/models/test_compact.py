"""A tensor without its zeros is the same again, bit for bit; the layouts are read here a second
time, number by number.
"""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from calibrant.models.compact import Compact, digest, pack_bits, same, unpack_bits

from tests.models.slowly import numbers_of

TYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int64,
    torch.bool,
)


def read_slowly(compact: Compact) -> list[Any]:
    return numbers_of(
        compact.facts(), {name: part.flatten().tolist() for name, part in compact.parts.items()}
    )


def with_zeros(shape: tuple[int, ...], dtype: torch.dtype, share: float, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    numbers = (
        torch.randint(-100, 100, shape)
        if not dtype.is_floating_point
        else torch.randn(shape, dtype=torch.float64)
    )
    return (numbers * (torch.rand(shape) >= share)).to(dtype)


@given(
    some.lists(some.integers(0, 17), max_size=3).map(tuple),
    some.sampled_from(TYPES),
    some.sampled_from([0.0, 0.3, 0.5, 0.8, 0.97, 1.0]),
    some.integers(0, 2**30),
)
def test_any_tensor_comes_back(
    shape: tuple[int, ...], dtype: torch.dtype, share: float, seed: int
) -> None:
    tensor = with_zeros(shape, dtype, share, seed)
    compact = Compact.of(tensor)
    again = Compact.read(compact.facts(), compact.parts)
    assert same(again.whole(), tensor)
    assert read_slowly(again) == tensor.flatten().tolist()
    assert compact.size <= tensor.nbytes, "no tensor is larger than it was"


@given(some.sampled_from([4, 8, 16]), some.data())
def test_n_of_m_is_found_and_comes_back(group: int, data: Any) -> None:
    keep, rows = data.draw(some.integers(1, group - 1)), data.draw(some.integers(1, 5))
    tensor = torch.randn(rows, 2 * group).to(torch.bfloat16)
    order = torch.rand(rows, 2, group).argsort(dim=2)
    tensor.view(rows, 2, group).masked_fill_(order >= keep, 0)
    compact = Compact.of(tensor)
    assert same(compact.whole(), tensor)
    assert read_slowly(compact) == tensor.flatten().tolist()
    assert compact.size <= rows * 2 * keep * 2 + -(-rows * 2 * keep * (group.bit_length() - 1) // 8)
    if (group, keep) in ((4, 1), (4, 2), (8, 1), (16, 1), (16, 3)):
        assert (compact.layout, compact.keep, compact.group) == ("n_of_m", keep, group)


def test_zeros_that_are_negative_and_what_is_no_number_stay() -> None:
    tensor = torch.tensor([[0.0, -0.0, float("nan"), float("-inf")] * 4] * 4)
    compact = Compact.of(tensor)
    assert same(compact.whole(), tensor)
    assert not same(compact.whole(), tensor.abs())
    assert digest(tensor) != digest(tensor.abs())


def test_more_numbers_than_are_packed_at_a_time() -> None:
    numbers = torch.randint(0, 8, (2**19 + 3,), dtype=torch.uint8)
    assert torch.equal(unpack_bits(pack_bits(numbers, 3), 3, len(numbers)), numbers)
    tensor = torch.randn(2**18 + 1, 4).to(torch.bfloat16)
    tensor[:, 0] = tensor[:, 2] = 0
    assert Compact.of(tensor).layout == "n_of_m"
    assert same(Compact.of(tensor).whole(), tensor)


SOUND = Compact.of(torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.5, 0.0, 0.0, 3.0]]))
SCATTERED = Compact.of(torch.tensor([0.0] * 60 + [1.0] * 3 + [0.0] * 5).reshape(4, 17))


@pytest.mark.parametrize(
    ("compact", "facts", "value"),
    [
        (SOUND, {"shape": [2, 5]}, "(5,)"),
        (SOUND, {"keep": True}, "[0, True, 4]"),
        (SCATTERED, {"bits": torch.full((9,), 255, dtype=torch.uint8)}, "more bits"),
        (SCATTERED, {"bits": torch.zeros(8, dtype=torch.uint8)}, "8 where 9"),
    ],
)
def test_facts_and_parts_that_do_not_fit_are_named(
    compact: Compact, facts: dict[str, Any], value: str
) -> None:
    parts = {name: part for name, part in facts.items() if isinstance(part, torch.Tensor)}
    others = {name: fact for name, fact in facts.items() if name not in parts}
    with pytest.raises(ValueError, match=re.escape(value)):
        Compact.read({**compact.facts(), **others}, {**compact.parts, **parts}).whole()
