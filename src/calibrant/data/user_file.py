"""A user's own file as a source."""

import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from calibrant.data._base import Found, Row, Stored, divide, lettered
from calibrant.data._files import read_records, suffix_of
from calibrant.errors import DataError, SpecError
from calibrant.registry import did_you_mean

_COLUMNS: Final = ("text", "question", "answer", "rationale", "choices")


@dataclass(frozen=True, repr=False)
class UserFile(Stored):
    """A `.jsonl[.gz]`, `.json`, `.csv`, `.parquet` or `.txt` file; its path stands where a source's name stands.

    Columns called text, question, answer, rationale and choices are found by name; `path(question=prompt)` says that the questions are in the
    column `prompt`. A text file gives a row a paragraph (empty lines divide them), or a row a line if it has no empty lines. Rows are divided
    by hash: 70 % calibrate, 25 % measure, 5 % exemplars. Raises `DataError` at once for a missing or empty file or a missing column.
    """

    path: str
    text: str = ""
    question: str = ""
    answer: str = ""
    rationale: str = ""
    choices: str = ""

    licence = "the user's own"
    homepage = ""

    def __post_init__(self) -> None:
        suffix_of(self.file, self.path)
        if not self.file.is_file():
            raise DataError(f"there is no file {self.path!r}; give the path of a data file, or the name of a source", subject=self.path)
        if not os.access(self.file, os.R_OK):
            raise DataError(f"{self.path!r} may not be read; change its permissions", subject=self.path)
        first = next(read_records(self.file, self.path), None)
        if first is None:
            raise DataError(f"{self.path!r} is empty; a data file needs at least one row", subject=self.path)
        columns = self._columns(first)
        object.__setattr__(self, "fields", tuple(columns))
        object.__setattr__(self, "kind", "corpus" if "text" in columns else "questions")

    @property
    def file(self) -> Path:
        """Where the file is."""
        return Path(self.path).expanduser()

    def __repr__(self) -> str:
        given = [f"{name}={getattr(self, name)!r}" for name in _COLUMNS if getattr(self, name)]
        return written(self.path) + (f"({', '.join(given)})" if given else "")

    __str__ = __repr__

    def place(self) -> Hashable:
        status = self.file.stat()
        return str(self.file.resolve()), status.st_mtime_ns, status.st_size

    def read(self) -> Found:
        rows = (self._row(record, number) for number, record in enumerate(read_records(self.file, self.path), 1))
        return Found(divide(rows), f"file: {self.path}")

    def _columns(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Which column holds which field."""
        columns: dict[str, str] = {}
        for name in _COLUMNS:
            asked: str = getattr(self, name)
            if asked and asked not in record:
                near = did_you_mean(asked, record)
                raise DataError(f"{self.path!r} has no column {asked!r}{near}; its columns are {', '.join(record)}", subject=asked)
            if asked or name in record:
                columns[name] = asked or name
        if not {"text", "question"} & set(columns):
            raise DataError(
                f"{self.path!r} has no column 'text' or 'question'; its columns are {', '.join(record)}: say which to read, as in "
                f"{written(self.path)}(text={next(iter(record), 'COLUMN')})",
                subject=self.path,
            )
        return columns

    def _row(self, record: Mapping[str, Any], number: int) -> Row:
        values: dict[str, Any] = {}
        for name, column in self._columns(record).items():
            value = record[column]
            if name == "choices" and isinstance(value, list) and all(isinstance(choice, str) for choice in value):
                values[name] = tuple(value)
            elif name != "choices" and isinstance(value, str):
                values[name] = value
            elif name == "answer" and isinstance(value, int | float):
                values[name] = str(value)
            else:
                wanted = "a list of texts" if name == "choices" else "a text"
                raise DataError(f"{self.path!r}, row {number}: {column!r} is {str(value)[:40]!r}; it must be {wanted}", subject=self.path)
        return Row(**values, labels=lettered(values.get("choices", ())))


def is_path(name: str) -> bool:
    """Whether an unquoted name can only be a path: it has a folder or an ending."""
    return name.startswith("~") or any(mark in name for mark in "/\\.")


def written(path: str) -> str:
    """How a path stands in an expression: quoted unless it is plain. `SpecError` for one that can't be quoted."""
    if re.fullmatch(r"[\w./~-]+", path) and is_path(path):
        return path
    quote = next((q for q in "'\"" if q not in path), None)
    if quote is None:
        raise SpecError(f"the path {path!r} has both kinds of quotes in it; rename the file", subject=path)
    return quote + path + quote
