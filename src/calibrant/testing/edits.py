"""Do a method's edits keep their contract? On a small model, for our own methods and for those
of others.
"""

import json
from dataclasses import replace
from typing import Any, Final

import torch

from calibrant.compress import Recipe, compress, edits_of, put_back
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.edits import Edit, read_edit
from calibrant.edits.file import from_bytes, to_bytes
from calibrant.errors import CalibrantError
from calibrant.job import Job
from calibrant.methods import Method
from calibrant.models import Opened, open_model, view
from calibrant.targets import Target

SAMPLES: Final = 4
LENGTH: Final = 24


def check_edits(method: Method, target: Target, model: str, data: str = "python_docs") -> None:
    """Check that what `method` yields for the model in the folder `model`, calibrated on a little
    of `data`, keeps the contract of an `Edit`.

    The same job gives the same edits; each can be undone, to the bit; what a record says of it is
    JSON; written and read back they make the same model; a job that was interrupted after any of
    them goes on to the same end.

    Raises `CalibrantError`, naming the method, the target and what was wrong, at the first break of
    contract.
    """
    what = f"{method} at {target}"
    opened = open_model(model, "float32")
    batch = (
        CalibrationSet(data, samples=SAMPLES, length=LENGTH).tokens(opened.tokenizer)
        if method.looks
        else None
    )
    edits: list[Edit] = []
    record = compress(
        opened, view(opened.model), batch, Recipe.parse(method, target), keep=edits.append
    )
    expected = _state(opened)
    _require(bool(json.dumps(record.plain(), allow_nan=False)), f"{what}: the record is no JSON")

    again = _fresh(model, batch, method, target)
    for edit in edits_of(method, again):
        before = _state(again.opened)
        undo = edit.undo(again.view)
        edit.report(again.view)
        _require(
            _same(before, _state(again.opened)),
            f"{what}: a {edit.kind} changed the model before it was applied",
        )
        edit.apply(again.view)
        undo()
        _require(
            _same(before, _state(again.opened)),
            f"{what}: a {edit.kind} that was undone left the model changed",
        )
        edit.apply(again.view)
    _require(_same(expected, _state(again.opened)), f"{what}: the same job gave another model")

    reread = _fresh(model, batch, method, target)
    for stored in from_bytes(to_bytes([edit.stored() for edit in edits])):
        read_edit(stored, reread.view).apply(reread.view)
    _require(
        _same(expected, _state(reread.opened)),
        f"{what}: edits that were written and read back made another model",
    )

    for first in _ends(edits):
        resumed = _fresh(model, batch, method, target)
        done, late = put_back(
            resumed.view, [edit.stored() for edit in edits[:first]], method.propagate
        )
        for edit in edits_of(method, replace(resumed, done=done)):
            edit.apply(resumed.view)
        for edit in late:
            edit.apply(resumed.view)
        _require(
            _same(expected, _state(resumed.opened)),
            f"{what}: interrupted after {first} edits, it came to another model",
        )


def _fresh(model: str, batch: TokenBatch | None, method: Method, target: Target) -> Job:
    opened = open_model(model, "float32")
    seen_by = view(opened.model)
    return Job(
        opened, seen_by, batch, target, dict.fromkeys(seen_by.named, target), method.propagate
    )


def _ends(edits: list[Edit]) -> list[int]:
    """After how many edits a step was kept: where a block ends, or an edit that is no block's."""
    return [
        n
        for n in range(1, len(edits))
        if edits[n].block is None or edits[n].block != edits[n - 1].block
    ]


def _state(opened: Opened) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {
        name: tensor.clone() for name, tensor in opened.model.state_dict().items()
    }, opened.model.config.to_dict()


def _same(
    one: tuple[dict[str, torch.Tensor], Any], other: tuple[dict[str, torch.Tensor], Any]
) -> bool:
    (a, first), (b, second) = one, other
    return (
        first == second
        and a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) for name in a)
    )


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise CalibrantError(broken, subject=broken)
