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
from calibrant.methods.rtn import RoundToNearest
from calibrant.packed import Codes
from calibrant.spec import qualified
from calibrant.targets import Grid, Sparsity, Target
from calibrant.testing.methods import check_method

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
        result = weight.masked_fill(~keep, 0) * (divisor.to(weight.dtype) if self.breaks == "dead inputs" else 1)
        return Compressed(self._broken(result, weight, norms, keep))

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
            case "updates":
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
    ("breaks", "message"),
    [
        ("count", r"0\.5 of \[5, 160\] in float32: 401 weights are zero, asked were 400"),
        ("weight", "the weight that was given changed"),
        ("statistics", "the statistics that were given changed"),
        ("chance", "the same arguments gave another result"),
        ("type", "the type became torch.float64, and was torch.float32"),
        ("shape", r"the shape became torch.Size\(\[160, 5\]\), and was torch.Size\(\[5, 160\]\)"),
        ("updates", "kept weights changed, though the method says that it doesn't update"),
        ("dead inputs", "the result holds NaN or infinity"),
        ("layout", "a transposed view gave another result"),
    ],
)
def test_a_break_of_contract_is_named(breaks: str, message: str):
    with pytest.raises(CalibrantError, match=rf"breaks='{breaks}'.*({message})"):
        check_method(Scripted(breaks=breaks), targets=HALF)


@dataclass(frozen=True, repr=False)
class FirstRowFree(MatrixMethod):
    """Removes everything from the last rows."""

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        keep = torch.arange(weight.numel()).reshape(weight.shape) < weight.numel() - int(weight.numel() * 0.5)
        return Compressed(weight.masked_fill(~keep, 0))


def test_a_method_that_looks_at_the_place_of_a_row_is_found():
    with pytest.raises(CalibrantError, match="permuted rows gave another result than the permuted result"):
        check_method(FirstRowFree(), targets=HALF)


@dataclass(frozen=True, repr=False)
class Plain(MatrixMethod):
    """Sound in its numbers."""

    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        norms = seen[FeatureNorms].norms()
        return Compressed(weight.masked_fill(~removal(target).keep(weight.double().abs() * norms.sqrt(), "row"), 0))


@dataclass(frozen=True, repr=False)
class Untold(Plain):
    secret: int = field(default=0, repr=False)


class Posing(Plain):
    """Says that it is Wanda."""

    @classmethod
    def spec_name(cls) -> str:
        return "wanda"


def test_a_text_that_does_not_give_the_method_back_is_found(plugged: Callable[..., None]):
    plugged({"calibrant.methods": {"untold": qualified(Untold)}})
    with pytest.raises(CalibrantError, match="untold is read back as untold; a method's text must give the method back"):
        check_method(Untold(secret=1), targets=HALF)


def test_a_method_that_nobody_can_type_is_found_and_told_what_it_lacks():
    with pytest.raises(CalibrantError, match=r"Plain can't be typed: no method is called 'Plain'; give it the entry point plain = '.*:Plain' in the"):
        check_method(Plain(), targets=HALF)


def test_a_method_that_takes_the_name_of_another_is_found(plugged: Callable[..., None]):
    with pytest.raises(CalibrantError, match=r"wanda is read back as wanda, which is calibrant.methods.wanda:Wanda and not .*:Posing"):
        check_method(Posing(), targets=HALF)
    plugged({"calibrant.methods": {"wanda": qualified(Plain)}})
    with pytest.raises(CalibrantError, match=r"wanda is read back as wanda, which is calibrant.methods.wanda:Wanda and not .*:Plain"):
        check_method(Plain(), targets=HALF)


def test_chance_is_found_in_methods_that_update():
    @dataclass(frozen=True, repr=False)
    class Random(MatrixMethod):
        updates: ClassVar[bool] = True

        def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
            keep: Any = removal(target).keep(weight.abs())
            return Compressed((weight + torch.rand(()) * 1e-3).masked_fill(~keep, 0))

    with pytest.raises(CalibrantError, match="the same arguments gave another result"):
        check_method(Random(), targets=HALF)


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
                return Compressed(found.weight, packed=replace(found.packed, codes=-found.packed.codes))
            case "values":
                return Compressed(weight.clone())
            case "zeros":
                return Compressed(found.weight.masked_fill(found.weight == 0, 1.5))
            case "type":
                return Compressed(found.weight, packed=replace(found.packed, scales=found.packed.scales.double() * (1 + 1e-12)))
            case _:
                return found


def test_a_quantizer_is_asked_for_every_grid_it_accepts(plugged: Callable[..., None]):
    plugged({"calibrant.methods": {"rounding": qualified(Rounding)}})
    check_method(Rounding())


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        ("packed", "the packed form stands for another matrix than the weight"),
        ("type", "the packed form stands for another matrix than the weight"),
        ("values", "a group has 8 values, and there are 4 codes"),
        ("zeros", "a row of zeros became something else"),
    ],
)
def test_a_quantizer_that_breaks_the_contract_is_named(breaks: str, message: str):
    with pytest.raises(CalibrantError, match=rf"breaks='{breaks}'.*, asked for w2g8 of .*{message}"):
        check_method(Rounding(breaks=breaks), targets=[Grid(2, 8)])


def test_what_a_method_does_not_accept_is_not_asked_of_it():
    with pytest.raises(CalibrantError, match=r"Rounding can't be asked for 0\.5: it accepts a grid"):
        check_method(Rounding(), targets=HALF)


@dataclass(frozen=True, repr=False)
class Elsewhere(MatrixMethod):
    accepts: ClassVar[tuple[type[Target], ...]] = ()

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        return Compressed(weight)


def test_a_method_that_nothing_can_be_asked_of_is_not_sound():
    with pytest.raises(CalibrantError, match=r"Elsewhere accepts none of 0\.0, .*w4g8.*; say which targets to check it with"):
        check_method(Elsewhere())
