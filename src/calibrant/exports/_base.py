"""What an export is: a frozen dataclass that writes a compressed model in one form."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calibrant.edits import Edit, Replace, ReplaceParameters
from calibrant.errors import OutputError
from calibrant.methods import Method
from calibrant.models import ModelView, Opened, Weight
from calibrant.models.rounded_inputs import rounded_parts
from calibrant.packed import Packed
from calibrant.results import Record
from calibrant.spec import Spec
from calibrant.targets import Scheme, Target, WithCache


@dataclass(frozen=True)
class CompressedModel:
    """A compressed model: as it is in memory, what was done to it, and the edits that did it, in
    order, with their packed forms.
    """

    opened: Opened
    view: ModelView
    record: Record
    edits: Sequence[Edit] = ()


def packed_now(compressed: CompressedModel) -> dict[str, Packed]:
    """Return, by its present name, the packed form of each matrix and other parameter whose numbers
    the model still has.
    """
    of_matrices: dict[tuple[int, str, int | None], Packed | None] = {}
    of_parameters: dict[str, Packed] = {}
    for edit in compressed.edits:
        # Of several edits of a matrix the last one counts.
        if isinstance(edit, Replace):
            of_matrices[_key_of(edit.weight)] = edit.compressed.packed
        if isinstance(edit, ReplaceParameters):
            of_parameters |= edit.packed
    packed: dict[str, Packed] = {}
    for name, form in of_parameters.items():
        if _holds(form, compressed.opened.model.get_parameter(name)):
            packed[name] = form
    for weight in compressed.view.weights:
        form = of_matrices.get(_key_of(weight))
        if form is not None and _holds(form, weight.get()):
            packed[weight.name] = form
    return packed


def _holds(form: Packed, numbers: Tensor) -> bool:
    """Return whether a packed form is still these numbers: a later edit may have changed them."""
    return torch.equal(form.dense(), numbers)


def _key_of(weight: Weight) -> tuple[int, str, int | None]:
    """Return what a matrix is found by after an edit: its name may have changed, because blocks
    were dropped.
    """
    return id(weight.owner), weight.key, weight.expert


class Export(Spec, ABC):
    """Writes a compressed model in one form, into the folder that also holds it as an ordinary
    Hugging Face model.
    """

    def check(self, method: Method, target: Target, opened: Opened, view: ModelView) -> None:
        """Raise `OutputError`, before any work, if this form can't hold what `method` makes of the
        model; the error says what it can hold. By default a form can hold everything.
        """

    def convert(self, opened: Opened, folder: Path) -> None:
        """Write a model of which nothing but its numbers is known into `folder`, which exists and
        is empty. Raises `OutputError` where that isn't enough, as by default.
        """
        raise OutputError(
            f"{self} is made of what compressing a model leaves behind, and of a finished model "
            f"only hf and sparse can be made; "
            f"give the export {self} to the prune or quantize that makes it",
            subject=str(self),
        )

    def check_inputs(self, opened: Opened, target: Target | None = None) -> None:
        """Raise `OutputError` if the target rounds inputs or the KV cache, or the model already
        does: for a form that can't say so.
        """
        rounds = ""
        if isinstance(target, Scheme | WithCache):
            rounds = str(target)
        elif rounded_parts(opened.model):
            rounds = opened.name
        if rounds:
            raise OutputError(
                f"{self} can't say how inputs or the KV cache are rounded, and {rounds} rounds "
                f"them; leave the export {self} out, or take compressed_tensors",
                subject=rounds,
            )

    @abstractmethod
    def write(self, compressed: CompressedModel, folder: Path) -> None:
        """Write files into `folder`, which exists; nothing of another export is changed. What is
        already written is removed if this fails.
        """
