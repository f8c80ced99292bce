"""A tensor without its zeros, as files of the export `sparse` hold it: nothing is lost of it, to
the last bit.

Four layouts, of which the one that takes the fewest bits is used, and `whole` where none takes
fewer:

- `whole`: all numbers, as they are.
- `zeros`: nothing at all; every number is zero.
- `bits`: one bit for each number, 1 where it isn't zero, and the numbers that aren't zero, in
  order.
- `n_of_m`: of every `group` consecutive numbers of a row `keep`, in order, and the place of each in
  its group, in log2(group) bits.

Numbers of the type int8, such as codes, take as many bits (`width`) as the largest of them needs,
each with 2^(width-1) added. Bits are packed into bytes lowest first, without gaps. A number is zero
if all its bits are, so a negative zero stays one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, final

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor

from calibrant.spec.foreign import brief

GROUPS: Final = (4, 8, 16)
"""Numbers of a group: what `n_of_m` looks for, and what it may be."""
DTYPES: Final[Mapping[str, torch.dtype]] = {
    **{name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")},
    **{name: getattr(torch, name) for name in ("int64", "int32", "int16", "int8", "uint8", "bool")},
}
"""The types of tensors that are stored, by the words that a file says."""

_AS_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE: Final = 2**18
"""Numbers or groups whose bits are spread out at a time: a multiple of 8, so that every piece
but the last fills its bytes.
"""
_DIMENSIONS: Final = 8
_LONGEST: Final = 2**40


@final
@dataclass(frozen=True)
class Compact:
    """A tensor of `shape` and `dtype` in one of the four layouts; `parts` are `values`, and `bits`
    or `places`.

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
        """Return the layout of a tensor that takes the fewest bits; of equals `whole` is first,
        and `n_of_m` before `bits`.
        """
        flat = tensor.detach().cpu().contiguous().flatten()
        nonzero = flat.view(_AS_INTEGERS[flat.element_size()]) != 0
        width = _width(flat)
        bits = width or 8 * flat.element_size()
        count = int(nonzero.count_nonzero())
        most = _most_kept(nonzero, tensor.shape) if 0 < count < len(flat) else {}
        grouped = [
            (len(flat) // group * keep * (bits + _place_bits(group)), 1, "n_of_m", keep, group)
            for group, keep in most.items()
            if keep < group
        ]
        whole = (len(flat) * bits, 0, "whole", 0, 0)
        least = (
            min([whole, (count * bits + len(flat), 2, "bits", 0, 0), *grouped])
            if count
            else (0, 0, "zeros" if len(flat) else "whole", 0, 0)
        )
        _, _, layout, keep, group = least
        parts = _parts(layout, flat, nonzero, keep, group)
        if width and "values" in parts:
            codes = parts["values"].flatten().to(torch.int16) + 2 ** (width - 1)
            parts["values"] = pack_bits(codes.to(torch.uint8), width)
        elif layout == "whole":
            parts["values"] = parts["values"].reshape(tensor.shape)
        return cls(
            layout,
            tuple(tensor.shape),
            flat.dtype,
            parts,
            width if layout != "zeros" else 0,
            keep,
            group,
        )

    @property
    def size(self) -> int:
        """How many bytes its parts take."""
        return sum(part.nbytes for part in self.parts.values())

    def facts(self) -> dict[str, Any]:
        """Return what `read` needs besides the parts, as plain JSON data."""
        numbers = {
            name: number for name in ("width", "keep", "group") if (number := getattr(self, name))
        }
        return {
            "layout": self.layout,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            **numbers,
        }

    @classmethod
    def read(cls, facts: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "Compact":
        """Return it again. `ValueError` for facts that are none; whether the parts fit them is
        looked at when it is made `whole`.
        """
        width, keep, group = (facts.get(name, 0) for name in ("width", "keep", "group"))
        if any(type(number) is not int for number in (width, keep, group)) or not 0 <= width < 8:
            raise ValueError(f"width, keep and group are {brief([width, keep, group])}")
        shape, dtype = declared(facts)
        return cls(str(facts.get("layout")), shape, dtype, parts, width, keep, group)

    def whole(self) -> Shaped[Tensor, "..."]:
        """Return the tensor. `ValueError` where its parts don't fit each other."""
        count = prod(self.shape)
        _fits("parts", sorted(self.parts), _PARTS.get(self.layout))
        if self.layout == "zeros":
            return torch.zeros(self.shape, dtype=self.dtype)
        if self.layout == "whole":
            return self._values(count).reshape(self.shape)
        if self.layout == "bits":
            where = _spread(self.parts["bits"], count)
            values, flat = (
                self._values(int(where.count_nonzero())),
                torch.zeros(count, dtype=self.dtype),
            )
            flat[where] = values
            return flat.reshape(self.shape)
        return self._regrouped(count)

    def _regrouped(self, count: int) -> Tensor:
        if (
            self.group not in GROUPS
            or not 0 < self.keep < self.group
            or not self.shape
            or self.shape[-1] % self.group
        ):
            raise ValueError(
                f"{brief(self.keep)} of every {brief(self.group)} don't fit rows of {self.shape[-1:]}"
            )
        kept = count // self.group * self.keep
        places = unpack_bits(self.parts["places"], _place_bits(self.group), kept).reshape(
            -1, self.keep
        )
        if self.keep > 1 and not bool((places[:, 1:] > places[:, :-1]).all()):
            raise ValueError("the places of a group aren't in order")
        flat, values = (
            torch.zeros(count // self.group, self.group, dtype=self.dtype),
            self._values(kept).reshape(-1, self.keep),
        )
        for start in range(0, len(flat), _AT_ONCE):
            piece = slice(start, start + _AT_ONCE)
            flat[piece].scatter_(1, places[piece].long(), values[piece])
        return flat.reshape(self.shape)

    def _values(self, count: int) -> Tensor:
        """So many numbers, in one row."""
        values = self.parts["values"]
        if self.width:
            _fits("the type of its numbers", self.dtype, torch.int8)
            return (
                unpack_bits(values, self.width, count).to(torch.int16) - 2 ** (self.width - 1)
            ).to(torch.int8)
        _fits("the type of its numbers", values.dtype, self.dtype)
        _fits(
            "the shape of its numbers",
            tuple(values.shape),
            self.shape if self.layout == "whole" else (count,),
        )
        return values.flatten()


_PARTS: Final = {
    "whole": ["values"],
    "zeros": list[str](),
    "bits": ["bits", "values"],
    "n_of_m": ["places", "values"],
}


def declared(facts: Mapping[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape and the type that an entry of a file says. `ValueError` for what is none."""
    shape, dtype = facts.get("shape"), facts.get("dtype")
    sound = (
        isinstance(shape, list)
        and len(shape) <= _DIMENSIONS
        and all(type(n) is int and 0 <= n <= _LONGEST for n in shape)
    )
    if (
        not isinstance(shape, list)
        or not sound
        or not isinstance(dtype, str)
        or dtype not in DTYPES
    ):
        raise ValueError(f"shape and dtype are {brief([shape, dtype])}")
    return tuple(shape), DTYPES[dtype]


def pack_bits(numbers: UInt8[Tensor, "number"], width: int) -> UInt8[Tensor, "byte"]:
    """Return the lowest `width` bits of each number, packed into bytes lowest first.

    >>> pack_bits(torch.tensor([1, 2, 3, 0, 2], dtype=torch.uint8), 2).tolist()
    [57, 2]
    """
    pieces = [
        _packed(numbers[start : start + _AT_ONCE].numpy(), width)
        for start in range(0, len(numbers), _AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *pieces]))


def unpack_bits(packed: Shaped[Tensor, "..."], width: int, count: int) -> UInt8[Tensor, "number"]:
    """Return so many numbers again that `pack_bits` packed. `ValueError` for what aren't bytes,
    or not as many as those take.
    """
    _fits("the type of packed bits", (packed.dtype, packed.dim()), (torch.uint8, 1))
    _fits("bytes of packed bits", len(packed), -(-count * width // 8))
    numbers = np.zeros(count, np.uint8)
    for start in range(0, count, _AT_ONCE):
        size, first = min(_AT_ONCE, count - start), start * width // 8
        bits = np.unpackbits(
            packed[first : first + -(-size * width // 8)].numpy(),
            bitorder="little",
            count=size * width,
        )
        numbers[start : start + size] = np.packbits(
            bits.reshape(size, width), axis=1, bitorder="little"
        )[:, 0]
    return torch.from_numpy(numbers)


def digest(tensor: Shaped[Tensor, "..."]) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    ).hexdigest()


def same(one: Shaped[Tensor, "..."], other: Shaped[Tensor, "..."]) -> bool:
    """Return whether two tensors have the same shape, type and bits: 0 and -0 differ, NaN equals
    itself.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    kind = _AS_INTEGERS[one.element_size()]
    return torch.equal(
        *(tensor.detach().cpu().contiguous().flatten().view(kind) for tensor in (one, other))
    )


def _packed(numbers: np.ndarray, width: int) -> np.ndarray:
    return np.packbits(
        np.unpackbits(numbers[:, None], axis=1, bitorder="little")[:, :width], bitorder="little"
    )


def _spread(bits: Tensor, count: int) -> Bool[Tensor, "number"]:
    """One truth for each of `count` bits; those that fill the last byte are zero."""
    _fits("the type of its bits", (bits.dtype, bits.dim()), (torch.uint8, 1))
    _fits("bytes of its bits", len(bits), -(-count // 8))
    spread = np.unpackbits(bits.numpy(), bitorder="little")
    if spread[count:].any():
        raise ValueError("more bits are set than there are numbers")
    return torch.from_numpy(spread[:count].astype(bool))


def _parts(
    layout: str, flat: Tensor, nonzero: Bool[Tensor, "number"], keep: int, group: int
) -> dict[str, Tensor]:
    if layout == "zeros":
        return {}
    if layout == "whole":
        return {"values": flat}
    if layout == "bits":
        return {
            "bits": torch.from_numpy(np.packbits(nonzero.numpy(), bitorder="little")),
            "values": flat[nonzero],
        }
    places, values = list[Tensor](), list[Tensor]()
    for numbers, there in zip(
        flat.view(-1, group).split(_AT_ONCE), nonzero.view(-1, group).split(_AT_ONCE), strict=True
    ):
        # The places that aren't zero come first; a group that has fewer is filled up with places of
        # zeros.
        chosen = (
            torch.sort(there.logical_not().to(torch.uint8), dim=1, stable=True)
            .indices[:, :keep]
            .sort(dim=1)
            .values
        )
        places.append(chosen.to(torch.uint8))
        values.append(numbers.gather(1, chosen))
    return {
        "places": pack_bits(torch.cat(places).flatten(), _place_bits(group)),
        "values": torch.cat(values).flatten(),
    }


def _most_kept(nonzero: Bool[Tensor, "number"], shape: Sequence[int]) -> dict[int, int]:
    """How many numbers of a group aren't zero at most, by the size of the group, where it
    divides the rows.
    """
    return {
        group: int(nonzero.view(-1, group).sum(1).max())
        for group in GROUPS
        if shape and shape[-1] and shape[-1] % group == 0 and len(nonzero)
    }


def _width(flat: Int[Tensor, "number"] | Tensor) -> int:
    """The bits that each of these numbers needs, where they are whole numbers of 8 bits and need
    fewer; else 0.
    """
    if flat.dtype != torch.int8 or not len(flat):
        return 0
    width = max(int(flat.max()), -int(flat.min()) - 1).bit_length() + 1
    return width if width < 8 else 0


def _place_bits(group: int) -> int:
    return group.bit_length() - 1


def _fits(what: str, there: object, expected: object) -> None:
    if there != expected:
        raise ValueError(f"{what} are {brief(there)} where {brief(expected)} fit")
