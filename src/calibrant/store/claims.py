"""Who is at work on what: a lock for each name, which dies with the process that holds it.

A claim says nothing about results and leaves nothing behind: its file is there for as long as the claim is, or until the name is claimed again
after its holder was killed. Where a file system has no locks (Windows), every claim is granted, and two processes may do the same work; the first
result stays.

Ours and not filelock's: that a forked child lets go of a claim, and that its file is removed while it is locked, are most of these lines.
"""

import os
import re
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Final

from calibrant.durable import take
from calibrant.spec import identity

CLAIMS: Final = ".claims"


class Claim:
    """The right to work on `name` alone, until it is freed or this process ends however it ends. A context manager."""

    def __init__(self, name: str, path: Path, lock: IO[str]) -> None:
        self.name, self._path, self._lock, self._process = name, path, lock, os.getpid()
        _CLAIMS.add(self)

    def free(self) -> None:
        """Release the claim. Once is enough, and more does no harm."""
        if self._lock.closed:
            return
        if self._process == os.getpid():
            # Unlinked while it is still locked: whoever waits for this file sees that it has become another, and begins again.
            with suppress(OSError):  # Windows keeps what is open
                self._path.unlink()
        self._lock.close()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


_CLAIMS: Final[weakref.WeakSet[Claim]] = weakref.WeakSet()


def _forget() -> None:
    """A forked child shares its parent's open locks and would keep them when the parent dies."""
    for claim in list(_CLAIMS):
        claim.free()


if os.name == "posix":
    os.register_at_fork(after_in_child=_forget)


def claimed(folder: Path, name: str, wait: bool = False) -> Claim | None:
    """Return the claim on `name` in the store at `folder`; None if another holds it, unless this is to `wait` until it is free.

    Raises `OSError` where the lock's file can't be made.
    """
    # Any text as a file's name: an id's digits as they are.
    digits = name[7:] if re.fullmatch(r"sha256:[0-9a-f]{64}", name) else identity(name)[7:]
    path = folder / CLAIMS / f"{digits}.lock"
    path.parent.mkdir(exist_ok=True)
    while True:
        # Who frees a claim removes its file: one that was opened before that is no longer the one that others will lock.
        with suppress(FileNotFoundError), ExitStack() as opened:
            lock = opened.enter_context(path.open("a"))
            if not take(lock, wait):
                return None
            if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                opened.pop_all()
                return Claim(name, path, lock)
