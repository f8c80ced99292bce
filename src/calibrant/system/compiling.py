"""How functions are compiled. Importing this imports numba, which takes longer than listing
methods may.
"""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import numba


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function of arrays and numbers, and keep the result for later processes."""
    plain = unwrap(function)  # a type checker installed on import may have wrapped it
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy", **options)(plain)
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written: compile in each process.
        return numba.njit(nogil=True, error_model="numpy", **options)(plain)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function into those compiled ones that call it."""
    return numba.njit(error_model="numpy", inline="always")(unwrap(function))
