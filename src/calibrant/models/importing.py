"""What importing costs: torch and transformers make a million objects that stay, and looking through them for garbage is a quarter of the time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """While it lasts, no garbage is looked for; what was made is taken to stay and isn't looked through later either."""
    on = gc.isenabled()
    gc.collect()  # what is garbage already must not stay
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if on:
            gc.enable()
