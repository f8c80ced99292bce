"""Time that passes only where a test says so."""

from collections.abc import Callable
from typing import Any


class Clock:
    """Gives the seconds that were put on it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def slowed(self, work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """The same work, which takes so many seconds."""

        def slow(*given: Any, **named: Any) -> Any:
            self.seconds += seconds
            return work(*given, **named)

        return slow
