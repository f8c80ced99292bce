"""Files that appear whole or not at all, and locks that die with their holder. No torch here.

A kill, a full disk or a lost connection leaves either the old state or the new one: everything is written under a name that says it is
unfinished, flushed, and renamed.
"""

import errno
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from calibrant.errors import DataError

UNFINISHED: Final = ".unfinished"
"""What the name of anything half-written begins with."""


def reason(error: OSError) -> str:
    """Why something could not be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and ask again"
    return f"{error.strerror or error}; is it yours to write to?"


def take(file: IO[str], wait: bool = False) -> bool:
    """Lock an open file for this process, until it is closed or the process ends however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: a file that is open can't be deleted there, which protects a living writer's corner as well
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def text_of_json(value: Any, ordered: bool = False) -> str:
    """Indented JSON, its keys sorted unless they are `ordered`; floats come back to the last bit, and infinities come back too."""
    return json.dumps(_finite(value), sort_keys=not ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def read_json(path: Path) -> Any:
    """What `text_of_json` wrote. Raises `DataError` for a file that isn't there or isn't JSON."""
    try:
        return from_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def read_packed(path: Path) -> Any:
    """What `packed` wrote. Raises `DataError` as `read_json` does."""
    try:
        return from_json(gzip.decompress(path.read_bytes()).decode())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise unreadable(path, error) from error


def packed(value: Any) -> bytes:
    """`text_of_json` compressed, the same bytes whenever it is written."""
    return gzip.compress(text_of_json(value).encode(), mtime=0)


def unreadable(path: Path, error: Exception) -> DataError:
    """What is said of a damaged file; a folder that is called by a hash holds one answer, which is asked for again as a whole."""
    what = str(error) if isinstance(error, OSError | ValueError) else f"not what is written there: {error!r}"
    gone = "its folder" if len(path.parent.name) == 64 else "it"
    return DataError(f"{str(path)!r} can't be read ({what}); restore it from a copy, or delete {gone} to have it computed again", subject=str(path))


def from_json(text: str) -> Any:
    """The value that `text_of_json` made `text` of. Raises `ValueError` for anything else."""
    if '"float"' not in text:  # looking at every object takes as long again as reading it
        return json.loads(text)
    return json.loads(text, object_hook=lambda d: float(d["float"]) if d.keys() == {"float"} else d)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file and see it to the disk; the caller renames."""
    path.write_bytes(content)
    flush(path)


def put(path: Path, content: bytes) -> Path:
    """Write one file, whole or not at all; an older one is replaced. Raises `OSError`."""
    half = path.with_name(f"{UNFINISHED}-{path.name}")
    try:
        write_bytes(half, content)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return path


@contextmanager
def usual_rights(path: Path) -> Iterator[None]:
    """Give a file that a library writes meanwhile the rights that the umask gives to new files: safetensors gives its owner all, and others none."""
    path.touch()
    rights = path.stat().st_mode
    yield
    path.chmod(rights)


def flush(path: Path) -> None:
    """See a file, or the names in a folder, to the disk. Windows can do neither to what isn't open for writing, and is left to itself."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
