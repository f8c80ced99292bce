"""What Calibrant changes in a process, and only in one of its own: the command line says
`own_process()`, a library call changes nothing for good.

The C library: a forward frees and asks for the same megabytes a thousand times. glibc gives every
freed block of that size back to the system and gets it again page by page, zeroed: a sixth of the
time of a forward on a processor. Kept, the same forward asks the system once.

The garbage collector: torch and transformers make a million objects that stay, and looking through
them is a quarter of the time of an import.
"""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Numbers of malloc.h, for `mallopt`."""

_KEPT: Final = 2**30
"""Bytes: freed blocks smaller than this are kept, and as much free memory at the top of the
heap.
"""

_SETTINGS = {"own": False}
"""Whether the process is Calibrant's own, as `own_process` says."""


def own_process() -> None:
    """Say that this process is there for Calibrant alone, whose memory and garbage collection it
    may arrange.

    The command line and the workers of a study do. A script of yours that does nothing else may,
    for the same speed.
    """
    _SETTINGS["own"] = True


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let a process of our own keep the memory that it frees; when the context ends, what is free
    goes back once.

    Nothing happens in another's process, or where the C library isn't glibc. The threshold stays
    raised afterwards: glibc's own would never grow again once it was set, and every later forward
    be slow.
    """
    if not _SETTINGS["own"] or platform.libc_ver()[0] != "glibc":
        yield
        return
    glibc = ctypes.CDLL(None)
    glibc.mallopt(_MMAP_THRESHOLD, _KEPT)
    glibc.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        glibc.malloc_trim(0)


def give_back(always: bool = False) -> None:
    """Return to the system what the heap holds in pieces between blocks: about a tenth of a run's
    memory, for a few hundredths of its time.

    In a process of our own nothing is returned before the end, for speed (`freed_memory_kept`),
    unless memory is what counts (`always`); nor where the C library isn't glibc.
    """
    if (always or not _SETTINGS["own"]) and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage while much is imported. In a process of our own, what was made is
    taken to stay and isn't looked through later either.
    """
    was_enabled = gc.isenabled()
    is_ours = _SETTINGS["own"]
    if is_ours:
        gc.collect()  # what is garbage already must not be frozen
    gc.disable()
    try:
        yield
        if is_ours:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
