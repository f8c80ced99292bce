"""Who is at work on what: a row for each name, which counts for as long as its process lives.

A claim says nothing about results. One whose holder was killed is taken over by whoever asks next.
Processes of another machine, or of another container, can't be seen from here: their claims count
as free, and where two do the same work, the first result stays.

psutil is imported where it is needed: importing it takes longer than SQLite, and who reads results
needs none.
"""

import os
import platform
import secrets
import time
from typing import Any, Final

from calibrant.results.database import Database

PAUSE: Final = 0.05
"""Seconds between two looks at whether a claim is free."""
SAME_START: Final = 0.5
"""Seconds that two readings of one process's start may differ by."""


class Claim:
    """The right to work on `name` alone. It ends when it is freed, or with this process."""

    def __init__(self, name: str, database: Database, token: str) -> None:
        self.name = name
        self._database, self._token, self._process = database, token, os.getpid()
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
    # Looked at without the lock of a writer first: who waits asks often.
    if any(_lives(*row) for row in database.rows(query, name)):
        return None
    import psutil

    token, process = secrets.token_hex(8), os.getpid()
    values = name, platform.node(), process, psutil.Process(process).create_time(), token
    with database.writing("claim work") as connection:
        if any(_lives(*row) for row in connection.execute(query, (name,)).fetchall()):
            return None
        connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)", values)
    return Claim(name, database, token)


def any_claim_lives(database: Database) -> bool:
    """Return whether anybody is at work."""
    rows = database.rows("SELECT host, process, started FROM claims")
    return any(_lives(*row) for row in rows)


def _lives(host: Any, process: Any, started: Any) -> bool:
    """Whether the process that made a claim is still there, and no other with its number. A row
    that is damaged claims nothing.
    """
    if host != platform.node():
        return False
    import psutil

    try:
        holder = psutil.Process(process)
        same = abs(holder.create_time() - started) < SAME_START
        return same and holder.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return False
