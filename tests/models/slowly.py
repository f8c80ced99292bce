"""What files of the export `sparse` hold, read number by number, from what the docstrings say of
it: nothing here is shared with what is tested.
"""

from collections.abc import Mapping
from typing import Any


def bit(packed: list[int], at: int) -> int:
    """The bit at a place, lowest bits first."""
    return packed[at // 8] >> (at % 8) & 1


def number(packed: list[int], at: int, width: int) -> int:
    """The number at a place, of so many bits, lowest bits first."""
    return sum(bit(packed, at * width + place) << place for place in range(width))


def product(shape: list[int]) -> int:
    """How many numbers a shape has."""
    count = 1
    for size in shape:
        count *= size
    return count


def numbers_of(facts: Mapping[str, Any], parts: Mapping[str, list[Any]]) -> list[Any]:
    """The numbers of a tensor in order; `parts` are flat lists."""
    count, width, layout = product(facts["shape"]), facts.get("width", 0), facts["layout"]
    if layout == "zeros":
        return [0] * count
    values = parts["values"]
    if width:
        values = [
            number(parts["values"], at, width) - 2 ** (width - 1)
            for at in range(len(parts["values"]) * 8 // width)
        ]
    if layout == "whole":
        return values[:count]
    left = iter(values)
    if layout == "bits":
        return [next(left) if bit(parts["bits"], at) else 0 for at in range(count)]
    assert layout == "n_of_m"
    keep, group = facts["keep"], facts["group"]
    place_bits = {4: 2, 8: 3, 16: 4}[group]
    found = [0] * count
    for at in range(count // group * keep):
        found[at // keep * group + number(parts["places"], at, place_bits)] = next(left)
    return found
