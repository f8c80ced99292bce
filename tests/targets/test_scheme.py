"""Schemes: their names, and inputs after rounding, each strategy against its definition in Python's
own numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.errors import NumericsError, TargetError
from calibrant.methods import methods
from calibrant.targets import GgufRecipe, InputGrid, Scheme, parse_target
from calibrant.targets.scheme import SCHEMES

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E4M3 = sorted(
    [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
)
"""Magnitudes, in the order of their codes."""


Number = type[np.float32] | type[np.float64]


def nearest(value: Any, magnitudes: Sequence[float]) -> float:
    """The nearest of all values; of two that are as near, the one with the even code."""
    codes = range(len(magnitudes))
    code = min(codes, key=lambda code: (abs(magnitudes[code] - abs(float(value))), code % 2))
    return math.copysign(magnitudes[code], float(value))


def whole(value: Any) -> float:
    return float(min(127, max(-128, round(float(value)))))


def on_grid(row: Sequence[Any], scale: Any, element: str) -> list[Any]:
    if element == "int8":
        return [type(scale)(whole(value / scale)) * scale for value in row]
    table = E4M3 if element == "e4m3" else E2M1
    return [type(scale)(nearest(value / scale, table)) * scale for value in row]


def by_definition(name: str, row: Sequence[Any], static: Any, number: Number) -> list[Any]:
    """A token's inputs after rounding, each operation in numbers of this type."""
    groups = {"FP8_BLOCK": 128, "NVFP4": 16, "MXFP4": 32}.get(name, len(row))
    one = number(1)
    rounded: list[Any] = []
    for start in range(0, len(row), groups):
        part = row[start : start + groups]
        largest = max(map(abs, part))
        if name in ("W8A8", "W4A8"):
            rounded += on_grid(part, largest / number(127.5) or one, "int8")
        elif name in ("FP8_DYNAMIC", "FP8_BLOCK"):
            rounded += on_grid(part, largest / number(448) or one, "e4m3")
        elif name == "FP8":
            rounded += on_grid(part, static, "e4m3")
        elif name == "NVFP4":
            stored = nearest(static * (largest / number(6)), E4M3) or 0.125
            rounded += on_grid(part, number(stored) / static, "e2m1")
        else:
            exponent = 0
            if largest:
                power = math.floor(math.log2(float(largest)))
                exponent = power - 2 + int(float(largest) / 2.0**power >= 1.75)
            rounded += on_grid(part, number(2.0**exponent), "e2m1")
    return rounded


def inputs_of(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5, 256, generator=generator, dtype=torch.float64)
    x[0, 1] *= 1000
    x[0, 2, :128] = 0
    x[1, 3] = 0
    # Ties of whole numbers, and of numbers of 4 bits whose scale is a power of two.
    x[1, 4] = torch.arange(256) % 52 / 4 - 6.5
    x[1, 4, ::16] = 6
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEMES)
def test_inputs_become_what_the_definition_says(name: str, dtype: torch.dtype):
    grid = Scheme(name).inputs
    x = inputs_of(dtype)
    static = None
    if grid.range is not None:
        # Some of the inputs are beyond it.
        static = grid.static_scale(5.0, torch.float32)
    rounded = grid.rounded(x, static)
    assert rounded.dtype == dtype
    number: Number = np.float64 if dtype == torch.float64 else np.float32
    for token, values in zip(x.flatten(0, 1), rounded.flatten(0, 1), strict=True):
        row = [number(value) for value in token.tolist()]
        expected = by_definition(name, row, number(static or 1), number)
        exact = torch.tensor([float(value) for value in expected], dtype=torch.float64)
        assert torch.equal(values, exact.to(dtype))


def test_static_scales_reach_as_far_as_they_are_asked_to():
    per_tensor = Scheme("FP8").inputs
    assert per_tensor.static_scale(4.48, torch.float64) == pytest.approx(0.01)
    assert per_tensor.static_scale(4.48, torch.bfloat16) == float(torch.tensor(0.01).bfloat16())
    overall = Scheme("NVFP4").inputs
    assert overall.static_scale(2688.0, torch.bfloat16) == 1.0
    for grid in (per_tensor, overall):
        scale = grid.static_scale(0.0, torch.float32)
        assert grid.rounded(torch.zeros(2, 16), scale).equal(torch.zeros(2, 16))
        for reach in (math.inf, math.nan):
            with pytest.raises(NumericsError, match=str(reach)):
                grid.static_scale(reach, torch.float32)
        with pytest.raises(NumericsError):
            grid.check(math.nan)
        with pytest.raises(ValueError, match="None"):
            grid.check(None)


@pytest.mark.parametrize("text", [*sorted(set(SCHEMES) - {"NVFP4"}), "FP8(range=percentile)"])
def test_a_scheme_is_read_and_written(text: str):
    scheme = parse_target(text.lower())
    assert isinstance(scheme, Scheme)
    assert str(scheme) == text
    assert parse_target(str(scheme)) == scheme


@pytest.mark.parametrize(
    "text",
    ["FP8(range=max)", "FP8(scale=2)", "FP8(", "FP8(range=2)", "W8A8(range=mse)", "fp8(absmax)"],
)
def test_a_scheme_that_there_is_not_is_refused(text: str):
    with pytest.raises(TargetError):
        parse_target(text)


def test_nvfp4_is_a_recipe_of_llama_cpp_and_a_scheme_of_others():
    recipe = parse_target("NVFP4")
    assert recipe == GgufRecipe("NVFP4")
    assert methods.build("llama_cpp").aim(recipe) == recipe
    assert methods.build("gptq").aim(recipe) == Scheme("NVFP4")


def test_only_static_scales_need_data():
    assert [name for name in SCHEMES if Scheme(name).looks] == ["FP8", "NVFP4"]


@pytest.mark.parametrize("name", SCHEMES)
def test_it_is_the_scheme_that_compressed_tensors_calls_so(name: str):
    library = pytest.importorskip("compressed_tensors.quantization")
    theirs = library.preset_name_to_scheme(name, ["Linear"])
    ours = Scheme(name)
    inputs = theirs.input_activations
    elements = {("int", 8): "int8", ("float", 8): "e4m3", ("float", 4): "e2m1"}
    assert ours.inputs.element == elements[inputs.type, inputs.num_bits]
    assert ours.inputs.group == inputs.group_size
    assert (ours.inputs.range is None) == (inputs.dynamic is True)
    assert inputs.strategy.removeprefix("tensor_") == ours.inputs.strategy or name == "FP8"
    assert theirs.weights.num_bits == ours.weights.bits
    assert inputs.symmetric


@pytest.mark.parametrize(
    "changed",
    [
        {"element": "e5m2"},
        {"strategy": "channel"},
        {"group": 0},
        {"range": "max"},
        {"scale": "e5"},
        {"group": None},
        {"range": None},
        {"scale": "plain"},
        {"strategy": "tensor", "group": None},
        {"strategy": "token", "group": None, "scale": "e8m0", "range": None},
        {"strategy": "token", "group": None, "scale": "plain"},
    ],
)
def test_inputs_of_an_unknown_kind_are_not_read(changed: dict[str, Any]):
    facts = vars(Scheme("NVFP4").inputs)
    assert InputGrid.read(dict(facts)) == Scheme("NVFP4").inputs
    with pytest.raises(ValueError):  # noqa: PT011  # msgspec's, or our own
        InputGrid.read({**facts, **changed})
