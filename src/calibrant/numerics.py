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


def finite_number(value: float, what: str) -> float:
    """Return `value`; a `NumericsError` that says `what` it is if it is NaN or infinite.

    >>> finite_number(2.5, "the loss of the untouched model")
    2.5
    """
    if not math.isfinite(value):
        raise NumericsError(f"{what} is {value}; {REMEDY}", subject=what)
    return value


def check_finite(data: Any, what: str) -> None:
    """Raise `NumericsError` for the first number in plain data that is NaN or infinite.

    `what` says whose data it is.

    >>> check_finite({"loss": 2.5, "course": [3.0, 2.5]}, "greedy")
    """
    if isinstance(data, Mapping):
        for name, inner in data.items():
            check_finite(inner, f"{name} of {what}")
    elif isinstance(data, list | tuple):
        for inner in data:
            check_finite(inner, what)
    elif isinstance(data, float):
        finite_number(data, what)
