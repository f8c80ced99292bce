"""Seals of what is written to be read again. No torch here.

A seal is a hash of the content and of its purpose: what kind of thing it is, of which run, of which
step. It is compared when the file is read. So a damaged file is noticed, and so is a whole one in
the place of another.

What is sealed is flushed to the disk before it counts as done, unless it is only cached. What
doesn't agree when it is read is made again where that can be done: a step of a checkpoint, a
statistic, a line of a journal, whatever is cached. `tell_made_again` says so in one line. A result
is refused with a `DataError`.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Final

Purpose = Mapping[str, str | int]
"""What something was written for, such as `{"kind": "checkpoint", "run": "sha256:…", "step":
3}`.
"""

SEAL: Final = "seal"
"""The key under which a document has its seal."""

_LOGGER: Final = logging.getLogger("calibrant")


class BrokenSealError(ValueError):
    """Something isn't what was written, or was written for another purpose."""

    def __init__(self) -> None:
        super().__init__("it isn't what was written there")


class NoSealError(BrokenSealError):
    """Something is from before there were seals."""


def seal_of(purpose: Purpose, *contents: bytes | memoryview) -> str:
    """Return the seal of what consists of these contents, one after the other, as 64 hexadecimal
    digits.

    >>> seal_of({"kind": "journal"}, b"0.5") == seal_of({"kind": "journal"}, b"0.6")
    False
    """
    hashed = hashlib.sha256()
    head = json.dumps(dict(purpose), sort_keys=True, allow_nan=False).encode()
    for content in (head, *contents):
        # With its length before it, so that nothing can move from one content to the next.
        hashed.update(b"%d:" % len(content))
        hashed.update(content)
    return hashed.hexdigest()


def tell_made_again(what: str, where: str) -> None:
    """Say in one line that something is damaged, of another purpose, or from before there were
    seals, and is made again.
    """
    _LOGGER.warning("%s in %r isn't what this version wrote there; it is made again", what, where)
