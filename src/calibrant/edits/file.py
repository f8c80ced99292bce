"""Edits as one safetensors file. Of a tensor with many zeros it holds the other numbers alone, and
which they are; so nothing is lost.
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
from calibrant.models.compact import AS_INTEGERS
from calibrant.system.durable import from_json, line_of_json

ENTRIES: Final = "edits"
"""The tensor that holds what isn't a tensor, as the bytes of a JSON text."""


def to_bytes(edits: Sequence[StoredEdit]) -> bytes:
    """Return the file's content; `from_bytes` gives the same edits, every tensor bit for bit."""
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    known: dict[Any, dict[str, Any]] = {}
    for number, edit in enumerate(edits):
        forms: dict[str, Any] = {}
        for name, tensor in edit.tensors.items():
            memory = memory_of(tensor)
            # A tensor that edits share is there once.
            if memory not in known:
                plain = tensor.detach().contiguous().cpu()
                known[memory] = _without_zeros(f"{number}.{name}", plain, tensors)
            forms[name] = known[memory]
        entries.append({"kind": edit.kind, "facts": dict(edit.facts), "tensors": forms})
    text = bytearray(line_of_json(entries).encode())
    tensors[ENTRIES] = torch.frombuffer(text, dtype=torch.uint8)
    return save(tensors)


def from_bytes(content: bytes) -> list[StoredEdit]:
    """Return the edits again. `DataError` for what is no such file."""
    edits: list[StoredEdit] = []
    try:
        tensors = load(content)
        text = tensors.pop(ENTRIES).numpy().tobytes().decode()
        for entry in from_json(text):
            held: dict[str, Tensor] = {}
            for name, form in entry["tensors"].items():
                held[name] = _with_zeros(form, tensors)
            edits.append(StoredEdit(str(entry["kind"]), entry["facts"], held))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"the edits that are kept of a run can't be read ({error}); "
            f"delete edits.safetensors in its folder to compress it again"
        ) from error
    return edits


def _without_zeros(name: str, tensor: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put a tensor into `tensors`, whole or as bits and the numbers that aren't zero, whichever
    is less; return in which form it is there.
    """
    # By their bits, so that a negative zero stays one.
    flat = tensor.flatten().view(AS_INTEGERS[tensor.element_size()])
    # A bit for each number says whether it is zero: that is worth it where the zeros would take
    # more than all these bits.
    nonzero = flat != 0
    zeros = len(flat) - int(nonzero.count_nonzero())
    if zeros * tensor.element_size() * 8 <= len(flat):
        tensors[name] = tensor
        return {"name": name}
    tensors[f"{name}.bits"] = torch.from_numpy(np.packbits(nonzero.numpy()))
    tensors[f"{name}.values"] = tensor.flatten()[nonzero]
    return {"name": name, "shape": list(tensor.shape)}


def _with_zeros(form: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor that `_without_zeros` described so."""
    if "shape" not in form:
        return tensors[form["name"]]
    bits = tensors[f"{form['name']}.bits"]
    values = tensors[f"{form['name']}.values"]
    shape = tuple(form["shape"])
    size = int(np.prod(shape, dtype=np.int64))
    if size > 8 * len(bits):
        raise ValueError("its tensors are larger than what is there of them")
    unpacked = np.unpackbits(bits.numpy(), count=size)
    nonzero = torch.from_numpy(unpacked.astype(bool))
    # Torch would spread a single value over all places.
    if int(nonzero.count_nonzero()) != len(values):
        raise ValueError("its tensors have another number of values than places for them")
    whole = torch.zeros(size, dtype=values.dtype)
    whole[nonzero] = values
    return whole.reshape(shape)
