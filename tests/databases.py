"""What stands in a database, read and spoiled behind its back."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from calibrant.results.live import row_seal
from calibrant.system.durable import compact_json


def change(path: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run a statement on a database that nobody has open, and return what it finds."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def spoil(path: Path, table: str, column: str) -> None:
    """Change the last bit of the first byte of a column, in every row of a table."""
    for row, content in change(path, f"SELECT rowid, {column} FROM {table}"):
        raw = content if isinstance(content, bytes) else content.encode()
        spoilt = bytes([raw[0] ^ 1]) + raw[1:]
        new = spoilt if isinstance(content, bytes) else spoilt.decode()
        change(path, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", new, row)


def reseal(path: Path, table: str, key: str, column: str, content: str) -> None:
    """Put a text into a column of a store's row, with the seal that it would have been written
    with."""
    if table == "documents":
        ((kind,),) = change(path, "SELECT kind FROM documents WHERE name = ?", key)
        query = "UPDATE documents SET content = ?, seal = ? WHERE kind = ? AND name = ?"
        change(path, query, content, row_seal(key, kind, content), kind, key)
        return
    ((seals,),) = change(path, f"SELECT seals FROM {table} WHERE id = ?", key)
    new = json.dumps({**json.loads(seals), column: row_seal(key, column, content)})
    query = f"UPDATE {table} SET {column} = ?, seals = ? WHERE id = ?"
    change(path, query, content, new, key)


def swap_file(path: Path, run: str, name: str, digest: str) -> None:
    """Say that another file was kept with a run, with the seal that it would have been written
    with."""
    change(path, "UPDATE files SET digest = ? WHERE run = ? AND name = ?", digest, run, name)
    digests = dict(change(path, "SELECT name, digest FROM files WHERE run = ?", run))
    ((seals,),) = change(path, "SELECT seals FROM runs WHERE id = ?", run)
    seal = row_seal(run, "files", compact_json(digests))
    new = json.dumps({**json.loads(seals), "files": seal})
    change(path, "UPDATE runs SET seals = ? WHERE id = ?", new, run)


def forget_last(path: Path, count: int) -> None:
    """Remove the newest entries of a journal, as if a process had been killed before it wrote
    them."""
    newest = "SELECT rowid FROM journal ORDER BY rowid DESC LIMIT ?"
    change(path, f"DELETE FROM journal WHERE rowid IN ({newest})", count)


def questions(path: Path) -> set[str]:
    """The questions that have a journal in this file."""
    return {question for (question,) in change(path, "SELECT DISTINCT question FROM journal")}
