"""Safetensors files that are written where we say and in pieces. The library writes a whole file,
and first under a name of its own, which stays for good when the process is killed.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, final

import torch
from torch import Tensor

from calibrant.errors import OutputError

WORDS: Final = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types in the order in which a file has their tensors, with the format's words."""
AS_TORCH: Final[Mapping[str, str]] = MappingProxyType({"format": "pt"})
"""What files of models say about themselves."""


@final
@dataclass(frozen=True)
class Shard:
    """One safetensors file that is written in pieces: `table` are the bytes before the tensors,
    `places` says at which byte each tensor begins, and `size` is that of the file.
    """

    path: Path
    table: bytes
    places: Mapping[str, int]
    size: int

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] = AS_TORCH
    ) -> "Shard":
        """Lay out a file as the safetensors library does: by type, widest first, then by name. The
        table is filled up with spaces to a multiple of 8 bytes. Raises `OutputError` for a type
        of numbers that isn't in `WORDS`.
        """
        for name, tensor in tensors.items():
            if tensor.dtype not in WORDS:
                raise OutputError(
                    f"{name} has numbers of type {tensor.dtype}, which Calibrant doesn't write "
                    "into safetensors files; open the model as float32",
                    subject=name,
                )
        table: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0
        for dtype, word in WORDS.items():
            names = [name for name, tensor in tensors.items() if tensor.dtype == dtype]
            for name in sorted(names, key=str.encode):
                shape = list(tensors[name].shape)
                start = end
                end += prod(shape) * dtype.itemsize
                table[name] = {"dtype": word, "shape": shape, "data_offsets": [start, end]}
        written = json.dumps(table, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text = written.encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<Q", len(text)) + text
        places = {name: len(head) + table[name]["data_offsets"][0] for name in tensors}
        return cls(path, head, places, len(head) + end)

    def begin(self) -> None:
        """Write the table, and make the file as long as it will be; tensors fill it in any
        order.
        """
        with self.path.open("wb") as file:
            file.write(self.table)
            file.truncate(self.size)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write some of its tensors."""
        with self.path.open("r+b") as file:
            for name, tensor in tensors.items():
                file.seek(self.places[name])
                _put(file, tensor)


def _put(file: IO[bytes], tensor: Tensor) -> None:
    file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
