"""A worker's own end: the model it has open, what it answers about it, and how a process of its own is asked."""

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import torch

from calibrant.activations import Statistic
from calibrant.clock import Clock
from calibrant.errors import CalibrantError, DataError, InputError
from calibrant.foreign import brief
from calibrant.models import open_model
from calibrant.progress import Progress
from calibrant.store import STATISTICS, Store
from calibrant.study.answering import Answering, attempted
from calibrant.study.bench import Bench
from calibrant.study.engines.language import LANGUAGE, Raised, Reply, Spent, Told
from calibrant.study.question import Event, Failed, Job, Question, Resolved
from calibrant.wire import receive, send

CALLS: Final = ("open", "resolve", "answer")
"""What a worker may be asked for."""


class Station:
    """Where a worker works on a job whose store is `folder`. It writes no result there: what it finds is handed on.

    `job` is called when a model is opened: what its texts name may lack here, which is then an answer like others.
    """

    def __init__(self, job: Callable[[], Job], folder: Path, progress: Progress) -> None:
        self._job, self._folder, self._progress = job, folder, progress
        self._clock, self._bench, self._answering = Clock(), None, None

    def perform(self, call: str, *given: Any) -> Iterator[Reply]:
        """What comes of `open`, `resolve` or `answer`, and in the end the seconds that it took."""
        try:
            if call not in CALLS:
                raise DataError(f"a worker can't be asked for {brief(call)}; it can for {', '.join(CALLS)}")
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
            job = self._job()
            self._bench = Bench(open_model(model, job.dtype, job.device))
        journals = Store(self._folder, create=False).journal
        self._answering = Answering(self._bench, job, self._folder / STATISTICS, journals, self._progress)
        self._answering.clock = self._clock

    def resolve(self, question: Question, tokens: Path | None) -> Resolved | Failed:
        """The question with its run's identity, its tokens read from a file if there is one."""
        assert self._answering is not None
        if tokens is not None:
            taken = attempted(lambda: self._take(question, tokens), question.provisional, question)
            if isinstance(taken, Failed):
                return taken
        return self._answering.resolve(question)

    def answer(
        self, resolved: Resolved, recorded: bool, lacking: tuple[str, ...], state: bytes | None, kinds: tuple[type[Statistic], ...]
    ) -> Iterator[Event]:
        """What the store lacks of the question that was resolved last."""
        assert self._answering is not None
        return self._answering.answer(resolved, recorded, lacking, state, kinds)

    def _take(self, question: Question, tokens: Path) -> None:
        assert self._bench is not None
        assert question.calibration is not None
        self._bench.hand(question.calibration, LANGUAGE.unpack(tokens.read_bytes()))


def replies(station: Station, message: bytes) -> Iterator[bytes]:
    """What a station says to a message, as messages."""
    try:
        what, *given = LANGUAGE.unpack(message)
        for reply in station.perform(what, *given):
            yield LANGUAGE.pack(reply)
    except InputError as error:  # what is asked can't be built here, or what was found can't be said
        yield LANGUAGE.pack(Raised(error))
        yield LANGUAGE.pack(Spent({}))


def main() -> None:
    """A worker process: asked on standard input, answering on standard output, gone when whoever asks is gone."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    job, folder, threads = LANGUAGE.unpack(messages.get())
    torch.set_num_threads(threads)
    station = Station(lambda: LANGUAGE.unpack(job), folder, lambda *what: send(answers, LANGUAGE.pack(Told(*what))))
    while True:
        for reply in replies(station, messages.get()):
            send(answers, reply)


def _listen(pipe: IO[bytes], messages: "queue.SimpleQueue[bytes]") -> None:
    """Pass on what is asked. Where the asking process ends, however it ends, so does this one, whatever it is in the middle of."""
    while True:
        try:
            messages.put(receive(pipe))
        except (EOFError, OSError, DataError):
            os._exit(1)
