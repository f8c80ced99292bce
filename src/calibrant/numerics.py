"""Numbers that were measured: they must be finite before they decide anything, and are written
alike wherever they are shown. And quotients of whole numbers, rounded up. No torch here.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from calibrant.errors import NumericsError

REMEDY: Final = "open the model in a wider dtype, or look at its file"


def not_finite(what: str, subject: str) -> NumericsError:
    """Return the error for numbers, named in the plural, that hold NaN or infinity."""
    return NumericsError(f"{what} hold NaN or infinity; {REMEDY}", subject=subject)


def finite_number(value: float, what: str, subject: str) -> float:
    """Return `value`; a `NumericsError` that says `what` it is if it is NaN or infinite.

    >>> finite_number(2.5, "the loss of smollm2, untouched,", "smollm2")
    2.5
    """
    if not math.isfinite(value):
        raise NumericsError(f"{what} is {value}; {REMEDY}", subject=subject)
    return value


def check_report(report: Any, subject: str) -> None:
    """Raise `NumericsError` for the first number in a report that is NaN or infinite.

    A report is plain data, of a record for one; `subject` says whose it is.

    >>> check_report({"loss": 2.5, "course": [3.0, 2.5]}, "greedy")
    """
    _check_entry(report, subject, subject)


def _check_entry(entry: Any, what: str, subject: str) -> None:
    if isinstance(entry, Mapping):
        for name, inner in entry.items():
            _check_entry(inner, f"{name} of {what}", subject)
    elif isinstance(entry, list | tuple):
        for inner in entry:
            _check_entry(inner, what, subject)
    elif isinstance(entry, float):
        finite_number(entry, what, subject)


def ceil_div(number: int, divisor: int) -> int:
    """Return the quotient of two whole numbers, rounded up.

    >>> ceil_div(9, 8)
    2
    """
    return -(-number // divisor)


# How numbers are written, wherever one is shown: in a terminal, in a table, on a page.

HOLE: Final = "—"
"""What stands where there is no number."""


def six_digits(number: int | float) -> float:
    """Return a number as records and notes have it: the six digits that every machine gives.

    >>> six_digits(0.123456789)
    0.123457
    """
    return float(f"{number:.6g}")


def decimals(value: int | float) -> str:
    """Return a number with three decimals.

    >>> decimals(0.4567)
    '0.457'
    """
    return f"{value:.3f}"


def signed(value: int | float) -> str:
    """Return a difference with three decimals and its sign.

    >>> signed(0.4567)
    '+0.457'
    """
    return f"{value:+.3f}"


def between(
    interval: tuple[int | float, int | float] | None, write: Callable[[float], str] = decimals
) -> str:
    """Return both ends of an interval, as `write` writes them; a hole without one.

    >>> between((0.1, 0.25)), between(None)
    ('0.100 to 0.250', '—')
    """
    if interval is None:
        return HOLE
    low, high = interval
    return f"{write(low)} to {write(high)}"


def percent(share: int | float) -> str:
    """Return a share in per cent, with as many digits as it has. The space doesn't break.

    >>> percent(0.975).replace("\\u00a0", " ")
    '97.5 %'
    """
    return f"{share * 100:g}\u00a0%"


def whole_percent(share: int | float) -> str:
    """Return a share in whole per cent. The space doesn't break.

    >>> whole_percent(0.1749).replace("\\u00a0", " ")
    '17 %'
    """
    return f"{100 * share:.0f}\u00a0%"


def probability(p: int | float | None) -> str:
    """Return a p value with three decimals; a hole for None.

    >>> probability(0.0123), probability(0.0001), probability(None)
    ('0.012', '< 0.001', '—')
    """
    if p is None:
        return HOLE
    return "< 0.001" if p < 0.001 else decimals(p)


def counted(number: int, noun: str) -> str:
    """Return so many things in words.

    >>> counted(1, "run"), counted(1200, "run")
    ('1 run', '1,200 runs')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: int | float) -> str:
    """Return a time as one would say it.

    >>> duration(2.5), duration(45.2), duration(600), duration(9000)
    ('2.5 s', '45 s', '10 min', '2.5 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def type_name(dtype: object) -> str:
    """Return the name of a type of numbers as records have it, without the library's.

    >>> type_name("torch.bfloat16")
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def gigabytes(count: int | float) -> str:
    """Return a number of bytes in gigabytes.

    >>> gigabytes(2_540_000_000)
    '2.54 GB'
    """
    return f"{count / 1e9:,.2f} GB"


def megabytes(count: int | float) -> str:
    """Return a number of bytes in megabytes.

    >>> megabytes(2_500_000)
    '2.5 MB'
    """
    return f"{count / 1e6:,.1f} MB"
