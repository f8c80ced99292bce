"""Results in a database, where a study writes them: one SQLite file, and blobs beside it.

Each column of a row is compared with its seal before it is believed, since SQLite doesn't notice
that a byte of a file has changed.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from calibrant.errors import DataError
from calibrant.results.database import Database
from calibrant.results.items import (
    ItemNumbers,
    from_bytes,
    numbers_from_bytes,
    to_bytes,
    unzipped,
)
from calibrant.results.outcomes import JOURNAL_TABLE
from calibrant.results.stored import (
    Blobs,
    StoredMeasurement,
    StoredResults,
    StoredRun,
    understood,
)
from calibrant.system.durable import LARGEST, compact_json, from_json, line_of_json
from calibrant.system.seals import BrokenSealError, seal_of

DATABASE: Final = "results.sqlite"
VERSION: Final = 4
"""Of the format. Formats 1 to 3 were folders and tables, which `tools/convert_store.py`
converts."""

TABLES: Final = (
    "runs (id TEXT PRIMARY KEY, record TEXT NOT NULL, provenance TEXT NOT NULL,"
    " seals TEXT NOT NULL, weights BLOB NOT NULL)",
    "measurements (run TEXT NOT NULL, id TEXT NOT NULL, score TEXT NOT NULL,"
    " provenance TEXT NOT NULL, seals TEXT NOT NULL, items BLOB NOT NULL, PRIMARY KEY (run, id))",
    "files (run TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (run, name))",
    "documents (kind TEXT NOT NULL, name TEXT NOT NULL, content TEXT NOT NULL,"
    " seal TEXT NOT NULL, PRIMARY KEY (kind, name))",
    "claims (name TEXT PRIMARY KEY, host TEXT NOT NULL, process INTEGER NOT NULL,"
    " started REAL NOT NULL, token TEXT NOT NULL)",
    JOURNAL_TABLE,
)
_FORGET_FAILURE: Final = "DELETE FROM documents WHERE kind = 'failure' AND name = ?"
_DIGITS: Final = 32
"""Digits of a seal: 128 bits."""


@dataclass(frozen=True)
class DamagedDocument:
    """A document that isn't what was written, or that is no such thing: the number of its row, its
    name as far as it can be read, and what is wrong with it."""

    row: int
    name: str
    error: DataError


class LiveResults(StoredResults):
    """The results in the database of the store in `folder`."""

    def __init__(self, folder: Path, create: bool) -> None:
        self.path = folder / DATABASE
        self.database = Database(self.path, TABLES, VERSION, create)
        self.blobs = Blobs(folder)

    def runs(self) -> list[str]:
        return [run for (run,) in self.database.rows("SELECT id FROM runs ORDER BY id")]

    def has(self, run: str, measurement: str = "") -> bool:
        if measurement:
            query = "SELECT 1 FROM measurements WHERE run = ? AND id = ?"
            return bool(self.database.rows(query, run, measurement))
        return bool(self.database.rows("SELECT 1 FROM runs WHERE id = ?", run))

    def measurements(self, run: str) -> list[str]:
        query = "SELECT id FROM measurements WHERE run = ? ORDER BY id"
        return [measurement for (measurement,) in self.database.rows(query, run)]

    def measured(self) -> list[tuple[str, str]]:
        """Return the ids of the run and of itself of every measurement."""
        keys: Any = self.database.rows("SELECT run, id FROM measurements ORDER BY run, id")
        return keys

    def record(self, run: str) -> Mapping[str, Any]:
        return self._json(run, "", "record")

    def weights(self, run: str) -> Sequence[Mapping[str, Any]]:
        content = self._column(run, "", "weights")
        with self.understood(run):
            return from_json(unzipped(content, LARGEST).decode())

    def provenance(self, run: str, measurement: str = "") -> Mapping[str, Any]:
        return self._json(run, measurement, "provenance")

    def score(self, run: str, measurement: str) -> Mapping[str, Any]:
        return self._json(run, measurement, "score")

    def scores(self, run: str) -> Mapping[str, Mapping[str, Any]]:
        # All in one query: a report asks for those of every run.
        query = "SELECT id, seals, score FROM measurements WHERE run = ? ORDER BY id"
        scores = dict[str, Mapping[str, Any]]()
        for measurement, seals, content in self.database.rows(query, run):
            with self.understood(run, measurement):
                _check_seal([(seals,)], measurement, "score", content)
                scores[measurement] = _object(content, "score")
        return scores

    def items(self, run: str, measurement: str, columns: Sequence[str] | None = None) -> Any:
        content = self._column(run, measurement, "items")
        with self.understood(run, measurement):
            table = from_bytes(content)
            return table if columns is None else table.select(list(columns))

    def numbers(self, run: str, measurement: str) -> ItemNumbers:
        content = self._column(run, measurement, "items")
        with self.understood(run, measurement):
            return numbers_from_bytes(content)

    def digests(self, run: str) -> Mapping[str, str]:
        query = "SELECT name, digest FROM files WHERE run = ? ORDER BY name"
        digests = dict(self.database.rows(query, run))
        found = self.database.rows("SELECT seals FROM runs WHERE id = ?", run)
        with self.understood(run):
            _check_seal(found, run, "files", compact_json(digests))
        return digests

    def file(self, run: str, name: str) -> bytes | None:
        digest = self.digests(run).get(name)
        return None if digest is None else self.blobs.get(digest)

    def where(self, run: str, measurement: str = "") -> str:
        return str(self.path / (measurement or run).rpartition(":")[2])

    def add_run(self, row: StoredRun) -> None:
        """Keep a run. One that is there already stays as it is. Raises `OSError`, and `OutputError`
        as the database does."""
        # Files come first: one that no run has does no harm, a run without its file would.
        digests = {name: self.blobs.put(content) for name, content in row.files.items()}
        record = compact_json(row.record)
        provenance = compact_json(row.provenance)
        # They are most of a record, and repeat the same names for each matrix.
        weights = zlib.compress(compact_json(row.weights).encode())
        columns = {"record": record, "provenance": provenance, "weights": weights}
        seals = _row_seals(row.id, {**columns, "files": compact_json(digests)})
        values = row.id, record, provenance, seals, weights
        files = [(row.id, name, digest) for name, digest in digests.items()]
        with self.database.writing("write a run") as connection:
            # The same request has the same result, so what is there already stays.
            done = connection.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?)", values)
            if done.rowcount:
                connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", files)
            connection.execute(_FORGET_FAILURE, (row.id,))

    def add_measurement(self, row: StoredMeasurement) -> None:
        """Keep a measurement. One that is there already stays as it is."""
        items = to_bytes(row.items)
        score = compact_json(row.score)
        provenance = compact_json(row.provenance)
        seals = _row_seals(row.id, {"score": score, "provenance": provenance, "items": items})
        values = row.run, row.id, score, provenance, seals, items
        query = "INSERT OR IGNORE INTO measurements VALUES (?, ?, ?, ?, ?, ?)"
        with self.database.writing("write a measurement") as connection:
            connection.execute(query, values)
            connection.execute(_FORGET_FAILURE, (row.id,))

    def remove(self, run: str, measurement: str = "") -> None:
        """Forget a measurement, or a run with all that was measured on it."""
        with self.database.writing("remove a result") as connection:
            if measurement:
                query = "DELETE FROM measurements WHERE run = ? AND id = ?"
                connection.execute(query, (run, measurement))
                return
            # The files in `blobs` stay: other runs may have them too.
            connection.execute("DELETE FROM measurements WHERE run = ?", (run,))
            connection.execute("DELETE FROM files WHERE run = ?", (run,))
            connection.execute("DELETE FROM runs WHERE id = ?", (run,))

    # Documents: the index of the study's grid, cells beside it, and failures

    def document(self, kind: str, name: str) -> Any:
        """Return a document, or None if there is none."""
        query = "SELECT content, seal FROM documents WHERE kind = ? AND name = ?"
        found = self.database.rows(query, kind, name)
        if not found:
            return None
        with understood(self._place(kind, name)):
            return _document(kind, name, *found[0])

    def documents(
        self, kind: str, form: Any, name: str | None = None
    ) -> tuple[dict[str, Any], list[DamagedDocument]]:
        """Return the documents of a kind that have this form by name, and those that are damaged;
        of a single `name` where one is given."""
        # As bytes, since SQLite reads nothing more where one text is none.
        columns = "rowid, CAST(name AS BLOB), CAST(content AS BLOB), CAST(seal AS BLOB)"
        query = f"SELECT {columns} FROM documents WHERE kind = ?"
        if name is None:
            found = self.database.rows(f"{query} ORDER BY name", kind)
        else:
            found = self.database.rows(f"{query} AND name = ?", kind, name)
        whole: dict[str, Any] = {}
        damaged: list[DamagedDocument] = []
        for row, *columns_read in found:
            readable = columns_read[0].decode(errors="replace")
            try:
                with understood(self._place(kind, readable)):
                    texts = [column.decode() for column in columns_read]
                    document = _document(kind, *texts)
                    msgspec.convert(document, form)
                    whole[readable] = document
            except DataError as error:
                damaged.append(DamagedDocument(row, readable, error))
        return whole, damaged

    def remove_damaged(self, kind: str, form: Any) -> int:
        """Forget the documents of a kind that are damaged, and return how many these were."""
        with self.database.writing(f"remove a damaged {kind}") as connection:
            # Looked for here, so that nobody writes one of them anew in between.
            _, damaged = self.documents(kind, form)
            rows = [(document.row,) for document in damaged]
            connection.executemany("DELETE FROM documents WHERE rowid = ?", rows)
        return len(rows)

    def put_document(self, kind: str, name: str, value: Any) -> None:
        """Keep a document in place of an older one of its name."""
        content = line_of_json(value)  # the order of a mapping is a part of the grid
        values = kind, name, content, row_seal(name, kind, content)
        with self.database.writing(f"write the {kind}") as connection:
            connection.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", values)

    def remove_document(self, kind: str, name: str) -> None:
        """Forget a document, if it is there."""
        named = "FROM documents WHERE kind = ? AND name = ?"
        if not self.database.rows(f"SELECT 1 {named}", kind, name):
            return
        with self.database.writing(f"remove the {kind}") as connection:
            connection.execute(f"DELETE {named}", (kind, name))

    def _place(self, kind: str, name: str) -> Path:
        return self.path / f"{kind}-{name.rpartition(':')[2]}"

    def _json(self, run: str, measurement: str, column: str) -> Any:
        content = self._column(run, measurement, column)
        with self.understood(run, measurement):
            return _object(content, column)

    def _column(self, run: str, measurement: str, column: str) -> Any:
        """One column of a row, which is what was written."""
        if measurement:
            query = f"SELECT seals, {column} FROM measurements WHERE run = ? AND id = ?"
            found = self.database.rows(query, run, measurement)
        else:
            found = self.database.rows(f"SELECT seals, {column} FROM runs WHERE id = ?", run)
        content = found[0][1] if found else None
        with self.understood(run, measurement):
            _check_seal(found, measurement or run, column, content)
        return content


def _document(kind: str, name: str, content: str, seal: str) -> Any:
    """What a document says. Raises `ValueError` for what isn't as it was written."""
    if row_seal(name, kind, content) != seal:
        raise BrokenSealError
    return from_json(content)


def _object(content: str, column: str) -> dict[str, Any]:
    """The JSON object in a column. Raises `ValueError` for anything else."""
    fields = from_json(content)
    if not isinstance(fields, dict):
        raise ValueError(f"its {column} is no JSON object")
    return fields


def _check_seal(found: Sequence[tuple[Any, ...]], name: str, column: str, content: Any) -> None:
    """Raise `ValueError` unless a row was `found`, and its seal of the column is that of the
    content.
    """
    if not found:
        raise ValueError("it isn't there")
    if from_json(found[0][0])[column] != row_seal(name, column, content):
        raise BrokenSealError


def _row_seals(name: str, columns: Mapping[str, str | bytes]) -> str:
    seals = {column: row_seal(name, column, content) for column, content in columns.items()}
    return compact_json(seals)


def row_seal(name: str, column: str, content: str | bytes) -> str:
    """Return the seal of a column of the row that has this name."""
    raw = content.encode() if isinstance(content, str) else content
    # With the row and the column, so that a whole value in a wrong place is noticed too.
    return seal_of({"row": name, "column": column}, raw)[:_DIGITS]
