"""The tensors of a GGUF file, decoded in several threads straight into the type that is wanted, and
named and ordered as transformers does it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_gguf_pytorch_utils

from calibrant.llama_cpp import can_decode, decode_blocks

PIECE: Final = 2**15
"""How many numbers are decoded at a time. They stay in a processor's cache, and torch converts no
more than so many in a single thread. Every kind of blocks divides it.
"""

_INTEGERS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types that have so many bytes."""


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
    path: Path,
    tensor: gguf.ReaderTensor,
    dtype: torch.dtype,
    process: Callable[[str, np.ndarray], tuple[str | None, np.ndarray]],
) -> tuple[str | None, Tensor]:
    """A tensor's name and numbers as `process` gives them; no name where it has put them into
    their place.
    """
    # Matrices are only reordered, with few exceptions, and that can be done in any type. numpy is
    # shown opaque bytes in place of the numbers: they can be moved, but not computed with.
    if len(tensor.shape) == 2:
        integer = _INTEGERS[dtype.itemsize]
        numbers = decoded(path, tensor, dtype).view(integer).numpy()
        try:
            name, moved = process(tensor.name, numbers.view(f"V{dtype.itemsize}"))
        except TypeError:
            pass  # this one is computed with
        else:
            return name, torch.from_numpy(moved.view(numbers.dtype)).view(dtype)
    exact = decoded(path, tensor, torch.float32)
    name, weights = process(tensor.name, exact.numpy())
    return name, torch.from_numpy(np.copy(weights)).to(dtype)


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
    count = torch.get_num_threads()
    share = max(PIECE, -(-flat.numel() // (PIECE * count)) * PIECE)
    with ThreadPoolExecutor(count) as threads:
        begun = [
            threads.submit(_decode, path, tensor, first, flat[first : first + share])
            for first in range(0, flat.numel(), share)
        ]
        for part in begun:
            part.result()
    return numbers


def _decode(path: Path, tensor: gguf.ReaderTensor, first: int, numbers: Tensor) -> None:
    """Fill `numbers`, which are those of the tensor from its number `first` on."""
    kind = tensor.tensor_type
    block, size = gguf.GGML_QUANT_SIZES[kind]
    native = can_decode(kind.name)
    exact = torch.empty(PIECE, dtype=torch.float32)
    with path.open("rb") as file:
        file.seek(tensor.data_offset + first // block * size)
        for piece in numbers.split(PIECE):
            blocks = np.frombuffer(file.read(len(piece) // block * size), dtype=np.uint8)
            values = exact[: len(piece)]
            if native:
                decode_blocks(blocks, kind.name, values.numpy())
            else:
                values.numpy()[:] = gguf.dequantize(blocks, kind)
            piece.copy_(values)
