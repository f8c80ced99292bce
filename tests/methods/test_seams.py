"""Quantizers of others, with targets of their own, and block dropping fit the nouns that pruning uses."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from calibrant.activations import BlockChange, Seen
from calibrant.errors import TargetError
from calibrant.methods import Compressed, MatrixMethod
from calibrant.methods.magnitude import Magnitude
from calibrant.methods.short_gpt import influence
from calibrant.methods.sparsegpt import SparseGPT
from calibrant.spec import identity, qualified
from calibrant.targets import Target
from calibrant.testing.methods import check_method

from tests.methods.matrices import seen_of


@dataclass(frozen=True)
class Bits(Target):
    width: int

    @classmethod
    def read(cls, given: str | float | int) -> "Bits | None":
        return None

    def __str__(self) -> str:
        return f"bits({self.width})"


@dataclass(frozen=True, repr=False)
class RoundToNearest(MatrixMethod):
    """Symmetric, one step for each output row."""

    accepts: ClassVar[tuple[type[Target], ...]] = (Bits,)

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        assert isinstance(target, Bits)
        largest = 2 ** (target.width - 1) - 1
        step = weight.abs().amax(dim=1, keepdim=True) / largest
        return Compressed((weight / step).round().clamp(-largest, largest) * step, {"bits": target.width})


def test_a_quantizer_keeps_the_contract_of_a_method_and_does_what_its_target_says(plugged: Callable[..., None]):
    plugged({"calibrant.methods": {"round_to_nearest": qualified(RoundToNearest)}})
    check_method(RoundToNearest(), targets=[Bits(4), Bits(8)])
    weight = torch.randn(6, 64)
    result = RoundToNearest().compress(weight, Seen({}), Bits(3))
    assert all(len(row.unique()) <= 7 for row in result.weight)
    assert result.notes == {"bits": 3}


def test_bits_are_part_of_an_identity_and_a_pruner_refuses_them():
    assert identity({"target": Bits(4)}) != identity({"target": Bits(8)})
    assert identity({"method": RoundToNearest()}) == identity({"method": RoundToNearest()})
    seen = seen_of(torch.randn(20, 8))
    for method in (Magnitude(), SparseGPT()):
        for refuses in (lambda method=method: method.check(Bits(4)), lambda method=method: method.compress(torch.randn(4, 8), seen, Bits(4))):
            with pytest.raises(TargetError) as refused:
                refuses()
            assert refused.value.subject == "bits(4)"


def turned(degrees: float, tokens: int = 10) -> Seen:
    """What a block did that turned each of its inputs by so much."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    before = torch.zeros(tokens, 4, dtype=torch.float64)
    before[:, 0] = torch.arange(1, tokens + 1)
    after = torch.zeros_like(before)
    after[:, 0], after[:, 1] = before[:, 0] * angle.cos(), before[:, 0] * angle.sin()
    return Seen({BlockChange: BlockChange.of(before, after)})


def test_the_influence_of_a_block_is_how_far_it_turns_its_input_and_adds_up_like_every_statistic():
    angles = (40, 3, 90, 10, 2)
    scores = [influence(turned(angle, tokens=400 if angle == 2 else 10)) for angle in angles]
    assert scores == pytest.approx([1 - math.cos(math.radians(angle)) for angle in angles])
    both = turned(40) + turned(90)
    assert both[BlockChange].total == pytest.approx(10 * (1 - 0.7660444431) + 10)
    assert both.tokens == 20
