"""A SQLite file that is whole after any kill and on a full disk, with our errors. No torch here.

SQLite keeps the promises: a transaction is there complete or not at all, it is flushed before it
counts as done, and a reader never waits for a writer. What stands here is how we open such a file
and what we say when that fails.
"""

import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from calibrant.errors import CalibrantError, DataError, OutputError
from calibrant.system.durable import flush, short, undoing

PATIENCE: Final = 60.0
"""Seconds that a writer waits for another one."""
LARGEST: Final = 2**30
"""Bytes of a value at most."""
LEAST_FREE: Final = 2**16
"""Bytes of free space below which SQLite's complaints are taken for those of a full disk."""
SIDE_SUFFIXES: Final = ("-wal", "-shm")
"""What SQLite puts beside a file while somebody has it open."""
HALF_SUFFIX: Final = ".half-"
"""How the name of a file goes on while it is made."""
DAMAGED_SUFFIX: Final = ".damaged"
"""How the name of a file ends that was damaged and set aside."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_INHERITED: Final = list[sqlite3.Connection]()
"""Connections of the process that this one was forked from. To close one would free its locks."""


class DamagedError(DataError):
    """A file that is none of SQLite's, or whose parts don't fit together."""


class Database:
    """A SQLite file with these `tables`, made with its folder if it is to be written (`create`).

    Raises `DataError` for a file that can't be read (`DamagedError` if it is damaged), and
    `OutputError` where it can't be written.
    """

    def __init__(
        self, path: Path, tables: Sequence[str], version: int, create: bool = True
    ) -> None:
        self.path = path
        self._tables, self._version, self._create = tables, version, create
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return what a query finds. Raises `DataError` for a file that can't be read."""
        with self._explained(f"read {self.path.name}", reading=True):
            return self._open().execute(query, values).fetchall()

    @contextmanager
    def writing(self, action: str) -> Iterator[sqlite3.Connection]:
        """Yield a connection for one transaction: all that is done with it, or nothing.

        Raises `OutputError`, saying which `action` failed, where it can't be written.
        """
        with self._explained(action):
            connection = self._open()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def version(self) -> int:
        """Return the version of the tables that the file has; 0 for a file without any."""
        return int(self.rows("PRAGMA user_version")[0][0])

    def problem(self) -> str:
        """Return what SQLite finds wrong with the file, such as rows that an index lacks; empty if
        nothing is."""
        try:
            ((found,),) = self.rows("PRAGMA integrity_check(1)")
        except DataError as error:
            return str(error).partition("; restore it")[0]
        return "" if found == "ok" else " ".join(found.split())

    def close(self) -> None:
        """Close the file; it is opened again when it is used again."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
            self._connection = None

    def remove(self, check: Callable[[], object]) -> None:
        """Close the file and delete it, unless `check` raises: while that looks at the file, nobody
        else can. Raises `OutputError` where somebody else has it open."""
        with self._explained(f"remove {self.path.name}"):
            connection = self._open()
            self._leave_wal(connection)
            try:
                connection.execute("BEGIN EXCLUSIVE")
                check()
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.execute("PRAGMA journal_mode = WAL")
                raise
            self._unlink_sides()
            self.path.unlink(missing_ok=True)
            self.close()

    def set_aside(self) -> None:
        """Close a damaged file and give it another name, which takes the place of an older one."""
        self.close()
        with self._explained(f"set {self.path.name} aside"):
            self._unlink_sides()
            self.path.replace(self.path.with_name(self.path.name + DAMAGED_SUFFIX))

    def _leave_wal(self, connection: sqlite3.Connection) -> None:
        """Have everything in the file itself, which is done only where nobody else has it open."""
        try:
            ((mode,),) = connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            mode = "wal"
        if mode != "delete":
            folder = str(self.path.parent)
            message = f"can't remove {self.path.name} in {folder!r}: it is open elsewhere"
            advice = "close it there and run the same command again"
            raise OutputError(f"{message}; {advice}", subject=folder)

    def _unlink_sides(self) -> None:
        """Delete what is beside the file, before the file itself goes: SQLite would take it for a
        part of the next one."""
        for suffix in SIDE_SUFFIXES:
            self._side(suffix).unlink(missing_ok=True)

    def _side(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._process != os.getpid():
            _INHERITED.append(self._connection)
            self._connection = None
        if self._connection is None:
            if self._create:
                self._connection = self._open_to_write()
            else:
                self._connection = self._connected(self.path, self._mode())
            self._process = os.getpid()
        return self._connection

    def _mode(self) -> str:
        """How a reader opens the file: as writers do, where it may, since SQLite shares memory
        with them through a file of its own. Where it may not write, it takes the file for one that
        nobody writes only if nothing is beside it: whoever has it open, or was killed, leaves
        something there."""
        if os.access(self.path.parent, os.W_OK) and os.access(self.path, os.W_OK):
            return "mode=rw"
        if any(self._side(suffix).exists() for suffix in SIDE_SUFFIXES):
            return "mode=ro"
        return "mode=ro&immutable=1"

    def _connected(self, path: Path, mode: str) -> sqlite3.Connection:
        address = f"file:{quote(str(path.absolute()))}?{mode}"
        connection = sqlite3.connect(
            address, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
        # A file from elsewhere may define views and triggers; none may call what it likes.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _open_to_write(self) -> sqlite3.Connection:
        # What goes wrong here is told before what was made is removed again, which frees space.
        with undoing(self.path.parent), self._explained(f"write {self.path.name}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self._make_file()
            self._remove_halves()
            connection = self._connected(self.path, "mode=rwc")
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def _make_file(self) -> None:
        """Make the file beside its place and link it there: it is there whole, or another process
        was first."""
        name = f"{self.path.name}{HALF_SUFFIX}{os.getpid()}-{secrets.token_hex(4)}"
        half = self.path.with_name(name)
        try:
            with closing(self._connected(half, "mode=rwc")) as connection:
                self._prepare(connection)
            with suppress(OSError):  # where there are no links, it is made in its place
                os.link(half, self.path)
                flush(self.path.parent)
        finally:
            for path in half.parent.glob(f"{half.name}*"):
                path.unlink(missing_ok=True)

    def _remove_halves(self) -> None:
        """Remove what processes left that were killed while they made the file."""
        beginning = f"{self.path.name}{HALF_SUFFIX}"
        left = list(self.path.parent.glob(f"{beginning}*"))
        if not left:
            return
        import psutil  # which is needed so rarely that nobody else waits for it

        for path in left:
            process = path.name.removeprefix(beginning).partition("-")[0]
            if process.isdecimal() and not psutil.pid_exists(int(process)):
                path.unlink(missing_ok=True)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the tables in a new file. Who opens one of another version asks for `version`."""
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            connection.execute("BEGIN IMMEDIATE")
            for table in self._tables:
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            connection.execute(f"PRAGMA user_version = {self._version}")
            connection.execute("COMMIT")
        # After the tables, which are then in the file itself and not in the one beside it.
        connection.execute("PRAGMA journal_mode = WAL")

    @contextmanager
    def _explained(self, action: str, reading: bool = False) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._complaint(error, action, reading) from error

    def _complaint(
        self, error: sqlite3.Error | OSError, action: str, reading: bool
    ) -> CalibrantError:
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        unwritten = primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL) or self._is_full()
        if primary in _DAMAGED or (reading and not unwritten):
            message = f"{short(self.path)!r} can't be read ({error}); restore it from a copy"
            kind = DamagedError if primary in _DAMAGED else DataError
            return kind(message, subject=str(self.path))
        folder = self.path.parent
        return OutputError(
            f"can't {action} in {str(folder)!r}: {self._reason(error, code)}", subject=str(folder)
        )

    def _reason(self, error: Exception, code: int | None) -> str:
        """Why something could not be written, and what to do."""
        if code == sqlite3.SQLITE_FULL or self._is_full():
            return "the disk is full; free some space and run the same command again"
        if code == sqlite3.SQLITE_TOOBIG:
            return f"it is larger than {LARGEST // 2**30} GiB"
        if code is not None and code & 0xFF == sqlite3.SQLITE_BUSY:
            return "another process has been writing for a minute; wait until it is done"
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"{text}; is it yours to write to?"

    def _is_full(self) -> bool:
        folder = self.path.parent
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free < LEAST_FREE
