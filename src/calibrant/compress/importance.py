"""Importance matrices of llama.cpp: how they are gathered, in one pass through the dense model that
sums the squared inputs of each matrix; and how two of them are compared.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch

from calibrant.activations import FeatureNorms, Seen
from calibrant.compress.costs import shortage_of
from calibrant.compress.on_device import (
    device_of,
    gathered_beside,
    left_on_device,
    room_on_device,
)
from calibrant.compress.room import gathered_on_disk, in_bytes, offload, room_for_activations
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import resolved
from calibrant.errors import DataError, ModelError, SpecError
from calibrant.models import (
    ModelView,
    Opened,
    Weight,
    check_finite,
    gguf_of,
    is_object,
    name_of,
    only_looks,
    opened_of,
    view,
)
from calibrant.models.gguf_file import read_header
from calibrant.models.gguf_writing import tensor_names
from calibrant.models.imatrix import (
    Imatrix,
    ImatrixEntry,
    check_imatrix_path,
    importance_of,
    read_imatrix,
)
from calibrant.models.readable import check_windows
from calibrant.options import ImatrixOptions, with_fields_of
from calibrant.system.process import freed_memory_kept
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.statistics import untouched

__all__ = ["Imatrix", "ImatrixEntry", "ImatrixSummary", "compared", "imatrix", "read_imatrix"]

FEW: Final = 16
"""Tokens below which an expert's importance is mostly chance."""


@with_fields_of(ImatrixOptions)
@only_looks
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
    so it goes with a model's name. A model of transformers, with its `tokenizer`, is left as it
    was. `device_memory` is how many GB may be held on a GPU, by default 95 % of what is free there;
    of a larger model each block goes there in turn.

    Raises an `InputError` for anything that can't be used, before any work: an architecture that
    llama.cpp has no names for too.
    """
    model = options.model
    out = options.out
    if out is not None:
        check_imatrix_path(out)
    if options.data is None:
        message = "an importance matrix is of what a model was shown; give data=…"
        raise SpecError(message, subject="data")
    calibration = options.drawn_from(options.data)
    promised = in_bytes(options.memory)
    on_device = room_on_device(options.device_memory, device_of(model, options.device), model)
    why_on_disk, why_beside = _why_elsewhere(options, calibration, promised, on_device)
    opened = opened_of(
        model,
        options.tokenizer,
        options.dtype,
        options.device,
        on_disk=bool(why_on_disk),
        beside=bool(why_beside),
    )
    model_view = view(opened.model, opened.residence)
    names = tensor_names(model_view)
    _check_names(opened, names)
    check_finite(model_view)
    batch = resolved(calibration, opened, options.progress).tokens(opened.tokenizer)
    check_windows(opened.model, batch.ids, batch.mask)
    offloaded = ""
    if opened.residence.elsewhere and on_device is not None:
        left = left_on_device(on_device, opened, model_view)
        offloaded = offload(
            left, "dense", None, model_view, batch, opened.dtype, "memory", "device_memory"
        )
    elif promised is not None and on_device is None:
        left = room_for_activations(promised, opened, model_view)
        # Activations can go to disk only beside a file that is written.
        place = None if out is None else Path(out).absolute().parent
        offloaded = offload(left, "dense", None, model_view, batch, opened.dtype, place)
    seen: dict[Weight, Seen] = {}
    with torch.no_grad():
        for weight, matrix_seen in untouched(opened, model_view, batch, (FeatureNorms,)):
            seen[weight] = matrix_seen
            options.progress("imatrix", weight.block + 1, len(model_view.blocks))
    gathered = Imatrix(
        importance_of(model_view, seen, names),
        (_described(calibration, batch),),
        int(batch.facts.get("windows", len(batch.ids))),
        calibration.length,
        _left_out(model_view, seen),
        "; ".join(filter(None, [why_on_disk, why_beside, offloaded])),
        shortage_of(model_view, batch),
    )
    if out is not None:
        gathered.write(out)
    return gathered


def _why_elsewhere(
    options: ImatrixOptions,
    calibration: CalibrationSet,
    promised: int | None,
    on_device: int | None,
) -> tuple[str, str]:
    """Why the blocks stay on disk, and why beside the device; empty where they don't. Raises
    `SpecError` for a promise about a model that is open.
    """
    name = name_of(options.model)
    if is_object(options.model):
        if promised is not None:
            problem = f"memory={options.memory:g} says how a model is opened"
            message = f"{problem}, and {name} is open; give its name, or leave memory out"
            raise SpecError(message, subject="memory")
        return "", ""
    why_beside = ""
    if on_device is not None:
        why_beside = gathered_beside(name, calibration, options.dtype, options.device, on_device)
    why_on_disk = ""
    if promised is not None:
        why_on_disk = gathered_on_disk(
            name, calibration, options.dtype, options.device, promised, bool(why_beside)
        )
    return why_on_disk, why_beside


def _check_names(opened: Opened, names: Mapping[str, tuple[str, ...]]) -> None:
    """Raise `ModelError` if the model's own GGUF file lacks a tensor of these names: llama.cpp's
    quantizers skip an entry without a tensor in silence.
    """
    path = gguf_of(opened.name)
    if path is None:
        return
    tensors = read_header(path).tensors
    for weight, names_of_tensors in names.items():
        for name in names_of_tensors:
            if name not in tensors:
                problem = f"{weight} would be {name} in an imatrix, and {path} has no such tensor"
                raise ModelError(f"{problem}; tell us of it", subject=weight)


def _described(chosen: CalibrationSet, batch: TokenBatch) -> str:
    """What the file says about its text: the calibration set, how it was cut, and the draw."""
    windows: Any = batch.facts.get("windows", len(batch.ids))
    return f"{chosen}; {windows}×{chosen.length}; draw {chosen.seed}"


def _left_out(model_view: ModelView, seen: Mapping[Weight, Seen]) -> dict[str, str]:
    """Why matrices have no entry, by name."""
    lacking = [weight for weight in model_view.weights if weight not in seen]
    # A rehearsal takes a forward, so there is none without need.
    left_by_walk = rehearse(model_view).left("dense") if lacking else {}
    reasons: dict[str, str] = {}
    for weight in lacking:
        reason = "no product with it was seen in the forward"
        if weight.expert is not None:
            reason = "no token was routed to this expert"
        reasons[weight.name] = left_by_walk.get(weight.name, reason)
    return reasons


@final
@dataclass(frozen=True)
class ImatrixSummary:
    """What one importance matrix covers, and how far another is from it.

    `alike` has for each tensor that both have the correlation of the logarithms of its columns'
    importance: 1 where a quantizer would do the same with either. A factor that all columns share
    makes no difference to a quantizer. `unseen` counts the experts that no token reached, and
    `rare` those that fewer than 16 did.
    """

    tensors: int
    experts: int
    unseen: int
    rare: int
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    only_here: tuple[str, ...] = ()
    only_there: tuple[str, ...] = ()
    alike: Mapping[str, float] | None = None

    @property
    def median(self) -> float | None:
        """The median correlation; None without another imatrix."""
        if not self.alike:
            return None
        return float(np.median(list(self.alike.values())))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "median": self.median}


def compared(imatrix: Imatrix, other: Imatrix | None = None) -> ImatrixSummary:
    """Return what `imatrix` covers and, with `other`, how alike the two are. Raises `DataError` for
    imatrices of different models.

    >>> entry = ImatrixEntry(np.array([[1.0, 2.0, 3.0]]), np.array([4]))
    >>> imatrix = Imatrix({"blk.0.attn_q.weight": entry}, ("text",), 1, 4)
    >>> compared(imatrix, imatrix).median
    1.0
    """
    counts = _tokens_of_experts(imatrix)
    summary = ImatrixSummary(
        tensors=len(imatrix.entries),
        experts=len(counts),
        unseen=int((counts == 0).sum()),
        rare=int(((counts > 0) & (counts < FEW)).sum()),
        datasets=imatrix.datasets,
        chunks=imatrix.chunks,
        chunk_size=imatrix.chunk_size,
    )
    if other is None:
        return summary
    mine = imatrix.entries
    theirs = other.entries
    if not mine or not theirs:
        raise DataError("an imatrix without tensors says nothing; make one with calibrant imatrix")
    both = [name for name in mine if name in theirs]
    problem = "the two imatrices are of different models"
    if not both:
        names = f"{min(mine)} is in one and {min(theirs)} in the other, none in both"
        raise DataError(f"{problem}: {names}")
    alike: dict[str, float] = {}
    for name in both:
        columns = mine[name].sums.size
        others = theirs[name].sums.size
        if columns != others:
            sizes = f"{columns} columns in one and {others} in the other"
            raise DataError(f"{problem}: {name} has {sizes}", subject=name)
        alike[name] = _alike(mine[name], theirs[name])
    return replace(
        summary,
        only_here=tuple(sorted(set(mine) - set(theirs))),
        only_there=tuple(sorted(set(theirs) - set(mine))),
        alike=alike,
    )


def _tokens_of_experts(imatrix: Imatrix) -> np.ndarray:
    """Return how many tokens each expert of each block got. The tensors of a block, such as gate,
    up and down, have the same experts.
    """
    by_block: dict[tuple[str, int], np.ndarray] = {}
    for name, entry in imatrix.entries.items():
        if len(entry.counts) > 1:
            block = ".".join(name.split(".")[:2]), len(entry.counts)
            # An expert that any of its tensors saw a token of isn't unseen.
            by_block[block] = np.maximum(by_block.get(block, 0), entry.counts)
    return np.concatenate(list(by_block.values())) if by_block else np.zeros(0)


def _alike(entry: ImatrixEntry, other: ImatrixEntry) -> float:
    """The correlation of the logarithms of two tensors' importance."""
    mine = _logarithms(entry)
    theirs = _logarithms(other)
    # Equal up to a factor: also where all columns are equal, of which there is no correlation.
    if np.ptp(mine - theirs) < 1e-9:
        return 1.0
    # Where all columns of one of them are equal there is no correlation.
    if min(np.ptp(mine), np.ptp(theirs)) == 0:
        return 0.0
    return float(np.corrcoef(mine, theirs)[0, 1])


def _logarithms(entry: ImatrixEntry) -> np.ndarray:
    # An input that was always zero is raised to what has a logarithm.
    return np.log(np.maximum(entry.importance.astype(np.float64).ravel(), 1e-30))
