"""The large files of a store (masks, edits, profiles), each once, under the hash of its content."""

import hashlib
import re
import secrets
from pathlib import Path
from typing import Final

from calibrant.results.stored import damaged, understood
from calibrant.system.durable import UNFINISHED, opened, replacing
from calibrant.system.seals import BrokenSealError

BLOBS: Final = "blobs"

_DIGEST: Final = re.compile("[0-9a-f]{64}")


class Blobs:
    """The folder of such files in a store."""

    def __init__(self, store: Path) -> None:
        self.folder = store / BLOBS

    def path(self, digest: str) -> Path:
        """Return where a file is, or would be. Raises `DataError` for a text that is no digest: it
        could name any file."""
        if not _DIGEST.fullmatch(digest):
            raise damaged(self.folder, ValueError(f"{digest[:64]!r} is no SHA-256"))
        return self.folder / digest

    def put(self, content: bytes) -> str:
        """Keep a file, whole or not at all, and return its digest. A damaged one is mended. Raises
        `OSError`."""
        digest = digest_of(content)
        path = self.path(digest)
        if not path.is_file() or digest_of_file(path) != digest:
            self._write(path, content)
        for left in self.folder.glob(f"{UNFINISHED}-{digest}-*"):  # by a writer that was killed
            left.unlink(missing_ok=True)
        return digest

    def _write(self, path: Path, content: bytes) -> None:
        # A name of its own: another process may be writing the same file.
        half = self.folder / f"{UNFINISHED}-{path.name}-{secrets.token_hex(4)}"
        try:
            with replacing(path, half):
                half.write_bytes(content)
        except FileNotFoundError:
            if not path.is_file():  # else another process wrote it first, and cleared up
                raise

    def mend(self, digest: str, content: bytes) -> None:
        """Write a file anew if it is damaged and this is its content. Raises `OSError`."""
        if digest_of(content) == digest:
            self.put(content)

    def get(self, digest: str) -> bytes | None:
        """Return a file, or None if it was deleted. Raises `DataError` if it isn't what was put."""
        path = self.path(digest)
        if not path.exists():
            return None
        with understood(path), opened(path) as file:
            content = file.read()
            if digest_of(content) != digest:
                raise BrokenSealError
        return content

    def listed(self) -> list[str]:
        """Return the names of all files in the folder, half-written ones too."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir())


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of a content, which is what a file of it is called."""
    return hashlib.sha256(content).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file. Raises `OSError`, also for what is no file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
