"""The libraries below speak to their own users: what they print is kept back, and what they raise is quoted in one line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import logging


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


def first_line(error: BaseException) -> str:
    """The first line of a library's message, to stand inside a sentence of ours; the class's name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
