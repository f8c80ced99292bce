"""Where the models with short names are: in packages, which are read as data and never imported.

One in parts is joined once, in the user's cache, and checked then where its digest is known.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from calibrant.errors import ModelError
from calibrant.models.cache import cache_folder
from calibrant.models.folder import file_digest
from calibrant.spec.named import NamedModel
from calibrant.system.durable import reason, replacing


def path_of(model: NamedModel) -> Path:
    """Return the file. One in parts is joined once, in the user's cache. Raises `ModelError`
    where a package isn't installed.
    """
    found = [place for part in model.parts if (place := _inside(part)) is not None]
    if len(found) < len(model.parts):
        raise ModelError(
            f"{model.name} is read from {model.packages} installed; bring it with: {model.pip}",
            subject=model.name,
        )
    return found[0] if len(found) == 1 else _joined(model, found)


def _joined(model: NamedModel, parts: list[Path]) -> Path:
    whole = cache_folder() / "joined" / model.file
    checked = not model.digest or _was_checked(whole, model.digest)
    if checked and _fits_parts(whole, parts):
        return whole
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _rewriting(whole) as half:
                _write(half, parts)
                _check(model, half)
        except ModelError:
            # What stands there isn't what it is called either, and nothing stays.
            whole.unlink(missing_ok=True)
            raise
        if model.digest:
            with _rewriting(_checked_file(whole)) as half:
                half.write_text(_checked_line(whole, model.digest), encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"{model.name} is in parts and can't be joined in {str(whole.parent)!r} ({reason(error)})",
            subject=model.name,
        ) from error
    return whole


def _rewriting(file: Path) -> AbstractContextManager[Path]:
    """Give a file of this process that takes the place of `file` when it is whole."""
    return replacing(file, file.with_name(f".{os.getpid()}-{file.name}"), flushed=False)


def _write(whole: Path, parts: list[Path]) -> None:
    with whole.open("wb") as file:
        for part in parts:
            file.writelines(_pieces(part))


def _fits_parts(whole: Path, parts: list[Path]) -> bool:
    """Return whether a file is as large as all parts together and as new as the newest."""
    if not whole.is_file():
        return False
    status = whole.stat()
    given = [part.stat() for part in parts]
    as_large = status.st_size == sum(one.st_size for one in given)
    return as_large and status.st_mtime >= max(one.st_mtime for one in given)


def _check(model: NamedModel, joined: Path) -> None:
    """Raise `ModelError` for parts that don't make the file that this model is."""
    if not model.digest:
        return
    if file_digest(joined) != model.digest:
        advice = f"install them again with: {model.pip} --force-reinstall"
        message = f"the parts of {model.name} make another file than the model; {advice}"
        raise ModelError(message, subject=model.name)


def _was_checked(whole: Path, digest: str) -> bool:
    """Return whether this very file had the digest: place, size and time are those it had then."""
    try:
        return _checked_file(whole).read_text(encoding="utf-8") == _checked_line(whole, digest)
    except (OSError, UnicodeDecodeError):
        return False


def _checked_file(whole: Path) -> Path:
    """Return where it stands which file was checked."""
    return whole.with_name(f"{whole.name}.checked")


def _checked_line(whole: Path, digest: str) -> str:
    status = whole.stat()
    return f"{whole} {status.st_size} {status.st_mtime_ns} {digest}\n"


def _pieces(part: Path) -> Iterator[bytes]:
    with part.open("rb") as file:
        yield from iter(lambda: file.read(2**20), b"")


def _inside(part: str) -> Path | None:
    """A file inside an installed package, which is found but never imported: importing it would
    run it.
    """
    name, _, path = part.partition("/")
    package = importlib.util.find_spec(name)
    files = (
        [Path(folder) / path for folder in (package.submodule_search_locations or [])]
        if package
        else []
    )
    return next((file for file in files if file.is_file()), None)
