"""What an evaluator is: a frozen dataclass that measures a model and names what it measured.
Also the mean over items that nearly every score is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Format, PerDraw, Row, Source, StoredSource
from calibrant.data.user_file import UserFile
from calibrant.errors import CalibrantError, DataError, SpecError
from calibrant.models import ModelOutline
from calibrant.results.outcomes import Journal, Measurement, Outcome
from calibrant.spec import Spec, identity, is_foreign, qualified
from calibrant.system.progress import Progress, silent

MOST_TOKENS: Final = 10**9
"""The largest budget of tokens: more than the held-out part of any source has."""
LONGEST_WINDOW: Final = 10**7
"""The longest window, in tokens: no model reads as many at once."""
MOST_SHOTS: Final = 10_000
"""The most exemplars before a question: no model reads as many at once."""
MOST_WRITTEN: Final = 1_000_000
"""The most tokens of an answer."""


@dataclass(frozen=True)
class Subject:
    """The model that is measured, and what goes with it.

    `reference` is the untouched model, for evaluators that compare with it. `progress` hears how
    far the measurement is. Scores go into `journal` as they come; what the journal has already
    isn't scored again.

    >>> from calibrant.evaluators.loss import Loss
    >>> from calibrant.testing import tiny_model, tiny_tokenizer
    >>> subject = Subject(tiny_model("llama"), tiny_tokenizer())
    >>> measured = Loss(source="python_docs", tokens=200, length=64).measure(subject)
    >>> measured.score.metric, measured.score.unit
    ('loss', 'nats/token')
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None = None
    progress: Progress = silent
    journal: Journal = field(default_factory=Journal)

    def untouched(self, evaluator: "Evaluator") -> PreTrainedModel:
        """Return the reference that `evaluator` compares with. `SpecError` if none was given."""
        if self.reference is None:
            raise SpecError(
                f"{evaluator} compares a model with the untouched one, and none was given; "
                f"give --reference, or Subject(…, reference=model)",
                subject=str(evaluator),
            )
        return self.reference


@dataclass
class Steps:
    """Says to a progress how much of a total is done."""

    progress: Progress
    doing: str
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        """Say that so much more is done."""
        self.done += count
        self.progress(self.doing, self.done, self.total)


class Evaluator(Spec, ABC):
    """Measures a model on rows that no calibration set can hold: a source's `measure` part."""

    compares: ClassVar[bool] = False
    """Whether it needs the untouched model as a reference."""
    looks_inside: ClassVar[bool] = False
    """Whether it reads weights, watches parts or takes gradients of the model. Then the whole
    model must be in memory.
    """

    @abstractmethod
    def measure(self, subject: Subject) -> Measurement:
        """Return one score, and one outcome per item."""

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """Return all rows that may be measured, whatever the budget. No calibration set may hold
        any of them.
        """

    def reads(self) -> Source | None:
        """Return the source whose measured part this reads. None where there is no source, as of
        a task of the harness.
        """
        return None

    def check(self) -> None:
        """Raise the `InputError` of a source, set or format that `measure` couldn't use. Reads no
        data.
        """

    def digest(self) -> str:
        """Return the tagged SHA-256 of data that can change under the same name, such as a user's
        own file, or a source of another package; else nothing.

        It is a part of a measurement's identity, so that an edited file is measured anew.
        """
        return ""

    @property
    def longest_answer(self) -> int:
        """How many tokens the model may write for an item; 0 where it writes none.

        An evaluator that writes has the fields `limit` and `max_tokens`.
        """
        return 0

    def work_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        """Return how many bytes are held at most beside models, activations and logits.

        The first of `outlines` is that of the model which is measured, the others are of those
        which it is compared with.
        """
        return 0

    def kept_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        """Return how many of `work_bytes` are held on once it has measured, since the same is
        found of a dense model only once.
        """
        return 0

    def copied_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        """Return how many bytes the copies of models take that are made where all of a model is in
        memory.
        """
        return 0

    @abstractmethod
    def limited(self, limit: int) -> "Evaluator":
        """Return the same with a budget of `limit`, in the evaluator's own unit, for a quick
        look.
        """


class SourceEvaluator(Evaluator, ABC):
    """An evaluator of one source's measured part, as one format renders it."""

    @abstractmethod
    def held_out(self) -> tuple[Source, Format]:
        """Return the source and the format. `InputError` for names that are none."""

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


def check_least(spec: Spec, **least: int) -> None:
    """Raise `SpecError` for the first of these parameters that is below its least. One that is None
    is left out.
    """
    for name, lowest in least.items():
        value = getattr(spec, name)
        if value is not None and value < lowest:
            raise SpecError(
                f"{spec.spec_name()}({name}={value}): {name} must be at least {lowest}",
                subject=name,
            )


def digest_of(source: Source) -> str:
    """Return the tagged SHA-256 of what a user's file, or a stored source of another package, gives
    to be measured and to be shown as exemplars.

    Nothing for Calibrant's own sources, and for what is generated, which may have no end. Raises
    `DataError` for a source that can't be read.
    """
    if isinstance(source, PerDraw):
        return digest_of(source.measured())
    if not isinstance(source, StoredSource):
        return ""
    foreign = is_foreign(type(source))
    if not foreign and not isinstance(source, UserFile):
        return ""
    try:
        return identity([source.part("measure").digest, source.part("exemplars").digest])
    except Exception as error:
        if isinstance(error, CalibrantError) or not foreign:
            raise
        why = f"{type(error).__name__}: {error}"
        message = f"{source} can't be read ({why}); mend {qualified(type(source))}"
        raise DataError(message, subject=str(source)) from error


def ratio(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float | None]:
    """Return Σ values / Σ weights over independent items, and its standard error; None for a
    single item.

    The error is that of a ratio of two sums, linearised: the residual of item i is `value - mean *
    weight`. So long documents count for what they hold, and the item, not the token, is the unit.
    """
    # `fsum` rounds once, at the end, so the order of the items doesn't matter.
    total = math.fsum(weights)
    mean = math.fsum(values) / total
    count = len(values)
    if count < 2:
        return mean, None
    residuals = [value - mean * weight for value, weight in zip(values, weights, strict=True)]
    squares = math.fsum(residual**2 for residual in residuals)
    # n - 1 degrees of freedom: the mean is estimated from the same items.
    return mean, math.sqrt(squares * count / (count - 1)) / total


def mean_of(
    outcomes: Sequence[Outcome], value: str | None = None, weight: str | None = None
) -> tuple[float, float | None]:
    """Return the `ratio` of the outcomes' values and weights, or of the facts that are named."""
    values = [outcome.value for outcome in outcomes]
    weights = [outcome.weight for outcome in outcomes]
    if value is not None:
        values = [float(outcome.facts[value]) for outcome in outcomes]
    if weight is not None:
        weights = [float(outcome.facts[weight]) for outcome in outcomes]
    return ratio(values, weights)


def items_of(outcomes: Sequence[Outcome]) -> str:
    """Return the hash of which items were measured, each with its weight: measurements of one
    hash can be compared item by item.
    """
    return identity([[item.item, item.weight] for item in outcomes])
