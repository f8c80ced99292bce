"""Hands data over as objects: to a verb, or as a file to what measures on a part of them."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, TypeAlias

from calibrant.data._base import Source
from calibrant.data.calibration import CalibrationSet

Data: TypeAlias = str | PathLike[str] | Source | CalibrationSet | Iterable[Any]
"""What can be calibrated on; `CalibrationSet` says what may be iterated over."""


def as_set(
    data: Data,
    samples: int | None = None,
    length: int = 2048,
    tokens: int | None = None,
    seed: int = 0,
) -> CalibrationSet:
    """Return data as a calibration set; one that is a set already has its own budget.

    >>> as_set(["a text", "another text"], tokens=8).budget
    8
    """
    if isinstance(data, CalibrationSet):
        return data
    return CalibrationSet(data, samples, length, tokens, seed)
