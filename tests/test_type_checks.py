"""What stands for jaxtyping's decorator refuses what jaxtyping refuses, with its error."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tests.type_checks import checked

typed = checked(typechecker=beartype)


@typed
def doubled(number: int) -> int:
    return 2 * number


@typed
def as_text(number: int) -> str:
    given: Any = number
    return given


@typed
def product(left: Float[Tensor, "row inner"], right: Float[Tensor, "inner column"]) -> Tensor:
    return left @ right


@typed
@dataclass(frozen=True)
class Pair:
    first: int
    second: Float[Tensor, "row"]


def test_types_are_checked_without_shapes():
    assert doubled(2) == 4
    given: Any = "2"
    with pytest.raises(TypeCheckError):
        doubled(given)
    with pytest.raises(TypeCheckError):
        as_text(2)


def test_shapes_are_checked_where_they_stand():
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(TypeCheckError):
        product(torch.ones(2, 3), torch.ones(4, 3))


def test_fields_are_checked():
    assert Pair(1, torch.ones(2)).first == 1
    given: Any = "1"
    with pytest.raises(TypeCheckError):
        Pair(given, torch.ones(2))
    with pytest.raises(TypeCheckError):
        Pair(1, torch.ones(2, 2))
