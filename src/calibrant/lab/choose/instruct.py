"""What is different for an instruct model, whose tokenizer has a chat template: it is measured in
the template, and the goal's rows are candidates in the template and out of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, Chat, PerDraw, Source, hub
from calibrant.data.expression import parse_expression, parse_source
from calibrant.data.select import Picking, Selector
from calibrant.errors import DataError
from calibrant.evaluators import Evaluator
from calibrant.evaluators.agreement import Agreement, token_roles
from calibrant.lab.choose.goal import Goal, readable
from calibrant.spec import Call

ANSWERS: Final = "answers"
"""The selector that lets the model answer the questions of a source itself."""
GENERAL_CHAT: Final = "ultrachat"
"""Conversations about anything, as most people calibrate instruct models with."""


def measured_in_template(goal: Goal, tokenizer: PreTrainedTokenizerBase) -> Goal:
    """Return the goal with roles told apart where the template lets them be.

    Raises `DataError` where the template refuses a row that is to be measured.
    """
    measures: list[tuple[float, Evaluator]] = []
    for weight, measure in goal.measures:
        if isinstance(measure, Agreement) and measure.roles:
            measure = replace(measure, roles=_tells_roles(measure, tokenizer))
        measures.append((weight, measure))
    return replace(goal, measures=tuple(measures))


def _tells_roles(measure: Agreement, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is known of each token that is measured who says it."""
    _, form = measure.held_out()
    assert isinstance(form, Chat), f"{measure} has roles, so its format is a conversation's"
    measured = {window.document for window in measure.windows(tokenizer)}
    try:
        for row in measure.rows():
            if row.name in measured:
                token_roles(row, form, tokenizer)
    except DataError:
        return False
    return True


def instruct_candidates(conversations: Sequence[str]) -> list[str]:
    """Return the sets to try for an instruct model beside those to try for every model, where its
    goal has conversations.

    They are the same rows in the template, as plain text and answered by the model itself, and
    conversations about anything, where they can be read without the hub.
    """
    if not conversations:
        return []
    plain = plain_forms(conversations).values()
    sets = [*conversations, *plain, *own_answers(conversations)]
    (general,) = parse_expression(GENERAL_CHAT)
    with hub.offline():
        if readable(general.source):
            sets.append(str(general))
    return list(dict.fromkeys(sets))


def plain_forms(conversations: Sequence[str]) -> dict[str, str]:
    """Return sets in the template, each with the set of its rows as plain text."""
    forms: dict[str, str] = {}
    for text in conversations:
        (term,) = parse_expression(text)
        form = _plain_form(term.source)
        if form:
            forms[text] = form
    return forms


def _plain_form(source: Source) -> str:
    """The set of a source's rows as plain text; nothing where they are only conversations."""
    (term,) = parse_expression(str(source))
    if not isinstance(term.format, Chat):
        return str(term)
    if not {"question", "answer"} <= set(source.fields):
        return ""
    (questions,) = parse_expression(f"{source}:icl")
    return str(questions)


def own_answers(conversations: Sequence[str]) -> list[str]:
    """Return sets of what the model itself answers to the questions of conversations, asked as
    these are put. There is none for a selector, which can't be asked from.
    """
    sets: list[str] = []
    for text in conversations:
        (term,) = parse_expression(text)
        if isinstance(term.source, PerDraw):
            continue
        options: dict[str, Any] = {"source": str(term.source)}
        if isinstance(term.format, Chat) and term.format.system:
            options["system"] = term.format.system
        if isinstance(term.format, Chat) and term.format.thinking != "template":
            options["thinking"] = term.format.thinking
        selector = parse_source(Call(ANSWERS, options))
        (answered,) = parse_expression(str(selector))
        sets.append(str(answered))
    return sets


def is_written(data: str) -> bool:
    """Return whether the model writes rows of a set itself, which takes its time."""
    return any(_writes(term.source) for term in CalibrationSet(data).parts)


def _writes(source: Source) -> bool:
    return isinstance(source, Selector) and not isinstance(source, Picking)
