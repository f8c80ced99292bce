"""Where time goes: a clock counts the seconds of a job's phases, and of the parts within them
that say their names.
"""

import time
from collections.abc import Iterator
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
        _RUNNING.append(self)
        try:
            yield
        finally:
            _RUNNING.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


_RUNNING: list[Clock] = []


@contextmanager
def spent_on(name: str) -> Iterator[None]:
    """Add what is spent inside to the part `name` of the clock that runs, if one does; parts
    don't lie in one another.
    """
    if not _RUNNING:
        yield
        return
    began, clock = time.perf_counter(), _RUNNING[-1]
    try:
        yield
    finally:
        clock.parts[name] = clock.parts.get(name, 0.0) + time.perf_counter() - began
