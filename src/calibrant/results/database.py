"""A SQLite file that is whole after any kill and on a full disk, with our errors; and the claims
in it that say who is at work on what. No torch here.

SQLite keeps the promises: a transaction is there complete or not at all, it is flushed before it
counts as done, and a reader never waits for a writer. What stands here is how we open such a file
and what we say when that fails.
"""

import os
import platform
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from calibrant.errors import CalibrantError, DataError, OutputError
from calibrant.system.durable import (
    FULL_DISK,
    READ_ONLY,
    flush,
    reason,
    remove_left,
    short,
    undoing,
)

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
PAUSE: Final = 0.05
"""Seconds between two looks at whether a claim is free."""
SAME_START: Final = 0.5
"""Seconds that two readings of one process's start may differ by."""
GONE: Final = "it was removed meanwhile; run the same command again"

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FORBIDDEN: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
_INHERITED: Final = list[sqlite3.Connection]()
"""Connections of the process that this one was forked from. To close one would free its locks."""


class DamagedError(DataError):
    """A file that SQLite can't read: it isn't one of SQLite's, or is damaged."""


class Database:
    """A SQLite file with these `tables`, made with its folder if it is to be written (`create`).

    Raises `DataError` for a file that can't be read (`DamagedError` if it is damaged), and
    `OutputError` where it can't be written.
    """

    def __init__(
        self, path: Path, tables: Sequence[str], version: int, create: bool = True
    ) -> None:
        self.path = path
        self._tables = tables
        self._version = version
        self._create = create
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
                # At once as a writer: one that begins as a reader fails where another wrote
                # meanwhile.
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
            found = self.rows("PRAGMA integrity_check(1)")[0][0]
        except DataError as error:
            return without_advice(error)
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
                # From here on nobody else can open it, so what is checked is what is deleted.
                connection.execute("BEGIN EXCLUSIVE")
                # Unless somebody opened it in between.
                self._check_left_wal(connection)
                check()
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                # It stays, and readers mustn't wait for writers again.
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
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        # What this connection read before is remembered, and out of WAL SQLite doesn't notice that
        # another one wrote since.
        connection.execute("PRAGMA shrink_memory")
        # SQLite may also say nothing, and stay as it was.
        self._check_left_wal(connection)

    def _check_left_wal(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA journal_mode").fetchone() != ("delete",):
            folder = str(self.path.parent)
            raise OutputError(
                f"can't remove {self.path.name} in {folder!r}: it is open elsewhere; "
                "close it there and run the same command again",
                subject=folder,
            )

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
        """How a reader opens the file.

        Where it may write, it opens the file as writers do: SQLite shares memory with them through
        a file beside it. Where it may not, and nothing is beside the file, nobody writes it:
        whoever has it open, or was killed, leaves something there.
        """
        if os.access(self.path.parent, os.W_OK) and os.access(self.path, os.W_OK):
            return "mode=rw"
        if any(self._side(suffix).exists() for suffix in SIDE_SUFFIXES):
            return "mode=ro"
        return "mode=ro&immutable=1"

    def _connected(self, path: Path, mode: str) -> sqlite3.Connection:
        address = f"file:{quote(str(path.absolute()))}?{mode}"
        # Transactions begin where `writing` says, not where Python's module would begin one.
        connection = sqlite3.connect(
            address, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        # A made-up file can't have us take more memory than this for a value.
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
        # A file from elsewhere may define views and triggers; none may call what it likes.
        connection.execute("PRAGMA trusted_schema = OFF")
        # In WAL mode only this sees each transaction to the disk before it counts as done.
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _open_to_write(self) -> sqlite3.Connection:
        # What goes wrong here is told before what was made is removed again, which frees space.
        with undoing(self.path.parent), self._explained(f"write {self.path.name}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # It appears with its tables in it: nobody sees one that is half made.
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
        remove_left(self.path.parent, f"{self.path.name}{HALF_SUFFIX}")

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
        code = getattr(error, "sqlite_errorcode", 0)
        primary = code & 0xFF  # the rest of SQLite's codes are details
        unwritten = primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL) or self._is_full()
        if primary in _DAMAGED or (reading and not unwritten):
            kind = DamagedError if primary in _DAMAGED else DataError
            advice = "restore it from a copy"
            if not self.path.exists():
                advice = GONE
            elif primary == sqlite3.SQLITE_BUSY:
                advice = "another process has been at it for a minute; wait until it is done"
            elif primary in _FORBIDDEN:
                advice = "is it yours to read?"
            message = f"{short(self.path)!r} can't be read ({error}); {advice}"
            return kind(message, subject=str(self.path))
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            why = GONE
        elif primary == sqlite3.SQLITE_FULL or self._is_full():
            why = FULL_DISK
        elif primary == sqlite3.SQLITE_TOOBIG:
            why = f"it is larger than {LARGEST // 2**30} GiB"
        elif primary == sqlite3.SQLITE_BUSY:
            why = "another process has been writing for a minute; wait until it is done"
        elif isinstance(error, OSError):
            why = reason(error)
        elif self._is_read_only():
            why = READ_ONLY
        else:
            why = f"{error}; is it yours to write to?"
        folder = str(self.path.parent)
        return OutputError(f"can't {action} in {folder!r}: {why}", subject=folder)

    def _is_read_only(self) -> bool:
        """Whether the folder lies on a mount that can only be read: SQLite says no more than that
        it can't open the file.
        """
        if not hasattr(os, "statvfs") or not self.path.parent.exists():
            return False
        return bool(os.statvfs(self.path.parent).f_flag & os.ST_RDONLY)

    def _is_full(self) -> bool:
        folder = self.path.parent
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free < LEAST_FREE


def without_advice(error: DataError) -> str:
    """Return what is wrong with a file, without what its message says to do."""
    return str(error).partition("; restore it")[0]


class Claim:
    """The right to work on `name` alone. It ends when it is freed, or with this process.

    It is a row that counts for as long as the process of its holder lives. It says nothing about
    results. Processes of another machine, or of another container, can't be seen from here: their
    claims count as free, and where two do the same work, the first result stays.
    """

    def __init__(self, name: str, database: Database, token: str) -> None:
        self.name = name
        self._database = database
        self._token = token
        self._process = os.getpid()
        self._freed = False

    def free(self) -> None:
        """Release the claim. Once is enough, and more does no harm."""
        if self._freed or self._process != os.getpid():
            return
        if self._database.path.exists():  # else it went with the database
            with self._database.writing("free a claim") as connection:
                connection.execute("DELETE FROM claims WHERE token = ?", (self._token,))
        self._freed = True

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


def take_claim(database: Database, name: str, wait: bool = False) -> Claim | None:
    """Return the claim on `name`; None if another holds it, unless this is to `wait` until it is
    free. Raises `OutputError` where the database can't be written."""
    while True:
        claim = _try_claim(database, name)
        if claim is not None or not wait:
            return claim
        time.sleep(PAUSE)


def _try_claim(database: Database, name: str) -> Claim | None:
    query = "SELECT host, process, started FROM claims WHERE name = ?"
    # Whoever waits asks often, so the first look takes no lock of a writer.
    if any(_lives(*holder) for holder in database.rows(query, name)):
        return None
    # psutil takes longer to import than SQLite, and readers of results don't need it.
    import psutil

    # The token tells this claim from a later one of the same name.
    token = secrets.token_hex(8)
    started = psutil.Process().create_time()
    values = name, platform.node(), os.getpid(), started, token
    with database.writing("claim work") as connection:
        if any(_lives(*holder) for holder in connection.execute(query, (name,)).fetchall()):
            return None
        connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)", values)
    return Claim(name, database, token)


def any_claim_lives(database: Database) -> bool:
    """Return whether anybody is at work."""
    holders = database.rows("SELECT host, process, started FROM claims")
    return any(_lives(*holder) for holder in holders)


def _lives(host: Any, process: Any, started: Any) -> bool:
    """Whether the process that made a claim is still there, and no other with its number. A row
    that is damaged claims nothing.
    """
    if host != platform.node():
        return False
    import psutil

    try:
        holder = psutil.Process(process)
        # Numbers of processes are used again, and a new one started later.
        same = abs(holder.create_time() - started) < SAME_START
        return same and holder.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return False
