"""What an export is: a frozen dataclass that writes a compressed model in one form."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from calibrant.edits import Edit, Replace, ReplaceParameters
from calibrant.errors import OutputError
from calibrant.methods import Method
from calibrant.models import ModelView, Opened, Weight
from calibrant.packed import Packed
from calibrant.results import Record
from calibrant.spec import Spec
from calibrant.targets import Target


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
    """Return the packed form of each matrix that has one and still holds its numbers, by the
    matrix's name now; of other parameters by theirs.
    """
    packed = {
        _place(e.weight): e.compressed.packed for e in compressed.edits if isinstance(e, Replace)
    }
    others = {
        name: form
        for e in compressed.edits
        if isinstance(e, ReplaceParameters)
        for name, form in e.packed.items()
    }
    same = {
        name: form
        for name, form in others.items()
        if torch.equal(form.dense(), compressed.opened.model.get_parameter(name))
    }
    there = {weight: packed.get(_place(weight)) for weight in compressed.view.weights}
    return same | {
        weight.name: form
        for weight, form in there.items()
        if form is not None and torch.equal(form.dense(), weight.get())
    }


def _place(weight: Weight) -> tuple[int, str, int | None]:
    """Where the model keeps a matrix: its name may have changed since, because blocks were
    dropped.
    """
    return id(weight.owner), weight.key, weight.expert


class Export(Spec, ABC):
    """Writes a compressed model in one form, into the folder that also holds it as an ordinary
    Hugging Face model.
    """

    def check(
        self, method: Method, target: Target, opened: Opened, view: ModelView
    ) -> None:  # the dense folder can hold everything
        """Raise `OutputError`, before any work, if this form can't hold what `method` makes of
        the model `opened`; say what it can hold.
        """

    def convert(self, opened: Opened, folder: Path) -> None:
        """Write a model of which nothing but its numbers is known into `folder`, which exists
        and is empty. `OutputError` where that isn't enough.
        """
        message = f"{self} is made of what compressing a model leaves behind, and of a finished model only hf and sparse can be made"
        raise OutputError(
            f"{message}; give --export {self} to the prune or quantize that makes it",
            subject=str(self),
        )

    @abstractmethod
    def write(self, compressed: CompressedModel, folder: Path) -> None:
        """Write files into `folder`, which exists; nothing of another export is changed. What is
        already written is removed if this fails.
        """
