"""llama.cpp's own decoders: blocks become the numbers that they stand for."""

from functools import cache

import numpy as np
from jaxtyping import Float32, UInt8

from calibrant.errors import CalibrantError
from calibrant.llama_cpp.library import ggml
from calibrant.llama_cpp.quantizing import kind_number


@cache
def can_decode(kind: str) -> bool:
    """Return whether llama.cpp is here and decodes blocks of a `kind` such as `Q4_K`."""
    try:
        _, library = ggml()
    except (CalibrantError, ImportError, OSError):
        return False
    return hasattr(library, _decoder(kind))


def decode_blocks(
    blocks: UInt8[np.ndarray, "byte"], kind: str, numbers: Float32[np.ndarray, "number"]
) -> None:
    """Write to `numbers` what blocks of a `kind` stand for. Other threads run meanwhile.

    The numbers are those of the package gguf, bit for bit. Raises `ValueError` where there are more
    or fewer blocks than numbers.
    """
    ffi, library = ggml()
    if library.ggml_row_size(kind_number(kind), numbers.size) != blocks.size:
        raise ValueError(f"{blocks.size:,} bytes of {kind} don't make {numbers.size:,} numbers")
    decoder = getattr(library, _decoder(kind))
    decoder(ffi.from_buffer(blocks), ffi.from_buffer("float[]", numbers), numbers.size)


def _decoder(kind: str) -> str:
    """What ggml calls the decoder of a kind."""
    return f"dequantize_row_{kind.lower().replace('_k', '_K')}"
