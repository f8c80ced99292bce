"""What torchrun sets in the environment of a process that it starts. No torch here: the command
line reads it before anything is loaded.
"""

import os
from dataclasses import dataclass
from typing import Final

from calibrant.errors import InputError
from calibrant.spec.foreign import brief

RUN: Final = "TORCHELASTIC_RUN_ID"
"""The variable that only torchrun sets."""
MOST: Final = 2**20
"""Processes at most."""
_REMEDY: Final = (
    "torchrun sets it for every process that it starts; start with torchrun, or unset " + RUN
)


@dataclass(frozen=True)
class Launch:
    """Which of how many processes this one is, and its number on its machine."""

    rank: int
    size: int
    local_rank: int


def launched() -> Launch | None:
    """Return which process this is; None where torchrun didn't start it.

    Raises `InputError` for variables that torchrun wouldn't set so.
    """
    if RUN not in os.environ:
        return None
    size = number("WORLD_SIZE", 1, MOST)
    launch = Launch(number("RANK", 0, size - 1), size, number("LOCAL_RANK", 0, size - 1))
    if size > 1:
        number("MASTER_PORT", 1, 2**16 - 1)
        if not os.environ.get("MASTER_ADDR"):
            raise InputError(f"MASTER_ADDR isn't set; {_REMEDY}", subject="MASTER_ADDR")
    return launch


def number(name: str, least: int, most: int) -> int:
    """Return the number in a variable of the environment. Raises `InputError` for one that isn't
    there, isn't whole, or lies outside.
    """
    digits = os.environ.get(name)
    if digits is None:
        raise InputError(f"{name} isn't set; {_REMEDY}", subject=name)
    # Its length is looked at before it is read: Python refuses thousands of digits with an error.
    is_short = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(most))
    if not is_short or not least <= int(digits) <= most:
        raise InputError(
            f"{name} is {brief(digits)}, and must be a whole number from {least} to {most}; "
            f"{_REMEDY}",
            subject=name,
        )
    return int(digits)
