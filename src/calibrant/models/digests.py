"""The SHA-256 of a model's files, as `sha256:…`. That of a large file is remembered below `digests`
in the user's cache, and counts as long as the file is the same.
"""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, final

from calibrant.errors import DataError
from calibrant.models.cache import cache_folder
from calibrant.models.folder import CONFIG, reading
from calibrant.spec import identity
from calibrant.system.durable import read_json, replacing, sealed, text_of_json
from calibrant.system.seals import Purpose

REMEMBERED: Final = 2**26
"""Bytes of a file from which on its digest is remembered. A smaller one is hashed in no time."""

SETTLED: Final = 2_000_000_000
"""Nanoseconds that must have passed since a file changed. Some file systems count time in steps of
two seconds, and a second change within the same step isn't seen.
"""

SIDE_BY_SIDE: Final = 8
"""Files of a model that are hashed at the same time, at most."""

_CHUNK: Final = 2**24


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, which are read. Raises `ModelError` where they can't
    be.
    """
    hashed = hashlib.sha256()
    with reading(path), path.open("rb", buffering=0) as file:
        # Chunks are large, since a thread waits between them as long as another one runs Python.
        size = path.stat().st_size
        chunk = memoryview(bytearray(min(size + 1, _CHUNK)))
        while count := file.readinto(chunk):
            hashed.update(chunk[:count])
    return f"sha256:{hashed.hexdigest()}"


def known_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes. A large file isn't read again as long as its path,
    device, inode, size and times are those that it had.

    A program can set the time at which a file was modified, but not that at which its inode was
    changed (`st_ctime`). So it is noticed if a file was changed and its time put back. It isn't on
    Windows, which has no such time, nor where the disk was written past its file system. With
    `CALIBRANT_CACHE=/dev/null` every file is read. Raises `ModelError` for a file that can't be
    read.
    """
    before = _state_of(path)
    if before.size < REMEMBERED:
        return file_digest(path)
    try:
        # The seal agrees only if all of the state is what it was.
        return read_json(before.note, before.purpose, required=True)["digest"]
    except DataError:
        pass  # nothing is known of this file
    began = time.time_ns()
    digest = file_digest(path)
    settled = max(before.modified, before.changed) < began - SETTLED
    if settled and _state_of(path) == before:
        _remember(before, digest)
    return digest


def _remember(state: "_FileState", digest: str) -> None:
    """Note the digest in the cache, where that can be written."""
    text = text_of_json(sealed({"file": state.path, "digest": digest}, state.purpose))
    half = state.note.with_name(f".{os.getpid()}-{state.note.name}")
    with suppress(OSError), replacing(state.note, half, flushed=False) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@final
@dataclass(frozen=True)
class _FileState:
    """Where a file is, and what the file system says of its content; times in nanoseconds."""

    path: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @property
    def purpose(self) -> Purpose:
        """What a note is sealed for: this very state."""
        return {"kind": "digest of a file", **asdict(self)}

    @property
    def note(self) -> Path:
        """The file in the cache that says the digest."""
        name = identity(self.path).rpartition(":")[2][:32]
        return cache_folder() / "digests" / f"{name}.json"


def _state_of(path: Path) -> _FileState:
    with reading(path):
        whole = path.resolve()
        now = whole.stat()
    # A name may have bytes that are no text.
    name = os.fsencode(whole).decode("utf-8", "backslashreplace")
    return _FileState(name, now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


def file_digests(folder: Path, weights: Sequence[Path], with_code: bool = False) -> dict[str, str]:
    """Return the SHA-256 of a folder's weights and `config.json`, by their paths in the folder;
    with `with_code` of its Python files too. Files are hashed side by side.
    """
    files = sorted([*weights, folder / CONFIG])
    if with_code:
        files += sorted(folder.rglob("*.py"))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        digests = threads.map(known_digest, files)
        names = [file.relative_to(folder).as_posix() for file in files]
        return dict(zip(names, digests, strict=True))


def folder_digest(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 of files of which these are the names and digests; the order counts."""
    total = hashlib.sha256()
    for name, digest in digests.items():
        total.update(f"{name} {digest}\n".encode())
    return "sha256:" + total.hexdigest()
