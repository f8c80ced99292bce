"""Folders whose matrices are packed integers: the form `pack-quantized` of compressed-tensors, read
and written without that library.

A linear layer [out, in] is three tensors: `weight_packed`, int32 [out, words], in which code i of a
row, made positive by adding 2^(bits-1), begins at bit i·bits, lowest bits first and across words;
`weight_scale` [out, groups], in the model's type; `weight_shape`, [out, in]. Only symmetric grids
are read: asymmetric ones don't open in most versions of the library, and what transformers doesn't
know it fills with random numbers in silence.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, final

import numpy as np
import torch
from jaxtyping import Float, Int8, Int32
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models.complete import StoredTensor
from calibrant.models.configuring import opening_by_transformers
from calibrant.models.converting import from_state
from calibrant.models.folder import CONFIG, entries, read_object
from calibrant.spec.foreign import brief

METHOD: Final = "compressed-tensors"
FORMAT: Final = "pack-quantized"
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
BITS: Final = range(2, 9)
RANDOM: Final = ("bitmask", "sparse")
"""Words of formats that readers have given up: transformers opens such a folder with random
weights.
"""


def pack_codes(codes: Int8[Tensor, "out in"], bits: int) -> Int32[Tensor, "out words"]:
    """Return codes of so many bits as whole words of 32.

    >>> pack_codes(torch.tensor([[-8, 7, 0]], dtype=torch.int8), 4).tolist()
    [[2288]]
    """
    positive = (codes.cpu().numpy().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    spread = np.unpackbits(positive[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(
        len(positive), -1
    )
    padded = np.pad(spread, ((0, 0), (0, -spread.shape[1] % 32)))
    return torch.from_numpy(
        np.packbits(padded, axis=1, bitorder="little").view("<i4").astype(np.int32)
    )


def unpack_codes(
    words: Int32[Tensor, "out words"], bits: int, inputs: int
) -> Int8[Tensor, "out in"]:
    """Return the codes again that `pack_codes` packed."""
    spread = np.unpackbits(words.numpy().astype("<i4").view(np.uint8), axis=1, bitorder="little")[
        :, : inputs * bits
    ]
    positive = np.packbits(spread.reshape(len(words), inputs, bits), axis=2, bitorder="little")[
        :, :, 0
    ]
    return torch.from_numpy((positive.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8))


@final
@dataclass(frozen=True)
class PackedFolder:
    """The packed matrices of a folder: the bits of each by its module, and every tensor as it
    will be once they are unpacked.
    """

    bits: Mapping[str, int]
    tensors: Mapping[str, StoredTensor]

    def model(
        self,
        kind: type[PreTrainedModel],
        folder: Path,
        weights: Sequence[Path],
        config: PreTrainedConfig,
        dtype: torch.dtype,
    ) -> Any:
        """Return the unpacked model, and what transformers says of its loading."""
        return from_state(
            kind,
            {name: tensor for path in weights for name, tensor in self._dense(path)},
            folder,
            config,
            dtype,
        )

    def _dense(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                module, _, part = name.rpartition(".")
                if module not in self.bits:
                    yield name, file.get_tensor(name)
                elif part == PACKED:
                    inputs = self.tensors[f"{module}.weight"].shape[1]
                    codes, scales = (
                        unpack_codes(file.get_tensor(name), self.bits[module], inputs),
                        file.get_tensor(f"{module}.{SCALE}"),
                    )
                    yield f"{module}.weight", dense_of(codes, scales)
                elif part not in (SCALE, SHAPE):
                    yield name, file.get_tensor(name)


def dense_of(
    codes: Int8[Tensor, "out in"], scales: Float[Tensor, "out group"]
) -> Float[Tensor, "out in"]:
    """Return what codes stand for, in the type of their scales: each value is rounded once."""
    return (
        codes.unflatten(1, (scales.shape[1], -1)).to(scales.dtype) * scales[:, :, None]
    ).flatten(1)


def packed_folder(
    folder: Path, ref: str, weights: Sequence[Path], stored: Mapping[str, StoredTensor]
) -> PackedFolder | None:
    """Return what is packed in a folder; None for one whose weights are plain numbers.

    Raises `ModelError` for a quantization of another kind, by its name, and for packed tensors
    whose shapes don't fit each other.
    """
    raw = read_object(folder / CONFIG)
    settings = next(
        (value for name, value in entries(raw) if name == "quantization_config" and value), None
    )
    if settings is None:
        return None
    groups = _groups(settings, ref)
    modules = [name.removesuffix(f".{PACKED}") for name in stored if name.endswith(f".{PACKED}")]
    bits = {module: _bits_of(module, groups, ref) for module in modules}
    tensors = dict(stored)
    packed = {
        module: {part: tensors.pop(f"{module}.{part}", None) for part in (PACKED, SCALE, SHAPE)}
        for module in modules
    }
    for module, parts in packed.items():
        if len({part and part.file for part in parts.values()}) > 1 or None in parts.values():
            raise ModelError(
                f"{ref}: {module} lacks a part of its packed weight, or has it in another file; save it again",
                subject=module,
            )
    for path in weights:
        with opening_by_transformers(ref), safe_open(path, framework="pt") as file:
            for module in (
                module for module in modules if stored[f"{module}.{PACKED}"].file == path.name
            ):
                shape = [int(n) for n in file.get_tensor(f"{module}.{SHAPE}").flatten().tolist()]
                tensors[f"{module}.weight"] = _unpacked(
                    module, shape, cast(Any, packed[module]), bits[module], ref
                )
    return PackedFolder(bits, tensors)


def _unpacked(
    module: str, shape: Sequence[int], parts: Mapping[str, StoredTensor], bits: int, ref: str
) -> StoredTensor:
    """The tensor that a packed one becomes, if its parts fit each other."""
    words, scales = parts[PACKED].shape, parts[SCALE].shape
    fits = (
        len(shape) == len(words) == len(scales) == 2
        and words[0] == scales[0] == shape[0]
        and words[1] == math.ceil(shape[1] * bits / 32)
    )
    if not fits or scales[1] < 1 or shape[1] % scales[1]:
        what = f"{list(shape)} numbers of {bits} bits, packed as {list(words)} with scales {list(scales)}"
        raise ModelError(
            f"{ref}: {module} is to have {what}, which don't fit each other; save it again",
            subject=module,
        )
    return StoredTensor((shape[0], shape[1]), parts[SCALE].dtype, parts[PACKED].file)


def _groups(settings: Any, ref: str) -> Mapping[str, int]:
    """The bits of each target that the configuration names: `Linear`, or modules."""
    method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else "unknown"
    sparse = next(
        (
            str(value)
            for name, value in entries(settings)
            if name == "format" and any(word in str(value) for word in RANDOM)
        ),
        "",
    )
    if sparse:
        raise ModelError(
            f"{ref} is stored as {brief(sparse)[1:-1]}, which transformers would fill with random numbers; give the model before its compression",
            subject=ref,
        )
    if method != METHOD or settings.get("format") != FORMAT:
        form = (
            f", {brief(settings['format'])[1:-1]}"
            if isinstance(settings, dict) and isinstance(settings.get("format"), str)
            else ""
        )
        raise ModelError(
            f"{ref} is quantized already ({brief(method)[1:-1]}{form}); give the model before its quantization",
            subject=ref,
        )
    found = dict[str, int]()
    for group in (settings.get("config_groups") or {}).values():
        scheme = group.get("weights") if isinstance(group, dict) else None
        if (
            not isinstance(scheme, dict)
            or scheme.get("type") != "int"
            or scheme.get("symmetric") is not True
            or scheme.get("num_bits") not in BITS
        ):
            raise ModelError(
                f"{ref} has weights of a kind that isn't read ({brief(scheme)}); symmetric integers of 2 to 8 bits are",
                subject=ref,
            )
        if group.get("input_activations") or scheme.get("actorder") == "group":
            raise ModelError(
                f"{ref} rounds activations or orders its groups anew, which isn't computed here; give the model before that",
                subject=ref,
            )
        found |= {str(target): int(scheme["num_bits"]) for target in group.get("targets") or ()}
    return found


def _bits_of(module: str, groups: Mapping[str, int], ref: str) -> int:
    if (bits := groups.get(module, groups.get("Linear"))) is None:
        raise ModelError(
            f"{ref} doesn't say how many bits the weights of {module} have; check its quantization_config",
            subject=module,
        )
    return bits
