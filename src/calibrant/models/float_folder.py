"""Folders whose matrices are floating-point numbers of 4 or 8 bits, in the formats of
compressed-tensors for those: `nvfp4-pack-quantized`, `mxfp4-pack-quantized`, `float-quantized`.

A linear layer [out, in] on a grid of 4 bits has `weight_packed`, uint8 [out, in / 2], two codes in
a byte, and `weight_scale`; NVFP4 has `weight_global_scale` too, by which scales are divided. One of
8 bits has `weight` in float8, and `weight_scale` in the type of the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import safe_open
from torch import Tensor

from calibrant.errors import ModelError
from calibrant.models.complete import StoredTensor
from calibrant.numerics import ceil_div, type_name
from calibrant.packed import FloatCodes
from calibrant.spec.foreign import brief
from calibrant.targets import E2M1, FloatGrid

WEIGHT: Final = "weight"
PACKED: Final = "weight_packed"
SCALE: Final = "weight_scale"
GLOBAL_SCALE: Final = "weight_global_scale"
FORMATS: Final = {
    "NVFP4A16": "nvfp4-pack-quantized",
    "MXFP4A16": "mxfp4-pack-quantized",
    "FP8A16": "float-quantized",
    "FP8A16_TENSOR": "float-quantized",
    "FP8A16_BLOCK": "float-quantized",
}
"""The library's format for each float grid."""
WEIGHT_SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "NVFP4A16": {
        "num_bits": 4,
        "strategy": "tensor_group",
        "group_size": 16,
        "scale_dtype": "torch.float8_e4m3fn",
    },
    "MXFP4A16": {
        "num_bits": 4,
        "strategy": "group",
        "group_size": 32,
        "scale_dtype": "torch.uint8",
    },
    "FP8A16": {"num_bits": 8, "strategy": "channel"},
    "FP8A16_TENSOR": {"num_bits": 8, "strategy": "tensor"},
    "FP8A16_BLOCK": {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]},
}
"""What the library's configuration says of the weights of each."""
_TYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The types that a model may have, and their names in its files."""
_CODES: Final = {4: "U8", 8: "F8_E4M3"}
"""The type of tensors of codes, by their bits."""
_SCALES: Final = {"plain": tuple(_TYPES.values()), "e4m3": ("F8_E4M3",), "e8m0": ("U8",)}
"""The types that tensors of scales may have, by how they are stored."""


def stored_names(grid: FloatGrid) -> tuple[str, ...]:
    """Return what the tensors of a matrix are called: its codes, its scales, and what it has
    besides.
    """
    codes = PACKED if grid.element == E2M1 else WEIGHT
    if grid.scale == "e4m3":
        return codes, SCALE, GLOBAL_SCALE
    return codes, SCALE


@final
@dataclass(frozen=True)
class FloatFolder:
    """A folder with matrices on a float `grid`: those of `modules`. Unpacked they have the type
    `dtype`, and `tensors` says what every tensor of the checkpoint is then.
    """

    files: Sequence[Path]
    grid: FloatGrid
    modules: frozenset[str]
    dtype: str
    tensors: Mapping[str, StoredTensor]

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the checkpoint, unpacked."""
        names = stored_names(self.grid)
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # no mapping
                    module, _, part = name.rpartition(".")
                    if module not in self.modules or part not in names:
                        yield name, file.get_tensor(name)
                    elif part == SCALE:
                        parts = [file.get_tensor(f"{module}.{needed}") for needed in names]
                        yield f"{module}.{WEIGHT}", self._dense(*parts)

    def _dense(self, codes: Tensor, scales: Tensor, global_scale: Tensor | None = None) -> Tensor:
        dtype = self.dtype
        if self.grid.scale == "plain":
            dtype = type_name(scales.dtype)
            # One scale for the matrix has one dimension there.
            scales = scales.reshape(len(scales), -1)
        else:
            scales = scales.view(torch.uint8)
        tensors = {"codes": codes.view(torch.uint8), "scales": scales}
        if global_scale is not None:
            tensors["global_scale"] = global_scale
        return FloatCodes.read({"grid": str(self.grid), "dtype": dtype}, tensors).dense()


def float_folder(
    settings: Mapping[str, Any],
    dtype: object,
    ref: str,
    weights: Sequence[Path],
    stored: Mapping[str, StoredTensor],
) -> FloatFolder:
    """Return a folder's matrices, as its quantization `settings` describe them; `dtype` is the type
    of the model. Raises `ModelError` for weights of another kind, and for matrices whose parts are
    missing or don't fit each other.
    """
    grid = _grid_of(settings, ref)
    known = str(dtype) if str(dtype) in _TYPES else "bfloat16"
    tensors = dict(stored)
    modules: set[str] = set()
    for name in stored:
        module = name.removesuffix(f".{SCALE}")
        if module == name:
            continue
        parts = take_parts(module, stored_names(grid), tensors, ref)
        modules.add(module)
        tensors[f"{module}.{WEIGHT}"] = _unpacked(module, grid, parts, known, ref)
    return FloatFolder(weights, grid, frozenset(modules), known, tensors)


def take_parts(
    module: str, names: Sequence[str], tensors: dict[str, StoredTensor], ref: str
) -> list[StoredTensor]:
    """Take the parts of a packed matrix out of `tensors`, and return them. Raises `ModelError`
    unless all are there, in one file.
    """
    parts: list[StoredTensor] = []
    for name in names:
        part = tensors.pop(f"{module}.{name}", None)
        if part is not None:
            parts.append(part)
    if len(parts) < len(names) or len({part.file for part in parts}) > 1:
        raise ModelError(
            f"{ref}: {module} lacks a part of its packed weight, or has it in another file; "
            "save it again",
            subject=module,
        )
    return parts


def _unpacked(
    module: str, grid: FloatGrid, parts: Sequence[StoredTensor], dtype: str, ref: str
) -> StoredTensor:
    """Return what a matrix is once it is unpacked. Raises `ModelError` unless its parts fit."""
    codes, scales, *others = parts
    rows, width = codes.shape if len(codes.shape) == 2 else (0, 0)
    inputs = 2 * width if grid.element == E2M1 else width
    groups: tuple[int, ...] = ()
    if rows and inputs:
        groups = (ceil_div(rows, grid.height(rows)), inputs // grid.width(inputs))
    # One scale for the matrix has one dimension there.
    fits = bool(groups) and (scales.shape == groups or scales.shape == groups[:1] == (1,))
    fits = fits and inputs % grid.width(inputs) == 0
    fits = fits and codes.dtype == _CODES[grid.bits] and scales.dtype in _SCALES[grid.scale]
    for other in others:
        fits = fits and other.shape == (1,) and other.dtype == "F32"
    if not fits:
        raise ModelError(
            f"{ref}: {module} on {grid} has codes {codes.dtype} {list(codes.shape)} and scales "
            f"{scales.dtype} {list(scales.shape)}, which don't fit each other; save it again",
            subject=module,
        )
    held_as = scales.dtype if grid.scale == "plain" else _TYPES[dtype]
    return StoredTensor((rows, inputs), held_as, codes.file)


def _grid_of(settings: Mapping[str, Any], ref: str) -> FloatGrid:
    """Return the grid of all matrices. Raises `ModelError` where they have several, or none that is
    read.
    """
    groups = settings.get("config_groups")
    found: set[str] = set()
    if not isinstance(groups, dict):
        groups = {}
    for group in groups.values():
        given: Any = None
        if isinstance(group, dict):
            given = group.get("weights")
        if not isinstance(given, dict):
            given = {}
        found.add(_name_of(given, ref))
    if len(found) != 1:
        raise ModelError(
            f"{ref} has {len(found)} kinds of quantized weights, and one kind is read; give the "
            "model before its quantization",
            subject=ref,
        )
    return FloatGrid(found.pop())


def _name_of(given: Mapping[str, Any], ref: str) -> str:
    """Return the float grid that a configuration describes. Raises `ModelError` for another."""
    if given.get("type") == "float" and given.get("symmetric"):
        for name, entries in WEIGHT_SETTINGS.items():
            if all(given.get(key) == value for key, value in entries.items()):
                return name
    raise ModelError(
        f"{ref} has weights of a kind that isn't read ({brief(given)}); "
        f"{', '.join(WEIGHT_SETTINGS)} are",
        subject=ref,
    )
