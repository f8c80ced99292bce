"""Names of float grids, and the numbers of 4 and 8 bits: against their definition, one by one."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from calibrant.errors import TargetError
from calibrant.targets import E2M1, E4M3, Element, FloatGrid, Grid, Target, parse_target

LAYOUTS = {E2M1: (2, 1, 1), E4M3: (4, 3, 7)}
"""Bits of the exponent and the mantissa, and the bias of the exponent."""
SEVEN_EIGHTHS = 127
"""The code of e4m3 that stands for no number."""


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("NVFP4A16", FloatGrid("NVFP4A16")),
        ("mxfp4a16", FloatGrid("MXFP4A16")),
        (" FP8A16 ", FloatGrid("FP8A16")),
        ("FP8A16_TENSOR", FloatGrid("FP8A16_TENSOR")),
        ("FP8A16_BLOCK", FloatGrid("FP8A16_BLOCK")),
        ("W4A16", Grid(4, 128)),
        ("w4a16_asym", Grid(4, 128, symmetric=False)),
        ("W8A16", Grid(8)),
    ],
)
def test_names_of_other_libraries_are_targets(text: str, target: Target):
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


def test_a_grid_that_has_two_names_is_one_target():
    assert str(parse_target("W4A16")) == "w4g128"
    assert str(parse_target("2:4+W4A16")) == "2:4+w4g128"


def test_a_grid_in_capitals_is_refused_with_small_letters():
    with pytest.raises(TargetError, match="; write it w4g64"):
        parse_target("W4G64")


@pytest.mark.parametrize("text", ["NVFP4A8", "FP8A16_ROW", "FP4A16", "W5A16"])
def test_a_name_that_no_grid_has_is_refused(text: str):
    with pytest.raises(TargetError):
        parse_target(text)


def test_inputs_that_groups_do_not_divide_name_the_matrix():
    for name in ("NVFP4A16", "MXFP4A16", "FP8A16_BLOCK"):
        with pytest.raises(TargetError) as refused:
            FloatGrid(name).check((8, 200), "layers.0.up")
        assert refused.value.subject == "layers.0.up"
        FloatGrid(name).check((7, 256), "layers.0.up")
    FloatGrid("FP8A16").check((7, 201), "layers.0.up")


def meaning(code: int, element: Element) -> Fraction | None:
    """What a code stands for, from its bits; None for what is no number."""
    exponent_bits, mantissa_bits, bias = LAYOUTS[element]
    mantissa = code % 2**mantissa_bits
    exponent = code // 2**mantissa_bits % 2**exponent_bits
    sign = -1 if code // 2 ** (mantissa_bits + exponent_bits) else 1
    if element == E4M3 and code % 128 == SEVEN_EIGHTHS:
        return None
    if exponent == 0:
        return sign * Fraction(mantissa, 2**mantissa_bits) * Fraction(2) ** (1 - bias)
    return sign * (1 + Fraction(mantissa, 2**mantissa_bits)) * Fraction(2) ** (exponent - bias)


def nearest(number: float, element: Element) -> Fraction:
    """The nearest of all values, by comparing with each; of two that are as near, the one with the
    even code. A float's size is compared, and its sign is put back.
    """
    best = Fraction(0)
    best_code = 0
    size = abs(Fraction(number))
    for code in range(2 ** (element.bits - 1)):
        value = meaning(code, element)
        if value is None:
            continue
        nearer = abs(size - value) < abs(size - best)
        as_near = abs(size - value) == abs(size - best)
        if nearer or (as_near and code % 2 == 0 and best_code % 2):
            best = value
            best_code = code
    return -best if number < 0 else best


def all_codes(element: Element) -> Tensor:
    return torch.arange(2**element.bits).to(torch.uint8)


@pytest.mark.parametrize("element", [E2M1, E4M3])
def test_every_code_stands_for_what_its_bits_say(element: Element):
    values = element.values_of(all_codes(element))
    for code, value in enumerate(values.tolist()):
        expected = meaning(code, element)
        if expected is None:
            assert value != value
        else:
            assert Fraction(value) == expected
            assert (torch.tensor(value).signbit().item()) == (code >= 2 ** (element.bits - 1))
    numbers = ~values.isnan()
    assert torch.equal(element.codes_of(values[numbers]), all_codes(element)[numbers])


def test_all_256_codes_are_those_of_torch():
    codes = all_codes(E4M3)
    theirs = codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(E4M3.values_of(codes).nan_to_num(999), theirs.nan_to_num(999))
    assert torch.equal(E4M3.values_of(codes).signbit()[:127], theirs.signbit()[:127])


def numbers_near(element: Element, dtype: torch.dtype) -> Tensor:
    """Every value, the middle between each two, and the numbers just beside both; what is smaller
    than half of the smallest, what is larger than the largest, and some at random.
    """
    values = element.values_of(all_codes(element)[: 2 ** (element.bits - 1)])
    values = values[~values.isnan()].to(dtype)
    middles = (values[1:] + values[:-1]) / 2
    beyond = torch.tensor([element.largest * 1.03, element.largest * 2, 1e30, 1e-30, 1e-40])
    marks = torch.cat([values, middles, beyond.to(dtype)])
    above = marks.nextafter(torch.full_like(marks, torch.inf))
    below = marks.nextafter(torch.zeros_like(marks))
    generator = torch.Generator().manual_seed(3)
    random = torch.randn(2000, generator=generator, dtype=torch.float64).exp() / 4
    numbers = torch.cat([marks, above, below, random.to(dtype)])
    return torch.cat([numbers, -numbers])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("element", [E2M1, E4M3])
def test_the_nearest_value_is_that_of_comparing_with_all(element: Element, dtype: torch.dtype):
    numbers = numbers_near(element, dtype)
    found = element.nearest(numbers)
    assert found.dtype == dtype
    expected = [float(nearest(number, element)) for number in numbers.tolist()]
    assert found.tolist() == expected
    assert torch.equal(found.signbit(), numbers.signbit())


def test_the_nearest_of_8_bits_is_that_of_torch():
    numbers = numbers_near(E4M3, torch.float32)
    theirs = numbers.clamp(-448, 448).to(torch.float8_e4m3fn)
    ours = E4M3.codes_of(E4M3.nearest(numbers))
    assert torch.equal(ours, theirs.view(torch.uint8))
