"""The large files of a store (masks, edits, profiles), each once, under the hash of its content."""

import hashlib
from pathlib import Path
from typing import Final

from calibrant.durable import UNFINISHED, opened, replacing
from calibrant.seals import BrokenSealError
from calibrant.store.results import understood

BLOBS: Final = "blobs"


class Blobs:
    """The folder of such files in a store."""

    def __init__(self, store: Path) -> None:
        self.folder = store / BLOBS

    def path(self, digest: str) -> Path:
        """Return where a file is, or would be."""
        return self.folder / digest

    def digest(self, content: bytes) -> str:
        """Return what a file of this content is called."""
        return hashlib.sha256(content).hexdigest()

    def put(self, content: bytes) -> str:
        """Keep a file, whole or not at all, and return its digest. A damaged one is mended. Raises
        `OSError`."""
        digest = self.digest(content)
        path = self.path(digest)
        if not path.is_file() or _digest(path) != digest:
            with replacing(path, self.folder / f"{UNFINISHED}-{digest}") as half:
                half.write_bytes(content)
        return digest

    def get(self, digest: str) -> bytes | None:
        """Return a file, or None if it was deleted. Raises `DataError` if it isn't what was put."""
        path = self.path(digest)
        if not path.exists():
            return None
        with understood(path), opened(path) as file:
            content = file.read()
            if self.digest(content) != digest:
                raise BrokenSealError
        return content

    def listed(self) -> list[str]:
        """Return the names of all files in the folder."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
