"""Folders whose matrices are packed integers: the format `pack-quantized` of compressed-tensors,
read and written without that library.

A linear layer [out, in] is three tensors:

- `weight_packed`, int32 [out, words]: code i of a row begins at bit i·bits, lowest bits first, and
  may lie across two words. 2^(bits-1) was added to each code, to make it positive.
- `weight_scale` [out, groups], in the model's type.
- `weight_shape`: [out, in].

Only symmetric grids are read. Most versions of the library don't open asymmetric ones, and what
transformers doesn't know it fills with random numbers in silence.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard, final

import numpy as np
import torch
from jaxtyping import Float, Int8, Int32
from safetensors import safe_open
from torch import Tensor

from calibrant.errors import ModelError
from calibrant.models.complete import StoredTensor
from calibrant.models.configuring import opening_by_transformers
from calibrant.models.float_folder import (
    FORMATS,
    PACKED,
    SCALE,
    WEIGHT,
    FloatFolder,
    float_folder,
    take_parts,
)
from calibrant.models.folder import CONFIG, entries, read_object
from calibrant.spec.foreign import brief

METHOD: Final = "compressed-tensors"
FORMAT: Final = "pack-quantized"
INTEGERS: Final = "int-quantized"
"""The format of whole numbers that aren't packed: `weight` is int8, beside its `weight_scale`."""
PLAIN: Final = "dense"
"""The format of a folder whose weights are plain numbers."""
SHAPE: Final = "weight_shape"
BITS: Final = range(2, 9)
RANDOM: Final = ("bitmask", "sparse")
"""Words in the names of formats that are read no more: transformers would open such a folder with
random weights.
"""


def pack_codes(codes: Int8[Tensor, "out in"], bits: int) -> Int32[Tensor, "out words"]:
    """Return the codes of each row, `bits` wide, packed into words of 32 bits.

    >>> pack_codes(torch.tensor([[-8, 7, 0]], dtype=torch.int8), 4).tolist()
    [[2288]]
    """
    # In int16 the sum can't overflow.
    positive = codes.cpu().numpy().astype(np.int16) + 2 ** (bits - 1)
    positive = positive.astype(np.uint8)
    # The eight bits of each code, of which the lowest stay.
    spread = np.unpackbits(positive[:, :, None], axis=2, bitorder="little")
    rows = spread[:, :, :bits].reshape(len(positive), -1)
    missing = -rows.shape[1] % 32
    padded = np.pad(rows, ((0, 0), (0, missing)))
    # Low byte first on every processor, as the files have it.
    words = np.packbits(padded, axis=1, bitorder="little").view("<i4")
    return torch.from_numpy(words.astype(np.int32))


def unpack_codes(
    words: Int32[Tensor, "out words"], bits: int, inputs: int
) -> Int8[Tensor, "out in"]:
    """Return the codes that `pack_codes` packed, `inputs` in each row."""
    content = words.numpy().astype("<i4").view(np.uint8)
    rows = np.unpackbits(content, axis=1, bitorder="little")
    bits_of_code = rows[:, : inputs * bits].reshape(len(words), inputs, bits)
    positive = np.packbits(bits_of_code, axis=2, bitorder="little")[:, :, 0]
    shifted_back = positive.astype(np.int16) - 2 ** (bits - 1)
    return torch.from_numpy(shifted_back.astype(np.int8))


@final
@dataclass(frozen=True)
class PackedFolder:
    """A folder with packed matrices: `bits` has the bits of each by its module, and `tensors` what
    every tensor of the checkpoint is once they are unpacked.
    """

    files: Sequence[Path]
    bits: Mapping[str, int]
    tensors: Mapping[str, StoredTensor]

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the checkpoint, unpacked."""
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # no mapping
                    module, _, part = name.rpartition(".")
                    if module not in self.bits or part not in (PACKED, SCALE, SHAPE):
                        yield name, file.get_tensor(name)
                    elif part == PACKED:
                        inputs = self.tensors[f"{module}.{WEIGHT}"].shape[1]
                        codes = unpack_codes(file.get_tensor(name), self.bits[module], inputs)
                        scales = file.get_tensor(f"{module}.{SCALE}")
                        yield f"{module}.{WEIGHT}", dense_of(codes, scales)


@final
@dataclass(frozen=True)
class IntegerFolder:
    """A folder whose `modules` have matrices of whole numbers, not packed; `tensors` says what
    every tensor of the checkpoint is once they are multiplied by their scales.
    """

    files: Sequence[Path]
    modules: frozenset[str]
    tensors: Mapping[str, StoredTensor]

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the checkpoint, its numbers multiplied by their scales."""
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # no mapping
                    module, _, part = name.rpartition(".")
                    if module not in self.modules or part not in (WEIGHT, SCALE):
                        yield name, file.get_tensor(name)
                    elif part == WEIGHT:
                        scales = file.get_tensor(f"{module}.{SCALE}")
                        yield name, dense_of(file.get_tensor(name), scales)


def dense_of(
    codes: Int8[Tensor, "out in"], scales: Float[Tensor, "out group"]
) -> Float[Tensor, "out in"]:
    """Return the numbers that codes stand for, in the type of their scales; each is rounded
    once.
    """
    grouped = codes.unflatten(1, (scales.shape[1], -1)).to(scales.dtype)
    return (grouped * scales[:, :, None]).flatten(1)


def packed_folder(
    folder: Path, ref: str, weights: Sequence[Path], stored: Mapping[str, StoredTensor]
) -> PackedFolder | IntegerFolder | FloatFolder | None:
    """Return a folder's packed matrices; None for a folder whose weights are plain numbers.

    Raises `ModelError` for a quantization of another kind, by its name, and for packed tensors
    whose shapes don't fit each other.
    """
    config = read_object(folder / CONFIG)
    settings = _quantization(config)
    if settings is None:
        return None
    if settings.get("format") in FORMATS.values():
        dtype = config.get("dtype", config.get("torch_dtype"))
        return float_folder(settings, dtype, ref, weights, stored)
    _check_format(settings, ref)
    bits_by_target = _bits_by_target(settings, ref)
    if settings["format"] == INTEGERS:
        return _integer_folder(ref, weights, stored)
    return _packed_integers(ref, weights, stored, bits_by_target)


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a configuration says of quantization, at any depth; None where it says none."""
    for name, value in entries(config):
        if name == "quantization_config" and value:
            return value if isinstance(value, dict) else {}
    return None


def _packed_integers(
    ref: str,
    weights: Sequence[Path],
    stored: Mapping[str, StoredTensor],
    bits_by_target: Mapping[str, int],
) -> PackedFolder:
    """A folder's packed matrices. Raises `ModelError` where their parts don't fit each other."""
    bits: dict[str, int] = {}
    for name in stored:
        module = name.removesuffix(f".{PACKED}")
        if module != name:
            bits[module] = _bits_of(module, bits_by_target, ref)
    tensors = dict(stored)
    packed: dict[str, Sequence[StoredTensor]] = {}
    for module in bits:
        packed[module] = take_parts(module, (PACKED, SCALE, SHAPE), tensors, ref)
    for path in weights:
        with opening_by_transformers(ref), safe_open(path, framework="pt") as file:
            for module, parts in packed.items():
                if parts[0].file == path.name:
                    numbers = file.get_tensor(f"{module}.{SHAPE}").flatten().tolist()
                    shape = [int(number) for number in numbers]
                    unpacked = _unpacked(module, shape, parts, bits[module], ref)
                    tensors[f"{module}.{WEIGHT}"] = unpacked
    return PackedFolder(weights, bits, tensors)


def _integer_folder(
    ref: str, weights: Sequence[Path], stored: Mapping[str, StoredTensor]
) -> IntegerFolder:
    """A folder's matrices of whole numbers. Raises `ModelError` where their parts don't fit each
    other.
    """
    tensors = dict(stored)
    modules: set[str] = set()
    for name, scales in stored.items():
        module = name.removesuffix(f".{SCALE}")
        if module == name:
            continue
        codes = stored.get(f"{module}.{WEIGHT}")
        if codes is None or not _are_of(codes, scales):
            raise ModelError(
                f"{ref}: the whole numbers of {module} and their scales, {list(scales.shape)}, "
                "don't fit each other; save it again",
                subject=module,
            )
        modules.add(module)
        del tensors[name]
        tensors[f"{module}.{WEIGHT}"] = StoredTensor(codes.shape, scales.dtype, codes.file)
    return IntegerFolder(weights, frozenset(modules), tensors)


def _are_of(codes: StoredTensor, scales: StoredTensor) -> bool:
    """Whether whole numbers and scales are those of one matrix."""
    if codes.dtype != "I8" or codes.file != scales.file:
        return False
    if not len(codes.shape) == len(scales.shape) == 2:
        return False
    rows, inputs = codes.shape
    return scales.shape[0] == rows and scales.shape[1] > 0 and inputs % scales.shape[1] == 0


def _unpacked(
    module: str, shape: Sequence[int], parts: Sequence[StoredTensor], bits: int, ref: str
) -> StoredTensor:
    """What a packed matrix is once it is unpacked. Raises `ModelError` unless its parts fit each
    other.

    `shape` is what `weight_shape` holds.
    """
    words, scales, _ = parts
    if not _fit(shape, words.shape, scales.shape, bits):
        raise ModelError(
            f"{ref}: {module} is to have {list(shape)} numbers of {bits} bits, packed as "
            f"{list(words.shape)} with scales {list(scales.shape)}, which don't fit each other; "
            "save it again",
            subject=module,
        )
    return StoredTensor((shape[0], shape[1]), scales.dtype, words.file)


def _fit(shape: Sequence[int], words: Sequence[int], scales: Sequence[int], bits: int) -> bool:
    """Whether a matrix of this shape can have words and scales of these shapes."""
    if not len(shape) == len(words) == len(scales) == 2:
        return False
    rows, inputs = shape
    if not words[0] == scales[0] == rows:
        return False
    groups = scales[1]
    return words[1] == math.ceil(inputs * bits / 32) and groups > 0 and inputs % groups == 0


def _check_format(settings: Mapping[str, Any], ref: str) -> None:
    """Raise `ModelError` for a quantization in a format that isn't read."""
    for name, value in entries(settings):
        if name == "format" and any(word in str(value) for word in RANDOM):
            # Without the quotes around it.
            format_name = brief(str(value))[1:-1]
            raise ModelError(
                f"{ref} is stored as {format_name}, which transformers would fill with random "
                "numbers; give the model before its compression",
                subject=ref,
            )
    method_name = settings.get("quant_method", "unknown")
    format_name = settings.get("format")
    formats = [FORMAT, INTEGERS]
    # Without groups only a KV cache is quantized.
    if not settings.get("config_groups"):
        formats.append(PLAIN)
    if method_name != METHOD or format_name not in formats:
        named = brief(method_name)[1:-1]
        if isinstance(format_name, str):
            named = f"{named}, {brief(format_name)[1:-1]}"
        raise ModelError(
            f"{ref} is quantized already ({named}); give the model before its quantization",
            subject=ref,
        )


def _bits_by_target(settings: Mapping[str, Any], ref: str) -> Mapping[str, int]:
    """The bits of each target in a quantization config: `Linear`, or modules by name. Raises
    `ModelError` for groups that aren't read.
    """
    config_groups = settings.get("config_groups") or {}
    if not isinstance(config_groups, dict):
        raise ModelError(
            f"{ref} has quantization groups that can't be read ({brief(config_groups)}); check its "
            "quantization_config",
            subject=ref,
        )
    bits_by_target: dict[str, int] = {}
    for group in config_groups.values():
        scheme = _scheme_of(group, ref)
        targets = group.get("targets") or []
        if not isinstance(targets, list):
            raise ModelError(
                f"{ref} has quantization targets that are no list ({brief(targets)}); check its "
                "quantization_config",
                subject=ref,
            )
        for target in targets:
            bits_by_target[str(target)] = int(scheme["num_bits"])
    return bits_by_target


def _scheme_of(group: Any, ref: str) -> dict[str, Any]:
    """How a group keeps its weights. Raises `ModelError` for a way that isn't read."""
    scheme = group.get("weights") if isinstance(group, dict) else None
    if not _is_read(scheme):
        raise ModelError(
            f"{ref} has weights of a kind that isn't read ({brief(scheme)}); symmetric integers of "
            "2 to 8 bits are",
            subject=ref,
        )
    if scheme.get("actorder") == "group":
        raise ModelError(
            f"{ref} orders its groups anew, which isn't computed here; give the model before that",
            subject=ref,
        )
    return scheme


def _is_read(scheme: Any) -> TypeGuard[dict[str, Any]]:
    """Whether weights are kept as symmetric whole numbers of few bits."""
    if not isinstance(scheme, dict) or scheme.get("type") != "int":
        return False
    return scheme.get("symmetric") is True and scheme.get("num_bits") in BITS


def _bits_of(module: str, bits_by_target: Mapping[str, int], ref: str) -> int:
    bits = bits_by_target.get(module, bits_by_target.get("Linear"))
    if bits is None:
        raise ModelError(
            f"{ref} doesn't say how many bits the weights of {module} have; check its "
            "quantization_config",
            subject=module,
        )
    return bits
