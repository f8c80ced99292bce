"""What a GGUF file says that it holds, read within the file's own bounds.

The readers of gguf and transformers believe every count and length. A mangled one has them walk or allocate without end, so the header is gone
through first: nothing in it may be larger than what is left of the file.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, final

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from calibrant.errors import ModelError
from calibrant.foreign import brief
from calibrant.models.quiet import Refusal

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DIMENSIONS: Final = 4
LONGEST_NAME: Final = 2**16
TEXT, LIST = 8, 9
SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNMENT: Final = 32


@final
@dataclass(frozen=True)
class Header:
    """The single values of a GGUF file's header by name, and the shape of each tensor."""

    values: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]


def check_magic(path: Path) -> None:
    """Raise `ModelError` unless the file begins as GGUF files do."""
    with Refusal(f"{path} can't be read", "; is it yours to read?", str(path)), path.open("rb") as file:
        begins = file.read(len(MAGIC))
    if begins != MAGIC:
        raise ModelError(
            f"{path} is no GGUF file (it doesn't begin with {MAGIC.decode()}), or is truncated or damaged; download it again", subject=str(path)
        )


def read_header(path: Path) -> Header:
    """Return the header of a GGUF file. Raises `ValueError`, saying what, for one that is cut off or claims more than there is."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Reader(content).header()


@final
class _Reader:
    """A place in the file, which moves on with what is read."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, len(MAGIC)

    def header(self) -> Header:
        version, tensors, values = self._next("I"), self._next("Q"), self._next("Q")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, and 2 and 3 can be read")
        self._check_room(values, 13, "entries")
        read = [(self._text(LONGEST_NAME), self._value(self._next("I"))) for _ in range(values)]
        self._check_room(tensors, 24, "tensors")
        shapes: dict[str, tuple[int, ...]] = {}
        ends = 0
        for _ in range(tensors):
            name, shape, end = self._tensor()
            if name in shapes:
                raise ValueError(f"it holds {brief(name)} twice")
            shapes[name], ends = shape, max(ends, end)
        self._check_data(dict(read).get("general.alignment", ALIGNMENT), ends)
        return Header(dict(read), shapes)

    def _check_data(self, alignment: Any, ends: int) -> None:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {brief(alignment)}, and no power of two")
        start = -(-self._at // alignment) * alignment
        if ends and start + ends > len(self._content):
            raise ValueError(f"its tensors end at byte {start + ends:,}, and it has {len(self._content):,}")

    def _tensor(self) -> tuple[str, tuple[int, ...], int]:
        """A tensor's name, its shape, and where it ends in the data."""
        name, dimensions = self._text(LONGEST_NAME), self._next("I")
        if dimensions > DIMENSIONS:
            raise ValueError(f"{brief(name)} has {dimensions} dimensions, and {DIMENSIONS} are allowed")
        shape = tuple(reversed([self._next("Q") for _ in range(dimensions)]))
        kind, offset = GGMLQuantizationType(self._next("I")), self._next("Q")
        block, size = GGML_QUANT_SIZES[kind]
        if shape and shape[-1] % block:
            raise ValueError(f"{brief(name)} has rows of {shape[-1]}, which {kind.name} can't pack")
        return name, shape, offset + prod(shape) // block * size

    def _value(self, kind: int) -> Any:
        """A single value, or a list's length: what is in it, nobody here asks."""
        if kind == TEXT:
            return self._text()
        if kind != LIST:
            return self._next(_scalar(kind))
        inner, count = self._next("I"), self._next("Q")
        if inner == TEXT:
            self._check_room(count, 8, "texts")
            self._skip_texts(count)
        else:
            self._skip(count * struct.calcsize(_scalar(inner)))
        return [count]

    def _skip_texts(self, count: int) -> None:
        """A vocabulary has a hundred thousand of them, so this is written to be quick."""
        length, at, size = struct.Struct("<Q").unpack_from, self._at, len(self._content)
        for _ in range(count):
            if at + 8 > size:
                break
            at += 8 + length(self._content, at)[0]
        self._skip(at - self._at)

    def _text(self, longest: int | None = None) -> str:
        length = self._next("Q")
        if longest is not None and length > longest:
            raise ValueError(f"a name in it has {length:,} bytes")
        start = self._at
        self._skip(length)
        return self._content[start : self._at].decode("utf-8")

    def _next(self, code: str) -> Any:
        start = self._at
        self._skip(struct.calcsize(code))
        return struct.unpack_from(f"<{code}", self._content, start)[0]

    def _skip(self, size: int) -> None:
        if self._at + size > len(self._content):
            raise ValueError(f"something of {size:,} bytes begins at byte {self._at:,}, and it has {len(self._content):,}")
        self._at += size

    def _check_room(self, count: int, each: int, what: str) -> None:
        if count * each > len(self._content) - self._at:
            raise ValueError(f"it claims {count:,} {what} from byte {self._at:,} on, and has {len(self._content):,} bytes")


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"an entry is of the unknown type {kind}")
    return f"{SCALARS[kind]}"
