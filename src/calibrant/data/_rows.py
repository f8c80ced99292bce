"""Makes rows of records, which a user's file holds or which came as objects: finds their columns,
and counts what is left out.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from calibrant.data._base import Row, lettered
from calibrant.data._columns import (
    USUAL,
    Columns,
    assign,
    field_value,
    filled,
    is_late_name,
    late_fields,
    letter_at,
    letter_of,
    values_beside,
    widened,
)
from calibrant.data._conversations import check_words_alone, conversation_of, first_exchange
from calibrant.data._files import short
from calibrant.data._limits import MOST_COLUMNS
from calibrant.data._messages import Message
from calibrant.errors import DataError
from calibrant.spec.foreign import did_you_mean, visible

LOOKED_AT: Final = 1_000
"""How many rows are looked at to learn what columns there are and which of them always hold
something.
"""

Numbered = Iterable[tuple[str, Mapping[str, Any]]]
"""Records, each with what messages call it, such as `'notes.jsonl', row 3`."""


@dataclass(frozen=True)
class Layout:
    """What the first records teach: the columns, the fields that every used row has, and those that
    only some have. `seen` are all columns that hold something in them.
    """

    columns: Columns
    fields: tuple[str, ...]
    sometimes: tuple[str, ...]
    seen: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """What a source of such rows is."""
        return kind_of(self.fields)


def kind_of(fields: Collection[str]) -> str:
    """Return what a source is whose rows have these fields."""
    holds_text = "text" in fields or "ids" in fields
    return "corpus" if holds_text else "questions"


def layout_of(
    first_records: Sequence[tuple[str, Mapping[str, Any]]],
    requested: Mapping[str, str],
    name: str,
    advice: Callable[[str], str],
) -> Layout:
    """Return what the first records teach; `requested` are the columns of fields that were asked
    for.

    Raises `DataError` where no column fits. It calls the data `name`, and `advice(column)` says how
    a column is read as text.
    """
    records = [record for _, record in first_records]
    columns = assign(records, requested)
    _check_columns(columns, records, name, advice)
    rows = [values_of(record, columns, place) for place, record in first_records]
    present = set(chain.from_iterable(rows))
    needed = ["question"]
    if "text" in present:
        needed = ["text"]
    elif "answer" in present:
        needed.append("answer")
    usable = [values for values in rows if values.keys() >= set(needed)]
    if not usable:
        raise _unusable(rows, columns, needed, name)
    # A field that only some rows have is no field that a format may need.
    counts = Counter(chain.from_iterable(usable))
    always = tuple(field for field in USUAL if counts[field] == len(usable))
    sometimes = tuple(field for field in USUAL if 0 < counts[field] < len(usable))
    # Of the columns beside a field this one alone is a field of its own.
    if counts["tools"]:
        sometimes += ("tools",)
    seen = frozenset(chain.from_iterable(map(filled, records)))
    return Layout(columns, always, sometimes, seen)


def _unusable(
    rows: Sequence[Mapping[str, Any]], columns: Columns, needed: Sequence[str], name: str
) -> DataError:
    """Return the error for rows of which none has the fields that are needed."""
    expected = " and ".join(needed)
    if "text" in columns.fields:
        expected = "text or question"
    elif "turns" in columns.fields and "question" not in columns.fields:
        return _no_question(rows, name)
    return DataError(
        f"{name!r} has no row with {expected} among its first {len(rows)}; fill the column, "
        "or name another",
        subject=name,
    )


def _no_question(rows: Sequence[Mapping[str, Any]], name: str) -> DataError:
    """Return the error for conversations in which no user says anything."""
    roles: dict[str, None] = {}
    for values in rows:
        for message in values.get("turns", ()):
            roles.setdefault(short(visible(message.role)))
    found = ""
    remedy = "fill the messages of the user"
    if roles:
        noun = "role" if len(roles) == 1 else "roles"
        found = f", only the {noun} {', '.join(list(roles)[:10])}"
        remedy = "give what is asked the role 'user'"
    return DataError(
        f"{name!r} has no conversation in which a user says something among its first {len(rows)}"
        f"{found}; {remedy}",
        subject=name,
    )


class RowReader:
    """Makes rows of records, and counts what it leaves out."""

    def __init__(self, layout: Layout) -> None:
        self._columns = layout.columns
        # What every row of the first thousand had is promised of all, so a later row without it is
        # left out too.
        self._needed = layout.fields
        self._count = 0
        self._missing = Counter[str]()
        # The first value of each column that may go with a field.
        self._values_beside: dict[str, Any] = {}
        # The same for columns that hold nothing in the first rows, and where that value stands.
        self._seen = layout.seen
        self._late_values: dict[str, Any] = {}
        self._late_places: dict[str, str] = {}

    @property
    def columns(self) -> Columns:
        """The columns of the layout, and what goes with a field in rows that were read since. Where
        that is more, the rows are to be read again.
        """
        return widened(self._columns, self._values_beside)

    @property
    def note(self) -> str:
        """How many rows were left out and why: `3 of 200 rows without a question left out`; and
        which columns come too late to be found.
        """
        clauses: list[str] = []
        for reason, count in sorted(self._missing.items()):
            clauses.append(f"{count} of {self._count} rows {reason} left out")
        for name, column in late_fields(self._columns, self._late_values).items():
            clauses.append(
                f"{short(column)!r} holds nothing before {self._late_places[column]}, too late to "
                f"be found by itself: {name}={short(column)} behind the path reads it"
            )
        return "; ".join(clauses)

    def rows(self, records: Numbered) -> Iterator[Row]:
        """Yield the rows that records make."""
        for place, record in records:
            self._count += 1
            for column, value in values_beside(record).items():
                self._values_beside.setdefault(column, value)
            if not record.keys() <= self._seen:
                self._note_late(record, place)
            values = values_of(record, self._columns, place)
            missing = [name for name in self._needed if name not in values]
            if missing:
                self._missing[self._reason(missing[0], record)] += 1
                continue
            # A line is a step: the marks of a file that we know nothing of.
            lines = values.get("rationale", "").splitlines()
            steps = sum(bool(line.strip()) for line in lines)
            yield Row(**values, steps=steps)

    def _note_late(self, record: Mapping[str, Any], place: str) -> None:
        for column in sorted(filled(record) - self._seen - self._late_places.keys()):
            # A name may be written in many ways, with other cases and spaces.
            if is_late_name(column) and len(self._late_places) < MOST_COLUMNS:
                self._late_values[column] = record[column]
                self._late_places[column] = place

    def _reason(self, missing: str, record: Mapping[str, Any]) -> str:
        """Say why a record is left out that lacks a field."""
        if "turns" in self._columns.fields:
            messages = record.get(self._columns.fields["turns"])
            if messages and field_value("turns", messages) is None:
                return "with a message that says nothing"
        article = "an" if missing[0] in "aeiou" else "a"
        return f"without {article} {missing}"


def values_of(record: Mapping[str, Any], columns: Columns, place: str) -> dict[str, Any]:
    """Return the fields of a record that have something in them, with labels if there are
    choices. `DataError` for what a field can't hold.
    """
    values = _read_columns(record, columns.fields, place)
    beside = _read_columns(record, columns.beside, place)
    for name in ("input", "context"):
        if name in beside and "question" in values:
            values["question"] += f"\n\n{beside[name]}"
    messages = _messages_of(values, beside, columns)
    if messages is not None:
        conversation = conversation_of(messages, beside.get("tools", ()), beside.get("system", ""))
        values["turns"] = conversation.messages
        if conversation.tools:
            values["tools"] = conversation.tools
        question, answer = first_exchange(conversation.messages)
        if question is not None and "question" not in columns.fields:
            values["question"] = question
        if answer is not None and "answer" not in columns.fields:
            values["answer"] = answer
    if "choices" in values:
        values["labels"] = lettered(values["choices"])
        if "answer" in values:
            values["answer"] = _letter_of_answer(values, record, columns)
    return values


def _messages_of(
    values: Mapping[str, Any], beside: Mapping[str, Any], columns: Columns
) -> Sequence[Message] | None:
    """Return the messages of a record: its own, or a question and what answers it. None where its
    texts are no conversation.
    """
    if "calls" in beside and "question" in values:
        calling = Message("assistant", calls=beside["calls"])
        return Message("user", values["question"]), calling
    if "turns" in values:
        return values["turns"]
    # Where some rows have it, all are conversations: all rows are to have the same fields.
    if columns.beside.keys() & {"system", "history"} and values.keys() >= {"question", "answer"}:
        exchange = (Message("user", values["question"]), Message("assistant", values["answer"]))
        return *beside.get("history", ()), *exchange
    return None


def _letter_of_answer(
    values: Mapping[str, Any], record: Mapping[str, Any], columns: Columns
) -> str:
    """Return what the answer is called among the choices; an answer that is none stays as it is."""
    if columns.by_index:
        letter = letter_at(record.get(columns.fields["answer"]), values["choices"])
        if letter is not None:
            return letter
    own_choices = record.get(columns.fields["choices"])
    return letter_of(values["answer"], values["choices"], own_choices)


def _read_columns(
    record: Mapping[str, Any], columns: Mapping[str, str], place: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, column in columns.items():
        try:
            value = field_value(name, record.get(column))
            if name == "turns":
                check_words_alone(record)
        except ValueError as error:
            found = short(record.get(column, record))
            raise DataError(
                f"{place}: {column!r} is {found!r}; it must be {error}", subject=place
            ) from error
        if value is not None:
            values[name] = value
    return values


def _check_columns(
    columns: Columns,
    records: Sequence[Mapping[str, Any]],
    name: str,
    advice: Callable[[str], str],
) -> None:
    present = list(dict.fromkeys(chain.from_iterable(records)))
    names = [visible(column) for column in present[:MOST_COLUMNS]]
    listed = ", ".join(map(short, names[:20]))
    if len(present) > 20:
        listed += f" and {len(present) - 20} more"
    known = set(present)
    for requested in columns.fields.values():
        if requested not in known:
            near = did_you_mean(requested, names)
            raise DataError(
                f"{name!r} has no column {requested!r}{near}; its columns are {listed}",
                subject=requested,
            )
    if not {"text", "question", "turns"} & columns.fields.keys():
        raise DataError(
            f"{name!r} has no column 'text' or 'question'; its columns are {listed}"
            f"{_remedy(records, advice)}",
            subject=name,
        )


def _remedy(records: Sequence[Mapping[str, Any]], advice: Callable[[str], str]) -> str:
    """Return what to do about records without a column of a known name."""
    column = _column_of_texts(records)
    if not column:
        return (
            f", and none of them holds several words: {advice('COLUMN')}, or put the text of "
            "each row into a column 'text', or its messages into 'messages'"
        )
    # What is that long is rather a text than a name, and can't be typed as it is shown.
    if short(visible(column)) != column:
        return ": put the text of each row into a column called 'text'"
    if _is_json_messages(records, column):
        return f": {column!r} holds JSON as a text; write it as a list of messages"
    return f": {advice(column)}"


def _is_json_messages(records: Iterable[Mapping[str, Any]], column: str) -> bool:
    """Return whether a column's first text is a list of messages in JSON."""
    for record in records:
        value = record.get(column)
        if isinstance(value, str) and value.strip():
            has_roles = '"role"' in value or '"from"' in value
            return has_roles and "".join(value[:40].split()).startswith("[{")
    return False


def _column_of_texts(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the column that holds most text; empty where none holds several words."""
    letters = Counter[str]()
    for record in records:
        for column, value in record.items():
            # An id or an address is one word; some scripts have no spaces between words.
            if isinstance(value, str) and (" " in value.strip() or not value.isascii()):
                letters[column] += len(value)
    return max(letters, key=letters.__getitem__, default="")
