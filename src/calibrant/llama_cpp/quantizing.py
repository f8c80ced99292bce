"""llama.cpp's own quantizers: of one matrix, and of a whole file by one of its recipes."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import gguf
import numpy as np
from jaxtyping import Float, UInt8

from calibrant.errors import OutputError, TargetError
from calibrant.llama_cpp.library import ggml, last_error, llama

_PREFIX: Final = "LLAMA_FTYPE_MOSTLY_"


def needs_importance(kind: str) -> bool:
    """Return whether blocks of a kind such as `iq2_xs` can't be chosen without knowing how much
    each input matters.
    """
    _, library = ggml()
    return bool(library.ggml_quantize_requires_imatrix(kind_number(kind)))


def kind_number(kind: str) -> int:
    """Return ggml's number of a kind of blocks such as `q4_k`."""
    return int(gguf.GGMLQuantizationType[kind.upper()])


def quantize_matrix(
    weight: Float[np.ndarray, "out in"],
    kind: str,
    importance: Float[np.ndarray, "in"] | None = None,
) -> UInt8[np.ndarray, "out byte"]:
    """Return the rows of a matrix as blocks of a `kind` such as `q4_k`; `importance` says how much
    each input matters.

    The bytes are those that llama.cpp's own tool writes. Raises `TargetError` for a kind that needs
    an importance, without one.
    """
    ffi, library = ggml()
    number = kind_number(kind)
    if importance is None and needs_importance(kind):
        raise TargetError(
            f"{kind} can't be chosen without knowing which inputs matter; give calibration data",
            subject=kind,
        )
    rows, columns = weight.shape
    numbers = np.ascontiguousarray(weight, dtype=np.float32)
    blocks = np.zeros((rows, library.ggml_row_size(number, columns)), dtype=np.uint8)
    weights = ffi.NULL
    if importance is not None:
        weights = ffi.from_buffer("float[]", np.ascontiguousarray(importance, dtype=np.float32))
    written = library.ggml_quantize_chunk(
        number,
        ffi.from_buffer("float[]", numbers),
        ffi.from_buffer(blocks),
        0,
        rows,
        columns,
        weights,
    )
    if written != blocks.nbytes:
        raise OutputError(
            f"ggml wrote {written:,} bytes of {blocks.nbytes:,} for {kind}; "
            f"another version of llama-cpp-py-sync may help",
            subject=kind,
        )
    return blocks


@cache
def file_types() -> Mapping[str, int]:
    """Return llama.cpp's recipes by name (`Q4_K_M`), as this version of the library numbers
    them.
    """
    ffi, _ = llama()
    names: dict[str, int] = ffi.typeof("enum llama_ftype").relements
    recipes: dict[str, int] = {}
    for name, number in sorted(names.items()):
        if name.startswith(_PREFIX):
            recipes[name.removeprefix(_PREFIX)] = number
    return recipes


def quantize_file(
    source: Path,
    target: Path,
    recipe: str,
    importance: Mapping[str, Float[np.ndarray, "column"]],
    threads: int = 1,
    kinds: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Quantize the GGUF file `source` by one of llama.cpp's recipes to `target`, weighted with the
    mean x² of each column by the tensor's name. Tensors in `kinds` get the kind that is given there
    by their name, such as `q4_k`, whatever the recipe says.

    Raises `TargetError` for a recipe that this llama.cpp doesn't have, `OutputError` where it
    fails.
    """
    ffi, library = llama()
    if recipe not in file_types():
        raise TargetError(
            f"{recipe} is no recipe of this llama.cpp; it has {', '.join(file_types())}",
            subject=recipe,
        )
    settings = library.llama_model_quantize_default_params()
    settings.ftype = file_types()[recipe]
    settings.nthread = threads
    # Every buffer must live until the call returns, so all are kept in lists.
    columns = [np.ascontiguousarray(values, dtype=np.float32) for values in importance.values()]
    names = [ffi.new("char[]", name.encode()) for name in importance]
    # The last entry is empty, and ends the table.
    table = ffi.new("struct llama_model_imatrix_data[]", len(columns) + 1)
    for number, (name, values) in enumerate(zip(names, columns, strict=True)):
        entry = table[number]
        entry.name = name
        entry.data = ffi.from_buffer("float[]", values)
        entry.size = values.size
    if columns:
        settings.imatrix = table
    # Regular expressions, in which a name has no special sign but the dot.
    patterns = [ffi.new("char[]", f"^{name.replace('.', '[.]')}$".encode()) for name in kinds]
    # The last entry is empty here too.
    overrides = ffi.new("struct llama_model_tensor_override[]", len(patterns) + 1)
    for number, kind in enumerate(kinds.values()):
        overrides[number].pattern = patterns[number]
        overrides[number].type = kind_number(kind)
    if kinds:
        settings.tt_overrides = overrides
    from_path = ffi.new("char[]", str(source).encode())
    to_path = ffi.new("char[]", str(target).encode())
    code = library.llama_model_quantize(from_path, to_path, ffi.addressof(settings))
    if code != 0:
        reason = last_error() or f" (code {code})"
        raise OutputError(
            f"llama.cpp couldn't quantize the model to {recipe}{reason}; "
            f"some recipes need calibration data that reaches every matrix",
            subject=recipe,
        )
