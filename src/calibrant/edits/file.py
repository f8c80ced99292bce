"""Edits as one safetensors file. Where many numbers of a tensor are zero, it holds which aren't,
and those: nothing is lost of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from calibrant.edits.kinds import StoredEdit, memory_of
from calibrant.errors import DataError
from calibrant.system.durable import from_json, line_of_json

ENTRIES: Final = "edits"
"""The tensor that holds what isn't a tensor, as the bytes of a JSON text."""
_AS_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Numbers are compared by their bits, so that a negative zero stays one."""


def to_bytes(edits: Sequence[StoredEdit]) -> bytes:
    """Return the file's content; `from_bytes` gives the same edits, every tensor bit for bit."""
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    known: dict[Any, dict[str, Any]] = {}
    for number, edit in enumerate(edits):
        for name, tensor in edit.tensors.items():
            if (
                memory := memory_of(tensor)
            ) not in known:  # a tensor that edits share is there once
                known[memory] = _without_zeros(
                    f"{number}.{name}", tensor.detach().contiguous().cpu(), tensors
                )
        forms = {name: known[memory_of(tensor)] for name, tensor in edit.tensors.items()}
        entries.append({"kind": edit.kind, "facts": dict(edit.facts), "tensors": forms})
    text = line_of_json(entries).encode()
    return save({**tensors, ENTRIES: torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def from_bytes(content: bytes) -> list[StoredEdit]:
    """Return the edits again. `DataError` for what is no such file."""
    try:
        tensors = load(content)
        entries = from_json(tensors.pop(ENTRIES).numpy().tobytes().decode())
        return [
            StoredEdit(
                str(e["kind"]),
                e["facts"],
                {name: _with_zeros(form, tensors) for name, form in e["tensors"].items()},
            )
            for e in entries
        ]
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"the edits that are kept of a run can't be read ({error}); delete edits.safetensors in its folder to compress it again"
        ) from error


def _without_zeros(name: str, tensor: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put a tensor into `tensors`, whole or as bits and the numbers that aren't zero, whichever
    is less, and say how.
    """
    flat = tensor.flatten().view(_AS_INTEGERS[tensor.element_size()])
    # A bit for each number says whether it is zero: worth it where the zeros would take more than
    # those n bits.
    nonzero = flat != 0
    if (len(flat) - int(nonzero.count_nonzero())) * tensor.element_size() * 8 <= len(flat):
        tensors[name] = tensor
        return {"name": name}
    tensors[f"{name}.bits"] = torch.from_numpy(np.packbits(nonzero.numpy()))
    tensors[f"{name}.values"] = tensor.flatten()[nonzero]
    return {"name": name, "shape": list(tensor.shape)}


def _with_zeros(form: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    if "shape" not in form:
        return tensors[form["name"]]
    bits, values, shape = (
        tensors[f"{form['name']}.bits"],
        tensors[f"{form['name']}.values"],
        tuple(form["shape"]),
    )
    size = int(np.prod(shape, dtype=np.int64))
    if size > 8 * len(bits):
        raise ValueError("its tensors are larger than what is there of them")
    nonzero = torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool))
    whole = torch.zeros(size, dtype=values.dtype)
    whole[nonzero] = values
    return whole.reshape(shape)
