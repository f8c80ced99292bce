"""Keeps back what transformers and other libraries print, and quotes what they raise in one line:
they speak to their own users, not to ours.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, final

from transformers import logging

from calibrant.errors import CalibrantError, ModelError
from calibrant.spec.foreign import visible

LONGEST: Final = 200


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, transformers shows no warnings and no progress bars."""
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def quoted(error: BaseException) -> str:
    """Return a library's message as a part of a sentence of ours: one line, not too long; the
    class's name if it says nothing.
    """
    text = visible(" ".join(str(error).split())).rstrip(".: ") or type(error).__name__
    if len(text) <= LONGEST:
        return text
    return text[:LONGEST].rsplit(" ", 1)[0] + " …"


@final
class Refusal:
    """While it lasts, whatever a library raises because of its files becomes a `ModelError`. Its
    message is `before`, what the library says in brackets, and `after`.

    With a mangled file transformers raises nearly anything, tokenizers raises plain `Exception`,
    and a panic in Rust isn't even an `Exception`. So all of these are caught, and only a library's
    call should be inside. Errors of ours, interrupts and exits pass.
    """

    def __init__(self, before: str, after: str, subject: str) -> None:
        self._before = before
        self._after = after
        self._subject = subject

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, CalibrantError):
            return
        # Rust's panics arrive as a class of this module, below `BaseException`.
        if isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime":
            message = f"{self._before} ({quoted(error)}){self._after}"
            raise ModelError(message, subject=self._subject) from error
