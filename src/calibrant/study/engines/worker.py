"""A worker as its driver knows it: something that can be asked, and that may die."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from calibrant.activations import Statistic
from calibrant.clock import Clock
from calibrant.progress import Progress
from calibrant.study.engines.language import Raised, Reply, Spent, Told
from calibrant.study.ledger import Lack
from calibrant.study.question import Event, Failed, Question, Resolved


class Worker(ABC):
    """One worker with at most one open `model`. What is asked of one that dies, or is ended, raises `WorkerError`."""

    def __init__(self, progress: Progress, clock: Clock) -> None:
        self.model, self._progress, self._clock = "", progress, clock

    @abstractmethod
    def call(self, what: str, *given: Any) -> Iterator[Reply]:
        """All replies to `Station.perform(what, *given)`, as they come. `WorkerError` if the worker dies."""

    @abstractmethod
    def end(self) -> None:
        """Stop it at once, whatever it is doing; more than once does no harm."""

    def open(self, model: str) -> None:
        """Have it open `model`. Raises the model's own error."""
        self.model = ""
        for _ in self._asked("open", model):
            pass
        self.model = model

    def resolve(self, question: Question, tokens: Path | None) -> Resolved | Failed:
        """Have it tell the question's identity."""
        (found,) = self._asked("resolve", question, tokens)
        return found

    def answer(self, resolved: Resolved, lack: Lack, state: bytes | None, kinds: tuple[type[Statistic], ...]) -> Iterator[Event]:
        """Have it find what is lacking, and of statistics these `kinds` too. Raises `OutputError` on a full disk."""
        return self._asked("answer", resolved, lack.recorded, tuple(lack.measures), state, kinds)

    def _asked(self, what: str, *given: Any) -> Iterator[Any]:
        for reply in self.call(what, *given):
            match reply:
                case Told(label, done, total):
                    self._progress(label, done, total)
                case Spent(seconds):
                    for phase, spent in seconds.items():
                        self._clock.seconds[phase] = self._clock.seconds.get(phase, 0.0) + spent
                case Raised(error):
                    raise error
                case _:
                    yield reply


Hire = Callable[[Progress], Worker]
"""Gives a new worker, which tells its progress to the function given."""
