"""Makes a source of a user's own files."""

import keyword
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from calibrant.data._base import (
    Part,
    PartRows,
    Row,
    SourceRows,
    StoredSource,
    check_part,
    divide,
    joined,
    train_and_test,
)
from calibrant.data._columns import USUAL, Columns, filled
from calibrant.data._files import is_table, read_records
from calibrant.data._folders import File, Files, files_of
from calibrant.data._ids import COLUMN, rows_of_ids
from calibrant.data._rows import LOOKED_AT, Layout, RowReader, layout_of
from calibrant.errors import DataError
from calibrant.spec.foreign import user_path, visible
from calibrant.spec.grammar import written_path
from calibrant.spec.spec import WORDS


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
    questions are in the column `Q`. Of a conversation the first exchange is question and answer;
    functions in `tools` and a prompt in `system` beside it belong to it. What an `instruction` is
    about, in `input`, or a question, in `context` or `passage`, is a part of the question; `query`
    and the calls in `answers` are a conversation. So are question and answer beside a `system`
    prompt, or beside a `history` of earlier exchanges, unless there are choices or a rationale.
    Where the answer is one of the choices, the letter of that choice is taken; and where all
    answers are whole numbers below the number of choices, that of the choice at that place, counted
    from 0.

    **Parts**: files or splits called train, validation and test are used as on the hub: train
    calibrates, 5 % of it are exemplars, test (or validation) measures. The word may stand anywhere
    in a file's name, or in that of a folder that a pattern finds. Where a folder, a pattern or
    a saved data set has only test, or only validation, all of it measures and nothing calibrates.
    Anything else, a file named by its path too, is divided by hash: 70 % calibrate, 25 % measure,
    5 % exemplars.

    **Token ids**, in a column `input_ids` beside which there is no `text`, are used as they are:
    all calibrate, in their order, each sequence a window.

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
        for path, label in files_of(self.path).all:
            if not os.access(path, os.R_OK):
                raise DataError(f"{label!r} may not be read; change its permissions", subject=label)
        # The first rows are read when the set is built, so that a wrong column is an error then.
        layout = self._layout
        # These are facts of a class for other sources; here they depend on the file.
        object.__setattr__(self, "fields", layout.fields)
        object.__setattr__(self, "sometimes", layout.sometimes)
        object.__setattr__(self, "kind", layout.kind)

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

    @property
    def columns(self) -> list[str]:
        """The columns that hold something in the first rows, sorted."""
        return sorted(map(visible, self._layout.seen))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={column!r}" for name, column in self.requested)
        text = written_path(self.path)
        if arguments:
            text += f"({arguments})"
        return text

    __str__ = __repr__

    def place(self) -> Hashable:
        files = files_of(self.path)
        # The note says what isn't used, which may change while the files that are read stay.
        return _stamps_of(files.all), files.note

    @property
    def longest(self) -> int:
        """How many tokens the longest sequence of token ids has; 0 for other data."""
        if "ids" not in self.fields:
            return 0
        return max(len(row.ids or ()) for row in _ids_of(self, self.place()).rows)

    def part(self, part: Part) -> PartRows:
        if "ids" in self.fields:
            check_part(part)
            if part != "calibrate":
                raise DataError(
                    f"{self.path!r} holds token ids, and all of it is calibrated on; to measure on "
                    "a part of it, give a file of texts",
                    subject=self.path,
                )
            return _ids_of(self, self.place())
        if part == "calibrate":
            self.check_calibrates()
        return super().part(part)

    def check_calibrates(self) -> None:
        """Raise `DataError` where all that there is is measured on, because its names say so."""
        files = files_of(self.path)
        if files.calibrate is None:
            fault = f"has only {files.measure!r} files, which are measured on"
            first = files.all[0][1]
            raise DataError(
                f"{self.path!r} {fault}, and nothing to calibrate on; name the file itself, "
                f"{first!r}, which is then divided, or put train files beside it",
                subject=self.path,
            )

    def read(self) -> SourceRows:
        if "ids" in self.fields:
            content = self.part("calibrate")
            rows: dict[Part, Sequence[Row]] = {"calibrate": content.rows}
            return SourceRows(rows, content.origin, content.note, content.lost)
        files = files_of(self.path)
        layout = self._layout
        reader = RowReader(layout)
        parts = self._rows_of_splits(files, reader)
        if reader.columns != layout.columns:
            # Tools, for example, may first occur in a late row; what they are belongs to the rows.
            reader = RowReader(replace(layout, columns=reader.columns))
            parts = self._rows_of_splits(files, reader)
        if files.measure is None:
            divided = divide(parts[0])
        elif files.calibrate is None:
            divided = train_and_test([], parts[0])
        else:
            divided = train_and_test(parts[0], parts[1])
        note = joined(files.note, reader.columns.note, reader.note)
        return SourceRows(divided, self.origin, note, reader.note)

    def _rows_of_splits(self, files: Files, reader: RowReader) -> list[list[Row]]:
        """Return the rows of each split that is used. `DataError` for one without a usable row."""
        parts: list[list[Row]] = []
        for name, split in zip(files.used, files.parts, strict=True):
            rows = list(reader.rows(_numbered(split)))
            if not rows:
                raise DataError(
                    f"{self.path!r} has no usable row in its {name} part: {reader.note}",
                    subject=self.path,
                )
            parts.append(rows)
        return parts

    @property
    def origin(self) -> str:
        """What a record says of where the rows come from."""
        count = len(files_of(self.path).all)
        files = "file" if count == 1 else f"{count} files"
        return f"{files}: {visible(self.path)}"

    @property
    def requested(self) -> tuple[tuple[str, str], ...]:
        """The columns that were asked for, each with its field first."""
        return tuple((name, getattr(self, name)) for name in USUAL if getattr(self, name))

    @property
    def _layout(self) -> Layout:
        files = files_of(self.path)
        return _layout_of(self.path, files.parts, _stamps_of(files.all), self.requested)


@lru_cache(maxsize=32)
def _layout_of(
    path: str,
    parts: Sequence[Sequence[File]],
    stamps: Hashable,
    requested: Sequence[tuple[str, str]],
) -> Layout:
    """Return what the first rows teach. It is remembered for as long as the files are the same,
    since an expression is read more than once.
    """
    del stamps  # other files under the same path are another entry of the cache
    # Of each part, because a test part often lacks what a train part has, such as rationales.
    first_records: list[tuple[str, dict[str, Any]]] = []
    for files in parts:
        first_records += islice(_numbered(files), LOOKED_AT)
    if not first_records:
        raise DataError(f"{path!r} is empty; a data file needs at least one row", subject=path)
    wanted = {column for _, column in requested}
    for _, record in first_records:
        wanted -= filled(record)
    if wanted:
        first_records += _records_with(wanted, parts)

    # Rows that have a text are read as texts.
    first = first_records[0][1]
    if COLUMN in first and "text" not in first and not requested:
        return Layout(Columns({}), ("ids",), ())

    def advice(column: str) -> str:
        # A spec reads some words as something else, such as none.
        if not column.isidentifier() or column in WORDS or keyword.iskeyword(column):
            column = repr(column)
        return f"say which to read, as in {written_path(path)}(text={column})"

    return layout_of(first_records, dict(requested), path, advice)


def _records_with(
    columns: set[str], parts: Sequence[Sequence[File]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the first records that fill these columns, which the first rows leave empty."""
    wanted = set(columns)
    for path, label in chain.from_iterable(parts):
        table = is_table(path)
        for place, record in _numbered([(path, label)]):
            # In JSON a column may begin in any row.
            if table and wanted.isdisjoint(record):
                break
            found = wanted & filled(record)
            wanted -= found
            if found:
                yield place, record
            if not wanted:
                return


@lru_cache(maxsize=8)
def _ids_of(source: UserFile, stamps: Hashable) -> PartRows:
    """Return the token ids of files as they are, each sequence a window, in their order."""
    del stamps
    files = files_of(source.path)
    rows, note = rows_of_ids(_numbered(files.all), source.path)
    return PartRows(rows, origin=source.origin, note=joined(files.note, note), lost=note)


def _numbered(files: Iterable[File]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of files, each with what messages call it."""
    for path, label in files:
        for number, record in enumerate(read_records(path, label), 1):
            yield f"{label!r}, row {number}", record


def _stamps_of(files: Iterable[File]) -> Hashable:
    """Return what changes when a file does."""
    stamps: list[tuple[str, int, int]] = []
    for path, _ in files:
        status = path.stat()
        # Time and size: to hash large files at each look would take too long.
        stamps.append((str(path.resolve()), status.st_mtime_ns, status.st_size))
    return tuple(stamps)
