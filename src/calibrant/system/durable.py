"""Files that appear whole or not at all, and locks that die with their holder. No torch here.

A kill, a full disk or a lost connection leaves either the old state or the new one: everything is
written under a name that says it is unfinished, flushed, and renamed.
"""

import errno
import glob
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final

from calibrant.errors import QUOTED, DataError, OutputError
from calibrant.spec.foreign import brief
from calibrant.system.seals import SEAL, BrokenSealError, Purpose, seal_of

UNFINISHED: Final = ".unfinished"
"""What the name of anything half-written begins with."""

LARGEST: Final = 2**26
"""Bytes of a file of JSON at most, unpacked: a record of fifty thousand matrices has half of
that.
"""
WITHOUT_LOCKS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""What a file system says that has no locks, or, as NFS may, none of what is open for reading."""
FULL_DISK: Final = "the disk is full; free some space and run the same command again"
READ_ONLY: Final = "what is mounted there can only be read; name another folder"
_REASONS: Final[Mapping[int, str]] = {
    errno.ENOSPC: FULL_DISK,
    errno.EDQUOT: FULL_DISK,
    errno.EROFS: READ_ONLY,
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
}
"""Why a file can't be written and what to do, by what the system says."""
DEEPEST: Final = 64
"""Levels of lists and mappings at most in a file of JSON: what is written has ten."""

_ID: Final = re.compile(r"(?<![0-9a-f])([0-9a-f]{16})[0-9a-f]{48}(?![0-9a-f])")
_HALF_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def reason(error: OSError) -> str:
    """Return why something could not be written, and what to do."""
    usual = f"{error.strerror or error}; is it yours to write to?"
    return _REASONS.get(error.errno or 0, usual)


def takes_files(folder: Path) -> bool:
    """Return whether this user may put files into a folder, or make it where it isn't there."""
    place = folder.absolute()
    # `lexists` finds nothing below a folder that may not be looked into, and raises nothing. It
    # finds a link to nowhere, which is no folder.
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)


def take(file: IO[str] | int, wait: bool = False, shared: bool = False) -> bool:
    """Lock an open file for this process, and return whether that could be done.

    The lock ends when the file is closed, or when the process ends in whatever way. Where another
    process has it, `wait` waits for the end of that one. Several may have a `shared` lock at once;
    where there are no locks, nobody has that.
    """
    try:
        import fcntl
    except ImportError:
        # On Windows an open file can't be deleted, which protects a living writer's corner as well.
        return not shared
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if not wait:
        kind |= fcntl.LOCK_NB
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        number = file if isinstance(file, int) else file.fileno()
        # A closed file fails with EBADF too; `fstat` raises for that one.
        os.fstat(number)
        # On a file system without locks nobody can be told apart, and work goes on as without them.
        return not shared
    return True


@contextmanager
def locked_folder(folder: Path, shared: bool = False) -> Iterator[bool]:
    """Lock a folder as `take` locks a file while it lasts, and yield whether that could be done.

    It couldn't where another process has it, or has just moved it away, and for what is no folder.
    Where there are no locks it yields True, unless the lock is `shared`.
    """
    if os.name != "posix":  # elsewhere a folder can't be opened
        yield not shared
        return
    with ExitStack() as opened_folders:
        taken = False
        with suppress(FileNotFoundError, NotADirectoryError):
            number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            opened_folders.callback(os.close, number)
            # Who had it may have renamed it between the opening and the lock.
            taken = take(number, shared=shared) and is_at(folder, number)
        yield taken


def is_at(path: Path, number: int) -> bool:
    """Return whether what is at `path` is the open file, or folder, with this number. A link to it
    isn't.
    """
    try:
        return os.path.samestat(path.lstat(), os.fstat(number))
    except FileNotFoundError:
        return False


def text_of_json(value: Any, ordered: bool = False) -> str:
    """Return indented JSON, its keys sorted unless they are `ordered`; floats come back to the
    last bit, and infinities come back too.
    """
    plain = plain_data(value)
    text = json.dumps(plain, sort_keys=not ordered, indent=1, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def line_of_json(value: Any) -> str:
    """Return the same as one line, without its end."""
    return json.dumps(plain_data(value), allow_nan=False)


def compact_json(value: Any) -> str:
    """Return the shortest JSON, its keys sorted: the same text whenever it is written."""
    plain = plain_data(value)
    options: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, **options)


def sealed(document: Mapping[str, Any], purpose: Purpose) -> dict[str, Any]:
    """Return a JSON object with its seal, which `unsealed` compares."""
    return {**document, SEAL: seal_of(purpose, text_of_json(document).encode())}


def unsealed(document: Any, purpose: Purpose, required: bool = False) -> Any:
    """Return what `sealed` was given. Raises `BrokenSealError` for anything else.

    One without a seal was written before there were seals, and is returned as it is unless a seal
    is `required`.
    """
    if not isinstance(document, dict) or SEAL not in document:
        if required:
            raise BrokenSealError
        return document
    content = {name: value for name, value in document.items() if name != SEAL}
    if document[SEAL] != seal_of(purpose, text_of_json(content).encode()):
        raise BrokenSealError
    return content


def plain_data(value: Any) -> Any:
    """Return plain data without infinities and NaN, which JSON lacks: each is an object with one
    key, `float`. In another object with this one key the value stands in a list.
    """
    if isinstance(value, Mapping):
        if value.keys() == {"float"}:
            return {"float": [plain_data(value["float"])]}
        return {str(name): plain_data(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def opened(path: Path) -> BufferedReader:
    """Open a file to read. Raises `OSError` for what is no file: a pipe would be waited for, and
    a device may have no end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        code = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(code, "it is no file", str(path))
    return path.open("rb")


def content(path: Path, most: int) -> bytes:
    """Return all of a file. Raises `OSError` as `opened` does, and `ValueError` for a file of
    more than so many bytes.
    """
    with opened(path) as file:
        # One byte more than allowed says that the file is too large, also where it grows meanwhile.
        whole = file.read(most + 1)
    if len(whole) > most:
        raise ValueError(f"it holds more than {most // 2**20} MiB")
    return whole


def read_json(path: Path, purpose: Purpose | None = None, required: bool = False) -> Any:
    """Return what `text_of_json` wrote. With a purpose the seal is compared; a file without one is
    accepted unless it is `required`.

    Raises `DataError` for a file that isn't there or isn't JSON, or what `text_of_json` can't have
    written.
    """
    try:
        value = from_json(content(path, LARGEST).decode())
        return value if purpose is None else unsealed(value, purpose, required)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a damaged file, with what to delete.

    A folder that is called by a hash holds one result, which is made again as a whole.
    """
    reason_text = f"not what is written there: {error!r}"
    if isinstance(error, OSError | ValueError):
        reason_text = str(error)
    removed = "its folder" if len(path.parent.name) == 64 else "it"
    remedy = f"restore it from a copy, or delete {removed} to have it computed again"
    return DataError(f"{short(path)!r} can't be read ({reason_text}); {remedy}", subject=str(path))


def short(path: Path) -> str:
    """Return a path as a message repeats it: of ids the beginning says which they are, and of a
    path its end.
    """
    text = _ID.sub(r"\1…", str(path))
    if len(text) < QUOTED:
        return text
    return f"{text[:20]}…{text[22 - QUOTED :]}"


def from_json(text: str) -> Any:
    """Return the value that `text_of_json` made `text` of. Raises `ValueError` for anything
    else, also where it is JSON.
    """
    # Looking at every object takes as long again as reading it.
    decoder = _WITH_FLOATS if '"float"' in text else _PLAIN
    # So does the depth, unless brackets alone show that there can't be too much of it.
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value)
    if _HALF_SURROGATE.search(text):
        # Half a surrogate is no text, and can't be written again: encoding it raises.
        json.dumps(plain_data(value), ensure_ascii=False, allow_nan=False).encode()
    return value


def _float(pairs: dict[str, Any]) -> Any:
    """What `plain_data` made an object with the key `float` of; other objects as they are."""
    if pairs.keys() != {"float"}:
        return pairs
    match pairs["float"]:
        case str(number):
            return float(number)
        case [value]:
            return {"float": value}
        case other:
            raise ValueError(f"{brief(other)} is no number")


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


# Made once: a page reads a hundred thousand texts, and `json.loads` would make one for each.
_PLAIN: Final = json.JSONDecoder(parse_constant=_no_json)
_WITH_FLOATS: Final = json.JSONDecoder(object_hook=_float, parse_constant=_no_json)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner += part.values()
            elif isinstance(part, list):
                inner += part
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file and see it to the disk; the caller renames."""
    path.write_bytes(content)
    flush(path)


def put(path: Path, content: bytes) -> Path:
    """Write one file, whole or not at all, and return its path; an older one is replaced. Raises
    `OSError`, also where its folder isn't there.
    """
    path.parent.stat()  # a misspelt folder is the user's to correct, and isn't made
    with replacing(path, flushed=False) as half:
        write_bytes(half, content)
    return path


@contextmanager
def replacing(path: Path, half: Path | None = None, flushed: bool = True) -> Iterator[Path]:
    """Yield the path of a file to write, which takes the place of `path` at the end, whole or not
    at all.

    It is `half`, on the same file system, or else a file beside `path` that no other process writes
    to. On any failure it goes, and so do the folders that were made for it. What isn't `flushed`
    survives a kill but not a power failure. A link in the place of the half is removed.
    """
    if half is None:
        beginning = f"{UNFINISHED}-{path.name}-"
        remove_left(path.parent, beginning)
        half = path.with_name(f"{beginning}{os.getpid()}")
    try:
        with undoing(path.parent, half):
            if not path.parent.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
            _remove_link(half)
            yield half
            if flushed:
                flush(half)
            half.replace(path)
            if flushed:
                flush(path.parent)
    finally:
        with suppress(OSError):
            half.unlink()


def remove_left(folder: Path, beginning: str) -> None:
    """Remove files that processes left which were killed while they wrote them. Their names have a
    `beginning`, then the number of the process, and perhaps a hyphen and more.
    """
    left = list(folder.glob(f"{glob.escape(beginning)}*"))
    if not left:
        return
    import psutil  # which is needed so rarely that nobody else waits for it

    for path in left:
        process, _, _ = path.name.removeprefix(beginning).partition("-")
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            path.unlink(missing_ok=True)


@contextmanager
def appearing(folder: Path, half: Path) -> Iterator[Path]:
    """Yield an empty folder `half` to fill, which becomes `folder` at the end by one rename; on any
    failure it goes, with the parents made for it.

    The name of `half` is the same each time, so that what a killed process left is cleared by the
    next one. A link in its place is removed. An empty `folder` is replaced. Raises `OutputError`
    while another process is at it.
    """
    with undoing(half.parent):
        _remove_link(half)
        half.mkdir(parents=True, exist_ok=True)
        with locked_folder(half) as taken:
            if not taken:
                message = f"{folder} is being made by another process"
                advice = "wait for it, or name another folder"
                raise OutputError(f"{message}; {advice}", subject=str(folder))
            try:
                _clear(half)
                yield half
                if folder.exists():
                    folder.rmdir()
                half.rename(folder)
            except BaseException:
                # Only here: after the rename there may be another process's half.
                shutil.rmtree(half, ignore_errors=True)
                raise


def _remove_link(half: Path) -> None:
    """Remove a symbolic link where a half is to be written: what it leads to isn't ours."""
    if half.is_symlink():
        half.unlink()


def _clear(folder: Path) -> None:
    """Remove all that is in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def undoing(folder: Path, *files: Path) -> Iterator[None]:
    """Remove what was made where what is done within fails: of `folder` and its parents those that
    weren't there before, unless somebody has put something into them.

    `files` that lie in one of these folders are removed first.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    # The stack calls the last one first: files, then their folder, then its parents.
    with ExitStack() as undo:
        for path in reversed(new_folders):
            undo.callback(remove_empty, path)
        for file in files:
            if file.parent in new_folders:
                undo.callback(_remove_file, file)
        yield
        undo.pop_all()


def remove_empty(folder: Path) -> None:
    """Remove a folder, if it is there and nobody has put something into it."""
    with suppress(OSError):
        folder.rmdir()


def _remove_file(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


@contextmanager
def usual_rights(path: Path) -> Iterator[None]:
    """Give a file that a library writes meanwhile the rights that new files have by the umask.

    Safetensors gives its owner all rights, and others none.
    """
    path.touch()
    rights = path.stat().st_mode
    yield
    path.chmod(rights)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Windows can do neither with what isn't open for writing, so nothing is done there.
    """
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
