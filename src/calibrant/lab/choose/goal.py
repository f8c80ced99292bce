"""What a compressed model is for: what measures that, and which text stands for it before anything
is measured.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final, final

from calibrant.data import Chat, Source, hub
from calibrant.data.expression import Term, parse_expression, term_of, written
from calibrant.errors import DataError, MissingPackageError, SpecError
from calibrant.evaluators import Evaluator, evaluators
from calibrant.evaluators.agreement import Agreement
from calibrant.evaluators.loss import Loss
from calibrant.evaluators.task import Task
from calibrant.spec import Call
from calibrant.spec.grammar import WrittenTerm, read_call, read_weighted

GENERAL: Final = "general"
CORPORA: Final = ("c4", "pile", "redpajama", "wikipedia", "wikitext")
"""What `general` is, as far as it can be read here."""
OFFLINE: Final = ("python_docs", "python_code", "arithmetic:cot")
"""Sources that need nothing to be read; they stand in where no corpus can be."""
DEFAULT: Final = (*CORPORA, "gsm8k:cot", "commonsense_qa", "esnli:cot", *OFFLINE)
"""What is tried where no sources are named."""

_EXAMPLE: Final = (
    "write a source such as gsm8k:cot, a file of your own, a measure such as task(name=race), "
    "or general, each perhaps with a weight: 0.3*race"
)


@final
@dataclass(frozen=True)
class Goal:
    """What a compressed model is to be good at.

    `measures` are evaluators with their weights, which sum to one. `judge` is an expression whose
    held-out part is like it. `sources` are those that it names: each is a candidate too. `given`
    are the texts of measures that the user wrote, whose budgets stay. `conversations` are those of
    the sources that are measured in the model's chat template; where there are any, all texts are
    measured by their divergence from the dense model.
    """

    text: str
    measures: tuple[tuple[float, Evaluator], ...]
    judge: str
    sources: tuple[str, ...]
    given: frozenset[str] = frozenset()
    conversations: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The measures as texts, with their weights where there are several."""
        if len(self.measures) == 1:
            _, only_measure = self.measures[0]
            return (str(only_measure),)
        return tuple(f"{weight:.3g}*{measure}" for weight, measure in self.measures)

    def limited(self, most: Callable[[Evaluator], int]) -> "Goal":
        """Return the same with budgets of at most `most(measure)`; those that were given stay."""
        measures: list[tuple[float, Evaluator]] = []
        for weight, measure in self.measures:
            budget = budget_of(measure)
            if budget is None or str(measure) in self.given:
                measures.append((weight, measure))
            else:
                fewer = max(1, min(budget, most(measure)))
                measures.append((weight, measure.limited(fewer)))
        return replace(self, measures=tuple(measures))


def budget_of(measure: Evaluator) -> int | None:
    """Return on how much a measure measures: tokens of a text, items of a task, None of others."""
    if isinstance(measure, Loss | Agreement):
        return measure.tokens
    if isinstance(measure, Task):
        return measure.limit
    return None


def check_any(goals: Any) -> None:
    """Raise `SpecError` where no goal is given."""
    if isinstance(goals, list | tuple) and not goals:
        raise SpecError(f"no goal was given; {_EXAMPLE}", subject="for")


def parse_goal(
    goals: Sequence[str], tokens: int, items: int, length: int, template: bool = False
) -> Goal:
    """Read what the model is for.

    A loss is measured on `tokens` tokens in windows of `length`, a task on `items` items. With
    `template` the model has a chat template, in which conversations and questions are measured.
    Raises `SpecError` for what can't be read, `DataError` for what can't be had here.
    """
    check_any(goals)
    conversations: list[str] = []
    if template:
        conversations = conversations_in(goals)
    # What is named twice is measured once, with both weights.
    measures: dict[str, Evaluator] = {}
    weights: dict[str, Fraction] = {}
    terms: dict[str, Term] = {}
    shares: dict[str, Fraction] = {}
    given_texts: set[str] = set()
    for weight, part in _single_parts(goals):
        if conversations:
            evaluator, term = _divergence(part, tokens, length)
        else:
            evaluator, term = _measure(part, tokens, items, length)
        measure_text = str(evaluator)
        measures.setdefault(measure_text, evaluator)
        weights[measure_text] = weights.get(measure_text, Fraction(0)) + weight
        if _is_measure(part):
            given_texts.add(measure_text)
        term_text = str(term)
        terms.setdefault(term_text, term)
        shares[term_text] = shares.get(term_text, Fraction(0)) + weight
    whole = sum(weights.values())
    weighted: list[tuple[float, Evaluator]] = []
    for name, evaluator in measures.items():
        weighted.append((float(weights[name] / whole), evaluator))
    judged: list[Term] = []
    for name, term in terms.items():
        judged.append(replace(term, share=shares[name] / whole))
    return Goal(
        text=", ".join(goals),
        measures=tuple(weighted),
        judge=written(judged),
        sources=tuple(terms),
        given=frozenset(given_texts),
        conversations=tuple(dict.fromkeys(conversations)),
    )


def _single_parts(goals: Sequence[str]) -> Iterator[tuple[Fraction, WrittenTerm]]:
    """Yield each part of the goals with its weight. `general` stands for several, which share its
    weight.
    """
    for text in goals:
        weight, part = _weighted_part(text)
        parts = [part]
        if part == WrittenTerm(Call(GENERAL)):
            parts = _general_parts()
        for single in parts:
            yield weight / len(parts), single


def conversations_in(goals: Sequence[str]) -> list[str]:
    """Return the goals that an instruct model meets in its chat template, as sets in it:
    conversations, and questions with answers, for which no other format is given.

    There are none where a goal is a measure: then the user says how the model is measured.
    """
    conversations: list[str] = []
    for text in goals:
        _, part = _weighted_part(text)
        if _is_measure(part):
            return []
        if part == WrittenTerm(Call(GENERAL)):
            continue
        term = _conversation(part)
        if term is not None:
            conversations.append(str(term))
    return conversations


def default_sources(goal: Goal) -> list[str]:
    """Return the sources to try where none are named: those of the goal, and the default ones
    that can be read here.
    """
    # A mirror and the hub's cache are read without the hub. Where it doesn't answer, each set would
    # wait for it.
    reach = nullcontext() if hub.is_reachable() else hub.offline()
    with reach:
        defaults = [str(term) for term in _readable(DEFAULT)]
    return list(dict.fromkeys([*goal.sources, *defaults]))


def readable(source: Source) -> bool:
    """Return whether a source's rows are here, without fetching any."""
    try:
        return any(True for _ in source.rows("calibrate"))
    except (DataError, MissingPackageError):
        return False


def _readable(texts: Sequence[str]) -> list[Term]:
    terms: list[Term] = []
    for text in texts:
        (term,) = parse_expression(text)
        if readable(term.source):
            terms.append(term)
    return terms


def _general_parts() -> list[WrittenTerm]:
    """What `general` is here."""
    names = [str(term) for term in _readable(CORPORA)] or OFFLINE
    parts: list[WrittenTerm] = []
    for name in names:
        _, part = _weighted_part(name)
        parts.append(part)
    return parts


def _weighted_part(text: str) -> tuple[Fraction, WrittenTerm]:
    """The weight of a goal, and what it names."""
    terms = read_weighted(text)
    if len(terms) != 1:
        message = "is a sum; give each part as a goal of its own, with a weight"
        raise SpecError(f"the goal {text!r} {message}", subject=text)
    weight, part = terms[0]
    if weight is None:
        weight = Fraction(1)
    return weight, part


def _measure(part: WrittenTerm, tokens: int, items: int, length: int) -> tuple[Evaluator, Term]:
    """Return what measures a goal, and the set whose held-out part is like it."""
    if isinstance(part.source, Call) and _is_measure(part):
        measure: Evaluator = evaluators.build(part.source)
        source = getattr(measure, "name", None) or getattr(measure, "source", None)
        if not isinstance(source, str):
            message = "measures no source that could be calibrated on or predicted from"
            raise SpecError(f"{str(part)!r} {message}; {_EXAMPLE}", subject=str(part))
        measure.check()
        _, measured = _weighted_part(source)
        form = getattr(measure, "format", None)
        if form is not None:
            measured = replace(measured, format=read_call(form))
        return measure, term_of(measured)
    judge = term_of(part)
    if "choices" in {*judge.source.fields, *judge.source.sometimes}:
        return Task(name=str(judge.source), limit=items), judge
    measure = Loss(source=str(judge.source), format=str(judge.format), tokens=tokens, length=length)
    measure.check()
    return measure, judge


def _divergence(part: WrittenTerm, tokens: int, length: int) -> tuple[Evaluator, Term]:
    """Return what measures a goal of an instruct model, and the set whose held-out part is like
    it.

    It is a divergence, since such a model's loss misleads: it may fall where the model forgets how
    it answers.
    """
    judge = _conversation(part) or term_of(part)
    measure = Agreement(
        source=str(judge.source),
        format=str(judge.format),
        tokens=tokens,
        length=length,
        roles=isinstance(judge.format, Chat),
    )
    measure.check()
    return measure, judge


def _conversation(part: WrittenTerm) -> Term | None:
    """Return a part of a goal as a conversation in the model's chat template; None for what is
    none, or is to have another format.
    """
    chat = Chat.spec_name()
    if part.format is not None:
        if part.format.name == chat:
            return term_of(part)
        return None
    source = term_of(part).source
    has_answers = source.kind == "questions" and "answer" in source.fields
    if not has_answers and "turns" not in source.fields:
        return None
    return term_of(replace(part, format=Call(chat)))


def _is_measure(part: WrittenTerm) -> bool:
    """Whether a goal is written as a measure, such as `task(name=race)`."""
    return isinstance(part.source, Call) and part.source.name in evaluators.names()
