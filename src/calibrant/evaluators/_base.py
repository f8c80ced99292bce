"""What an evaluator is: a frozen dataclass that measures a model and names what it measured."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Final

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Format, PerDraw, Row, Source
from calibrant.data.user_file import UserFile
from calibrant.results.outcomes import Journal, Measurement
from calibrant.spec import Spec, identity
from calibrant.system.progress import Progress, silent

MOST_TOKENS: Final = 10**9
"""That are measured on: more than the part of any source that is held out."""
LONGEST_WINDOW: Final = 10**7
"""In tokens: no model reads as many at once."""
MOST_SHOTS: Final = 10_000
"""Exemplars before a question: no model reads as many at once."""
MOST_WRITTEN: Final = 1_000_000
"""Tokens of an answer."""


@dataclass(frozen=True)
class Subject:
    """The model that is measured, and what goes with it.

    `reference` is the untouched model, for evaluators that compare with it. `progress` is told how
    far the measurement is. What is scored goes into `journal` as it comes, and what is there
    already isn't scored again.

    >>> from calibrant.evaluators.loss import Loss
    >>> from calibrant.testing import tiny_model, tiny_tokenizer
    >>> measured = Loss(source="python_docs", tokens=200, length=64).measure(Subject(tiny_model("llama"), tiny_tokenizer()))
    >>> measured.score.metric, measured.score.unit
    ('loss', 'nats/token')
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None = None
    progress: Progress = silent
    journal: Journal = field(default_factory=Journal)


class Evaluator(Spec, ABC):
    """Measures a model on rows that no calibration set can hold: a source's `measure` part."""

    compares: ClassVar[bool] = False
    """Whether it needs the untouched model as a reference."""
    looks_inside: ClassVar[bool] = False
    """Whether it reads weights, watches parts or takes gradients of the model: then it needs all
    of it in memory, and not only to run it.
    """

    @abstractmethod
    def measure(self, subject: Subject) -> Measurement:
        """Return one score, and one outcome per item."""

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """Return the rows that may be measured on, whatever the budget: what no calibration set
        may hold.
        """

    def reads(self) -> Source | None:
        """Return the source whose measured part this reads; None where there is no such thing,
        as of a task of the harness.
        """
        return None

    def check(self) -> None:
        """Raise the `InputError` of a source, set or format that `measure` couldn't use, as far
        as it is known without reading any data.
        """

    def digest(self) -> str:
        """Return the tagged SHA-256 of what is measured where that can change under the same name,
        as a user's own file can; else nothing.

        A measurement's identity has it, so that an edited file is measured anew.
        """
        return ""

    @abstractmethod
    def limited(self, limit: int) -> "Evaluator":
        """Return the same with a budget of `limit`, in the evaluator's own unit, for a quick
        look.
        """


class SourceEvaluator(Evaluator, ABC):
    """An evaluator of one source's measured part, as one format renders it: all else about its
    rows follows from these two.
    """

    @abstractmethod
    def held_out(self) -> tuple[Source, Format]:
        """Return the source and the format. Raises an `InputError` where there is none of that
        name.
        """

    def rows(self) -> Iterator[Row]:
        """Return the rows of the source's measured part that the format can render."""
        source, format = self.held_out()
        return (row for row in source.rows("measure") if format.takes(row))

    def reads(self) -> Source:
        return self.held_out()[0]

    def check(self) -> None:
        self.held_out()

    def digest(self) -> str:
        return digest_of(self.held_out()[0])


def digest_of(source: Source) -> str:
    """Return the tagged SHA-256 of what a user's file gives to be measured and to be shown as
    exemplars; nothing for Calibrant's own sources.
    """
    if isinstance(source, PerDraw):
        return digest_of(source.measured())
    return (
        identity([source.part(part).digest for part in ("measure", "exemplars")])
        if isinstance(source, UserFile)
        else ""
    )
