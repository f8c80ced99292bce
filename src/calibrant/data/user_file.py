"""A user's own files as a source."""

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from calibrant.data._base import (
    Part,
    PartRows,
    PerDraw,
    Row,
    Source,
    SourceRows,
    StoredSource,
    divide,
    lettered,
    train_and_test,
)
from calibrant.data._columns import USUAL, Columns, assign, content, exchange, letter_of
from calibrant.data._files import MOST_COLUMNS, read_records, short
from calibrant.data._folders import File, files_of
from calibrant.errors import DataError
from calibrant.spec.foreign import did_you_mean, user_path, visible
from calibrant.spec.grammar import written_path

LOOKED_AT: Final = 1_000
"""How many rows are looked at to learn what columns there are and which of them always hold
something.
"""

_COLUMNS: Final = tuple(USUAL)


class _Layout(NamedTuple):
    """What the first rows of a file teach: the columns, the fields that every used row has, and
    those that only some have.
    """

    columns: Columns
    fields: tuple[str, ...]
    sometimes: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class UserFile(StoredSource):
    """The user's data; its path stands where a source's name stands. All that follows is said in
    the note of what was read.

    **A file** in JSON Lines (`.jsonl`, `.gz` or `.zst` too), JSON, CSV (`.csv`, `.csv.gz`), TSV,
    Parquet, Arrow or plain text, which gives a row a paragraph (empty lines divide them), or a row
    a line if it has no empty lines. **A folder** with files of one kind, read in the order of their
    names, or one that `datasets` wrote with `save_to_disk`; **a pattern** such as `'data/*.jsonl'`
    in quotes. Pickles are never read.

    **Columns** called text, question, answer, rationale, choices and turns are found by name, else
    by the names that others use, such as `prompt` or `messages`; `path(question=Q)` says that the
    questions are in the column `Q`. Of a conversation the first exchange is question and answer.
    Where the answer is one of the choices, the letter of that choice is taken.

    **Parts**: files or splits called train, validation and test are used as on the hub: train
    calibrates, 5 % of it are exemplars, test (or validation) measures. Where a folder, a pattern or
    a saved data set has only test, or only validation, all of it measures and nothing calibrates.
    Anything else, a file named by its path too, is divided by hash: 70 % calibrate, 25 % measure, 5
    % exemplars.

    **Rows** without a text, or without a question or its answer, are left out and counted. Raises
    `DataError` at once if nothing is there or no column fits.
    """

    path: str
    text: str = ""
    question: str = ""
    answer: str = ""
    rationale: str = ""
    choices: str = ""
    turns: str = ""

    family = "own"
    licence = "the user's own"
    homepage = ""

    def __post_init__(self) -> None:
        for path, shown in files_of(self.path).all:
            if not os.access(path, os.R_OK):
                raise DataError(f"{shown!r} may not be read; change its permissions", subject=shown)
        layout = self._layout
        object.__setattr__(self, "fields", layout.fields)
        object.__setattr__(self, "sometimes", layout.sometimes)
        object.__setattr__(self, "kind", "corpus" if "text" in layout.fields else "questions")

    @property
    def file(self) -> Path:
        """Where the file or folder is."""
        return user_path(self.path, DataError)

    @property
    def guessed(self) -> Mapping[str, str]:
        """The fields whose columns were found by a usual name, with that column: `{"question":
        "prompt"}`.
        """
        return dict(self._layout.columns.guessed)

    def __repr__(self) -> str:
        arguments = [f"{name}={getattr(self, name)!r}" for name in _COLUMNS if getattr(self, name)]
        return written_path(self.path) + (f"({', '.join(arguments)})" if arguments else "")

    __str__ = __repr__

    def place(self) -> Hashable:
        return _stamps(files_of(self.path).all)

    def part(self, part: Part) -> PartRows:
        if part == "calibrate":
            self.check_calibrates()
        return super().part(part)

    def check_calibrates(self) -> None:
        """Raise `DataError` where all that there is is measured on, because its names say so."""
        files = files_of(self.path)
        if files.calibrate is None:
            raise DataError(
                f"{self.path!r} has only {files.measure!r} files, which are measured on, and nothing to calibrate on; "
                f"name the file itself, {files.all[0][1]!r}, which is then divided, or put train files beside it",
                subject=self.path,
            )

    def read(self) -> SourceRows:
        files = files_of(self.path)
        rows = _Rows(self._layout)
        parts = [list(chain.from_iterable(map(rows.of, part))) for part in files.parts]
        for name, part in zip(files.used, parts, strict=True):
            if not part:
                raise DataError(
                    f"{self.path!r} has no usable row in its {name} part: {rows.note}",
                    subject=self.path,
                )
        note = "; ".join(filter(None, [files.note, self._layout.columns.note, rows.note]))
        origin = "file" if len(files.all) == 1 else f"{len(files.all)} files"
        divided = (
            divide(*parts)
            if files.measure is None
            else train_and_test(*(parts if files.calibrate is not None else ([], *parts)))
        )
        return SourceRows(divided, f"{origin}: {visible(self.path)}", note)

    @property
    def _layout(self) -> _Layout:
        files = files_of(self.path)
        requested = tuple((name, getattr(self, name)) for name in _COLUMNS if getattr(self, name))
        return _looked_at(self.path, files.parts, _stamps(files.all), requested)


def files_behind(source: Source) -> Iterator[UserFile]:
    """Yield the user's file that a source is, or those that its rows are chosen from."""
    if isinstance(source, UserFile):
        yield source
    elif isinstance(source, PerDraw):
        for origin in source.origins:
            yield from files_behind(origin)


class _Rows:
    """Makes rows of records, and counts what it leaves out."""

    def __init__(self, layout: _Layout) -> None:
        self._columns = layout.columns
        # What every row of the first thousand had is promised of all, so a later row without it is
        # left out too.
        self._needed = layout.fields
        self._seen, self._missing = 0, Counter[str]()

    @property
    def note(self) -> str:
        """How many rows were left out and why: `3 of 200 rows without a question left out`."""
        clauses = [
            f"{count} of {self._seen} rows without {_article(name)} left out"
            for name, count in sorted(self._missing.items())
        ]
        return "; ".join(clauses)

    def of(self, file: File) -> Iterator[Row]:
        """Yield the rows of one file."""
        for where, record in _numbered(file):
            self._seen += 1
            values = values_of(record, self._columns, where)
            missing = next((name for name in self._needed if name not in values), None)
            if missing:
                self._missing[missing] += 1
            else:
                # A line is a step: the marks of a file that we know nothing of.
                yield Row(
                    **values,
                    steps=sum(
                        bool(line.strip()) for line in values.get("rationale", "").splitlines()
                    ),
                )


def values_of(record: Mapping[str, Any], columns: Columns, where: str) -> dict[str, Any]:
    """Return the fields of a record that have something in them, with labels if there are
    choices. `DataError` for what a field can't hold.
    """
    values: dict[str, Any] = {}
    for name, column in columns.of.items():
        try:
            value = content(name, record.get(column))
        except ValueError as error:
            raise DataError(
                f"{where}: {column!r} is {short(record[column])!r}; it must be {error}",
                subject=where,
            ) from error
        if value is not None:
            values[name] = value
    if "turns" in values:
        for name, text in zip(("question", "answer"), exchange(values["turns"]), strict=True):
            if text is not None and name not in columns.of:
                values[name] = text
    if "choices" in values:
        values["labels"] = lettered(values["choices"])
        if "answer" in values:
            values["answer"] = letter_of(
                values["answer"], values["choices"], record.get(columns.of["choices"])
            )
    return values


@lru_cache(maxsize=32)
def _looked_at(
    path: str,
    parts: Sequence[Sequence[File]],
    stamps: Hashable,
    requested: Sequence[tuple[str, str]],
) -> _Layout:
    """Return what the first rows teach; remembered for as long as the files are the same, since
    an expression is read more than once.
    """
    # Of each part, because a test part often lacks what a train part has, such as rationales.
    first = list(
        chain.from_iterable(
            islice(chain.from_iterable(map(_numbered, files)), LOOKED_AT) for files in parts
        )
    )
    if not first:
        raise DataError(f"{path!r} is empty; a data file needs at least one row", subject=path)
    records = [record for _, record in first]
    columns = assign(records, dict(requested))
    _check_columns(path, columns, list(dict.fromkeys(chain.from_iterable(records))))
    contents = [values_of(record, columns, where) for where, record in first]
    present = set(chain.from_iterable(contents))
    needed = (
        ["text"]
        if "text" in present
        else [name for name in ("question", "answer") if name == "question" or name in present]
    )
    used = [values for values in contents if values.keys() >= set(needed)]
    if not used:
        expected = "text or question" if "text" in columns.of else " and ".join(needed)
        raise DataError(
            f"{path!r} has no row with {expected} among its first {len(contents)}; fill the column, or name another",
            subject=path,
        )
    counts = Counter(name for values in used for name in values)
    always = tuple(name for name in _COLUMNS if counts[name] == len(used))
    return _Layout(
        columns, always, tuple(name for name in _COLUMNS if 0 < counts[name] < len(used))
    )


def _check_columns(path: str, columns: Columns, present: Sequence[str]) -> None:
    names, known = [visible(name) for name in present[:MOST_COLUMNS]], set(present)
    listed = ", ".join(map(short, names[:20])) + (
        f" and {len(present) - 20} more" if len(present) > 20 else ""
    )
    for requested in columns.of.values():
        if requested not in known:
            raise DataError(
                f"{path!r} has no column {requested!r}{did_you_mean(requested, names)}; its columns are {listed}",
                subject=requested,
            )
    if not {"text", "question", "turns"} & columns.of.keys():
        example = f"{written_path(path)}(text={short(next(iter(names), 'COLUMN'))})"
        raise DataError(
            f"{path!r} has no column 'text' or 'question'; its columns are {listed}: say which to read, as in {example}",
            subject=path,
        )


def _numbered(file: File) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a file, each with what messages call it."""
    return (
        (f"{file[1]!r}, row {number}", record)
        for number, record in enumerate(read_records(*file), 1)
    )


def _stamps(files: Iterable[File]) -> Hashable:
    """Return what changes when a file does."""
    statuses = [(str(path.resolve()), path.stat()) for path, _ in files]
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in statuses)


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
