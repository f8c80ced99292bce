"""The tensors of a GGUF file, decoded in several threads straight into the type that is wanted, and
named and ordered as transformers does it.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_gguf_pytorch_utils

from calibrant.llama_cpp import can_decode, decode_blocks
from calibrant.models.compact import AS_INTEGERS
from calibrant.spec.foreign import brief

PIECE: Final = 2**15
"""How many numbers are decoded at a time. They stay in a processor's cache, and torch would convert
more of them in threads of its own. The size of every kind of block divides it.
"""

_Process = Callable[[str, np.ndarray], tuple[str | None, np.ndarray]]
"""Gives the name and the numbers of a tensor, from its name and numbers in the file."""


def add_tensors(
    parsed: dict[str, Any],
    path: Path,
    reader: gguf.GGUFReader,
    model: PreTrainedModel,
    dtype: torch.dtype,
) -> None:
    """Add to `parsed`, what transformers made of the header of the GGUF file at `path`, the file's
    tensors in `dtype`, by the names that they have in the model.

    A processor of transformers puts them into the order that the model wants.
    """
    legacy = cast(Any, modeling_gguf_pytorch_utils)
    architecture = legacy.read_field(reader, "general.architecture")[0]
    kind = legacy.TENSOR_PROCESSORS.get(architecture, legacy.TensorProcessor)
    processor = kind(config=parsed["config"])
    names = legacy.get_gguf_hf_weights_map(model, processor)
    # Some processors put tensors there themselves.
    tensors = parsed["tensors"] = {}

    def process(name: str, weights: np.ndarray) -> tuple[str | None, np.ndarray]:
        processed = processor.process(
            weights=weights, name=name, tensor_key_mapping=names, parsed_parameters=parsed
        )
        return processed.name, processed.weights

    for tensor in reader.tensors:
        name, numbers = _processed(path, tensor, dtype, process)
        if name in names:
            tensors[names[name]] = numbers


def _processed(
    path: Path, tensor: gguf.ReaderTensor, dtype: torch.dtype, process: _Process
) -> tuple[str | None, Tensor]:
    """A tensor's name and numbers as `process` gives them. There is no name where it has put them
    into their place itself.
    """
    if len(tensor.shape) == 2:
        try:
            return _moved(path, tensor, dtype, process)
        except TypeError:
            pass  # it is computed with
    exact = decoded(path, tensor, torch.float32)
    name, weights = process(tensor.name, exact.numpy())
    if name is None:
        return None, exact
    return name, torch.from_numpy(np.copy(weights)).to(dtype)


def _moved(
    path: Path, tensor: gguf.ReaderTensor, dtype: torch.dtype, process: _Process
) -> tuple[str | None, Tensor]:
    """The name and numbers of a matrix whose numbers are moved and not computed with, as those of
    nearly all are: it is decoded into the type that is wanted. Raises `TypeError` for any other.
    """
    numbers = decoded(path, tensor, dtype).view(AS_INTEGERS[dtype.itemsize]).numpy()
    # In place of numbers numpy is shown opaque bytes.
    name, moved = process(tensor.name, numbers.view(f"V{dtype.itemsize}"))
    return name, torch.from_numpy(moved.view(numbers.dtype)).view(dtype)


def decoded(path: Path, tensor: gguf.ReaderTensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers of a tensor of the GGUF file at `path`, in `dtype`.

    llama.cpp decodes what it can, where it is installed, and the package gguf the rest; both give
    the same bits. The file is read and not mapped, since mapped pages would count as memory in use.
    Raises `NotImplementedError` for a kind of blocks that gguf can't decode, and `ValueError` where
    the file is too short.
    """
    # GGUF has the fastest dimension first, torch has it last.
    numbers = torch.empty(tensor.shape.tolist()[::-1], dtype=dtype)
    flat = numbers.view(-1)
    decode = decode_blocks if can_decode(tensor.tensor_type.name) else _decode_by_gguf
    count = torch.get_num_threads()
    # Whole pieces, so that each part begins with a block.
    share = max(1, math.ceil(len(flat) / (PIECE * count))) * PIECE
    with ThreadPoolExecutor(count) as threads:
        begun: list[Future[None]] = []
        for first in range(0, len(flat), share):
            part = flat[first : first + share]
            begun.append(threads.submit(_fill, part, path, tensor, first, decode))
        for filled in begun:
            filled.result()
    return numbers


def _fill(
    numbers: Tensor,
    path: Path,
    tensor: gguf.ReaderTensor,
    first: int,
    decode: Callable[[np.ndarray, str, np.ndarray], None],
) -> None:
    """Fill `numbers`, which are those of the tensor from its number `first` on."""
    kind = tensor.tensor_type
    block, size = gguf.GGML_QUANT_SIZES[kind]
    exact = torch.empty(PIECE, dtype=torch.float32)
    with path.open("rb") as file:
        file.seek(tensor.data_offset + first // block * size)
        for piece in numbers.split(PIECE):
            packed = file.read(len(piece) // block * size)
            if len(packed) < len(piece) // block * size:
                raise ValueError(f"it ends within the tensor {brief(tensor.name)}")
            blocks = np.frombuffer(packed, dtype=np.uint8)
            values = exact[: len(piece)]
            decode(blocks, kind.name, values.numpy())
            piece.copy_(values)


def _decode_by_gguf(blocks: np.ndarray, kind: str, numbers: np.ndarray) -> None:
    numbers[:] = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
