"""Finds which column of a user's records is which field: by what was asked for, by name, and by the
names that others use.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Final

from calibrant.data._base import lettered
from calibrant.data._conversations import (
    encodable,
    is_conversation,
    read_calls,
    read_exchanges,
    read_messages,
    read_tools,
)

USUAL: Final[Mapping[str, Sequence[str]]] = {
    "text": ("text", "content", "document", "body", "article", "passage", "raw_content", "story"),
    "question": ("question", "prompt", "instruction", "problem", "input", "query", "q"),
    "answer": (
        "answer",
        "output",
        "response",
        "completion",
        "target",
        "solution",
        "answerkey",
        "a",
    ),
    "rationale": (
        "rationale",
        "explanation",
        "reasoning",
        "cot",
        "chain_of_thought",
        "thought",
        "solution",
    ),
    "choices": ("choices", "options"),
    "turns": ("turns", "messages", "conversations", "conversation"),
}
"""What the columns of each field are called, the likeliest first; whatever their case."""

BESIDE: Final[Mapping[str, Sequence[str]]] = {
    "input": ("input",),
    "context": ("context", "passage"),
    "history": ("history",),
    "calls": ("answers", "tool_calls", "function_calls"),
    "tools": ("tools", "functions"),
    "system": ("system", "system_prompt"),
}
"""What goes with a question or with messages: what an instruction is about, the passage that a
question is about, the exchanges before it, the calls that answer it, the functions that are
offered, and what the system says.
"""

_NAMES_BESIDE: Final = frozenset((*chain.from_iterable(BESIDE.values()), *USUAL["choices"]))
_WITH_QUESTION: Final = ("choices", "answer", "rationale")
"""Fields that go with a question; their columns may hold something in late rows alone."""
_NAMES_LATE: Final = frozenset(
    (*chain.from_iterable(USUAL[name] for name in _WITH_QUESTION), "b", "c")
)


@dataclass(frozen=True)
class Columns:
    """The column of each field, in `fields`, and of what goes with one, in `beside`. `guessed` are
    those of them that nobody asked for; `passed_over` are other columns that a guessed field might
    have had, and `unused` those that often go with a question or messages, and here don't.
    `by_index` says that each answer is the place of its choice, from 0.
    """

    fields: Mapping[str, str]
    beside: Mapping[str, str] = field(default_factory=dict[str, str])
    guessed: Mapping[str, str] = field(default_factory=dict[str, str])
    passed_over: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    by_index: bool = False
    unused: Sequence[str] = ()

    @property
    def note(self) -> str:
        """What was guessed, as a clause: `guessed: question from 'prompt' (and not 'query'),
        answer from 'output'`; and whether answers are places of choices.
        """
        clauses: list[str] = []
        guesses: list[str] = []
        for name, column in self.guessed.items():
            guess = f"{name} from {column!r}"
            others = ", ".join(map(repr, self.passed_over.get(name, ())))
            if others:
                guess += f" (and not {others})"
            guesses.append(guess)
        if guesses:
            clauses.append(f"guessed: {', '.join(guesses)}")
        if self.by_index:
            column = self.fields["answer"]
            clauses.append(f"{column!r} taken for the place of the right choice, counted from 0")
        if self.unused:
            clauses.append(f"not used: {', '.join(map(repr, self.unused))}")
        return "; ".join(clauses)


def assign(records: Sequence[Mapping[str, Any]], requested: Mapping[str, str]) -> Columns:
    """Return the columns of these records. What is asked for is taken, then what is called as its
    field is, then the usual names.

    A guess is made only where it is needed: for a text or conversation if there is no question, and
    for what goes with a question if there is one. A column is guessed only if it holds the right
    kind of thing, and is never two fields at once.
    """
    values = _first_values(records)
    columns = _stated(values, requested)
    guessed: dict[str, str] = {}
    passed_over: dict[str, Sequence[str]] = {}

    def guess(name: str) -> None:
        """Guess the column of a field that has none yet, where one fits."""
        taken = columns.values()
        fitting = [column for column in _candidates(name, values) if column not in taken]
        if fitting and name not in columns:
            columns[name] = guessed[name] = fitting[0]
            passed_over[name] = fitting[1:]

    if not {"question", "text"} & columns.keys():
        guess("turns")
        if "turns" not in columns:
            guess("question")
    if "question" in columns:
        for name in _WITH_QUESTION:
            guess(name)
    elif "turns" not in columns:
        guess("text")
    fields = {name: columns[name] for name in USUAL if name in columns}
    unused: list[str] = []
    if "text" not in columns:
        taken = {*columns.values(), *chain.from_iterable(passed_over.values())}
        unused = [column for column in values_beside(values) if column not in taken]
    by_index = _answers_are_places(records, fields)
    return widened(Columns(fields, {}, guessed, passed_over, by_index, unused), values)


def _stated(values: Mapping[str, Any], requested: Mapping[str, str]) -> dict[str, str]:
    """Return the columns that are asked for, or that are called as their field is."""
    columns: dict[str, str] = {}
    for name in USUAL:
        if requested.get(name):
            columns[name] = requested[name]
        # A column `turns` is as likely a count of them: only there the name alone isn't enough.
        elif name in values and (name != "turns" or _fits(name, values[name])):
            columns[name] = name
    return columns


def field_value(name: str, value: Any) -> Any:
    """Return a value as the field holds it: a text, choices, turns, calls, tools or earlier
    exchanges; None if there is nothing in it. `ValueError` says what it must be.
    """
    if _is_empty(value):
        return None
    if name == "calls":
        return read_calls(value) or None
    if name == "tools":
        return read_tools(value) or None
    if name == "turns":
        return read_messages(value)
    if name == "history":
        return read_exchanges(value)
    if name == "choices":
        return _choices(value)
    # The answer to a word problem is a number in many files; pandas makes floats of them.
    if name == "answer" and isinstance(value, int | float) and abs(value) != float("inf"):
        value = str(value)
    if isinstance(value, str):
        return encodable(value)
    if name == "answer":
        raise ValueError("a text or a finite number")
    raise ValueError("a text")


def letter_of(answer: str, choices: tuple[str, ...], column: Any) -> str:
    """Return what an answer is called where the choices are A, B, C, …: `column` is the column of
    the choices, which may have names of its own for them.

    An answer that is neither a name nor a choice stays as it is.
    """
    labels = lettered(choices)
    # Names that the file has for its choices go first, then A, B, C, then the choices themselves.
    candidates: list[Sequence[str]] = [_own_names(column), labels, choices]
    for names in candidates:
        if answer in names and len(names) == len(labels):
            return labels[names.index(answer)]
    return answer


def letter_at(place: Any, choices: tuple[str, ...]) -> str | None:
    """Return what the choice at a place is called, counted from 0; None where that is no place of
    one.
    """
    # True is an integer in Python.
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(choices):
        return None
    return lettered(choices)[place]


def _answers_are_places(records: Iterable[Mapping[str, Any]], fields: Mapping[str, str]) -> bool:
    """Return whether all answers are places of choices, as MMLU has them. If one is none, they are
    choices themselves, or counted from 1.
    """
    if not {"choices", "answer"} <= fields.keys():
        return False
    found = False
    for record in records:
        answer = record.get(fields["answer"])
        column = record.get(fields["choices"])
        if _is_empty(answer) or not _fits("choices", column):
            continue
        if letter_at(answer, _choices(column)) is None or str(answer) in _own_names(column):
            return False
        found = True
    return found


def _own_names(column: Any) -> Sequence[str]:
    """Return the names that a column of choices has for them; nothing where it has none."""
    names = None
    if isinstance(column, dict):
        names = column.get("label")
    if not isinstance(names, list):
        return ()
    return names


def values_beside(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record's columns that may go with a field, empty ones left out."""
    values: dict[str, Any] = {}
    for column, value in record.items():
        if _plain_name(column) in _NAMES_BESIDE and not _is_empty(value):
            values[column] = value
    return values


def widened(columns: Columns, values: Mapping[str, Any]) -> Columns:
    """Return the columns, and of those that may go with a field the ones that they lack; `values`
    are the first that each of these holds.
    """
    beside = dict(columns.beside)
    guessed = dict(columns.guessed)
    for name, column in _beside(columns.fields, values).items():
        if name in beside:
            continue
        beside[name] = column
        if column != name:
            guessed[name] = column
    taken = beside.values()
    passed_over: dict[str, Sequence[str]] = {}
    for name, others in columns.passed_over.items():
        passed_over[name] = [column for column in others if column not in taken]
    unused = [column for column in columns.unused if column not in taken]
    return replace(columns, beside=beside, guessed=guessed, passed_over=passed_over, unused=unused)


def filled(record: Mapping[str, Any]) -> set[str]:
    """Return the columns of a record that hold something."""
    return {column for column, value in record.items() if not _is_empty(value)}


def is_late_name(column: str) -> bool:
    """Return whether a column has a name that `late_fields` looks for."""
    return _plain_name(column) in _NAMES_LATE


def late_fields(columns: Columns, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns that would go with a question, by their fields, of those that hold
    something in late rows alone; `values` are the first that each of them holds.
    """
    late: dict[str, str] = {}
    if "question" not in columns.fields:
        return late
    for name in _WITH_QUESTION:
        for column in _candidates(name, values):
            if columns.fields.get(name, column) == column and column not in late.values():
                late.setdefault(name, column)
    return late


def _first_values(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each column's first value that is one, in the order of the columns."""
    values: dict[str, Any] = {}
    for record in records:
        for column, value in record.items():
            if column not in values or _is_empty(values[column]):
                values[column] = value
    return values


def _candidates(name: str, values: Mapping[str, Any]) -> list[str]:
    """Return the columns that may be this field, the likeliest first."""
    candidates: list[str] = []
    known = set(map(_plain_name, values))
    for usual in USUAL[name]:
        # Beside columns `b` and `c` it is the first choice.
        if usual == "a" and known >= {"b", "c"}:
            continue
        for column, value in values.items():
            if _plain_name(column) == usual and _fits(name, value):
                candidates.append(column)
    return candidates


def _beside(columns: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of what goes with the fields that have one."""
    beside: dict[str, str] = {}

    def look_for(name: str) -> None:
        for column, value in values.items():
            is_called_so = _plain_name(column) in BESIDE[name]
            if is_called_so and column not in columns.values() and _fits(name, value):
                beside.setdefault(name, column)

    question = _plain_name(columns.get("question", ""))
    if question == "instruction" and "answer" in columns:
        look_for("input")
    if question and "turns" not in columns:
        look_for("context")
    # Messages hold neither choices nor the way to an answer, so beside these it stays as it is.
    if question and "answer" in columns and not {"turns", "choices", "rationale"} & columns.keys():
        look_for("history")
        look_for("system")
    if question and "answer" not in columns and "turns" not in columns:
        look_for("calls")
    if "turns" in columns or "calls" in beside:
        look_for("tools")
        look_for("system")
    return beside


def _plain_name(column: str) -> str:
    """Return a column's name as the usual names are written."""
    return column.strip().casefold()


def _fits(name: str, value: Any) -> bool:
    # What is plainly a conversation is read as one, so that its fault is told.
    if name == "turns" and is_conversation(value):
        return True
    try:
        return field_value(name, value) is not None
    except ValueError:
        return False


def _is_empty(value: Any) -> bool:
    """Return whether a cell is empty: null, not a number, blank or a list of nothing."""
    if isinstance(value, str):
        return not value.strip()
    # Not a number is the one value that differs from itself.
    return value is None or value != value or value == []


def _choices(value: Any) -> tuple[str, ...]:
    """Return a list of texts, or what several sets on the hub have: `{"label": [...], "text":
    [...]}`.
    """
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        raise ValueError("a list of texts")
    if len(value) > 26:
        raise ValueError("a list of at most 26 texts")
    return tuple(map(encodable, value))
