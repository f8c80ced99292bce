"""Workers of a study: one driver in this process, or several, each in a process of its own
(`--workers N`) or in an actor of Ray.

Processes of this machine write their results themselves; an actor of Ray sends them here (`Desk`).
All tell this process in messages what they do (`calibrant.lab.study.driver.Message`). Here the
messages are added up, progress is shown, the grid is written, and a worker that dies is replaced;
what it was at, another takes over through the claims.
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
from io import BufferedWriter
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Final

import torch

from calibrant.compress.costs import peak_memory
from calibrant.data import mirror
from calibrant.errors import CalibrantError, DataError, ModelError, SpecError, WorkerError
from calibrant.lab.study.driver import WAITING, Driver, Message, Report, failure
from calibrant.lab.study.known import known_cells, unanswered
from calibrant.lab.study.request import StudyResult, Workload
from calibrant.lab.study.sending import RemoteStore, packed, unpacked
from calibrant.results import STUDY, Cell, Store
from calibrant.spec.foreign import brief, did_you_mean
from calibrant.system.progress import Progress, silent
from calibrant.system.wire import kind_of, raised

ENGINES: Final = ("local", "ray")
DEATHS_ALLOWED: Final = 2
"""How often a worker may die at the same thing before that is taken for its fault."""
IDLE_DEATHS: Final = 3
"""How often workers that only wait may die, with nothing new computed in between, before no other
takes the place of one."""
GRACE: Final = 5.0
"""Seconds that threads have to notice that their workers are gone."""
WAKE: Final = 0.5
"""Seconds after which a wait is begun anew.

An interrupt that comes in the instant before a wait doesn't end it, so no wait may be long.
"""
SELDOM: Final = 3.0
"""Seconds from one index to the next at least where nothing new was computed."""
PAUSES: Final = 20
"""Times as long as it took to write the index until it is written again: it is written whole, so
with each run of a large study it would take longer than the runs."""
LONGEST: Final = 60.0
"""Seconds from one index to the next at most where there is something to write."""
THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Where libraries read, when they are loaded, how many threads they may take."""
BEGINNING: Final = "from calibrant.system.process import own_process; own_process()"
"""What a worker's process does before it is a worker."""

WORK: Final = "work.msgpack"
FORGIVEN: Final = "forgiven.json"
"""What workers read in the folder that they share: what there is to do, and which failures are to
be tried again."""

Job = Mapping[str, Any]


def check(engine: str, workers: int = 1, address: str | None = None, gpus: float = 0.0) -> None:
    """Raise `SpecError` for what can't be run.

    That is an engine that doesn't exist or isn't installed, or options that it doesn't have.
    """
    if engine not in ENGINES:
        near = did_you_mean(engine, ENGINES)
        message = f"there is no engine called {engine!r}{near} (known: {', '.join(ENGINES)})"
        raise SpecError(message, subject=engine)
    if workers < 1:
        message = f"{workers} workers can't do anything; give at least 1"
        raise SpecError(message, subject="workers")
    if gpus < 0:
        raise SpecError(f"a worker can't have {gpus} GPUs; give 0 or more", subject="gpus")
    if engine == "local" and (address is not None or gpus):
        option = f"gpus={gpus}"
        if address is not None:
            option = f"the address {address!r}"
        raise SpecError(
            f"{option} is for the engine ray, and this study runs with local; "
            "give --engine ray, or leave it out",
            subject="engine",
        )
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise SpecError(
            "the engine ray needs the package ray, which isn't installed; "
            "run pip install 'calibrant[ray]'",
            subject="ray",
        )


class Worker(ABC):
    """A driver somewhere else, as this process knows it."""

    @abstractmethod
    def messages(self) -> Iterator[Message]:
        """Yield its messages as they come, until its work is done.

        Raises `WorkerError` if it dies, or is ended, before that.
        """

    @abstractmethod
    def end(self) -> None:
        """Stop it at once, whatever it is doing; more than once does no harm."""


class Summary:
    """The messages of all drivers, added up.

    `known` are cells that the index has of these runs already, by the numbers of their requests,
    until a driver comes to them.
    """

    def __init__(
        self,
        store: Store,
        work: Workload,
        progress: Progress,
        known: Mapping[int, Cell] = MappingProxyType({}),
    ) -> None:
        self.store = store
        self.work = work
        self.died: list[str] = []
        self.given_up: list[str] = []
        """What workers died at that is told to those that begin later, as `Driver` takes it."""
        self._progress = progress
        self._cells: list[Cell] = []
        for number, request in enumerate(work.requests):
            self._cells.append(known.get(number, request.cell))
        self._written = -SELDOM
        self._writing = 0.0
        """The seconds that it took to write the index last."""
        self._changed = True
        """Whether the index isn't as it was written last."""
        self._new = False
        """Whether anything was computed since."""
        self._owed = False
        """Whether the index lacks a request that is done, since it wasn't time to write it."""
        self._stored: dict[int, list[str]] = {}
        """What the store had of each request, by its number."""
        self._computed: list[str] = []
        self._done: set[int] = set()
        self._seconds = Counter[str]()
        self._peak = 0
        self._begun = False
        self._shortages: dict[tuple[str, str], str] = {}

    def add(self, message: Message) -> None:
        """Add one message, and show it or write the index if that is called for."""
        match message:
            case ["progress", label, done, total]:
                self._progress(label, done, total)
            case ["doing", *_]:
                if not self._begun:
                    self._progress("study", 0, len(self.work.chosen))
                self._begun = True
            case ["cell", index, run_id, measures, stored]:
                cell = replace(self._cells[index], run=run_id, measures=measures)
                self._changed |= cell != self._cells[index]
                self._cells[index] = cell
                self._stored[index] = stored
            case ["made", made_id]:
                self._computed.append(made_id)
                self._new = True
            case ["done", index]:
                # Drivers also come to what wasn't chosen, and find nothing to do.
                if index in self.work.chosen:
                    self._done.add(index)
                    self._progress("study", len(self._done), len(self.work.chosen))
                self._owed = self._changed
                if self._owed and self._is_time_to_write():
                    self.write_index()
            case ["few_tokens", model, data, sentence]:
                self._shortages.setdefault((model, data), sentence)
            case ["spent", seconds, peak]:
                self._seconds.update(seconds)
                self._peak = max(self._peak, peak)
            case _:
                raise DataError(
                    f"{brief(message)} is no message of a worker; start the study again"
                )

    def is_written(self) -> bool:
        """Return whether the index has these cells."""
        with contextlib.suppress(DataError):  # a damaged index is written anew
            return list(self.store.index().cells) == self._cells
        return False

    def write_index(self) -> None:
        """Write into the store which grid it answers, as far as it is known."""
        work = self.work
        began = time.monotonic()
        self.store.write_cells(self._cells, work.reading, work.revisions, work.sets)
        self._written = time.monotonic()
        self._writing = self._written - began
        self._changed = False
        self._new = False
        self._owed = False

    def _is_time_to_write(self) -> bool:
        """Whether the index was written so long ago that it may be written again."""
        pause = min(PAUSES * self._writing, LONGEST)
        if not self._new:
            pause = max(pause, SELDOM)
        return time.monotonic() - self._written >= pause

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Have the index tell of all that is done also where the study is broken off meanwhile."""
        try:
            yield
        except BaseException:
            if self._owed:
                # Where it can't be written either, what broke the study off is still what to tell.
                with contextlib.suppress(CalibrantError):
                    self.write_index()
            raise

    @property
    def complete(self) -> bool:
        """Whether everything that was chosen is done."""
        return self._done == self.work.chosen

    def result(self) -> StudyResult:
        """Return what the study came to."""
        self._progress("study", len(self.work.chosen), len(self.work.chosen))
        self.write_index()
        self._clear_answered()
        computed = set(self._computed)
        found = 0
        for stored in self._stored.values():
            found += len(set(stored) - computed)
        several_models = len(self.work.models) > 1
        shortages: dict[str, str] = {}
        for (model, data), sentence in self._shortages.items():
            name = data
            if several_models:
                name = f"{data} for {model}"
            shortages[name] = sentence
        return StudyResult(
            folder=self.store.folder,
            cells=tuple(self._cells),
            computed=len(self._computed),
            found=found,
            failures=self._failures(),
            seconds=dict(self._seconds),
            peak_memory_bytes=max(self._peak, peak_memory()),
            died=tuple(self.died),
            few_tokens=shortages,
        )

    def _clear_answered(self) -> None:
        """Forget failures of opening and of tokens of what is whole by now.

        A worker may record that it can't open a model while another that has it open goes on.
        """
        failed = self.store.failures().keys()
        numbers: list[int] = []
        for number in self.work.chosen:
            if self.work.provisional(self.work.requests[number]) in failed:
                numbers.append(number)
        for number in set(numbers).difference(unanswered(self.store, self.work, numbers)):
            self.store.clear_failure(self.work.provisional(self.work.requests[number]))

    def _failures(self) -> dict[str, Mapping[str, Any]]:
        """What failed of this study: the store may know of failures of what it asks no more."""
        asked = {self.work.provisional(request) for request in self.work.requests}
        for cell in self._cells:
            asked.update((cell.run, *cell.measures.values()))
        failures = self.store.failures()
        return {failed_id: why for failed_id, why in failures.items() if failed_id in asked}


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
    """Answer what `store` lacks of a study, whose file's text is `study`.

    What failed before is tried again only with `retry`. One worker is this process, several are
    processes of their own, unless `start` starts them. Raises `OutputError` on a full disk and, for
    a study of one model, why that can't be opened.
    """
    known = known_cells(store, work, range(len(work.requests)))
    summary = Summary(store, work, progress, known)
    forgiven: dict[str, Mapping[str, Any]] = {}
    if retry:
        forgiven = store.failures()
    # First, so that the new text never stands beside another study's numbers.
    if not summary.is_written():
        summary.write_index()
    store.write_text(STUDY, study)
    if workers == 1 and start is None:
        with summary.kept():
            Driver(store, work, summary.add, forgiven).run()
        return summary.result()
    count = min(workers, len(work.requests))
    begin = start or Process
    with tempfile.TemporaryDirectory(prefix="calibrant-") as shared:
        (Path(shared) / WORK).write_bytes(packed(work))
        (Path(shared) / FORGIVEN).write_text(json.dumps(forgiven, allow_nan=False))
        job: Job = {
            # Workers may change their working folder.
            "folder": str(store.folder.absolute()),
            "shared": shared,
            "count": count,
            "threads": shared_threads(count),
            # Read when a worker begins: one that takes the place of another is told of its death.
            "given_up": summary.given_up,
        }
        starts = [partial(begin, {**job, "place": place}) for place in range(count)]
        return supervise(summary, starts)


STARTING: Final[Message] = ["doing", "starting", "", -1, ""]
"""What a worker is doing before it has said anything."""


class _Crew:
    """Workers in their places, with what each of them is doing. Each has a thread that waits for
    its messages.
    """

    def __init__(self, starts: Sequence[Callable[[], Worker]]) -> None:
        self._starts = starts
        self._inbox = queue.SimpleQueue[tuple[int, Message | BaseException | None]]()
        self._threads: list[threading.Thread] = []
        self.workers: dict[int, Worker] = {}
        self.doing: dict[int, Message] = {}

    def start(self, place: int) -> None:
        """Start a worker in a place."""
        with uninterrupted():  # between its beginning and its entry here nobody would end it
            worker = self._starts[place]()
            self.workers[place] = worker
        self.doing[place] = STARTING
        thread = threading.Thread(target=self._listen, args=(place, worker), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self, place: int, worker: Worker) -> None:
        try:
            for message in worker.messages():
                self._inbox.put((place, message))
            self._inbox.put((place, None))
        except BaseException as error:  # noqa: BLE001  # raised again where this was started
            self._inbox.put((place, error))

    def messages(self) -> Iterator[tuple[int, Message | BaseException | None]]:
        """Yield what comes from each place while there is a worker: messages, then None, or the
        error that ended it.
        """
        while self.workers:
            yield next_of(self._inbox)

    def close(self) -> None:
        """End all workers, and wait a little for their threads."""
        for worker in self.workers.values():
            worker.end()
        deadline = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def supervise(summary: Summary, starts: Sequence[Callable[[], Worker]]) -> StudyResult:
    """Have workers answer everything; one that dies is replaced.

    Whatever ends this, no worker is left behind. Each worker has a thread that waits for its
    messages; all that is done about them is done in this one.
    """
    deaths = Counter[str]()
    with summary.kept(), contextlib.closing(_Crew(starts)) as crew:
        for place in range(len(starts)):
            crew.start(place)
        for place, message in crew.messages():
            doing = crew.doing[place]
            match message:
                case None:
                    crew.workers.pop(place).end()
                case WorkerError():
                    crew.workers.pop(place).end()
                    _replace_worker(summary, crew, place, message, deaths)
                case BaseException():
                    raise message
                case _:
                    if message[0] == "doing":
                        # One that came so far shows that starting isn't what they die at.
                        if doing is STARTING:
                            deaths.pop(_cause(STARTING), None)
                        crew.doing[place] = message
                    # What was waited for came. That another request is done says nothing: a new
                    # worker also says it of all that it finds in the store.
                    if message[0] == "made":
                        deaths.pop(_cause(WAITING), None)
                    summary.add(message)
    return summary.result()


def _replace_worker(
    summary: Summary, crew: _Crew, place: int, death: WorkerError, deaths: Counter[str]
) -> None:
    """Note the death of a worker, count it, and start another in its place, unless too many have
    died while they waited.

    Raises the `WorkerError` that no worker is left where something is still to do.
    """
    doing = crew.doing[place]
    cause = _cause(doing)
    deaths[cause] += 1
    if doing != WAITING:
        _give_up(summary, doing, death, deaths[cause])
        crew.start(place)
    elif _note_idle_death(summary, death, deaths[cause]):
        crew.start(place)
    elif not crew.workers and not summary.complete:
        raise _none_left(death)


def _cause(doing: Message) -> str:
    """What deaths are counted by: an id where there is one, since labels don't say everything."""
    _, label, failed_id, *_ = doing
    return failed_id or label


def _note_idle_death(summary: Summary, death: WorkerError, deaths: int) -> bool:
    """Note the death of a worker that only waited, and so died at nothing; return whether another
    is to take its place.
    """
    happened = f"{death} while it waited for others"
    replaced = deaths <= IDLE_DEATHS
    if replaced:
        summary.died.append(f"{happened}; another took its place")
    else:
        summary.died.append(f"{happened}, and so did {deaths - 1} before it; none took its place")
    return replaced


def _none_left(death: WorkerError) -> WorkerError:
    """The error that ends a study of which the last worker died while it waited."""
    return WorkerError(
        f"{death} while it waited for others, as others had before it, and no worker is left; "
        "give workers more memory, or take fewer, and run the study again",
        subject=death.subject,
    )


def _give_up(summary: Summary, doing: Message, death: WorkerError, deaths: int) -> None:
    """Note what a worker died at.

    Where that has happened before, record it as failed, so that no other worker tries it.
    """
    _, label, failed_id, index, measured = doing
    happened = f"{death} while at work on {label}"
    if deaths < DEATHS_ALLOWED:
        summary.died.append(f"{happened}; it was tried again")
        return
    summary.died.append(f"{happened}; it was given up")
    twice = f"{happened}, and so did one before it"
    work = summary.work
    requests = work.requests
    # Before its id is known, a run has a failure only if it is asked for and isn't there. Workers
    # mustn't go on dying at the others either.
    summary.given_up.append(_cause(doing))
    if failed_id:
        failed = [index]
        if failed_id == work.provisional(requests[index]):
            failed = unanswered(summary.store, work, [index])
        error = WorkerError(twice, subject=death.subject)
        for number in failed:
            summary.store.add_failure(failed_id, failure(requests[number], error, measured))
        return
    # Without an id it was opening a model, or hadn't even begun.
    model = requests[max(0, index)].model
    model_error = ModelError(f"{twice}; give workers more memory, or take fewer", subject=model)
    if index < 0 or len(work.models) == 1:
        raise model_error
    for number in unanswered(summary.store, work, work.about(model)):
        request = requests[number]
        reason = failure(request, model_error, of_opening=True)
        summary.store.add_failure(work.provisional(request), reason)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let an interrupt (Ctrl-C) that comes meanwhile have its effect afterwards.

    Only the main thread gets any.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append((number, frame))

    # None stands for a handler that isn't Python's, which can't be set again.
    previous = signal.signal(signal.SIGINT, note) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if interrupts:
            signal.raise_signal(signal.SIGINT)


def next_of(inbox: "queue.SimpleQueue[Any]") -> Any:
    """Return the next item, after waits that are never long."""
    while True:
        with contextlib.suppress(queue.Empty):
            return inbox.get(timeout=WAKE)


def shared_threads(workers: int) -> int:
    """Return how many threads each of several workers takes.

    Together they are no more than this process would take.
    """
    return max(1, torch.get_num_threads() // workers)


def environment(threads: int) -> dict[str, str]:
    """Return what a worker's environment must say beyond this process's own.

    That is threads, where modules are, and the mirror of data sets.
    """
    variables: dict[str, str] = dict.fromkeys(THREADS, str(threads))
    places = [path or str(Path.cwd()) for path in sys.path]
    variables["PYTHONPATH"] = os.pathsep.join(places)
    data = mirror()
    if data is not None:
        variables["CALIBRANT_DATA"] = str(data)
    return variables


class Process(Worker):
    """A process of its own: it reads its job from a pipe and writes messages into another.

    A message is a line of JSON. The process hears no Ctrl-C; it ends when this process ends it, or
    ends itself.
    """

    def __init__(self, job: Job) -> None:
        program = f"{BEGINNING}; from calibrant.lab.study.workers import main; main()"
        self._process = subprocess.Popen(
            # With -P its path is what PYTHONPATH says, which is that of this process.
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment(job["threads"])},
            start_new_session=True,
        )
        self.number = self._process.pid
        line = json.dumps(job, allow_nan=False).encode() + b"\n"
        with contextlib.suppress(OSError):  # it died at once, as its messages will show
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def messages(self) -> Iterator[Message]:
        """Yield its messages. Raises the error that ended its work, `WorkerError` if it died."""
        while line := self._line():
            message = self._decoded(line)
            if message == ["end"]:
                return
            yield received(message)
        raise WorkerError(f"process {self.number} {self._ending()}", subject=str(self.number))

    def end(self) -> None:
        """Stop it and what it has started."""
        if self._process.returncode is None:
            # Its number is that of its group too, and nobody else's until it was waited for.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.number, signal.SIGKILL)
        # Waited for, or its number would stay taken.
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, AttributeError):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]

    def _line(self) -> bytes:
        """The next whole line; none after the last, of a closed pipe, or if it died at writing."""
        line = b""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return b""
        return line

    def _decoded(self, line: bytes) -> Message:
        """The message in a line. Raises `WorkerError` where there is none."""
        try:
            message = json.loads(line)
            wrong = brief(message)
        except (ValueError, RecursionError) as error:
            message = None
            wrong = str(error)
        if isinstance(message, list):
            return message
        raise WorkerError(
            f"process {self.number} wrote what is no message ({wrong})", subject=str(self.number)
        )

    def _ending(self) -> str:
        """How the process ended."""
        code = self._process.wait()
        if code >= 0:
            return f"ended with exit code {code}"
        if -code == signal.SIGKILL:
            return "was ended by SIGKILL (where nobody did that: out of memory)"
        return f"was ended by {_name_of_signal(-code)}"


def _name_of_signal(number: int) -> str:
    """What a signal is called; those of real time have numbers alone."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def received(message: Message) -> Message:
    """Return a message, unless it is an error that ended a worker's work, which is raised here."""
    match message:
        case ["error", kind, text, subject, number, file]:
            error = raised(kind, text, subject)
            if error is not None:
                raise error
            if number is None:
                raise OSError(text)
            raise OSError(number, text, file)
        case _:
            return message


def do_job(job: Job, report: Report, store: Store | RemoteStore | None = None) -> None:
    """Do a worker's share of a job. An error that ends it is reported as the last message.

    Without a `store`, open the one in the job's folder.
    """
    # Several workers share the processors of one machine.
    torch.set_num_threads(job["threads"])
    shared = Path(job["shared"])
    try:
        workload = unpacked((shared / WORK).read_bytes())
        forgiven = json.loads((shared / FORGIVEN).read_text())
        with contextlib.ExitStack() as opened:
            if store is None:
                store = opened.enter_context(Store(job["folder"]))
            place = job["place"]
            given_up = job.get("given_up", ())
            driver = Driver(
                store, workload, report, forgiven, shared, place, job["count"], given_up
            )
            driver.run()
    except (CalibrantError, OSError) as error:
        report(["error", kind_of(error), *_described(error)])


def _described(error: CalibrantError | OSError) -> list[Any]:
    """The text of an error, its subject and, of an error of the system, its number and file."""
    if isinstance(error, CalibrantError):
        return [str(error), error.subject, None, None]
    if error.errno is None:
        return [str(error), "", None, None]
    file: str | None = None
    if error.filename is not None:
        file = str(error.filename)
    return [error.strerror or str(error), "", error.errno, file]


def main() -> None:
    """Be a worker process: the job on standard input, messages on standard output.

    It is gone when the process that started it is gone.
    """
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the messages
    report = reporting(messages)
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    do_job(job, report)
    report(["end"])


def reporting(pipe: BufferedWriter) -> Report:
    """Return what writes messages into a pipe.

    It ends this process where nobody reads them any more: that is no failure of a run.
    """
    lock = threading.Lock()

    def report(message: Message) -> None:
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        try:
            with lock:
                pipe.write(line)
                pipe.flush()
        except BrokenPipeError:
            os._exit(1)

    return report


def _end_with_parent() -> None:
    """Wait until the process that started this one is gone, then end this one."""
    while os.read(0, 1):
        pass
    os._exit(1)
