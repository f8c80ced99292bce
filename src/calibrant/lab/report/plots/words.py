"""Names and numbers as they are written in a plot. No torch here."""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from calibrant.lab.stats import Estimate
from calibrant.spec.foreign import visible_name

ROOM: Final = 26
"""Letters that a name may take beside a plot."""

Interval = tuple[float, float] | None


def cut(name: str, room: int = ROOM) -> str:
    """A long name with its middle left out, at most `room` letters (at least 3); wide letters
    count as two.
    """
    clean, room = visible_name(name), max(3, room)
    if _width(clean) <= room:
        return clean
    head, tail = clean[:room], clean[-room:]
    while _width(head) > room // 2:
        head = head[:-1]
    while _width(tail) > room - room // 2 - 1:
        tail = tail[1:]
    return f"{head}…{tail}"


def folded(text: str, room: int) -> list[str]:
    """A text in lines of about `room` letters, divided behind what divides words; a word that is
    longer has a line of its own.

    >>> folded("commonsense_qa (3-shot)", 14)
    ['commonsense_qa', '(3-shot)']
    """
    lines: list[str] = []
    for word in re.findall(r"[^ _:@]+[ _:@]*", text):
        if lines and len(lines[-1]) + len(word.rstrip()) <= room:
            lines[-1] += word
        else:
            lines.append(word)
    return [line.rstrip() for line in lines] or [text]


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def signed(value: float, digits: int = 3) -> str:
    """`+0.412`, `−0.031`, `0.000`; without an end `+∞`."""
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    text = f"{value:+.{digits}f}" if abs(value) < 1e5 else f"{value:+.2e}"
    return text.replace("-", "−") if float(text) else text[1:]


def plainly(value: float, digits: int = 3) -> str:
    """`0.412`, `−0.031`."""
    return signed(value, digits).removeprefix("+")


def spread(interval: Interval, digits: int = 3) -> str:
    """` (0.1 to 0.3)`, empty without an interval."""
    return (
        ""
        if interval is None
        else f" ({plainly(interval[0], digits)} to {plainly(interval[1], digits)})"
    )


def share(value: float) -> str:
    """`93.1 %` with a thin space that doesn't break."""
    return f"{plainly(100 * value, 1)}\u202f%" if math.isfinite(value) else plainly(value)


def known(estimate: Estimate | None) -> bool:
    """Return whether there is a number, be it infinite."""
    return estimate is not None and not math.isnan(estimate.value)


def ends(estimate: Estimate, level: float, comparisons: int = 1) -> Interval:
    """Return the interval of an estimate, None where there is none or where it isn't a number."""
    interval = estimate.interval(level, comparisons)
    return None if interval is None or any(math.isnan(end) for end in interval) else interval


def stem(*parts: str) -> str:
    """Return a name for a file, of ASCII letters that every system takes:
    `forest-sparsegpt-damp-0.02-2-4`.
    """
    ascii_only = "-".join(
        re.sub(r"[^A-Za-z0-9._]+", "-", unicodedata.normalize("NFKD", part)).strip("-._")
        for part in parts
    )
    return re.sub(r"-{2,}", "-", ascii_only).strip("-._")[:80].strip("-._") or "plot"


def counted(number: int, noun: str) -> str:
    """`1 set`, `1,024 sets`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sentence(parts: Sequence[str]) -> str:
    """Return parts as sentences, one after the other; a full stop ends one that has no end."""
    return " ".join(
        part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part
    )
