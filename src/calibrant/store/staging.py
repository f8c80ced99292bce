"""Writing a store's folders and files: in a writer's own folder, from where each appears by one rename."""

import errno
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from calibrant.durable import UNFINISHED, flush, reason, replacing, take, text_of_json, undoing, write_bytes
from calibrant.errors import OutputError
from calibrant.store.reading import PROVENANCE, RECORD, SCORE, SUMS, LooseFiles, ResultFiles

MEASURES: Final = "measures"
"""What is measured on a run lies in this folder of the run's."""
RESULTS: Final = (RECORD, SCORE)
"""What makes a folder a run or a measurement."""


class Staging:
    """A writer's folder of a store's `.unfinished`, locked for as long as it lives; made when it is first needed.

    Raises `OutputError` for a folder that can't be written to and for a full disk; nothing half-written stays behind.
    """

    def __init__(self, folder: Path) -> None:
        self._store, self._own, self._process = folder, None, 0

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Raise `OutputError`, naming what was being done, for any error of the disk."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"can't {what} in {str(self._store)!r}: {reason(error)}", subject=str(self._store)) from error

    @contextmanager
    def appearing(self, path: Path, summed: bool = True) -> Iterator[Path]:
        """Yield a folder to fill, which becomes `path` by one rename, with the sums of its files if it isn't a copy that brings its own.

        If `path` is there by then, it stays.
        """
        with self.writing(f"write {path.relative_to(self._store)}"):
            folder = _new_folder(self.folder())
            try:
                yield folder
                if summed:
                    write_bytes(folder / SUMS, text_of_json(sums(LooseFiles(folder))).encode())
                _move(folder, path)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def replace(self, path: Path, content: bytes) -> None:
        """Write one file, whole or not at all; an older one is replaced."""
        with self.writing(f"write {path.relative_to(self._store)}"), replacing(path, self.folder() / path.name) as half:
            half.write_bytes(content)

    def folder(self) -> Path:
        """Return the folder that is this writer's alone; a forked child is a writer of its own. Raises `OSError`."""
        if self._own is None or self._process != os.getpid():
            unfinished = self._store / UNFINISHED
            unfinished.mkdir(exist_ok=True)
            with (unfinished / "lock").open("a") as entry:
                # Or whoever clears up could find the new folder before its lock is taken, and hold it for a dead writer's.
                take(entry, wait=True)
                folder = _new_folder(unfinished)
                try:
                    lock = (folder / "lock").open("a")
                except OSError:
                    folder.rmdir()
                    raise
                take(lock)
            self._own, self._process = folder, os.getpid()
            self._remove_own = weakref.finalize(self, _leave, folder, lock, self._process)
        return self._own

    def close(self) -> None:
        """Remove the folder; done at the latest when the process ends, or by the next writer."""
        if self._own is not None:
            self._remove_own()
            self._own = None


@contextmanager
def leftovers(folder: Path) -> Iterator[list[Path]]:
    """Yield the folders of dead writers in a store; no new one can be made meanwhile."""
    unfinished = folder / UNFINISHED
    if not (unfinished / "lock").exists():
        yield []
        return
    with _lock(unfinished) as entry:
        take(entry, wait=True)
        yield [own for own in sorted(unfinished.iterdir()) if own.is_dir() and _is_leftover(own)]


def at_work(folder: Path) -> bool:
    """Return whether a writer is alive in a store."""
    unfinished = folder / UNFINISHED
    return unfinished.is_dir() and any(own.is_dir() and not _is_leftover(own) for own in unfinished.iterdir())


def sums(files: ResultFiles) -> dict[str, str]:
    """Return the SHA-256 of each file of a run or measurement, provenance aside, by name."""
    return {name: files.digest(name) for name in files.names() if name not in (SUMS, PROVENANCE)}


def _move(folder: Path, path: Path) -> None:
    """Let a whole folder become `path`; if a result is there by then, it stays."""
    flush(folder)
    with undoing(path.parent):
        _make(path.parent)
        try:
            os.rename(folder, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES) or not path.exists():
                raise
            _complete(folder, path)  # another writer was first, or what is there is a part
    flush(path.parent)


def _complete(folder: Path, path: Path) -> None:
    """Give a folder that has lost what makes it a result (by an interrupted copy) its files, that one last."""
    if any((path / name).exists() for name in RESULTS):
        return
    for file in sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.name in RESULTS):
        os.replace(file, path / file.name)
    flush(path)


def _make(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        flush(folder.parent)


def _new_folder(parent: Path) -> Path:
    """Like `mkdtemp`, but readable by whom the user lets read: it becomes part of a store that others may want to copy."""
    folder = parent / secrets.token_hex(8)
    folder.mkdir()
    return folder


def _leave(folder: Path, lock: IO[str], process: int) -> None:
    lock.close()
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _is_leftover(folder: Path) -> bool:
    with suppress(FileNotFoundError), _lock(folder) as lock:
        return take(lock)
    return True


def _lock(folder: Path) -> IO[str]:
    """Its lock's file: a reader may not open it for writing, and on network drives only what is open for writing can be locked."""
    path = folder / "lock"
    return path.open("a" if path.exists() and os.access(path, os.W_OK) else "r")
