"""How work reports its progress, and how that is said in lines where no bar can be drawn."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is.

What follows "; " in what is being done says how it stands, such as the best so far: it may change
while the same thing is being done.
"""

LASTING: Final = 3.0
"""Seconds after which a stage is worth a line: a study has thousands that are shorter."""
PERIOD: Final = 30.0
"""Seconds after which work that goes on says so again."""
_GLANCE: Final = 0.5
"""Seconds between two looks at the clock."""


def silent(what: str, done: int, total: int) -> None:
    """Show nothing."""


def stage_of(what: str) -> str:
    """Return what is being done, without how it stands.

    >>> stage_of("evop blocks 0.2; best 3.1416")
    'evop blocks 0.2'
    """
    return what.partition("; ")[0]


@dataclass
class Stage:
    """A part of the work that has begun: when, how much of it is done, and whether a line has
    said so.
    """

    began: float
    done: int
    total: int
    is_said: bool = False
    status: str = ""


class ProgressLines:
    """Says in lines how far work is: one for each stage that lasts 3 seconds, and one every 30
    seconds, whether there is progress or not.

    `say` gets each line, `now` is the clock in seconds.

    >>> seconds = iter([0.0, 0.0, 4.0])
    >>> lines = ProgressLines(print, lambda: next(seconds))
    >>> lines.update("wanda 0.5", 3, 30)
    >>> lines.look()
    [0:04] wanda 0.5 3/30
    """

    def __init__(
        self, say: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._now = now
        self._began = now()
        self._last_said = self._began
        self._stages: dict[str, Stage] = {}
        self._last_ended = ""
        self._lock = threading.Lock()

    def update(self, what: str, done: int, total: int) -> None:
        """Remember how far a stage is: a `Progress`."""
        name = stage_of(what)
        with self._lock:
            if name not in self._stages:
                self._stages[name] = Stage(self._now(), done, total)
            stage = self._stages[name]
            stage.done = done
            stage.total = total
            stage.status = what.removeprefix(name)
            if done >= total:
                del self._stages[name]
                self._last_ended = name

    def look(self) -> None:
        """Say a line if it is time for one."""
        with self._lock:
            now = self._now()
            is_due = now - self._last_said >= PERIOD
            for stage in self._stages.values():
                if not stage.is_said and now - stage.began >= LASTING:
                    is_due = True
            if not is_due:
                return
            self._last_said = now
            for stage in self._stages.values():
                stage.is_said = True
            self._say(f"[{_elapsed(now - self._began)}] {self._state()}")

    def _state(self) -> str:
        if self._stages:
            parts: list[str] = []
            for name, stage in self._stages.items():
                parts.append(f"{name} {stage.done:,}/{stage.total:,}{stage.status}")
            return ", ".join(parts)
        return f"still at work, after {self._last_ended}" if self._last_ended else "still at work"

    @contextmanager
    def watching(self) -> Iterator[Progress]:
        """Yield `update` while a thread looks at the clock, so that a step which reports nothing
        for long is seen to be alive too.
        """
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_GLANCE):
                self.look()

        watcher = threading.Thread(target=watch, name="calibrant-progress", daemon=True)
        watcher.start()
        try:
            yield self.update
        finally:
            ended.set()
            watcher.join()


def _elapsed(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"
