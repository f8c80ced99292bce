"""The GGUF file that llama.cpp makes of a whole model, before and after it is quantized, and what
its tensors are in the model.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float

from calibrant.errors import OutputError, TargetError
from calibrant.llama_cpp import quantize_file
from calibrant.models import ModelView
from calibrant.models.gguf_writing import GgufPart, parts_of
from calibrant.packed import Compressed, GgmlBlocks, Packed

NUMBERS: Final = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
"""Types whose tensors aren't quantized: they are plain numbers."""


class FileTensor(NamedTuple):
    """A tensor of a file: its type, and its rows as that type has them."""

    kind: GGMLQuantizationType
    numbers: torch.Tensor


class DenseFile(NamedTuple):
    """A GGUF file of plain numbers, and the mean x² of the columns of its tensors, by their names;
    a tensor of experts has those of one after the other.
    """

    path: Path
    importance: Mapping[str, Float[np.ndarray, "column"]]

    def quantized(
        self, recipe: str, kinds: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, FileTensor]:
        """Return every tensor of the file that llama.cpp makes of it by a recipe, and with the
        `kinds` of some tensors, by its name there. `OutputError` where it made another kind.
        """
        quantized: dict[str, FileTensor] = {}
        for tensor in self._made(recipe, kinds).tensors:
            rows = torch.from_numpy(np.array(tensor.data))
            quantized[str(tensor.name)] = FileTensor(tensor.tensor_type, rows)
        for name, kind in kinds.items():
            made = quantized[name].kind.name.lower()
            if made != kind:
                raise OutputError(
                    f"llama.cpp made {name} {made}, and {kind} was asked for; another version of "
                    "llama-cpp-py-sync may help",
                    subject=name,
                )
        return quantized

    def types(self, recipe: str) -> dict[str, GGMLQuantizationType]:
        """Return what llama.cpp makes of each tensor by a recipe."""
        return {str(tensor.name): tensor.tensor_type for tensor in self._made(recipe, {}).tensors}

    def _made(self, recipe: str, kinds: Mapping[str, str]) -> gguf.GGUFReader:
        target = self.path.with_name("quantized.gguf")
        threads = torch.get_num_threads()
        quantize_file(self.path, target, recipe, self.importance, threads, kinds)
        return gguf.GGUFReader(target)


def in_own_order(
    view: ModelView, quantized: Mapping[str, FileTensor]
) -> Iterator[tuple[str, FileTensor]]:
    """Yield what became of each matrix of the view, and of every other parameter, with its name:
    rows in the model's own order.

    Raises `TargetError` where gate and up of experts, which are one matrix here, got different
    types.
    """
    experts: dict[str, list[GgufPart]] = {}
    for part in parts_of(view):
        if part.rows is not None:
            experts.setdefault(part.parameter, []).append(part)
            continue
        kind, numbers = quantized[part.name]
        if part.order is not None:
            numbers = torch.empty_like(numbers).index_copy_(0, part.order, numbers)
        yield part.matrix or part.parameter, FileTensor(kind, numbers)
    for parts in experts.values():
        kinds = [quantized[part.name].kind for part in parts]
        if len(set(kinds)) > 1:
            became = [f"{part.name} {kind.name}" for part, kind in zip(parts, kinds, strict=True)]
            problem = f"llama.cpp made {' and '.join(became)}, and they are one matrix here"
            advice = "use calibrant imatrix and llama-quantize"
            raise TargetError(f"{problem}; {advice}", subject=parts[0].name)
        of_all_experts = torch.cat([quantized[part.name].numbers for part in parts], dim=1)
        for name, numbers in zip(parts[0].experts, of_all_experts, strict=True):
            yield name, FileTensor(kinds[0], numbers)


def compressed_of(tensor: FileTensor, before: torch.Tensor, dtype: torch.dtype) -> Compressed:
    """Return the matrix that a tensor of the file is, with its packed form unless it has plain
    numbers.
    """
    packed = packed_of(tensor, before.device, dtype)
    if packed is not None:
        return Compressed(packed.dense(), packed=packed)
    numbers = gguf.dequantize(tensor.numbers.numpy(), tensor.kind)
    return Compressed(torch.from_numpy(numbers).to(before))


def packed_of(tensor: FileTensor, device: torch.device, dtype: torch.dtype) -> Packed | None:
    """Return the packed form of a tensor of the file; None for plain numbers."""
    if tensor.kind in NUMBERS:
        return None
    return GgmlBlocks(tensor.kind.name.lower(), tensor.numbers.to(device), dtype)
