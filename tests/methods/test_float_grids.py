"""Rounding to floating-point numbers of few bits, against the definitions one weight at a time; and
GPTQ on such grids, against a literal elimination in float64.
"""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram, Seen
from calibrant.errors import NumericsError, TargetError
from calibrant.methods import MatrixMethod, methods
from calibrant.methods._elimination import factorise
from calibrant.methods.quantization._float_scales import float_absmax
from calibrant.methods.quantization._quantizing import quantize, round_columns, round_rows
from calibrant.packed import FloatCodes, from_stored, to_stored
from calibrant.targets import FloatGrid, parse_target
from calibrant.testing import check_method

from tests.methods.matrices import by_threads, features, relative_error, seeded, seen_of

NAMES = ["NVFP4A16", "MXFP4A16", "FP8A16", "FP8A16_TENSOR", "FP8A16_BLOCK"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP8 = [float(value) for value in torch.arange(127).to(torch.uint8).view(torch.float8_e4m3fn)]


def rounded(weight: Tensor, name: str, method: str = "rtn", gram: Gram | None = None) -> FloatCodes:
    """What a method gives, by its packed form."""
    built = methods.build(method)
    assert isinstance(built, MatrixMethod)
    seen = Seen({}) if gram is None else Seen({Gram: gram})
    found = built.compress(weight, seen, parse_target(name))
    assert isinstance(found.packed, FloatCodes)
    assert found.weight.dtype == weight.dtype
    assert torch.equal(found.packed.dense(), found.weight)
    return found.packed


def nearest(number: float, values: list[float]) -> float:
    """The nearest value; of two that are as near, the one at an even place."""
    size = min(abs(number), values[-1])
    place = min(range(len(values)), key=lambda at: (abs(values[at] - size), at % 2))
    return math.copysign(values[place], number)


def parts_of(weight: Tensor, name: str) -> list[tuple[slice, slice]]:
    """The rows and columns of each part of a matrix that has one scale."""
    rows, columns = weight.shape
    height = {"FP8A16_TENSOR": rows, "FP8A16_BLOCK": 128}.get(name, 1)
    width = {"NVFP4A16": 16, "MXFP4A16": 32, "FP8A16_BLOCK": 128}.get(name, columns)
    found: list[tuple[slice, slice]] = []
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            found.append((slice(top, top + height), slice(left, left + width)))
    return found


def literal(weight: Tensor, name: str) -> np.ndarray:
    """The matrix that the definition gives: its factor for each part, in float32 step by step, and
    the nearest value of each weight over it.
    """
    dtype = weight.dtype
    numbers = weight.double().numpy()
    values = FP4 if "FP4" in name else FP8
    reach = np.float32(np.abs(numbers).max())
    overall = np.float32(np.float32(2688) / reach) if reach else np.float32(1)
    result = np.zeros(numbers.shape)
    for part in parts_of(weight, name):
        largest = np.float32(np.abs(numbers[part]).max())
        if name == "NVFP4A16":
            scale = nearest(float(overall * (largest / np.float32(6))), FP8) or 0.125
            factor = np.float32(scale) / overall
        elif name == "MXFP4A16":
            exponent = math.frexp(largest)[1] - 1 if largest else -127
            exponent += largest >= 1.75 * 2.0**exponent and largest > 0
            factor = np.float32(2.0 ** max(exponent - 2, -127))
        else:
            stored = torch.tensor(largest / np.float32(448)).to(dtype)
            factor = np.float32(stored.float().item() or torch.finfo(dtype).eps)
        for place in np.ndindex(*numbers[part].shape):
            quotient = np.float32(np.float32(numbers[part][place]) / factor)
            product = np.float32(np.float32(nearest(float(quotient), values)) * factor)
            result[part][place] = torch.tensor(product).to(dtype).double().item()
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_that_of_the_definition(name: str, dtype: torch.dtype):
    """Rows that end within a block, rows and groups of zeros, and weights of very different
    sizes.
    """
    weight = seeded(131, 128, dtype) if name == "FP8A16_BLOCK" else seeded(5, 64, dtype)
    weight[1] *= 3e-4
    weight[2, :32] = 0
    weight[3] = 0
    weight[4, 5] = -4
    assert rounded(weight, name).dense().double().numpy().tolist() == literal(weight, name).tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-39, 1e-30, 1e38])
def test_no_scale_and_no_weight_is_nan_or_infinite(name: str, size: float):
    weight = torch.full((3, 128), size)
    packed = rounded(weight, name)
    assert packed.dense().isfinite().all()
    factors = packed.scales.factors(3)
    assert (factors.isfinite() & (factors > 0)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(name: str, bad: float):
    weight = seeded(3, 128, torch.float32)
    weight[1, 2] = bad
    with pytest.raises(NumericsError):
        rounded(weight, name)
    with pytest.raises(NumericsError):
        rounded(torch.full((3, 128), 1e300, dtype=torch.float64), name)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_kept_is_the_same_again(name: str):
    first = rounded(seeded(130, 256, torch.bfloat16), name)
    facts, tensors = to_stored(first)
    again = from_stored(json.loads(json.dumps(facts)), tensors)
    assert torch.equal(again.dense(), first.dense())
    assert again.facts() == first.facts()
    with pytest.raises(ValueError, match="don't fit"):
        from_stored(facts, {**tensors, "scales": tensors["scales"][:, :0]})
    with pytest.raises((KeyError, ValueError)):
        from_stored({**facts, "grid": "w4g16"}, tensors)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("NVFP4A16", 4 + 8 / 16 + 32 / (128 * 256)),
        ("MXFP4A16", 4 + 8 / 32),
        ("FP8A16", 8 + 16 / 256),
        ("FP8A16_TENSOR", 8 + 16 / (128 * 256)),
        ("FP8A16_BLOCK", 8 + 16 / (128 * 128)),
    ],
)
def test_scales_count_as_bits(name: str, bits: float):
    facts = rounded(seeded(128, 256, torch.bfloat16), name).facts()
    assert facts["bits_a_weight"] == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_gptq_is_that_of_the_definition(name: str, order: str):
    """In float64, with the inverse Hessian itself."""
    weight = seeded(6, 128)
    torch.manual_seed(1)
    x = features(500, 128)
    found = rounded(weight, name, f"gptq(order={order})", Gram.of(x))
    factors = found.scales.factors(6).double().numpy()
    values = FP4 if "FP4" in name else FP8
    hessian = (x.T @ x / len(x)).numpy()
    inverse = np.linalg.inv(hessian + 0.01 * np.diag(hessian).mean() * np.eye(128))
    left = list(range(128))
    if order == "activation":
        left = x.square().sum(0).argsort(descending=True, stable=True).tolist()
    current = weight.numpy().copy()
    width = 128 // factors.shape[1]
    while left:
        column = left.pop(0)
        factor = factors[:, column // width]
        value = np.zeros(6)
        for row in range(6):
            value[row] = nearest(current[row, column] / factor[row], values) * factor[row]
        error = (current[:, column] - value) / inverse[column, column]
        current[:, left] -= np.outer(error, inverse[column, left])
        current[:, column] = value
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    assert np.allclose(found.dense().numpy(), current, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_rounds_as_torch_does_and_on_any_threads(name: str):
    weight = seeded(70, 384)
    torch.manual_seed(2)
    factor = factorise(Gram.of(features(900, 384)), 0.01)
    scales = float_absmax(weight, FloatGrid(name))

    def in_rows() -> Tensor:
        packed = quantize(weight, factor, scales, step=round_rows)
        assert isinstance(packed, FloatCodes)
        return packed.codes

    in_columns = quantize(weight, factor, scales, step=round_columns)
    assert isinstance(in_columns, FloatCodes)
    first, *others = by_threads(in_rows)
    assert (first == in_columns.codes).double().mean() > 0.9999
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_gptq_loses_no_more_of_the_outputs_than_rounding_to_nearest(name: str, seed: int):
    weight = seeded(24, 128, torch.float32, seed)
    torch.manual_seed(seed)
    x = features(300, 128, torch.float32)
    losses: list[float] = []
    for method in ("gptq", "gptq(order=activation)", "rtn"):
        packed = rounded(weight, name, method, Gram.of(x))
        losses.append(relative_error(weight, packed.dense(), x))
    assert max(losses[:2]) < losses[2]


@pytest.mark.parametrize("name", ["NVFP4A16", "MXFP4A16"])
@pytest.mark.parametrize("method", ["rsq", "awq"])
def test_other_methods_round_to_the_same_grids(method: str, name: str):
    weight = seeded(8, 64, torch.float32)
    built = methods.build(method)
    assert isinstance(built, MatrixMethod)
    found = built.compress(weight, seen_of(seeded(200, 64, torch.float32)), parse_target(name))
    assert isinstance(found.packed, FloatCodes)
    nearest_codes = rounded(weight, name)
    assert torch.equal(found.packed.scales.stored, nearest_codes.scales.stored)


@pytest.mark.parametrize(
    "method", ["rtn(scales=mse)", "gptq(scales=importance)", "rsq(scales=mse)"]
)
def test_scales_that_are_searched_are_refused(method: str):
    built = methods.build(method)
    with pytest.raises(TargetError) as refused:
        built.check(parse_target("NVFP4A16"))
    assert refused.value.subject == "NVFP4A16"
    built.check(parse_target("w4g16"))


@pytest.mark.parametrize("method", ["rtn", "gptq", "gptq(order=activation)", "rsq", "awq"])
def test_methods_keep_their_contract(method: str):
    built = methods.build(method)
    assert isinstance(built, MatrixMethod)
    check_method(built, [FloatGrid("NVFP4A16"), FloatGrid("FP8A16"), FloatGrid("FP8A16_TENSOR")])


def test_an_exact_half_goes_to_the_even_code():
    """Group by group, the largest weight decides the power of two."""
    halves = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    row = torch.cat([halves, -halves]).repeat(2).reshape(1, 32)
    found = rounded(row, "MXFP4A16").dense()[0, :8].tolist()
    assert found == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    assert Fraction(rounded(row * 2**-20, "MXFP4A16").dense()[0, 1].item()) == Fraction(1, 2**20)
