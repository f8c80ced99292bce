"""How much of a file is read at most, what readers raise, and how a message repeats what a file holds."""

import csv
import zlib
from collections.abc import Hashable, Iterable
from reprlib import Repr
from typing import Any, Final, TypeVar

from calibrant.errors import DataError
from calibrant.foreign import visible

H = TypeVar("H", bound=Hashable)

MOST_COLUMNS: Final = 10_000
"""Columns of a table, or keys of a JSON object, at most."""
MOST_ROWS: Final = 50_000_000
"""Rows of a file at most: they are held in memory."""
LONGEST_LINE: Final = 1 << 26
"""Bytes of a line at most, which is a row: 64 MiB."""
SHORTEST_LINE: Final = 32
"""Bytes that a line of a compressed file counts for at least: millions of empty ones take time, not room."""
LONGEST_WHOLE: Final = 1 << 30
"""Bytes of a file that can't be read line by line (JSON, plain text) at most: 1 GiB."""
TIMES: Final = 200
"""How many times its own size a compressed file unpacks to at most: text comes to ten or twenty times, a bomb to a thousand and more."""
ALLOWED: Final = 1 << 25
"""Bytes that any compressed file may unpack to, however small it is: 32 MiB."""

FAULTS: Final = (
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    OSError,
    EOFError,
    MemoryError,
    csv.Error,
    zlib.error,
)
"""What the readers of file formats raise for a file that is not what it should be. None of them is promised by anybody."""

_SHORT: Final = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 40


def short(value: Any) -> str:
    """Return a value for a message, never long and never more than a few levels deep."""
    text, most = (value, 40) if isinstance(value, str) else (_SHORT.repr(value), 80)
    return text if len(text) <= most else text[:most] + "…"


def reason_of(error: BaseException) -> str:
    """Return the first line of what a reader says, or what kind of error it is if it says nothing."""
    lines = visible(str(error)).strip().splitlines()
    line = lines[0].partition(";")[0] if lines else type(error).__name__
    return line if len(line) <= 160 else line[:160] + "…"


def no_utf8(error: UnicodeDecodeError) -> str:
    """Return a clause that names the byte at which a text is no UTF-8."""
    return f"this is no UTF-8 text (byte {error.object[error.start]:#04x} at {error.start + 1})"


def repeated(names: Iterable[H]) -> H | None:
    """Return the first name that comes a second time; None if none does."""
    seen: set[H] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def check_columns(count: int, where: str) -> None:
    """Raise `DataError` for more columns than a table of texts has."""
    if count > MOST_COLUMNS:
        raise DataError(f"{where}: there are {count:,} columns, and at most {MOST_COLUMNS:,} are read; keep those that you need", subject=where)


def check_unpacked(unpacked: int, packed: int, shown: str) -> None:
    """Raise `DataError` for what unpacks to far more than text does; count with it while reading, before the memory is full."""
    most = max(ALLOWED, TIMES * packed)
    if unpacked > most:
        raise DataError(
            f"{shown!r} unpacks to more than {most >> 20:,} MiB, {TIMES} times its size, which no text does; unpack it yourself if it should",
            subject=shown,
        )
