"""The contract check finds what it is there to find."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen, Statistic
from calibrant.errors import CalibrantError
from calibrant.methods import Compressed, MatrixMethod, removal
from calibrant.methods.quantization.rtn import RoundToNearest
from calibrant.packed import Codes
from calibrant.spec import qualified
from calibrant.targets import Grid, Sparsity, Target
from calibrant.testing.methods import check_method

from tests.models.refused import refusal_of

HALF = [Sparsity(0.5)]


@dataclass(frozen=True, repr=False)
class Scripted(MatrixMethod):
    """Keeps the contract, unless told to break it in one way."""

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)

    breaks: str = ""

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        norms = seen[FeatureNorms].norms()
        divisor = norms / norms if self.breaks == "dead inputs" else torch.ones_like(norms)
        scores = (weight.double().abs() * norms.sqrt() * divisor).nan_to_num(0)
        keep = removal(target).keep(scores, "row")
        result = weight.masked_fill(~keep, 0) * (
            divisor.to(weight.dtype) if self.breaks == "dead inputs" else 1
        )
        broken = self._broken(result, weight, norms, keep)
        return Compressed(broken, only_removes=self.breaks == "removes")

    def _broken(self, result: Tensor, weight: Tensor, norms: Tensor, keep: Tensor) -> Tensor:
        match self.breaks:
            case "count":
                result[0, int(keep[0].nonzero()[0])] = 0
            case "weight":
                weight.mul_(2)
            case "statistics":
                norms.mul_(2)
            case "chance":
                result = result + torch.rand(()) * 1e-3 * keep
            case "type":
                result = result.double() if result.dtype == torch.float32 else result.float()
            case "shape":
                result = result.T
            case "updates" | "removes":
                result = result * 1.5
            case "rows":
                result = weight.masked_fill(~keep.roll(1, 0), 0)
            case "layout":
                result = result if weight.is_contiguous() else weight.masked_fill(keep, 0)
            case _:
                pass
        return result


def test_a_sound_method_passes(plugged: Callable[..., None]):
    plugged({"calibrant.methods": {"scripted": qualified(Scripted)}})
    check_method(Scripted())


@pytest.mark.parametrize(
    ("breaks", "value"),
    [
        ("count", "401"),
        ("weight", "the weight that was given"),
        ("statistics", "the statistics that were given"),
        ("chance", "the same arguments"),
        ("type", "torch.float64"),
        ("shape", "[160, 5]"),
        ("updates", "kept weights"),
        ("removes", "the result only removes"),
        ("dead inputs", "NaN"),
        ("layout", "transposed"),
    ],
)
def test_a_break_of_contract_is_named(breaks: str, value: str):
    said = refusal_of(check_method, Scripted(breaks=breaks), kind=CalibrantError, targets=HALF)
    assert said.subject == f"Scripted(breaks={breaks!r})"
    assert value in str(said)


@dataclass(frozen=True, repr=False)
class FirstRowFree(MatrixMethod):
    """Removes everything from the last rows."""

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        keep = torch.arange(weight.numel()).reshape(weight.shape) < weight.numel() - int(
            weight.numel() * 0.5
        )
        return Compressed(weight.masked_fill(~keep, 0))


@dataclass(frozen=True, repr=False)
class Plain(MatrixMethod):
    """Sound in its numbers."""

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        norms = seen[FeatureNorms].norms()
        return Compressed(
            weight.masked_fill(
                ~removal(target).keep(weight.double().abs() * norms.sqrt(), "row"), 0
            )
        )


class Undecorated(MatrixMethod):
    """No dataclass."""

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        return Compressed(weight)


@dataclass(frozen=True, repr=False)
class Untold(Plain):
    secret: int = field(default=0, repr=False)


class Posing(Plain):
    """Says that it is Wanda."""

    @classmethod
    def spec_name(cls) -> str:
        return "wanda"


@dataclass(frozen=True, repr=False)
class Elsewhere(MatrixMethod):
    accepts: ClassVar[tuple[type[Target], ...]] = ()

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        return Compressed(weight)


@pytest.mark.parametrize(
    ("method", "targets", "subject", "value"),
    [
        (FirstRowFree(), HALF, "FirstRowFree", "permuted rows"),
        (Untold(secret=1), HALF, "untold", "read back"),
        (Plain(), HALF, "Plain", "plain = "),
        (Undecorated(), HALF, "Undecorated", "is no frozen dataclass; write @dataclass("),
        (Posing(), HALF, "wanda", ":Posing"),
        (RoundToNearest(), HALF, "0.5", "a grid"),
        (Elsewhere(), None, "Elsewhere", "w4g8"),
    ],
)
def test_a_method_that_is_not_sound_is_found(
    method: MatrixMethod, targets: Any, subject: str, value: str, plugged: Callable[..., None]
):
    """It looks at the place of a row, can't be typed or takes another's name, depends on chance,
    or accepts nothing that is asked.
    """
    plugged({"calibrant.methods": {"untold": qualified(Untold)}})
    said = refusal_of(check_method, method, kind=CalibrantError, targets=targets)
    assert said.subject == subject
    assert value in str(said)


@dataclass(frozen=True, repr=False)
class Rounding(MatrixMethod):
    """Rounds to nearest, unless told to break the contract of quantizers in one way."""

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid,)

    breaks: str = ""

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        found = RoundToNearest().compress(weight, seen, target)
        assert isinstance(found.packed, Codes)
        match self.breaks:
            case "packed":
                return Compressed(
                    found.weight, packed=replace(found.packed, codes=-found.packed.codes)
                )
            case "values":
                return Compressed(weight.clone())
            case "zeros":
                return Compressed(found.weight.masked_fill(found.weight == 0, 1.5))
            case "type":
                return Compressed(
                    found.weight,
                    packed=replace(found.packed, scales=found.packed.scales.double() * (1 + 1e-12)),
                )
            case _:
                return found


def test_a_quantizer_is_asked_for_every_grid_it_accepts(plugged: Callable[..., None]):
    plugged({"calibrant.methods": {"rounding": qualified(Rounding)}})
    check_method(Rounding())


@pytest.mark.parametrize(
    ("breaks", "value"),
    [
        ("packed", "the packed form"),
        ("type", "the packed form"),
        ("values", "8 values"),
        ("zeros", "a row of zeros"),
    ],
)
def test_a_quantizer_that_breaks_the_contract_is_named(breaks: str, value: str):
    said = refusal_of(
        check_method, Rounding(breaks=breaks), kind=CalibrantError, targets=[Grid(2, 8)]
    )
    assert said.subject == f"Rounding(breaks={breaks!r})"
    assert value in str(said)
