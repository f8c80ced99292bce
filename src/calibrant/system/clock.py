"""Where time goes: a clock counts the seconds of a job's phases, and of the parts within them
that say their names; and a piece of work alone is timed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds per phase, in the order they were first spent; `parts` are those of named work
    inside whatever phase ran.
    """

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    parts: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what is spent inside to `name`."""
        began = time.perf_counter()
        _RUNNING_CLOCKS.append(self)
        try:
            yield
        finally:
            _RUNNING_CLOCKS.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


_RUNNING_CLOCKS: list[Clock] = []
"""The clocks of the phases that are running, the innermost last."""


@contextmanager
def spent_on(name: str) -> Iterator[None]:
    """Add what is spent inside to the part `name` of the clock that runs, if one does.

    A part must not begin inside another: its seconds would count twice.
    """
    if not _RUNNING_CLOCKS:
        yield
        return
    clock = _RUNNING_CLOCKS[-1]
    began = time.perf_counter()
    try:
        yield
    finally:
        clock.parts[name] = clock.parts.get(name, 0.0) + time.perf_counter() - began


def seconds_of(work: Callable[[], object]) -> float:
    """Do `work` once, and return the seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
