"""Makes a source of data that came as objects: texts, conversations, rows, token ids."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from numbers import Real
from os import PathLike, fspath
from typing import Any, Final, NoReturn, TypeAlias, cast

from torch import Tensor

from calibrant.data._base import (
    Part,
    PartRows,
    PerDraw,
    Row,
    Source,
    SourceRows,
    StoredSource,
    check_part,
    digest,
    joined,
)
from calibrant.data._files import check_columns, short, without_nulls
from calibrant.data._ids import SEQUENCES, as_list, rows_of_ids
from calibrant.data._limits import FIRST_GIVEN, MOST_GIVEN
from calibrant.data._rows import RowReader, kind_of, layout_of
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError
from calibrant.numerics import counted

NAME: Final = "data"
"""What messages call what was handed over: every verb has it as the argument `data`."""

_CONTENTS: Final[dict[str, "Content"]] = {}
"""What was handed over in this process, by its digest."""
_MESSAGE: Final = {"role", "content"}
_ON_ARROW: Final = ("datasets", "polars")
"""Packages whose tables and columns are those of Arrow."""


@dataclass(frozen=True)
class Content:
    """The rows of what was handed over. `fields` are those that all rows have, and `sometimes`
    those that only some have; `note` says what was left out.
    """

    rows: tuple[Row, ...]
    fields: tuple[str, ...]
    sometimes: tuple[str, ...] = ()
    note: str = ""

    @cached_property
    def digest(self) -> str:
        """Sixteen digits of the hash of the rows. Of token ids their order is a part of it, of
        other rows it isn't: they are used in the order of their hashes.
        """
        rows: Iterable[Row] = self.rows
        if "ids" not in self.fields:
            distinct = {row.key: row for row in self.rows}
            rows = [distinct[key] for key in sorted(distinct)]
        return digest(rows).removeprefix("sha256:")[:16]


@dataclass(frozen=True, repr=False)
class Given(StoredSource):
    """Data that came as objects. Their text says which they are by the hash of their content, and
    reads back in the process that they were handed to; their content is kept there until it ends.

    All of it is calibrated on. Rows are used as those of a file are: in the order of their hashes,
    equal ones once. Token ids are used as they are given, each sequence a window.
    """

    digest: str

    family = "own"
    licence = "the user's own"
    homepage = ""

    def __post_init__(self) -> None:
        content = self.content
        # These are facts of a class for other sources; here they depend on what was given.
        object.__setattr__(self, "fields", content.fields)
        object.__setattr__(self, "sometimes", content.sometimes)
        object.__setattr__(self, "kind", kind_of(content.fields))
        if "turns" in content.fields:
            object.__setattr__(self, "default", "chat")

    @property
    def content(self) -> Content:
        """What was handed over. `DataError` where that wasn't in this process."""
        if self.digest not in _CONTENTS:
            raise DataError(
                f"given(digest={self.digest!r}) stands for data that were handed over in another "
                "process; hand them over again, as in data=rows",
                subject=self.digest,
            )
        return _CONTENTS[self.digest]

    @property
    def longest(self) -> int:
        """How many tokens the longest sequence of token ids has; 0 for other data."""
        return max(len(row.ids or ()) for row in self.content.rows)

    def refuse_measuring(self) -> NoReturn:
        """Raise `DataError`, since nothing is held out."""
        raise DataError(
            f"{self} came as an object, and all of it is calibrated on; to measure on a part of "
            "it, write its rows to a file, which is divided, and name that",
            subject=str(self),
        )

    def place(self) -> Hashable:
        return self.content.note

    def part(self, part: Part) -> PartRows:
        check_part(part)
        if part != "calibrate":
            self.refuse_measuring()
        if "ids" in self.fields:
            read = self.read()
            return PartRows(self.content.rows, origin=read.origin, note=read.note)
        return super().part(part)

    def read(self) -> SourceRows:
        return SourceRows({"calibrate": self.content.rows}, "objects", self.content.note)


OwnData: TypeAlias = UserFile | Given
"""Rows of the user's own, of which nobody knows what they have in common with others."""


def as_source(data: Any) -> Source:
    """Return data that came as objects as a source, whose text can be part of expressions.

    >>> from calibrant.data import CalibrationSet
    >>> rows = as_source([{"question": "1 + 1?", "answer": "2"}])
    >>> rows
    given(digest='fa8d6643632e1af0')
    >>> CalibrationSet(f"0.5*{rows}:qa + 0.5*python_docs").parts[0].format
    qa

    What can be handed over is said at `CalibrationSet`. A path is the file or folder that is there.
    Raises `DataError` for anything else.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, PathLike):
        return UserFile(fspath(cast("PathLike[str]", data)))
    return keep(_content_of(data))


def keep(content: Content) -> Given:
    """Remember what was handed over, and return its source."""
    _CONTENTS[content.digest] = content
    return Given(content.digest)


def own_behind(source: Source) -> Iterator[OwnData]:
    """Yield the user's own data that a source is, or those that its rows are chosen from."""
    if isinstance(source, OwnData):
        yield source
    elif isinstance(source, PerDraw):
        for origin in source.origins:
            yield from own_behind(origin)


def _content_of(data: Any) -> Content:
    """Return what data hold, whatever kind of object they are."""
    split = ""
    if isinstance(data, Mapping):
        mapping = cast("Mapping[str, Any]", data)
        if "input_ids" in mapping:  # what a tokenizer gives for several texts
            data = [mapping]
        else:
            data, split = _train_split(mapping)
    on_arrow = type(data).__module__.partition(".")[0] in _ON_ARROW
    items, cut = _items(data)
    if not items:
        raise DataError(
            "data is empty; give at least one row, and a list in the place of a generator that "
            "was used up",
            subject=NAME,
        )
    note = joined(split, cut)
    # One sequence of ids may stand for a list of one.
    if all(map(_is_number, items)):
        return _content_of_ids([list(chain.from_iterable(map(as_list, items)))], note)
    field = _field_of(items)
    if field == "ids":
        return _content_of_ids(items, note)
    records = items
    requested: dict[str, str] = {}
    if field == "text":
        _check_some_text(items)
    if field:
        records = [{field: item} for item in items]
        requested[field] = field
    else:
        _check_no_message(items[0])
    if on_arrow:
        records = [without_nulls(record) for record in records]
    return _content_of_records(records, requested, note)


def _field_of(items: Sequence[Any]) -> str:
    """Return the field that every item holds: `text`, `turns` or `ids`; empty where each is a row
    with columns. `DataError` where they are of several kinds.
    """
    if all(isinstance(item, str | None) for item in items):
        return "text"
    if all(isinstance(item, Mapping) for item in items):
        return "ids" if "input_ids" in items[0] else ""
    if not all(isinstance(item, SEQUENCES) for item in items):
        raise _mixed(items)
    if any(_is_conversation(item) for item in items):
        return "turns"
    return "ids"


def _items(data: Any) -> tuple[list[Any], str]:
    """Return what data hold as a list, and a note where not all of it was read."""
    if isinstance(data, SEQUENCES):
        items = as_list(data)
        _check_count(len(items))
        return items, ""
    # A data set may give its rows as tables or arrays; here they are plain.
    if hasattr(data, "with_format"):
        data = data.with_format(None)
    # Whoever goes through a table of pandas or polars gets its columns.
    if hasattr(data, "iterrows"):
        data = data.to_dict(orient="records")
    elif hasattr(data, "to_dicts"):
        data = data.to_dicts()
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        kind = type(data).__name__
        raise DataError(
            f"an object of type {kind} is no data; give an expression, texts, conversations, token "
            "ids, or rows of a data set",
            subject=kind,
        )
    try:
        count = len(cast("Sequence[Any]", data))
    except TypeError:
        # What has no length, such as a stream, may have no end.
        items = list(islice(data, FIRST_GIVEN + 1))
        if len(items) <= FIRST_GIVEN:
            return items, ""
        return items[:FIRST_GIVEN], f"the first {FIRST_GIVEN:,} rows of a stream"
    _check_count(count)
    return list(data), ""


def _check_count(count: int) -> None:
    """Raise `DataError` for more rows than are handed over."""
    if count > MOST_GIVEN:
        raise DataError(
            f"data has {count:,} rows, and {MOST_GIVEN:,} are the most that are handed over; take "
            "a part of it, or name its file",
            subject=str(count),
        )


def _train_split(splits: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the train split of several, and a note of that."""
    names = ", ".join(map(short, splits)) or "nothing"
    if "train" not in splits:
        raise DataError(
            f"data is a mapping of {names}, without 'train'; of splits hand over one, as in "
            "data=splits['test'], and of rows a list, as in data=[row]",
            subject=names,
        )
    return splits["train"], f"the split train of {names}"


def _content_of_records(
    records: Iterable[Mapping[str, Any]], requested: Mapping[str, str], note: str
) -> Content:
    """Return the rows that records make; `requested` are the columns of fields that are known."""
    numbered = [
        (f"row {number} of data", _plain_record(record)) for number, record in enumerate(records, 1)
    ]
    layout = layout_of(numbered, requested, NAME, _advice)
    reader = RowReader(layout)
    rows = tuple(reader.rows(numbered))
    whole_note = joined(note, layout.columns.note, reader.note)
    return Content(rows, layout.fields, layout.sometimes, whole_note)


def _advice(column: str) -> str:
    return f"call the one to read text, as in data.rename_column({column!r}, 'text')"


def _plain_record(record: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row with plain values: a data set may have arrays in the place of lists."""
    check_columns(len(record), NAME)
    return {str(column): _plain(value) for column, value in record.items()}


def _plain(value: Any) -> Any:
    """Return a value with lists in the place of arrays, within lists and mappings too."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, SEQUENCES):
        return [_plain(entry) for entry in as_list(value)]
    return value


def _content_of_ids(items: Iterable[Any], note: str) -> Content:
    """Return sequences of token ids as rows, in the order in which they are given."""
    numbered = ((f"row {number} of {NAME}", item) for number, item in enumerate(items, 1))
    rows, left_out = rows_of_ids(numbered, NAME)
    return Content(rows, ("ids",), note=joined(note, left_out))


def _is_number(item: Any) -> bool:
    """Return whether this may be a token id, also as numpy and torch have a number."""
    return isinstance(item, Real) or (isinstance(item, Tensor) and item.dim() == 0)


def _is_conversation(item: Any) -> bool:
    entries = as_list(item)
    return bool(entries) and isinstance(entries[0], Mapping)


def _check_some_text(texts: Sequence[str | None]) -> None:
    """Raise `DataError` where all texts are empty, in words of a list and not of a table."""
    for text in texts:
        if text and text.strip():
            return
    raise DataError(
        f"data has {counted(len(texts), 'text')} without a word; give texts with words",
        subject=NAME,
    )


def _check_no_message(row: Mapping[str, Any]) -> None:
    """Raise `DataError` where the rows are the messages of one conversation."""
    if row.keys() >= _MESSAGE:
        raise DataError(
            "data is a list of messages; put the messages of a conversation into a list of their "
            "own, as in data=[messages]",
            subject=NAME,
        )


def _mixed(items: Sequence[Any]) -> DataError:
    kinds = list(dict.fromkeys(type(item).__name__ for item in items))
    listed = ", ".join(kinds[:5])
    return DataError(
        f"data holds {listed}; it must be all texts, all conversations, all token ids, or all rows",
        subject=listed,
    )
