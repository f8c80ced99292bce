"""What may take the processor only so long. Seconds would depend on the machine and on what else
it does, so a limit is a multiple of other work.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@cache
def yardstick() -> float:
    """Seconds of the processor that writing a million numbers takes here: about a tenth of one."""
    began = time.process_time()
    assert sum(map(len, map(str, range(1_000_000)))) == 5_888_890
    return time.process_time() - began


@contextmanager
def quick(times: float = 100) -> Iterator[None]:
    """Fail what takes the processor longer than so many yardsticks."""
    began = time.process_time()
    yield
    spent = (time.process_time() - began) / yardstick()
    assert spent < times, f"it took as long as {spent:.0f} yardsticks, and {times:g} are allowed"
