"""What a compressed model is for: what is measured on it, and the text that stands for it before anything is measured."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, final

from calibrant.data import CalibrationSet, Source, hub
from calibrant.data.expression import Term, parse_expression, term_of, written
from calibrant.errors import DataError, SpecError
from calibrant.evaluators import Evaluator, evaluators
from calibrant.evaluators.loss import Loss
from calibrant.evaluators.task import Task
from calibrant.foreign import user_text
from calibrant.grammar import Part, pieces, read_sum, weight_of
from calibrant.spec import Call

GENERAL: Final = "general"
CORPORA: Final = ("c4", "pile", "redpajama", "wikipedia", "wikitext")
"""What `general` is, as far as it can be read here."""
OFFLINE: Final = ("python_docs", "python_code", "arithmetic:cot")
"""Sources that need nothing to be read; they stand in where no corpus can be."""
DEFAULT: Final = (*CORPORA, "gsm8k:cot", "commonsense_qa", "esnli:cot", *OFFLINE)
"""What is tried where no sources are named."""

_EXAMPLE: Final = (
    "write a source such as gsm8k:cot, a file of your own, a measure such as task(name=race), or general, each perhaps with a weight: 0.3*race"
)


@final
@dataclass(frozen=True)
class Goal:
    """What a compressed model is to be good at.

    `measures` are evaluators with their weights, which sum to one; `judge` is an expression whose held-out part is like it. `sources` are those
    that it names: a candidate is drawn from each, too. `given` are the texts of measures that the user wrote, whose budgets stay.
    """

    text: str
    measures: tuple[tuple[float, Evaluator], ...]
    judge: str
    sources: tuple[str, ...]
    given: frozenset[str] = frozenset()

    def limited(self, most: Callable[[Evaluator], int]) -> "Goal":
        """Return the same with budgets of at most `most(measure)`: tokens of a loss, items of a task."""
        measures = tuple((weight, self._limited(measure, most)) for weight, measure in self.measures)
        return replace(self, measures=measures)

    def _limited(self, measure: Evaluator, most: Callable[[Evaluator], int]) -> Evaluator:
        if str(measure) in self.given:
            return measure
        budget = measure.tokens if isinstance(measure, Loss) else measure.limit if isinstance(measure, Task) else None
        return measure if budget is None else measure.limited(max(1, min(budget, most(measure))))


def parse_goal(targets: Sequence[str], tokens: int, items: int, length: int) -> Goal:
    """Read what the model is for. A loss is measured on `tokens` tokens in windows of `length`, a task on `items` items.

    `SpecError` for what can't be read, `DataError` for what can't be had here.
    """
    if not targets:
        raise SpecError(f"no target was given; {_EXAMPLE}", subject="for")
    measures: list[tuple[Fraction, Evaluator]] = []
    terms: list[tuple[Fraction, Term]] = []
    given: set[str] = set()
    for text in targets:
        parts = [piece.strip() for piece in pieces(user_text(text, SpecError), "*")]
        weight, name = (weight_of(parts[0]), parts[1]) if len(parts) == 2 else (Fraction(1), text.strip())
        if not name or weight is None or weight <= 0:
            raise SpecError(f"{text!r} is no target; {_EXAMPLE}", subject=text)
        names = [name]
        if name == GENERAL:
            names = [corpus for corpus in CORPORA if readable(parse_expression(corpus)[0].source)] or list(OFFLINE)
        for evaluator, term in (_measure(name, tokens, items, length) for name in names):
            measures.append((weight / len(names), evaluator))
            terms.append((weight / len(names), term))
            given |= {str(evaluator)} if _names_measure(name) else set()
    whole = sum(weight for weight, _ in measures)
    shares = _added((str(term), weight / whole) for weight, term in terms)
    judged = [(parse_expression(text)[0], share) for text, share in shares.items()]
    judge = written([Term(term.source, term.format, term.packing, share) for term, share in judged])
    by_text = {str(evaluator): evaluator for _, evaluator in measures}  # what is named twice is measured once, with both weights
    weights = _added((str(evaluator), weight / whole) for weight, evaluator in measures)
    return Goal(", ".join(targets), tuple((float(weight), by_text[text]) for text, weight in weights.items()), judge, tuple(shares), frozenset(given))


def default_sources(goal: Goal) -> list[str]:
    """Return the sources to try where none are named: those of the goal, and the default ones that can be read here."""
    sources = {str(CalibrationSet(text)): None for text in goal.sources}
    # A mirror and the hub's cache are read without the hub; where it doesn't answer, each set would wait for it.
    with nullcontext() if hub.answers() else hub.offline():
        for text in DEFAULT:
            if readable(parse_expression(text)[0].source):
                sources[str(CalibrationSet(text))] = None
    return list(sources)


def readable(source: Source) -> bool:
    """Whether its rows are here, without fetching any."""
    try:
        return next(iter(source.rows("calibrate")), None) is not None
    except DataError:
        return False


def _measure(text: str, tokens: int, items: int, length: int) -> tuple[Evaluator, Term]:
    """Return what measures a target, and the set whose held-out part is like it."""
    part = _single(text)
    if isinstance(part.source, Call) and part.source.name in evaluators.names():
        measure: Evaluator = evaluators.build(part.source)
        source = getattr(measure, "name", None) or getattr(measure, "source", None)
        if not isinstance(source, str):
            raise SpecError(f"{text!r} measures no source that could be calibrated on or predicted from; {_EXAMPLE}", subject=text)
        measure.check()
        return measure, term_of(_single(source))
    term = term_of(part)
    if "choices" in {*term.source.fields, *term.source.sometimes}:
        return Task(name=str(term.source), limit=items), term
    measure = Loss(source=str(term.source), format=str(term.format), tokens=tokens, length=length)
    measure.check()
    return measure, term


def _names_measure(text: str) -> bool:
    """Whether a target is written as a measure, such as `task(name=race)`."""
    part = _single(text)
    return isinstance(part.source, Call) and part.source.name in evaluators.names()


def _single(text: str) -> Part:
    parts = read_sum(text)
    if len(parts) != 1:
        raise SpecError(f"the target {text!r} is a sum; give each part as a target of its own, with a weight", subject=text)
    return parts[0]


def _added(parts: Iterable[tuple[str, Fraction]]) -> dict[str, Fraction]:
    """Return the shares by text, those of the same text added."""
    total: dict[str, Fraction] = {}
    for text, share in parts:
        total[text] = total.get(text, Fraction(0)) + share
    return total
