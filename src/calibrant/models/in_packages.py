"""Models with a short name: files in installed packages, whole or in parts. Parts are joined once,
below `joined` in the user's cache.
"""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final

from calibrant.errors import ModelError
from calibrant.models.cache import cache_folder
from calibrant.models.digests import file_digest, known_digest
from calibrant.numerics import gigabytes
from calibrant.spec.named import NamedModel
from calibrant.system.durable import reason, remove_left, replacing

_CHUNK: Final = 2**20


def path_of(model: NamedModel) -> Path:
    """Return the file of a model with a short name. Installed packages have it, which are read as
    data and never imported. A file in parts is joined once, in the user's cache.

    Raises `ModelError` where a package isn't installed, where its parts can't be joined, and where
    the joined file isn't the one whose digest is known.
    """
    parts: list[Path] = []
    for name in model.parts:
        part = _file_in_package(name)
        if part is None:
            raise ModelError(
                f"{model.name} is read from {model.packages} installed; bring it with: {model.pip}",
                subject=model.name,
            )
        parts.append(part)
    return parts[0] if len(parts) == 1 else _joined(model, parts)


def _file_in_package(part: str) -> Path | None:
    """A file of an installed package, `PACKAGE/PATH`; None where it isn't installed. The package is
    never imported, since that would run it.
    """
    name, _, path = part.partition("/")
    package = importlib.util.find_spec(name)
    if package is None:
        return None
    for folder in package.submodule_search_locations or ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    return None


def _joined(model: NamedModel, parts: Sequence[Path]) -> Path:
    whole = cache_folder() / "joined" / model.file
    if _fits_parts(whole, parts) and _is_as_known(whole, model):
        return whole
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        remove_left(whole.parent, _beginning(whole))
        with _rewriting(whole) as unfinished:
            _join(unfinished, parts)
            _check_digest(unfinished, model)
    except ModelError:
        # The file that was there isn't the model either: it doesn't fit the parts, or has another
        # digest.
        with suppress(OSError):
            whole.unlink()
        raise
    except OSError as error:
        size = gigabytes(sum(part.stat().st_size for part in parts))
        raise ModelError(
            f"{model.name} is in parts and can't be joined in {str(whole.parent)!r} "
            f"({reason(error)}); set CALIBRANT_CACHE to a folder that has room for {size}",
            subject=model.name,
        ) from error
    return whole


def _check_digest(joined: Path, model: NamedModel) -> None:
    """Raise `ModelError` unless the joined file is the model, as far as its digest is known."""
    if model.digest and file_digest(joined) != model.digest:
        raise ModelError(
            f"the parts of {model.name} make another file than the model; install them again "
            f"with: {model.pip} --force-reinstall",
            subject=model.name,
        )


def _rewriting(file: Path) -> AbstractContextManager[Path]:
    """Yield a file that takes the place of `file` at the end; no other process writes to it."""
    unfinished = f"{_beginning(file)}{os.getpid()}-joining"
    return replacing(file, file.with_name(unfinished), flushed=False)


def _beginning(file: Path) -> str:
    """How the names of files begin that aren't whole yet; the number of their process follows."""
    return f".{file.name}-"


def _join(whole: Path, parts: Sequence[Path]) -> None:
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file, _CHUNK)


def _fits_parts(whole: Path, parts: Sequence[Path]) -> bool:
    """Return whether a file is as large as all parts together and as new as the newest."""
    if not whole.is_file():
        return False
    joined = whole.stat()
    stats = [part.stat() for part in parts]
    as_large = joined.st_size == sum(part.st_size for part in stats)
    return as_large and joined.st_mtime >= max(part.st_mtime for part in stats)


def _is_as_known(whole: Path, model: NamedModel) -> bool:
    return not model.digest or known_digest(whole) == model.digest
