"""Workers of a study: one driver in this process, or several, each in a process of its own (`--workers N`) or in an actor of Ray.

Processes of this machine write their results themselves; an actor of Ray sends them here (`desk`).
All tell this process in messages what they do (`calibrant.study.driver.Message`). Here the messages
are added up, progress is shown, the grid is written, and a worker that dies is replaced; what it was
at, another takes over through the claims.
"""

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch

from calibrant.compress.costs import peak_memory
from calibrant.data import mirror
from calibrant.errors import CalibrantError, DataError, ModelError, SpecError, WorkerError
from calibrant.foreign import brief
from calibrant.progress import Progress, silent
from calibrant.registry import did_you_mean
from calibrant.store import STUDY, Cell, Store
from calibrant.study.desk import RemoteStore
from calibrant.study.driver import Driver, Message, Report, failure
from calibrant.study.request import StudyResult, Workload
from calibrant.study.sending import packed, unpacked
from calibrant.wire import kind_of, raised

ENGINES: Final = ("local", "ray")
TWICE: Final = 2
"""How often a worker may die at the same thing before that is taken for its fault."""
GRACE: Final = 5.0
"""Seconds that threads have to notice that their workers are gone."""
WAKE: Final = 0.5
"""Seconds after which a wait is begun anew: an interrupt that comes in the instant before a wait doesn't end it, so no wait may be long."""
THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Where libraries read, when they are loaded, how many threads they may take."""
OURS: Final = "from calibrant.process import own_process; own_process()"

WORK: Final = "work.msgpack"
FORGIVEN: Final = "forgiven.json"
"""What workers read in the folder that they share: what there is to do, and which failures are to be tried again."""

Job = Mapping[str, Any]


def check(engine: str, workers: int = 1, address: str | None = None, gpus: float = 0.0) -> None:
    """Raise `SpecError` for an engine that doesn't exist or isn't installed, or for options that it doesn't have."""
    if engine not in ENGINES:
        raise SpecError(f"there is no engine called {engine!r}{did_you_mean(engine, ENGINES)} (known: {', '.join(ENGINES)})", subject=engine)
    if workers < 1:
        raise SpecError(f"{workers} workers can't do anything; give at least 1", subject="workers")
    if gpus < 0:
        raise SpecError(f"a worker can't have {gpus} GPUs; give 0 or more", subject="gpus")
    if engine == "local" and (address is not None or gpus):
        option = f"the address {address!r}" if address is not None else f"gpus={gpus}"
        raise SpecError(f"{option} is for the engine ray, and this study runs with local; give --engine ray, or leave it out", subject="engine")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise SpecError("the engine ray needs the package ray, which isn't installed; run pip install 'calibrant[ray]'", subject="ray")


class Worker(ABC):
    """A driver somewhere else, as this process knows it."""

    @abstractmethod
    def messages(self) -> Iterator[Message]:
        """Its messages as they come, until its work is done. Raises `WorkerError` if it dies, or is ended, before that."""

    @abstractmethod
    def end(self) -> None:
        """Stop it at once, whatever it is doing; more than once does no harm."""


class Summary:
    """The messages of all drivers, added up. `known` are cells that the index has of the same study already, until a driver comes to them."""

    def __init__(self, store: Store, work: Workload, progress: Progress, known: Sequence[Cell] = ()) -> None:
        self.store, self.work, self._progress = store, work, progress
        before = {cell.labels: cell for cell in known}
        self._cells = [before.get(request.cell.labels, request.cell) for request in work.requests]
        self._there, self._computed, self._done = dict[int, list[str]](), list[str](), set[int]()
        self._seconds, self._peak, self._begun, self.died = Counter[str](), 0, False, list[str]()
        self._shortages: dict[tuple[str, str], str] = {}

    def add(self, message: Message) -> None:
        """Add one message, and show it or write the index if that is called for."""
        match message:
            case ["progress", label, done, total]:
                self._progress(label, done, total)
            case ["doing", *_]:
                if not self._begun:
                    self._progress("study", 0, len(self._cells))
                self._begun = True
            case ["cell", index, run_id, measures, there]:
                self._cells[index] = replace(self.work.requests[index].cell, run=run_id, measures=measures)
                self._there[index] = there
            case ["made", made_id]:
                self._computed.append(made_id)
            case ["done", index]:
                self._done.add(index)
                self._progress("study", len(self._done), len(self._cells))
                self.write_index()
            case ["few_tokens", model, data, sentence]:
                self._shortages.setdefault((model, data), sentence)
            case ["spent", seconds, peak]:
                self._seconds.update(seconds)
                self._peak = max(self._peak, peak)
            case _:
                raise DataError(f"{brief(message)} is no message of a worker; start the study again")

    def write_index(self) -> None:
        """Write into the store which grid it answers, as far as it is known."""
        self.store.write_cells(self._cells, self.work.reading, self.work.revisions, self.work.sets)

    def result(self) -> StudyResult:
        """What it came to."""
        self._progress("study", len(self._cells), len(self._cells))
        self.write_index()
        stored = sum(len(set(there) - set(self._computed)) for there in self._there.values())
        seconds, peak = dict(self._seconds), max(self._peak, peak_memory())
        several = len(self.work.models) > 1
        shortages: dict[str, str] = {}
        for (model, data), sentence in self._shortages.items():
            name = f"{data} for {model}" if several else data
            shortages[name] = sentence
        failures, died = self.store.failures(), tuple(self.died)
        return StudyResult(self.store.folder, tuple(self._cells), len(self._computed), stored, failures, seconds, peak, died, shortages)


def answer(
    store: Store,
    work: Workload,
    study: str,
    progress: Progress = silent,
    *,
    retry: bool = False,
    workers: int = 1,
    start: Callable[[Job], Worker] | None = None,
) -> StudyResult:
    """Answer what `store` lacks of a study, whose file's text is `study`; what failed before only with `retry`.

    One worker is this process, several are processes of their own, unless `start` starts them. Raises `OutputError` on a full disk and, for a study
    of one model, why that can't be opened.
    """
    summary, forgiven = Summary(store, work, progress, known_cells(store, study)), store.failures() if retry else {}
    store.write_text(STUDY, study)
    if workers == 1 and start is None:
        Driver(store, work, summary.add, forgiven).run()
        return summary.result()
    count, begin = min(workers, len(work.requests)), Process if start is None else start
    with tempfile.TemporaryDirectory(prefix="calibrant-") as shared:
        (Path(shared) / WORK).write_bytes(packed(work))
        (Path(shared) / FORGIVEN).write_text(json.dumps(forgiven, allow_nan=False))
        job: Job = {
            "folder": str(store.folder.absolute()),
            "shared": shared,
            "count": count,
            "threads": shared_threads(count),
        }
        starts = [partial(begin, {**job, "place": place}) for place in range(count)]
        return supervise(summary, starts)


def known_cells(store: Store, study: str) -> list[Cell]:
    """Return the cells in the store's index if `study`, a file's text, is what the store was last used for; else, or for a damaged index, none."""
    try:
        return store.cells() if store.study_text() == study else []
    except DataError:
        return []


def supervise(summary: Summary, starts: Sequence[Callable[[], Worker]]) -> StudyResult:
    """Have workers answer everything; one that dies is replaced. Whatever ends this, no worker is left behind.

    Each worker has a thread that waits for its messages; all that is done about them is done in this one.
    """
    inbox: queue.SimpleQueue[tuple[int, Message | BaseException | None]] = queue.SimpleQueue()
    workers, threads, doing, deaths = dict[int, Worker](), list[threading.Thread](), dict[int, Message](), Counter[str]()

    def listen(place: int, worker: Worker) -> None:
        try:
            for message in worker.messages():
                inbox.put((place, message))
            inbox.put((place, None))
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that started this one
            inbox.put((place, error))

    def start(place: int) -> None:
        with uninterrupted():  # between its beginning and its entry here nobody would end it
            workers[place], doing[place] = starts[place](), ["doing", "starting", "", -1, ""]
        threads.append(threading.Thread(target=listen, args=(place, workers[place]), daemon=True))
        threads[-1].start()

    try:
        for place in range(len(starts)):
            start(place)
        while workers:
            place, message = next_of(inbox)
            match message:
                case None:
                    workers.pop(place).end()
                case WorkerError():
                    workers.pop(place).end()
                    deaths[doing[place][1]] += 1
                    _give_up(summary, doing[place], message, deaths[doing[place][1]])
                    start(place)
                case BaseException():
                    raise message
                case _:
                    doing[place] = message if message[0] == "doing" else doing[place]
                    summary.add(message)
    finally:
        for worker in workers.values():
            worker.end()
        until = time.monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    return summary.result()


def _give_up(summary: Summary, doing: Message, death: WorkerError, deaths: int) -> None:
    """Note what a worker died at; where that has happened before, record it as failed, so that no other worker tries it."""
    _, what, failed_id, index, measured = doing
    again = deaths < TWICE
    summary.died.append(f"{death} while at work on {what}; {'it was tried again' if again else 'it was given up'}")
    if again:
        return
    twice, requests = f"{death} while at work on {what}, and so did one before it", summary.work.requests
    if failed_id:
        summary.store.add_failure(failed_id, failure(requests[index], WorkerError(twice, subject=death.subject), measured))
        return
    error = ModelError(f"{twice}; give workers more memory, or take fewer", subject=requests[max(0, index)].model)
    if index < 0 or len(summary.work.models) == 1:
        raise error
    for other in summary.work.about(requests[index].model):
        summary.store.add_failure(requests[other].provisional, failure(requests[other], error))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let an interrupt (Ctrl-C) that comes meanwhile have its effect afterwards. Only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if came and callable(before):
            before(*came[0])


def next_of(inbox: "queue.SimpleQueue[Any]") -> Any:
    """Return the next item, after waits that are never long."""
    while True:
        with contextlib.suppress(queue.Empty):
            return inbox.get(timeout=WAKE)


def shared_threads(workers: int) -> int:
    """Return how many threads each of several workers takes: together no more than this process would."""
    return max(1, torch.get_num_threads() // workers)


def environment(threads: int) -> dict[str, str]:
    """Return what a worker's environment must say beyond this process's own: threads, where modules are, and the mirror of data sets."""
    variables = {name: str(threads) for name in THREADS} | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return variables if (where := mirror()) is None else variables | {"CALIBRANT_DATA": str(where)}


class Process(Worker):
    """A process of its own, which reads its job from a pipe and writes messages into another, a line of JSON each.

    It hears no Ctrl-C; it ends when this process ends it, or ends itself.
    """

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"{OURS}; from calibrant.study.workers import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment(job["threads"])},
            start_new_session=True,
        )
        self.number = self._process.pid
        with contextlib.suppress(OSError):  # it died at once, as its messages will show
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(job, allow_nan=False).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self) -> Iterator[Message]:
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                message = json.loads(line)
                if message == ["end"]:
                    return
                yield received(message)
        except (OSError, ValueError) as error:
            if not isinstance(error, json.JSONDecodeError | UnicodeDecodeError):  # a closed pipe is a ValueError of another kind
                raise WorkerError(f"process {self.number} {self._ending()}", subject=str(self.number)) from None
            raise WorkerError(f"process {self.number} wrote what is no message ({error})", subject=str(self.number)) from error
        raise WorkerError(f"process {self.number} {self._ending()}", subject=str(self.number))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, AttributeError):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]

    def _ending(self) -> str:
        """How the process ended."""
        code = self._process.wait()
        if code < 0:
            killed = " (where nobody did that: out of memory)" if -code == signal.SIGKILL else ""
            return f"was ended by {signal.Signals(-code).name}{killed}"
        return f"ended with exit code {code}"


def received(message: Message) -> Message:
    """Return a message as it is, unless it is an error that ended a worker's work, which is raised here."""
    if message[:1] != ["error"]:
        return message
    _, kind, text, subject, number, file = message
    raise raised(kind, text, subject) or (OSError(text) if number is None else OSError(number, text, file))


def work(job: Job, report: Report, store: Store | RemoteStore | None = None) -> None:
    """Do a worker's share of a job, from its first message to the last: the error that ended it, if
    one did, or nothing. Without a `store` it is the one in the job's folder."""
    torch.set_num_threads(job["threads"])
    shared = Path(job["shared"])
    place = job["place"], job["count"]
    try:
        todo = unpacked((shared / WORK).read_bytes())
        forgiven = json.loads((shared / FORGIVEN).read_text())
        if store is None:
            with Store(job["folder"]) as opened:
                Driver(opened, todo, report, forgiven, shared, *place).run()
        else:
            Driver(store, todo, report, forgiven, shared, *place).run()
    except (CalibrantError, OSError) as error:
        report(["error", kind_of(error), *_described(error)])


def _described(error: CalibrantError | OSError) -> list[Any]:
    """The text of an error, its subject and, of an error of the system, its number and file."""
    if isinstance(error, CalibrantError):
        return [str(error), error.subject, None, None]
    if error.errno is None:
        return [str(error), "", None, None]
    file = None if error.filename is None else str(error.filename)
    return [error.strerror or str(error), "", error.errno, file]


def main() -> None:
    """Be a worker process: the job on standard input, messages on standard output, gone when the process that started it is gone."""
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the messages
    lock = threading.Lock()

    def report(message: Message) -> None:
        with lock:
            messages.write(json.dumps(message, allow_nan=False).encode() + b"\n")
            messages.flush()

    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(job, report)
    report(["end"])


def _end_with_parent() -> None:
    """Wait for the end of the pipe, which comes with that of the process that started this one, however it ends; then so does this one."""
    sys.stdin.buffer.read()
    os._exit(1)
