"""Input from outside, made safe to read: texts that can't steer a terminal, values in a line, paths
and numbers.

Everything that is shown passes through `visible` or one of its kin, and what a message repeats of a
value through `brief`; every path that a user gives becomes a `Path` in `user_path`, every
expression and spec passes through `user_text`, and digits become numbers in `whole_number` and
`decimal_number`. No torch here.
"""

import difflib
import errno
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from reprlib import Repr
from typing import Any, Final

from calibrant.errors import InputError

SHOWN: Final = 80
"""Characters of a value that a message repeats at most."""

LONGEST_PATH: Final = 4096
"""Characters of a path at most: no system takes more."""

DEEPEST_PATH: Final = 256
"""Folders of a path at most: making them goes down a few calls for each."""

TRUST_REMOTE_CODE: Final = "CALIBRANT_TRUST_REMOTE_CODE"
"""The variable that lets code beside a model be run; without it, none from outside ever is."""

_YES: Final = ("1", "true", "yes", "on")
"""What switches a variable of the environment on."""

_ACTING: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, but for tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\u2028\u2029"  # ends of lines that only some programs know
    "\u200b\u2060\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # what no font draws
    "\ud800-\udfff\ufffe\uffff"  # what is no character, and no file may hold
)
"""Characters that act on a terminal or hide, for a regular expression."""
_ACTING_IN_LINES: Final = re.compile(f"[{_ACTING}]")
"""What is escaped in a text of several lines, which keeps its tabs and line feeds."""
_ACTING_IN_ONE_LINE: Final = re.compile(f"[\t\n{_ACTING}]")
"""What is escaped where a text stands in one line."""

LONGEST_TEXT: Final = 65_536
"""Characters of an expression or a spec at most."""

LARGEST: Final = 10**15
"""Whole numbers may be this far from 0: no budget is larger, and all of them are exact as floats
too.
"""

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,16}")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
"""In ASCII: what Python reads besides is an underscore, or a digit of another script, which a
reader would take for something else.
"""


class _Short(Repr):
    """Writes values short, as `reprlib` does, and whole numbers of any length: Python itself
    refuses to write one of more than 4,300 digits.
    """

    def repr_int(self, x: int, level: int) -> str:
        """Return a whole number as it is, or by how long it is."""
        bits = x.bit_length()
        if bits < 10_000:
            return super().repr_int(x, level)
        # A bit is log10(2) ≈ 0.3 digits.
        return f"a number of about {bits * 3 // 10:,} digits"


_SHORT: Final = _Short()
_SHORT.maxstring = SHOWN
_SHORT.maxother = SHOWN
_SHORT.maxlong = SHOWN


def visible(text: str) -> str:
    r"""Return `text` with every character that would act on a terminal, or hide, written as its
    escape.

    Tabs and line feeds stay. What is left can be printed, put into a CSV file or a page: it is only
    read.

    >>> visible("red \x1b[31m, then \u202eback")
    'red \\x1b[31m, then \\u202eback'
    """
    return _ACTING_IN_LINES.sub(_escaped, text)


def visible_name(text: str) -> str:
    r"""Return `text` as `visible` does, and in one line: for what stands in a table's cell or a
    sentence.

    >>> visible_name("two\nlines")
    'two\\nlines'
    """
    return _ACTING_IN_ONE_LINE.sub(_escaped, text)


def visible_data(data: Any) -> Any:
    r"""Return plain data (mappings, lists, texts, numbers) with `visible` done to every text in it,
    keys too.

    >>> visible_data({"\x07bell": ["\x1b[2J", 1]})
    {'\\x07bell': ['\\x1b[2J', 1]}
    """
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, Mapping):
        return {visible_data(key): visible_data(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [visible_data(value) for value in data]
    return data


def visible_json(text: str) -> str:
    r"""Return JSON that says the same, its acting characters written as JSON writes them: nothing
    in it acts, and a program reads what was there.

    >>> visible_json('["\u202e"]')
    '["\\u202e"]'
    """
    return _ACTING_IN_LINES.sub(_escaped_in_json, text)


def brief(value: Any) -> str:
    """Return what a message repeats of a value that was given: its `repr`, of at most a line, and
    never more than a few levels deep.

    >>> brief("wanda")
    "'wanda'"
    >>> len(brief("9" * 100_000)) < 100
    True
    """
    text = visible(_SHORT.repr(value))
    if len(text) <= SHOWN + 3:
        return text
    return text[:SHOWN] + "…"


def user_path(path_text: str | Path, error: type[InputError] = InputError) -> Path:
    """Return the path that a user gave, with `~` as their home folder.

    Raises `error` for what no file can be called: a user whose home isn't known, a name or path too
    long for the system, a NUL or half a surrogate in it. Whether something is there is the caller's
    question.

    >>> user_path("data/rows.jsonl").name
    'rows.jsonl'
    """
    text = str(path_text)
    try:
        path = Path(text).expanduser()
    except RuntimeError as problem:
        raise error(
            f"{brief(text)} names a user whose home folder isn't known; write the whole path",
            subject=text,
        ) from problem
    if len(path.parts) > DEEPEST_PATH:
        raise error(
            f"{brief(text)} is {len(path.parts):,} folders deep, and {DEEPEST_PATH} are the most; "
            "give a shorter path",
            subject=text,
        )
    try:
        if len(text) > LONGEST_PATH:
            # What the system raises too; both are refused below.
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        path.lstat()  # asks the system whether it could be called so
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError as problem:
        reason = "a NUL" if "\0" in text else "a character that no file name has"
        raise error(
            f"{brief(text)} can't be a path: {reason} is in it; give another", subject=text
        ) from problem
    except OSError as problem:
        if problem.errno not in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
            return path  # there, and not ours to look at: whoever opens it says so
        raise error(
            f"{brief(text)} can't be a path ({problem.strerror}); give another", subject=text
        ) from problem
    return path


def user_text(text: str, error: type[InputError] = InputError) -> str:
    """Return a text that a user gave, as it is. Raises `error` for one of more than 65,536
    characters, or with half a surrogate in it.
    """
    if len(text) > LONGEST_TEXT:
        raise error(
            f"{brief(text)} has {len(text):,} characters, and {LONGEST_TEXT:,} are the most; "
            "write less in one text",
            subject=text[:SHOWN],
        )
    surrogate = re.search("[\ud800-\udfff]", text)
    if surrogate:
        raise error(
            f"{brief(text)} holds {visible(surrogate[0])}, which is half a character; "
            "write the text in UTF-8",
            subject=text[:SHOWN],
        )
    return text


def user_lines(content: bytes, name: str, error: type[InputError] = InputError) -> list[str]:
    """Return the lines of a small text file of a user, which is called `name`.

    Raises `error` for what is no UTF-8.

    >>> user_lines(b"good\\r\\nbad", "moods.txt")
    ['good', 'bad']
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content[: problem.start].count(b"\n") + 1
        raise error(
            f"line {line} of {brief(name)} isn't UTF-8; save the file in UTF-8", subject=name
        ) from problem
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def whole_number(digits: str) -> int | None:
    """Return the whole number that a text is, in decimal ASCII digits and up to 10¹⁵ either way;
    None for anything else.

    >>> whole_number(" 128 "), whole_number("-0"), whole_number("1_000"), whole_number("9" * 5000)
    (128, 0, None, None)
    """
    text = digits.strip()
    if len(text) > SHOWN or not _WHOLE.fullmatch(text):
        return None
    number = int(text)
    return number if abs(number) <= LARGEST else None


def decimal_number(digits: str) -> float | None:
    """Return the finite number that a text is, in ASCII and of a line at most; None for anything
    else.

    >>> [decimal_number(text) for text in ("0.5", "5e-1", "nan", "1e999")]
    [0.5, 0.5, None, None]
    """
    text = digits.strip()
    if len(text) > SHOWN or not _DECIMAL.fullmatch(text):
        return None
    number = float(text)
    # -0.0 + 0.0 is 0.0: there is one zero, not two.
    return number + 0.0 if math.isfinite(number) else None


def share_number(digits: str) -> float | None:
    """Return the number that a share's text is, `0.6` or `60%`, which is the same to the last bit;
    None for anything else.

    >>> share_number("60%"), share_number("0.29"), share_number("29 %"), share_number("%")
    (0.6, 0.29, 0.29, None)
    """
    text = digits.strip()
    if not text.endswith("%"):
        return decimal_number(text)
    percent = text[:-1].strip()
    if decimal_number(percent) is None:
        return None
    # As a decimal: the float 0.7 divided by 100 isn't the float 0.007.
    return float(Decimal(percent) / 100) + 0.0


def switched_on(variable: str) -> bool:
    """Return whether a variable of the environment says yes."""
    return os.environ.get(variable, "").lower() in _YES


def _escaped(match: re.Match[str]) -> str:
    """The escape of a character, as Python writes it."""
    if match[0] == "\t":
        return "\\t"
    if match[0] == "\n":
        return "\\n"
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\U{code:08x}"


def _escaped_in_json(match: re.Match[str]) -> str:
    """The escape of a character, as JSON writes it."""
    # Without the quotes that stand around it.
    return json.dumps(match[0], allow_nan=False)[1:-1]


_LONGEST_NAME: Final = 500
"""Letters of a name that may be a misspelt one."""
_MOST_NAMES: Final = 2_000
"""Names among which a near one is looked for."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `", perhaps you mean 'wanda'"` for a near miss, else nothing. Capitals count as small
    letters.

    Nobody misspells a text of many lines, or remembers thousands of names.
    """
    known = list(names)
    if len(name) > _LONGEST_NAME or len(known) > _MOST_NAMES:
        return ""
    in_small_letters = [known_name.lower() for known_name in known]
    close = difflib.get_close_matches(name.lower(), in_small_letters, n=1, cutoff=0.6)
    if not close:
        return ""
    # Of names that differ in capitals alone, the nearest as it is written.
    alike = [known_name for known_name in known if known_name.lower() == close[0]]
    nearest = difflib.get_close_matches(name, alike, n=1, cutoff=0.0)
    return f", perhaps you mean {nearest[0]!r}"
