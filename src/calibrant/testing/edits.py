"""Do a method's edits keep their contract? Checked on a small model, for our own methods and for
those of others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from calibrant.activations import Propagation
from calibrant.compress import Recipe, compress, edits_of, put_back, stored_edits
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.edits import Edit, StoredEdit, read_edit
from calibrant.edits.file import from_bytes, to_bytes
from calibrant.errors import CalibrantError
from calibrant.job import Job
from calibrant.methods import Method, ModelMethod
from calibrant.models import Opened, open_model, view
from calibrant.models.compact import AS_INTEGERS
from calibrant.spec.foreign import brief
from calibrant.targets import Target

SAMPLES: Final = 4
LENGTH: Final = 24


def check_edits(method: Method, target: Target, model: str, data: str = "python_docs") -> None:
    """Check that what `method` yields for the model in the folder `model`, calibrated on a little
    of `data`, keeps the contract of an `Edit`.

    The same job gives the same edits; each can be undone, to the bit; what a record says of it is
    JSON; written and read back they hold the same facts, notes included, and tensors, and make the
    same model; a job that was interrupted after any of them goes on to the same end. A tuple may be
    read back as a list. Those of a `ModelMethod` that observes are checked in each of its
    propagations.

    Raises `CalibrantError`, naming the method, the target and what was wrong, at the first break of
    contract.
    """
    opened = open_model(model, "float32")
    batch: TokenBatch | None = None
    if method.looks:
        calibration = CalibrationSet(data, samples=SAMPLES, length=LENGTH)
        batch = calibration.tokens(opened.tokenizer)
    propagations: tuple[Propagation, ...] = (method.propagate,)
    # The edits of other methods are ours, and where nothing is observed all propagations are one.
    if isinstance(method, ModelMethod) and method.observes:
        propagations = method.propagations
    for propagate in propagations:
        _check_edits_in(propagate, method, target, model, batch)


def _check_edits_in(
    propagate: Propagation, method: Method, target: Target, model: str, batch: TokenBatch | None
) -> None:
    """Check the edits that a method yields in one propagation."""
    label = f"{method} at {target}"
    if propagate != method.propagate:
        label = f"{label} in {propagate}"
    opened = open_model(model, "float32")
    edits: list[Edit] = []
    recipe = Recipe.parse(method, target, propagate=propagate)
    record = compress(opened, view(opened.model), batch, recipe, keep=edits.append)
    expected = _State.of(opened)
    try:
        json.dumps(record.plain(), allow_nan=False)
    except (TypeError, ValueError) as error:
        message = f"{label}: the record is no JSON ({error})"
        raise CalibrantError(message, subject=label) from error
    _check_undoing(_fresh_job(model, batch, target, propagate), method, expected, label)

    written = to_bytes([edit.stored() for edit in edits])
    reread = _fresh_job(model, batch, target, propagate)
    for edit, stored in zip(edits, from_bytes(written), strict=True):
        again = read_edit(stored, reread.view)
        _check_reading(edit.stored(), again.stored(), label)
        again.apply(reread.view)
    same = _State.of(reread.opened).equals(expected)
    _require(same, f"{label}: edits that were written and read back made another model")

    for count in _kept_counts(edits):
        resumed = _fresh_job(model, batch, target, propagate)
        kept = stored_edits(edits[:count], recipe)
        # In `dense` the walk is through the untouched model, so changed matrices wait for the end.
        done, late = put_back(resumed.view, kept, propagate)
        for edit in edits_of(method, replace(resumed, done=done)):
            edit.apply(resumed.view)
        for edit in late:
            edit.apply(resumed.view)
        same = _State.of(resumed.opened).equals(expected)
        _require(same, f"{label}: interrupted after {count} edits, it came to another model")


@dataclass(frozen=True)
class _State:
    """What a model is: a copy of its tensors by name, and its configuration."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @staticmethod
    def of(opened: Opened) -> "_State":
        model = opened.model
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return _State(tensors, model.config.to_dict())

    def equals(self, other: "_State") -> bool:
        """Return whether the two have the same configuration, and the same numbers to the bit."""
        if self.config != other.config or self.tensors.keys() != other.tensors.keys():
            return False
        return all(torch.equal(self.tensors[name], other.tensors[name]) for name in self.tensors)


def _check_undoing(job: Job, method: Method, expected: _State, label: str) -> None:
    """Check that each edit can be undone, and that all of them lead to the `expected` model."""
    for edit in edits_of(method, job):
        before = _State.of(job.opened)
        undo = edit.undo(job.view)
        edit.report(job.view)
        same = _State.of(job.opened).equals(before)
        _require(same, f"{label}: a {edit.kind} changed the model before it was applied")
        edit.apply(job.view)
        undo()
        same = _State.of(job.opened).equals(before)
        _require(same, f"{label}: a {edit.kind} that was undone left the model changed")
        # The method makes its next edit for a model that has this one.
        edit.apply(job.view)
    same = _State.of(job.opened).equals(expected)
    _require(same, f"{label}: the same job gave another model")


def _check_reading(written: StoredEdit, read: StoredEdit, label: str) -> None:
    """Check that an edit that was read back would be written as it was."""
    edit = f"{label}: a {written.kind} that was written and read back"
    difference = _difference(written.facts, read.facts, "")
    _require(not difference, f"{edit} is another: {difference}")
    same_names = written.tensors.keys() == read.tensors.keys()
    _require(
        same_names, f"{edit} has the tensors {list(read.tensors)}, not {list(written.tensors)}"
    )
    for name, tensor in written.tensors.items():
        same = _equal_bits(tensor, read.tensors[name])
        _require(same, f"{edit} has other numbers in its tensor {name!r}")


def _difference(written: Any, read: Any, place: str) -> str:
    """Say where plain data that was read differs from what was written; empty where it doesn't.
    `place` is where in the facts of an edit it is, such as `.notes.counts`.
    """
    pairs: list[tuple[str, Any, Any]] = []
    if _alike(written, read, Mapping) and written.keys() == read.keys():
        for key, value in written.items():
            pairs.append((f"{place}.{key}", value, read[key]))
    elif _alike(written, read, (list, tuple)) and len(written) == len(read):
        for number, value in enumerate(written):
            pairs.append((f"{place}[{number}]", value, read[number]))
    else:
        # NaN isn't equal to itself.
        both_nan = written != written and read != read
        if written == read or both_nan:
            return ""
        return f"{place.removeprefix('.')} was {brief(written)} and is {brief(read)}"
    for inner_place, before, after in pairs:
        difference = _difference(before, after, inner_place)
        if difference:
            return difference
    return ""


def _alike(written: Any, read: Any, kind: type | tuple[type, ...]) -> bool:
    """Return whether both are of this kind."""
    return isinstance(written, kind) and isinstance(read, kind)


def _equal_bits(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are of one type and shape and have the same bits."""
    if tensor.dtype != other.dtype:
        return False
    integers = AS_INTEGERS[tensor.element_size()]
    return torch.equal(tensor.contiguous().view(integers), other.contiguous().view(integers))


def _fresh_job(model: str, batch: TokenBatch | None, target: Target, propagate: Propagation) -> Job:
    """The job on the dense model, opened anew."""
    opened = open_model(model, "float32")
    model_view = view(opened.model)
    targets = dict.fromkeys(model_view.named, target)
    return Job(opened, model_view, batch, target, targets, propagate)


def _kept_counts(edits: Sequence[Edit]) -> list[int]:
    """After how many edits a checkpoint is kept: where a block ends, or an edit that is no
    block's.
    """
    counts: list[int] = []
    for count in range(1, len(edits)):
        block = edits[count].block
        if block is None or block != edits[count - 1].block:
            counts.append(count)
    return counts


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise CalibrantError(broken, subject=broken)
