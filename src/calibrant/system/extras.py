"""Packages that only a part of Calibrant needs: which extra brings them, and the sentence when
one is missing.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from calibrant.errors import MissingPackageError

EXTRAS: Final = {
    "altair": "report",
    "cffi": "ggml",
    "datasets": "hub",
    "llama_cpp_py_sync": "ggml",
    "lm_eval": "harness",
    "polars": "study",
    "pyarrow": "study",
    "ray": "ray",
    "reasoning_gym": "demo",
    "ruamel": "study",
    "scipy": "study",
    "sentence_transformers": "sentences",
    "sklearn": "study",
    "threadpoolctl": "study",
    "vl_convert": "report",
    "zstandard": "hub",
}
"""Each optional package by the name it is imported with, and the extra of calibrant that
installs it.
"""


def missing(error: ModuleNotFoundError, what: str) -> MissingPackageError | None:
    """Return the error to raise where an optional package is not installed; None if `error` is
    about another module.
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    message = (
        f"{what} needs the package {package}, which is not installed; install it with: pip install "
        f"'calibrant[{EXTRAS[package]}]'"
    )
    return MissingPackageError(message, subject=package)


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Raise `MissingPackageError` where an import inside finds no optional package. Use it with
    `with` or as a decorator.

    >>> with needed_for("a plot"):  # doctest: +ELLIPSIS
    ...     raise ModuleNotFoundError("No module named 'altair'", name="altair")
    Traceback (most recent call last):
    calibrant.errors.MissingPackageError: a plot needs the package altair, ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing_package = missing(error, what)
        if missing_package is None:
            raise
        raise missing_package from error


def load(module: str, name: str) -> Any:
    """Import `module` and return what it calls `name`. Raises `MissingPackageError` where that
    needs an optional package.
    """
    with needed_for(f"calibrant.{name}"):
        return getattr(importlib.import_module(module), name)
