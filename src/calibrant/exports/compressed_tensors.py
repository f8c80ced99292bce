"""The form that vLLM, SGLang and transformers read: compressed-tensors' `pack-quantized`, and
what it has for float grids, written without that library.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from calibrant.errors import OutputError
from calibrant.exports._base import CompressedModel, Export, packed_now
from calibrant.methods import Method
from calibrant.models import ModelView, Opened
from calibrant.models.declared_cache import cache_settings, cache_tensors
from calibrant.models.declared_inputs import input_settings, scale_name
from calibrant.models.float_folder import FORMATS, WEIGHT, WEIGHT_SETTINGS, stored_names
from calibrant.models.folder import CONFIG, INDEX, READ, WEIGHTS
from calibrant.models.on_disk import saved_state
from calibrant.models.packed_folder import (
    FORMAT,
    INTEGERS,
    METHOD,
    PACKED,
    PLAIN,
    SCALE,
    SHAPE,
    pack_codes,
)
from calibrant.models.rounded_cache import RoundedCache, rounded_caches
from calibrant.models.rounded_inputs import INPUTS, RoundedInputs, rounding_modules
from calibrant.packed import Codes, FloatCodes
from calibrant.system.durable import usual_rights
from calibrant.targets import (
    E4M3,
    FloatGrid,
    Grid,
    InputGrid,
    SparseGrid,
    Target,
    WithCache,
    parse_target,
)

FOLDER: Final = "compressed_tensors"
SCALE_TYPES: Final[Mapping[str, Mapping[str, str]]] = {
    "plain": {},
    "e4m3": {"scale_dtype": "torch.float8_e4m3fn"},
    "e8m0": {"scale_dtype": "torch.uint8"},
}
"""What its configuration says of the scales of inputs besides, by how they are stored."""


@dataclass(frozen=True, repr=False)
class CompressedTensors(Export):
    """Writes symmetric codes of 2 to 8 bits, and floating-point numbers of 4 and 8, with their
    scales into the folder `compressed_tensors`, as vLLM, SGLang and transformers read them.

    `ignore` in its configuration lists every linear layer that is dense. Readers have kernels for 4
    and 8 bits; transformers opens all. Schemes such as W8A8 say there what becomes of inputs, and
    have their static scales, as a rounded KV cache has. Matrices of NVFP4 and MXFP4 open in
    bfloat16, whatever the type of the model was.
    """

    def check(self, method: Method, target: Target, opened: Opened, view: ModelView) -> None:
        grid = target.weights
        if isinstance(grid, SparseGrid):
            grid = grid.grid
        # With a cache alone weights stay plain numbers.
        if not isinstance(grid, Grid | FloatGrid | WithCache):
            raise OutputError(
                f"{self} holds codes of a grid, and {target} is none; "
                f"leave the export {self} out, or quantize to w4g64",
                subject=str(self),
            )
        if not method.prunes:
            raise OutputError(
                f"{self} holds codes, and {method} leaves every matrix as it is; "
                f"leave the export {self} out, or choose rtn",
                subject=str(method),
            )
        if isinstance(grid, WithCache) and rounding_modules(opened.model):
            raise OutputError(
                f"{self} can say how inputs are rounded only beside codes of their matrices, and "
                f"{opened.name} rounds inputs while {target} leaves weights as plain numbers; "
                f"leave the export {self} out, or quantize to w8+{target}",
                subject=str(target),
            )
        if isinstance(grid, Grid) and not grid.symmetric:
            raise OutputError(
                f"{self} holds symmetric codes, since most readers can't open others, and {target} "
                f"has zero points; quantize to {Grid(grid.bits, grid.group)}",
                subject=str(target),
            )
        for weight in view.weights:
            if not isinstance(weight.owner, nn.Linear):
                raise OutputError(
                    f"{self} holds linear layers, and {weight.name} is in a "
                    f"{type(weight.owner).__name__}; leave the export {self} out",
                    subject=weight.name,
                )
        saved = saved_state(opened.model, opened.model.state_dict())
        for weight in view.weights:
            if f"{weight.name}.weight" not in saved:
                raise OutputError(
                    f"{self} finds matrices in files by their names, and files have another one "
                    f"for {weight.name}, as those of models of pictures and text do; leave "
                    f"the export {self} out, or take sparse",
                    subject=weight.name,
                )

    def write(self, compressed: CompressedModel, folder: Path) -> None:
        quantized = self._quantized(compressed)
        packed_folder = folder / FOLDER
        packed_folder.mkdir()
        _write_tensors(quantized, compressed.opened.dtype, folder, packed_folder)
        # What else a reader needs, such as the tokenizer, goes along unchanged, and no other form.
        for file in folder.iterdir():
            written = file.suffix == ".safetensors" or file.name in (CONFIG, INDEX, INPUTS)
            if file.is_file() and file.name.endswith(READ) and not written:
                shutil.copy(file, packed_folder / file.name)
        dense: list[str] = []
        for name, module in compressed.opened.model.named_modules():
            if isinstance(module, nn.Linear) and name not in quantized.codes:
                dense.append(name)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        settings = _settings(quantized, dense)
        _write(packed_folder / CONFIG, {**config, "quantization_config": settings})

    def _quantized(self, compressed: CompressedModel) -> "_Quantized":
        """Return what this form holds of a model. Raises `OutputError` for one without codes, and
        for inputs that are rounded where their matrix has none.
        """
        codes: dict[str, Codes | FloatCodes] = {}
        for name, form in packed_now(compressed).items():
            if isinstance(form, FloatCodes) or (isinstance(form, Codes) and form.zeros is None):
                codes[name] = form
        inputs = rounding_modules(compressed.opened.model)
        caches = rounded_caches(compressed.opened.model)
        target = parse_target(compressed.record.run.target)
        # A target that rounds the cache alone leaves weights as plain numbers.
        cache_alone = isinstance(target.weights, WithCache) and bool(caches)
        if not codes and not cache_alone:
            raise OutputError(
                f"{self} found no codes in what {target} made; leave the export {self} out",
                subject=str(self),
            )
        for name in inputs:
            # A model that rounded inputs before: what no token reached got no codes now.
            if name not in codes:
                raise OutputError(
                    f"{self} can say how inputs are rounded only beside codes of their matrix, and "
                    f"{name} rounds its inputs and got no codes, as what no token reaches gets "
                    f"none; show more tokens, or leave the export {self} out",
                    subject=name,
                )
        return _Quantized(codes, inputs, caches)


@final
@dataclass(frozen=True)
class _Quantized:
    """What of a model isn't in plain numbers, by name: matrices, inputs, and the KV cache of
    attentions.
    """

    codes: Mapping[str, Codes | FloatCodes]
    inputs: Mapping[str, RoundedInputs]
    caches: Mapping[str, RoundedCache]


def _write_tensors(quantized: _Quantized, dtype: torch.dtype, folder: Path, place: Path) -> None:
    """Write what the files of the dense `folder` hold into files of the same names in `place`, and
    an index where they are several. `dtype` is the type of the model.
    """
    # They belong to no matrix, and go into the first file.
    cache_scales = cache_tensors(quantized.caches, dtype)
    file_of: dict[str, str] = {}
    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors = {**dict(_tensors(file, quantized)), **cache_scales}
        cache_scales = {}
        with usual_rights(place / file.name):
            save_file(tensors, place / file.name, metadata={"format": "pt"})
        file_of |= dict.fromkeys(tensors, file.name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    # A single file needs no index.
    if set(file_of.values()) != {WEIGHTS}:
        _write(place / INDEX, {"metadata": {"total_size": size}, "weight_map": file_of})


def _tensors(file: Path, quantized: _Quantized) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one file of the dense folder, by name; a matrix that has codes is
    yielded as several tensors, such as its codes, scales and shape, and the static scale of its
    inputs.
    """
    with safe_open(file, framework="pt") as dense:
        for name in dense.keys():  # noqa: SIM118  # no mapping
            module = name.removesuffix(".weight")
            codes = quantized.codes.get(module)
            # A bias is no weight, and stays as it is.
            if codes is None or module == name:
                yield name, dense.get_tensor(name)
                continue
            if isinstance(codes, FloatCodes):
                parts = _parts(codes)
            elif quantized.inputs:
                parts = {WEIGHT: codes.codes, SCALE: codes.scales}
            else:
                parts = {
                    PACKED: pack_codes(codes.codes, codes.grid.bits),
                    SCALE: codes.scales,
                    SHAPE: torch.tensor(codes.codes.shape, dtype=torch.int64),
                }
            if module in quantized.inputs:
                parts |= _static_scale(quantized.inputs[module], codes)
            for part, tensor in parts.items():
                yield f"{module}.{part}", tensor.cpu().contiguous()


def _static_scale(rounding: RoundedInputs, codes: Codes | FloatCodes) -> dict[str, Tensor]:
    """Return the tensor of the scale that inputs have beforehand, by its name in the format; none
    where they have none.
    """
    if rounding.static_scale is None:
        return {}
    # A global scale is in float32, whatever the type of the model.
    dtype = torch.float32 if rounding.grid.has_global_scale else codes.scales.dtype
    return {scale_name(rounding.grid): torch.tensor([rounding.static_scale], dtype=dtype)}


def _parts(packed: FloatCodes) -> dict[str, Tensor]:
    """Return the tensors of a matrix on a float grid, by their names in the format."""
    scales = packed.scales
    codes = packed.bytes()
    stored = scales.stored
    if scales.grid.element == E4M3:
        codes = codes.view(torch.float8_e4m3fn)
    if scales.grid.scale == "e4m3":
        stored = stored.view(torch.float8_e4m3fn)
    if scales.grid.name == "FP8A16_TENSOR":
        stored = stored.flatten()
    tensors = [codes, stored]
    if scales.global_scale is not None:
        tensors.append(scales.global_scale)
    return dict(zip(stored_names(scales.grid), tensors, strict=True))


def _settings(quantized: _Quantized, dense: list[str]) -> dict[str, Any]:
    """Return the `quantization_config`: a group for each grid of weights, and what becomes of their
    inputs. It names its matrices, or all linear layers where there is only one group.
    """
    members: dict[tuple[Grid | FloatGrid, InputGrid | None], list[str]] = {}
    for name, codes in quantized.codes.items():
        grid = codes.grid if isinstance(codes, Codes) else codes.scales.grid
        inputs = None
        if name in quantized.inputs:
            inputs = quantized.inputs[name].grid
        members.setdefault((grid, inputs), []).append(name)
    groups: dict[str, Any] = {}
    format_name = FORMAT if quantized.codes else PLAIN
    if quantized.inputs:
        format_name = INTEGERS
    for number, ((grid, inputs), names) in enumerate(members.items()):
        group: dict[str, Any] = {
            "targets": ["Linear"] if len(members) == 1 else names,
            "input_activations": None,
            "output_activations": None,
        }
        if inputs is not None:
            group["input_activations"] = {**input_settings(inputs), **SCALE_TYPES[inputs.scale]}
        if isinstance(grid, FloatGrid):
            # All matrices have the same float grid, since no allocation shares one.
            format_name = FORMATS[grid.name]
            group["format"] = format_name
            group["weights"] = {
                "type": "float",
                "symmetric": True,
                "dynamic": False,
                **WEIGHT_SETTINGS[grid.name],
            }
        else:
            group["weights"] = {
                "num_bits": grid.bits,
                "type": "int",
                "symmetric": True,
                "strategy": "channel" if grid.group is None else "group",
                "group_size": grid.group,
                "dynamic": False,
            }
        groups[f"group_{number}"] = group
    return {
        "quant_method": METHOD,
        "format": format_name,
        "quantization_status": "compressed",
        "kv_cache_scheme": cache_settings(quantized.caches),
        "config_groups": groups,
        "ignore": dense,
    }


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
