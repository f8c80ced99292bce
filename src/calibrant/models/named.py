"""Where the models with short names are: in packages, which are read as data and never imported. One in parts is joined once."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from calibrant.durable import reason, replacing
from calibrant.errors import ModelError
from calibrant.models.cache import cache_folder
from calibrant.named import NamedModel


def path_of(model: NamedModel) -> Path:
    """Return the file. One in parts is joined once, in the user's cache. Raises `ModelError` where a package isn't installed."""
    found = [place for part in model.parts if (place := _inside(part)) is not None]
    if len(found) < len(model.parts):
        raise ModelError(f"{model.name} is read from {model.packages} installed; bring it with: {model.pip}", subject=model.name)
    return found[0] if len(found) == 1 else _joined(model, found)


def _joined(model: NamedModel, parts: list[Path]) -> Path:
    whole, sizes = cache_folder() / "joined" / model.file, [part.stat() for part in parts]
    # As new as its newest part and as large as all together, it is what was joined; else it is joined again.
    if whole.is_file() and whole.stat().st_size == sum(s.st_size for s in sizes) and whole.stat().st_mtime >= max(s.st_mtime for s in sizes):
        return whole
    pieces = (piece for part in parts for piece in _pieces(part))
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        with replacing(whole, whole.with_name(f".{os.getpid()}-{whole.name}"), flushed=False) as half, half.open("wb") as file:
            file.writelines(pieces)
    except OSError as error:
        raise ModelError(f"{model.name} is in parts and can't be joined in {str(whole.parent)!r} ({reason(error)})", subject=model.name) from error
    return whole


def _pieces(part: Path) -> Iterator[bytes]:
    with part.open("rb") as file:
        yield from iter(lambda: file.read(2**20), b"")


def _inside(part: str) -> Path | None:
    """A file inside an installed package, which is found but never imported: importing it would run it."""
    name, _, path = part.partition("/")
    package = importlib.util.find_spec(name)
    files = [Path(folder) / path for folder in (package.submodule_search_locations or [])] if package else []
    return next((file for file in files if file.is_file()), None)
