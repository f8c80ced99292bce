"""Where a store's folders and files are made: in a writer's own corner, from where each appears by one rename."""

import errno
import hashlib
import os
import secrets
import shutil
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from calibrant.durable import UNFINISHED, flush, reason, replacing, take, text_of_json, undoing, write_bytes
from calibrant.errors import OutputError

SUMS: Final = "sums.json"
PROVENANCE: Final = "provenance.json"
MASK: Final = "mask.npz"
"""What a run's weights can be made from again without pruning. It may be deleted to save room: then they are pruned again where that is needed."""
EDITS: Final = "edits.safetensors"
"""The same for a run whose kept weights changed, or that removed whole parts."""
WEIGHTS: Final = "weights.json.gz"
"""What a run did to each matrix: nearly all that is to be said of it, and the sizes of what is sampled."""
PROFILE: Final = "profile.json"
"""What the calibration set of a run says: words, characters, quotations where they are allowed. A report reads it, nothing else does."""
MEASURES: Final = "measures"
"""What is measured on a run lies in this folder of the run's."""
ANSWERS: Final = ("record.json", "score.json")
"""What makes a folder a run or a measurement."""


class Staging:
    """A writer's corner of a store's `.unfinished`, locked for as long as it lives; made when it is first needed.

    Raises `OutputError` for a folder that can't be written to and for a full disk; nothing half-written stays behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._corner, self._process = folder, None, 0

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Say of any complaint of the disk what was being done."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"can't {what} in {str(self._folder)!r}: {reason(error)}", subject=str(self._folder)) from error

    @contextmanager
    def appearing(self, path: Path) -> Iterator[Path]:
        """A folder to fill, which becomes `path` by one rename, with the sums of its files; if `path` is there by then, it stays."""
        with self.writing(f"write {path.relative_to(self._folder)}"):
            folder = _new_folder(self.corner())
            try:
                yield folder
                write_bytes(folder / SUMS, text_of_json(sums(folder)).encode())
                _move(folder, path)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def copy(self, found: Path, path: Path, without: Collection[str] = ()) -> None:
        """Make `path` a copy of the folder `found` as it is, files and folders named in `without` left out; if it is there by then, it stays."""
        with self.writing(f"write {path.relative_to(self._folder)}"):
            folder = _new_folder(self.corner())
            try:
                _copy(found, folder, without)
                _move(folder, path)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def replace(self, path: Path, content: bytes) -> None:
        """Write one file, whole or not at all; an older one is replaced."""
        with self.writing(f"write {path.relative_to(self._folder)}"):
            with replacing(path, self.corner() / path.name) as half:
                half.write_bytes(content)
            flush(path.parent)

    def corner(self) -> Path:
        """The folder that is this writer's alone; a forked child is a writer of its own. Raises `OSError`."""
        if self._corner is None or self._process != os.getpid():
            unfinished = self._folder / UNFINISHED
            unfinished.mkdir(exist_ok=True)
            with (unfinished / "lock").open("a") as door:
                take(door, wait=True)
                corner = _new_folder(unfinished)
                try:
                    lock = (corner / "lock").open("a")
                except OSError:
                    corner.rmdir()
                    raise
                take(lock)
            self._corner, self._process = corner, os.getpid()
            self._give_back = weakref.finalize(self, _leave, corner, lock, self._process)
        return self._corner

    def close(self) -> None:
        """Give the corner back; done at the latest when the process ends, or by the next writer."""
        if self._corner is not None:
            self._give_back()
            self._corner = None


@contextmanager
def left(folder: Path) -> Iterator[list[Path]]:
    """The corners of dead writers in a store, while no new one can be made."""
    unfinished = folder / UNFINISHED
    if not (unfinished / "lock").exists():
        yield []
        return
    with _lock(unfinished) as door:
        take(door, wait=True)
        yield [corner for corner in sorted(unfinished.iterdir()) if corner.is_dir() and _is_left(corner)]


def sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a run's or measurement's folder, provenance aside, by name."""
    return {p.name: _sum(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name not in (SUMS, PROVENANCE)}


def _move(folder: Path, path: Path) -> None:
    """Let a whole folder become `path`; if an answer is there by then, it stays."""
    flush(folder)
    with undoing(path.parent):
        _make(path.parent)
        try:
            os.rename(folder, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES) or not path.exists():
                raise
            _complete(folder, path)
    flush(path.parent)


def _complete(folder: Path, path: Path) -> None:
    """Give a folder that has lost what makes it an answer (by an interrupted copy) its files, that one last."""
    if any((path / name).exists() for name in ANSWERS):
        return
    for file in sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.name in ANSWERS):
        os.replace(file, path / file.name)
    flush(path)


def _make(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        flush(folder.parent)


def _copy(found: Path, folder: Path, without: Collection[str]) -> None:
    """Like `copytree`, but it stops at the first complaint of the disk, and sees everything to it."""
    for path in sorted(found.iterdir()):
        if path.name in without or path.name.startswith("."):  # file managers leave hidden files everywhere
            continue
        if path.is_dir():
            (folder / path.name).mkdir()
            _copy(path, folder / path.name, without)
        elif not path.is_file():  # a device may have no end
            raise OSError(errno.EINVAL, "it is no file", str(path))
        else:
            shutil.copyfile(path, folder / path.name)
        flush(folder / path.name)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_folder(parent: Path) -> Path:
    """Like `mkdtemp`, but readable by whom the user lets read: it becomes part of a store that others may want to copy."""
    folder = parent / secrets.token_hex(8)
    folder.mkdir()
    return folder


def _leave(corner: Path, lock: IO[str], process: int) -> None:
    lock.close()
    if process == os.getpid():
        shutil.rmtree(corner, ignore_errors=True)


def _is_left(corner: Path) -> bool:
    with suppress(FileNotFoundError), _lock(corner) as lock:
        return take(lock)
    return True


def _lock(folder: Path) -> IO[str]:
    """Its lock's file: a reader may not open it for writing, and on network drives only what is open for writing can be locked."""
    path = folder / "lock"
    return path.open("a" if path.exists() and os.access(path, os.W_OK) else "r")
