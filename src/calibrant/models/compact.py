"""A tensor without its zeros, as files of the export `sparse` hold it, without any loss.

There are four layouts. The one that takes the fewest bits is used, and `whole` where none takes
fewer:

- `whole`: all numbers, as they are.
- `zeros`: nothing at all; every number is zero.
- `bits`: one bit for each number, 1 where it isn't zero, and the numbers that aren't zero, in
  order.
- `n_of_m`: `keep` of every `group` consecutive numbers of a row, in order, and the place of each in
  its group, in log2(group) bits.

Numbers of the type int8, such as codes, are stored with as many bits (`width`) as the largest of
them needs, after 2^(width-1) is added to each. Bits are packed into bytes lowest first, without
gaps. A number is zero if all its bits are, so a negative zero is stored as a number.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NamedTuple, TypeGuard, final

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor

from calibrant.numerics import ceil_div, type_name
from calibrant.spec.foreign import brief

GROUPS: Final = (4, 8, 16)
"""The sizes of a group that `n_of_m` tries, and that a file may have."""
_TYPES: Final = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
DTYPES: Final[Mapping[str, torch.dtype]] = {name: getattr(torch, name) for name in _TYPES.split()}
"""The types of tensors that are stored, by the names that they have in a file."""

AS_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of so many bytes, as which the bits of numbers are looked at: a negative zero isn't zero
then, but the lowest integer.
"""
_AT_ONCE: Final = 2**18
"""How many numbers or groups have their bits unpacked at a time. A multiple of 8, so that every
piece but the last fills its bytes.
"""
_DIMENSIONS: Final = 8
_LONGEST: Final = 2**40
"""How many dimensions a stored tensor may have, and how long each may be."""


@final
@dataclass(frozen=True)
class Compact:
    """A tensor of `shape` and `dtype` in one of the four layouts. Its `parts` are tensors called
    `values`, `bits` and `places`, of which a layout has none, one or two.

    >>> compact = Compact.of(torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.5, 0.0, 0.0, 3.0]]))
    >>> compact.layout, compact.parts["values"].tolist(), compact.size
    ('n_of_m', [2.0, -1.0, 0.5, 3.0], 17)
    >>> compact.whole().tolist()
    [[0.0, 2.0, 0.0, -1.0], [0.5, 0.0, 0.0, 3.0]]
    """

    layout: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Mapping[str, Tensor]
    width: int = 0
    keep: int = 0
    group: int = 0

    @classmethod
    def of(cls, tensor: Shaped[Tensor, "..."]) -> "Compact":
        """Return a tensor in the layout that takes the fewest bits. Of layouts that take equally
        many, `whole` comes first, and `n_of_m` before `bits`.
        """
        flat = tensor.detach().cpu().contiguous().flatten()
        nonzero = _bits_of(flat) != 0
        width = _width(flat)
        bits_a_number = width or 8 * flat.element_size()
        chosen = _smallest(nonzero, tensor.shape, bits_a_number)
        parts = _parts(chosen, flat, nonzero)
        if chosen.layout == "zeros":
            width = 0
        elif width:
            # In int16 the sum can't overflow. A positive code is its lowest `width` bits.
            codes = parts["values"].flatten().to(torch.int16) + 2 ** (width - 1)
            parts["values"] = pack_bits(codes.to(torch.uint8), width)
        elif chosen.layout == "whole":
            parts["values"] = parts["values"].reshape(tensor.shape)
        shape = tuple(tensor.shape)
        return cls(chosen.layout, shape, flat.dtype, parts, width, chosen.keep, chosen.group)

    @property
    def size(self) -> int:
        """How many bytes the parts take."""
        return sum(part.nbytes for part in self.parts.values())

    def facts(self) -> dict[str, Any]:
        """Return what `read` needs besides the parts, as plain JSON data."""
        facts: dict[str, Any] = {
            "layout": self.layout,
            "shape": list(self.shape),
            "dtype": type_name(self.dtype),
        }
        for name in ("width", "keep", "group"):
            number = getattr(self, name)
            if number:
                facts[name] = number
        return facts

    @classmethod
    def read(cls, facts: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "Compact":
        """Return the tensor of which `facts` are the `facts()`. Raises `ValueError` for facts that
        can't be; whether the parts fit them is checked by `whole`.
        """
        numbers = [facts.get(name, 0) for name in ("width", "keep", "group")]
        width, keep, group = numbers
        integers = all(type(number) is int for number in numbers)
        if not integers or not 0 <= width < 8:
            raise ValueError(f"width, keep and group are {brief(numbers)}")
        shape, dtype = declared(facts)
        return cls(str(facts.get("layout")), shape, dtype, parts, width, keep, group)

    def whole(self) -> Shaped[Tensor, "..."]:
        """Return the whole tensor. Raises `ValueError` where the parts don't fit each other."""
        count = prod(self.shape)
        _check_equal("parts", sorted(self.parts), _PARTS.get(self.layout))
        if self.layout == "zeros":
            return torch.zeros(self.shape, dtype=self.dtype)
        if self.layout == "whole":
            return self._values(count).reshape(self.shape)
        if self.layout == "bits":
            nonzero = _unpack_mask(self.parts["bits"], count)
            flat = torch.zeros(count, dtype=self.dtype)
            flat[nonzero] = self._values(int(nonzero.count_nonzero()))
            return flat.reshape(self.shape)
        return self._whole_of_groups(count)

    def _whole_of_groups(self, count: int) -> Tensor:
        keep = self.keep
        group = self.group
        possible = group in GROUPS and 0 < keep < group
        if not possible or not self.shape or self.shape[-1] % group:
            raise ValueError(
                f"{brief(keep)} of every {brief(group)} don't fit rows of {self.shape[-1:]}"
            )
        group_count = count // group
        kept = group_count * keep
        packed = unpack_bits(self.parts["places"], _place_bits(group), kept)
        places = packed.reshape(-1, keep)
        ascending = places[:, 1:] > places[:, :-1]
        if not bool(ascending.all()):
            raise ValueError("the places of a group aren't in order")
        values = self._values(kept).reshape(-1, keep)
        groups = torch.zeros(group_count, group, dtype=self.dtype)
        for start in range(0, group_count, _AT_ONCE):
            piece = slice(start, start + _AT_ONCE)
            groups[piece].scatter_(1, places[piece].long(), values[piece])
        return groups.reshape(self.shape)

    def _values(self, count: int) -> Tensor:
        """The numbers that are stored, `count` of them, as a vector."""
        values = self.parts["values"]
        if self.width:
            _check_equal("the type of its numbers", self.dtype, torch.int8)
            codes = unpack_bits(values, self.width, count).to(torch.int16)
            return (codes - 2 ** (self.width - 1)).to(torch.int8)
        expected = self.shape if self.layout == "whole" else (count,)
        _check_equal("the type of its numbers", values.dtype, self.dtype)
        _check_equal("the shape of its numbers", tuple(values.shape), expected)
        return values.flatten()


_PARTS: Final = {
    "whole": ["values"],
    "zeros": list[str](),
    "bits": ["bits", "values"],
    "n_of_m": ["places", "values"],
}


def declared(facts: Mapping[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape and the type that an entry of a file says. Raises `ValueError` for
    others.
    """
    shape = facts.get("shape")
    dtype = facts.get("dtype")
    if not _is_shape(shape) or not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"shape and dtype are {brief([shape, dtype])}")
    return tuple(shape), DTYPES[dtype]


def _is_shape(shape: Any) -> TypeGuard[list[int]]:
    if not isinstance(shape, list) or len(shape) > _DIMENSIONS:
        return False
    return all(type(size) is int and 0 <= size <= _LONGEST for size in shape)


def pack_bits(numbers: UInt8[Tensor, "number"], width: int) -> UInt8[Tensor, "byte"]:
    """Return the lowest `width` bits of each number, packed into bytes lowest first.

    >>> pack_bits(torch.tensor([1, 2, 3, 0, 2], dtype=torch.uint8), 2).tolist()
    [57, 2]
    """
    pieces = [np.empty(0, np.uint8)]
    for piece in numbers.split(_AT_ONCE):
        # A row of bits for each number, of which the lowest stay.
        spread = np.unpackbits(piece.numpy()[:, None], axis=1, bitorder="little")
        pieces.append(np.packbits(spread[:, :width], bitorder="little"))
    return torch.from_numpy(np.concatenate(pieces))


def unpack_bits(packed: Shaped[Tensor, "..."], width: int, count: int) -> UInt8[Tensor, "number"]:
    """Return the `count` numbers that `pack_bits` packed. Raises `ValueError` unless `packed` is a
    vector of just as many bytes as they take.
    """
    _check_equal("the type of packed bits", (packed.dtype, packed.dim()), (torch.uint8, 1))
    _check_equal("bytes of packed bits", len(packed), ceil_div(count * width, 8))
    numbers = np.zeros(count, np.uint8)
    for start in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - start)
        # Pieces begin at whole bytes, since `_AT_ONCE` is a multiple of 8.
        first = start * width // 8
        last = first + ceil_div(size * width, 8)
        content = packed[first:last].numpy()
        bits = np.unpackbits(content, bitorder="little", count=size * width)
        bits_of_number = bits.reshape(size, width)
        # A byte for each number: what it has no bits for is zero.
        filled_up = np.packbits(bits_of_number, axis=1, bitorder="little")
        numbers[start : start + size] = filled_up[:, 0]
    return torch.from_numpy(numbers)


def digest(tensor: Shaped[Tensor, "..."]) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(content.numpy().data).hexdigest()


def same(left: Shaped[Tensor, "..."], right: Shaped[Tensor, "..."]) -> bool:
    """Return whether two tensors have the same shape, type and bits: 0 and -0 differ, NaN equals
    itself.
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(_bits_of(left), _bits_of(right))


def _bits_of(tensor: Tensor) -> Tensor:
    """The same bits as integers: then a negative zero isn't zero, and NaN equals itself."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(AS_INTEGERS[flat.element_size()])


def _unpack_mask(bits: Tensor, count: int) -> Bool[Tensor, "number"]:
    """The first `count` bits, as truths. Raises `ValueError` where a bit behind them is set."""
    _check_equal("the type of its bits", (bits.dtype, bits.dim()), (torch.uint8, 1))
    _check_equal("bytes of its bits", len(bits), ceil_div(count, 8))
    spread = np.unpackbits(bits.numpy(), bitorder="little")
    if spread[count:].any():
        raise ValueError("more bits are set than there are numbers")
    return torch.from_numpy(spread[:count].astype(bool))


class _SizedLayout(NamedTuple):
    """A layout that a tensor could have, and how many bits (`size`) it takes then. Of those of one
    size the one with the lowest `order` is taken.
    """

    size: int
    order: int
    layout: str
    keep: int = 0
    group: int = 0


def _smallest(nonzero: Bool[Tensor, "number"], shape: Sequence[int], bits: int) -> _SizedLayout:
    """The layout that takes the fewest bits. A number has `bits` bits."""
    length = len(nonzero)
    count = int(nonzero.count_nonzero())
    if not length:
        return _SizedLayout(0, 0, "whole")
    if not count:
        return _SizedLayout(0, 0, "zeros")
    layouts = [
        _SizedLayout(length * bits, 0, "whole"),
        _SizedLayout(count * bits + length, 2, "bits"),
    ]
    if count < length:
        for group in GROUPS:
            if shape[-1] % group:
                continue
            nonzero_by_group = nonzero.view(-1, group).sum(1)
            keep = int(nonzero_by_group.max())
            if keep < group:
                kept = len(nonzero_by_group) * keep
                size = kept * (bits + _place_bits(group))
                layouts.append(_SizedLayout(size, 1, "n_of_m", keep, group))
    return min(layouts)


def _parts(
    chosen: _SizedLayout, flat: Tensor, nonzero: Bool[Tensor, "number"]
) -> dict[str, Tensor]:
    if chosen.layout == "zeros":
        return {}
    if chosen.layout == "whole":
        return {"values": flat}
    if chosen.layout == "bits":
        bits = torch.from_numpy(np.packbits(nonzero.numpy(), bitorder="little"))
        return {"bits": bits, "values": flat[nonzero]}
    places: list[Tensor] = []
    values: list[Tensor] = []
    numbers = flat.view(-1, chosen.group).split(_AT_ONCE)
    filled = nonzero.view(-1, chosen.group).split(_AT_ONCE)
    for piece, piece_filled in zip(numbers, filled, strict=True):
        # A stable sort puts the places that aren't zero first. A group that has fewer of them than
        # `keep` is filled up with places of zeros.
        is_zero = piece_filled.logical_not().to(torch.uint8)
        zeros_last = is_zero.sort(dim=1, stable=True).indices
        kept = zeros_last[:, : chosen.keep].sort(dim=1).values
        places.append(kept.to(torch.uint8))
        values.append(piece.gather(1, kept))
    packed = pack_bits(torch.cat(places).flatten(), _place_bits(chosen.group))
    return {"places": packed, "values": torch.cat(values).flatten()}


def _width(flat: Int[Tensor, "number"] | Tensor) -> int:
    """How many bits each of these numbers needs, where they are int8 and need fewer than 8; else
    0.
    """
    if flat.dtype != torch.int8 or not len(flat):
        return 0
    largest = int(flat.max())
    # In two's complement -8 needs as many bits as 7.
    like_lowest = -int(flat.min()) - 1
    # One more is for the sign.
    width = max(largest, like_lowest).bit_length() + 1
    return width if width < 8 else 0


def _place_bits(group: int) -> int:
    """How many bits the place of a number in its group takes."""
    return group.bit_length() - 1


def _check_equal(subject: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{subject} are {brief(found)} where {brief(expected)} fit")
