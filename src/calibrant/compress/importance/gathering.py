"""Gathering an importance matrix: one pass over the dense model, which sums what each matrix is
multiplied with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calibrant.activations import FeatureNorms, Seen
from calibrant.compress.room import gathered_on_disk, in_bytes, offloading, room_for_activations
from calibrant.compress.shortage import shortage_of
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import resolved
from calibrant.errors import ModelError, SpecError
from calibrant.models import ModelView, Opened, Weight, check_finite, gguf_of, open_model, view
from calibrant.models.gguf_file import read_header
from calibrant.models.gguf_writing import tensor_names
from calibrant.models.imatrix import Imatrix, check_imatrix_path, importance_of
from calibrant.options import ImatrixOptions, with_fields_of
from calibrant.system.process import freed_memory_kept
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.statistics import untouched


@with_fields_of(ImatrixOptions)
@freed_memory_kept()
def imatrix(options: ImatrixOptions) -> Imatrix:
    """Run `data` through the dense `model`, sum the squared inputs of every matrix, and write that
    to `out` for llama.cpp's quantizers.

    `out` ends with `.gguf` (llama.cpp) or `.dat` (ik_llama.cpp). `data` in the packing `imatrix`,
    such as `"wikitext@imatrix"`, is cut as llama.cpp cuts it; in any other it is cut as elsewhere,
    and the file says how. Embeddings and the head have no entry, in llama.cpp as here. Of an expert
    that no token reached the count is 0, and llama.cpp quantizes it unweighted.

    `memory` is how many GB the process may hold. Where the model doesn't fit, its blocks stay on
    disk, and where what passes between them is too much as well, it is on disk meanwhile, beside
    `out`; the numbers are the same, and `note` in the result says so. It is about opening a model,
    so it goes with a model's name.

    Raises an `InputError` for anything that can't be used, before any work: an architecture that
    llama.cpp has no names for too.
    """
    model = options.model
    out = options.out
    if out is not None:
        check_imatrix_path(out)
    calibration = options.drawn_from(options.data)
    promised = in_bytes(options.memory)
    absent = ""
    if isinstance(model, Opened):
        if promised is not None:
            message = (
                f"memory={options.memory:g} says how a model is opened, and {model.name} is open"
            )
            raise SpecError(f"{message}; give its name, or leave memory out", subject="memory")
        opened = model
    else:
        if promised is not None:
            where = options.dtype, options.device
            absent = gathered_on_disk(model, calibration, *where, promised)
        opened = open_model(model, options.dtype, options.device, on_disk=bool(absent))
    seen_by = view(opened.model, opened.residence)
    names = tensor_names(seen_by)
    _check_names(opened, names)
    check_finite(seen_by)
    batch = resolved(calibration, opened, options.progress).tokens(opened.tokenizer)
    parted = ""
    if promised is not None:
        here = out is not None and opened.model.device.type == "cpu"
        left = room_for_activations(promised, opened, seen_by)
        parted = offloading(left, "dense", None, seen_by, batch, opened.dtype, here)
        if parted and out is not None:
            seen_by.offload = Path(out).absolute().parent
    seen: dict[Weight, Seen] = {}
    with torch.no_grad():
        for weight, there in untouched(opened, seen_by, batch, (FeatureNorms,)):
            seen[weight] = there
            options.progress("imatrix", weight.block + 1, len(seen_by.blocks))
    made = Imatrix(
        importance_of(seen_by, seen, names),
        (_described(calibration, batch),),
        int(batch.facts.get("windows", len(batch.ids))),
        calibration.length,
        _left_out(seen_by, seen),
        "; ".join(filter(None, (absent, parted))),
        shortage_of(seen_by, batch),
    )
    if out is not None:
        made.write(out)
    return made


def _check_names(opened: Opened, names: Mapping[str, tuple[str, ...]]) -> None:
    """Raise `ModelError` if the model's own GGUF file lacks a tensor of these names: quantizers
    pass over what they don't know in silence.
    """
    if (path := gguf_of(opened.name)) is None:
        return
    there = read_header(path).tensors
    for weight, several in names.items():
        for name in several:
            if name not in there:
                raise ModelError(
                    f"{weight} would be {name} in an imatrix, and {path} has no such tensor; tell us of it",
                    subject=weight,
                )


def _described(chosen: CalibrationSet, batch: TokenBatch) -> str:
    """What the file says it is of: the set, how it was cut, and which draw it is."""
    windows: Any = batch.facts.get("windows", len(batch.ids))
    return f"{chosen}; {windows}×{chosen.length}; draw {chosen.seed}"


def _left_out(seen_by: ModelView, seen: Mapping[Weight, Seen]) -> dict[str, str]:
    lacking = [weight for weight in seen_by.weights if weight not in seen]
    reasons = rehearse(seen_by).left("dense") if lacking else {}
    unreached = "no token was routed to this expert"
    return {
        w.name: reasons.get(
            w.name,
            unreached if w.expert is not None else "no product with it was seen in the forward",
        )
        for w in lacking
    }
