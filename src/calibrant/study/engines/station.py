"""A worker's own end: the model it has open, what it answers about it, and how a process of its own is asked."""

import os
import pickle
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from calibrant.clock import Clock
from calibrant.errors import CalibrantError
from calibrant.models import open_model
from calibrant.progress import Progress
from calibrant.store import STATISTICS, Store
from calibrant.study.answering import Answering, attempted
from calibrant.study.bench import Bench
from calibrant.study.question import Event, Failed, Job, Question, Resolved


@dataclass(frozen=True)
class Told:
    """Progress."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Raised:
    """An error that no question's record can take: a model that can't be opened, a full disk."""

    error: Exception


@dataclass(frozen=True)
class Spent:
    """The last reply to everything that is asked: seconds by phase."""

    seconds: Mapping[str, float]


Reply = Told | Raised | Spent | Resolved | Event | None
"""What a worker says, piece by piece, to one thing that it is asked."""


class Station:
    """Where a worker works on a job whose store is `folder`. It writes no result there: what it finds is handed on."""

    def __init__(self, job: Job, folder: Path, progress: Progress) -> None:
        self._job, self._folder, self._progress = job, folder, progress
        self._clock, self._bench, self._answering = Clock(), None, None

    def perform(self, call: str, *given: Any) -> Iterator[Reply]:
        """What comes of `open`, `resolve` or `answer`, and in the end the seconds that it took."""
        try:
            found = getattr(self, call)(*given)
            yield from found if isinstance(found, Iterator) else (found,)
        except (CalibrantError, OSError) as error:
            yield Raised(error)
        spent = dict(self._clock.seconds)
        self._clock.seconds.clear()
        yield Spent(spent)

    def open(self, model: str) -> None:
        """Have `model` at hand, in place of the one before. `ModelError` if it can't be opened."""
        self._bench = self._answering = None  # two models may be more than there is room for
        with self._clock.phase("open"):
            self._bench = Bench(open_model(model, self._job.dtype, self._job.device))
        journals = Store(self._folder, create=False).journal
        self._answering = Answering(self._bench, self._job, self._folder / STATISTICS, journals, self._progress)
        self._answering.clock = self._clock

    def resolve(self, question: Question, tokens: Path | None) -> Resolved | Failed:
        """The question with its run's identity, its tokens read from a file if there is one."""
        assert self._answering is not None
        if tokens is not None:
            taken = attempted(lambda: self._take(question, tokens), question.provisional, question)
            if isinstance(taken, Failed):
                return taken
        return self._answering.resolve(question)

    def answer(self, resolved: Resolved, recorded: bool, lacking: tuple[str, ...], mask: bytes | None) -> Iterator[Event]:
        """What the store lacks of the question that was resolved last."""
        assert self._answering is not None
        return self._answering.answer(resolved, recorded, lacking, mask)

    def _take(self, question: Question, tokens: Path) -> None:
        assert self._bench is not None
        assert question.calibration is not None
        self._bench.hand(question.calibration, pickle.loads(tokens.read_bytes()))  # our own driver wrote it


def main() -> None:
    """A worker process: asked on standard input, answering on standard output, gone when whoever asks is gone."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, asked), daemon=True).start()
    job, folder, threads = asked.get()
    torch.set_num_threads(threads)
    station = Station(job, folder, lambda *what: say(answers, Told(*what)))
    while True:
        for reply in station.perform(*asked.get()):
            say(answers, reply)


def say(pipe: IO[bytes], what: Any) -> None:
    """Send one thing. `OSError` if nobody listens."""
    pickle.dump(what, pipe)
    pipe.flush()


def _listen(pipe: IO[bytes], asked: "queue.SimpleQueue[Any]") -> None:
    """Pass on what is asked. Where the asking process ends, however it ends, so does this one, whatever it is in the middle of."""
    while True:
        try:
            asked.put(pickle.load(pipe))
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(1)
