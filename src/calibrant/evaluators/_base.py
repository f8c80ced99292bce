"""What an evaluator is: a frozen dataclass that measures a model and names what it measured."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Row, Source
from calibrant.outcomes import Journal, Measurement
from calibrant.progress import Progress, silent
from calibrant.spec import Spec


class Evaluator(Spec, ABC):
    """Measures a model on rows that no calibration set can hold: a source's `measure` part."""

    compares: ClassVar[bool] = False
    """Whether it needs the untouched model as a reference."""

    @abstractmethod
    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: PreTrainedModel | None = None,
        progress: Progress = silent,
        journal: Journal | None = None,
    ) -> Measurement:
        """One score, and one outcome per item. `reference` is the untouched model, for measures that compare with it.

        What is scored goes into `journal` as it comes, and what is there already isn't scored again.
        """

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """The rows that may be measured on, whatever the budget: what no calibration set may hold."""

    def reads(self) -> Source | None:
        """The source whose measured part this reads; None where there is no such thing, as of a task of the harness."""
        return None

    def check(self) -> None:
        """Raise the `InputError` of a source, set or format that `measure` couldn't use, as far as it is known without reading any data."""

    def digest(self) -> str:
        """Return the tagged SHA-256 of what is measured where that can change under the same name, as a user's own file can; else nothing.

        A measurement's identity has it, so that an edited file is measured anew.
        """
        return ""

    @abstractmethod
    def limited(self, limit: int) -> "Evaluator":
        """The same with a budget of `limit`, in the evaluator's own unit, for a quick look."""
