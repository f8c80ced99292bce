"""What an export is: a frozen dataclass that writes a compressed model in one form."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrant.edits import Edit
from calibrant.methods import Method
from calibrant.models import ModelView, Opened
from calibrant.spec import Spec
from calibrant.store import Record
from calibrant.targets import Target


@dataclass(frozen=True)
class CompressedModel:
    """A compressed model: as it is in memory, what was done to it, and the edits that did it, in order, with their packed forms."""

    opened: Opened
    view: ModelView
    record: Record
    edits: Sequence[Edit] = ()


class Export(Spec, ABC):
    """Writes a compressed model in one form, into the folder that also holds it as an ordinary Hugging Face model."""

    def check(self, method: Method, target: Target, view: ModelView) -> None:  # the dense folder can hold everything
        """Raise `OutputError`, before any work, if this form can't hold what `method` makes of the model; say what it can hold."""

    @abstractmethod
    def write(self, compressed: CompressedModel, folder: Path) -> None:
        """Write files into `folder`, which exists; nothing of another export is changed. What is already written is removed if this fails."""
