"""Numbers that were measured: they must be finite before they decide anything or are told.

No torch here.
"""

import math
from collections.abc import Mapping
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
