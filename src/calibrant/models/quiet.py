"""The libraries below speak to their own users: what they print is kept back, and what they raise is quoted in one line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from transformers import logging

LONGEST: Final = 200


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings and progress bars; as it was afterwards."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
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
    """A library's message as a part of a sentence of ours: one line, not too long; the class's name if it says nothing."""
    text = " ".join(str(error).split()).rstrip(".: ") or type(error).__name__
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"
