"""What users' own files hold that is measured: they can change, and keep their name."""

import hashlib
from pathlib import Path

from calibrant.data import PerDraw, Source
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError
from calibrant.foreign import user_path
from calibrant.spec import identity


def digest_of(source: Source) -> str:
    """The tagged SHA-256 of what a user's file gives to be measured and to be shown as exemplars; nothing for the sources that Calibrant knows."""
    if isinstance(source, PerDraw):
        return digest_of(source.measured())
    return identity([source.holding(part).digest for part in ("measure", "exemplars")]) if isinstance(source, UserFile) else ""


def digest_of_folder(given: str) -> str:
    """The tagged SHA-256 of the names and contents of all files in a user's folder, hidden ones aside. `DataError` for one that can't be read."""
    folder = user_path(given, DataError)
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    try:
        shown = sorted(name.as_posix() for name in names if not any(step.startswith((".", "__pycache__")) for step in name.parts))
        return identity([[name, _sum(folder / name)] for name in shown])
    except OSError as error:
        raise DataError(f"{str(folder)!r} can't be read ({error.strerror}); its files are part of what is measured", subject=given) from error


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
