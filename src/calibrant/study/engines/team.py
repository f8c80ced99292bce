"""How workers share a study.

Each worker has a thread of the driver that runs the loop a single process runs: take a question, have it resolved, claim it, have it answered,
keep what comes. Claims in the store decide who works on what, between threads as between drivers, so several drivers on one store divide the
work without knowing of each other. What another is at work on is passed over, and waited for when nothing else is left.

Statistics of a set belong to one worker at a time, from the first look until its model is compressed: others take other sets meanwhile.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from calibrant.durable import put
from calibrant.errors import InputError, ModelError, OutputError, WorkerError
from calibrant.models import open_tokenizer
from calibrant.progress import Progress, silent
from calibrant.spec import identity
from calibrant.store import STATISTICS
from calibrant.study.answering import attempted, failed
from calibrant.study.engines.language import LANGUAGE
from calibrant.study.engines.worker import Hire, Worker
from calibrant.study.ledger import Lack, Ledger
from calibrant.study.question import Event, Failed, Finished, Question, Resolved
from calibrant.walk.statistics import Statistics, surplus

TWICE: Final = 2
"""How often a worker may die at the same thing before that is taken for its fault."""

GRACE: Final = 5.0
"""Seconds that threads have to notice that their workers are gone."""

WAKE: Final = 0.5
"""Seconds after which the driver looks up from waiting."""


class Tokens:
    """Calibration sets as tokens in files, each made once for all workers. The folder is the driver's own and goes when it does."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()

    def path(self, question: Question) -> Path:
        """The file that holds the tokens of the question's set."""
        assert question.calibration is not None
        path = self._folder / f"{identity([question.model, repr(question.calibration)])[7:]}.tokens"
        with self._lock:
            if not path.exists():
                tokenizer, _ = open_tokenizer(question.model)
                put(path, LANGUAGE.pack(question.calibration.tokens(tokenizer)))
        return path


class Team:
    """Workers that answer one ledger's questions. With `tokens`, sets reach them as files."""

    def __init__(self, ledger: Ledger, progress: Progress = silent, tokens: Tokens | None = None) -> None:
        self._ledger, self._job, self._told, self._tokens = ledger, ledger.job, progress, tokens
        self._left, self._later, self._at_work = set(range(len(self._job.questions))), set[int](), set[int]()
        self._sets = [repr((q.model, q.calibration)) for q in self._job.questions]
        self._gathering, self._resolved = dict[int, str](), dict[int, Resolved]()
        self._deaths, self._lock = Counter[str](), threading.RLock()
        self._workers, self._stopping = list[Worker](), False

    def work(self, hires: Sequence[Hire]) -> Finished:
        """Answer every question with a worker for each of `hires`. Whatever ends it, no worker is left behind.

        Raises `OutputError` on a full disk and, for a study of one model, why that can't be opened.
        """
        try:
            if len(hires) == 1:
                self._serve(hires[0])
            else:
                self._serve_all(hires)
        finally:
            self._stop()
        self._tell("study", len(self._job.questions), len(self._job.questions))
        return self._ledger.finished()

    def _serve_all(self, hires: Sequence[Hire]) -> None:
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        # A thread that waits for another driver's claim can't be interrupted: it must not outlive this one.
        threads = [threading.Thread(target=self._serve_quietly, args=(hire, ended), daemon=True) for hire in hires]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                if (error := _heard(ended)) is not None:
                    raise error
        finally:
            self._stop()
            until = time.monotonic() + GRACE
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))

    def _serve_quietly(self, hire: Hire, ended: "queue.SimpleQueue[BaseException | None]") -> None:
        with _Ending(ended):
            self._serve(hire)

    def _serve(self, hire: Hire) -> None:
        """One worker's share of the questions; a worker that dies is replaced if there is something left to ask."""
        worker = None
        while (index := self._next("" if worker is None else worker.model)) is not None:
            worker = worker or self._hired(hire)
            try:
                done = self._answered(index, worker)
            except WorkerError as death:
                worker.end()
                if self._stopping:
                    return
                done = self._mourned(index, worker, death)
                worker = None
            self._put_away(index, done)

    def _hired(self, hire: Hire) -> Worker:
        worker = hire(self._tell)
        with self._lock:
            self._workers.append(worker)
        if self._stopping:
            worker.end()
        return worker

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            workers = list(self._workers)
        for worker in workers:
            worker.end()

    def _next(self, model: str) -> int | None:
        """The best question for whom has `model` open: about that model, nobody else's yet, of a set that nobody is gathering statistics of."""
        with self._lock:
            if not self._left:
                return None
            busy = set(self._gathering.values())
            index = min(self._left, key=lambda i: (self._job.questions[i].model != model, i in self._later, self._sets[i] in busy, i))
            self._left.remove(index)
            if self._job.questions[index].shares:
                self._gathering[index] = self._sets[index]
            self._at_work.add(index)
            self._tell("study", len(self._job.questions) - len(self._left) - len(self._at_work), len(self._job.questions))
        return index

    def _put_away(self, index: int, done: bool) -> None:
        """Say in the store how far the grid is; what isn't done comes again, after all else."""
        with self._lock:
            self._at_work.discard(index)
            self._gathering.pop(index, None)
            if not done:
                self._left.add(index)
                self._later.add(index)
            self._trim()
            self._ledger.write_cells()

    def _answered(self, index: int, worker: Worker) -> bool:
        """Whether the question is done with; it isn't if another is at work on it, unless that was waited for."""
        question = self._job.questions[index]
        if self._ledger.passed_over(index) or not self._open(worker, question.model):
            return True
        resolved = self._resolve(question, worker)
        if isinstance(resolved, Failed):
            self._keep(resolved)
            return True
        self._resolved[index] = resolved
        with ExitStack() as claims:
            if not (lack := self._lack(index)):
                return True
            if not self._claim(claims, resolved.run.id, index):
                return False
            if not (lack := self._lack(index)):  # another has done it meanwhile
                return True
            return self._answer(index, lack, worker)

    def _answer(self, index: int, lack: Lack, worker: Worker) -> bool:
        resolved = self._resolved[index]
        state = self._ledger.state(resolved.run.id) if lack.recorded else None
        with ExitStack() as gathering:
            # Always in the same order, or two that need the same parts of mixes could wait for each other.
            if state is None and not all(self._claim(gathering, name, index) for name in sorted(resolved.statistics)):
                return False
            for event in worker.answer(resolved, lack, state, self._job.kinds(resolved.question)):
                self._keep(event)
                gathering.close()  # the model is compressed, and what follows only measures
                self._gathering.pop(index, None)
        return True

    def _open(self, worker: Worker, model: str) -> bool:
        """Whether the worker has `model` open."""
        if worker.model == model:
            return True
        try:
            worker.open(model)
        except InputError as error:
            self._give_up(model, error)
        return worker.model == model

    def _give_up(self, model: str, error: InputError) -> None:
        """Record for each question about a model why it can't be opened; where it is the only one, that is the study's error."""
        if len(self._job.models) == 1:
            raise error
        with self._lock:
            for index in self._job.of(model):
                self._left.discard(index)
                self._keep(failed(self._job.questions[index].provisional, self._job.questions[index], error))

    def _resolve(self, question: Question, worker: Worker) -> Resolved | Failed:
        tokens, path = self._tokens, None
        if (
            tokens is not None and question.calibration is not None and not question.calibration.per_draw
        ):  # else the worker has the model that chooses
            path = attempted(lambda: tokens.path(question), question.provisional, question)
        if isinstance(path, Failed):
            return path
        try:
            return worker.resolve(question, path)
        except OutputError:
            raise
        except InputError as error:  # the worker can't build what the question names: a file may be gone
            return failed(question.provisional, question, error)

    def _claim(self, held: ExitStack, name: str, index: int) -> bool:
        """Whether `name` is ours while `held` is open. For a question that was passed over before, this waits."""
        claim = self._ledger.store.claim(name, wait=True) if index in self._later else self._ledger.store.claim(name)
        if claim is not None:
            held.enter_context(claim)
        return claim is not None

    def _lack(self, index: int) -> Lack:
        with self._lock:
            return self._ledger.lack(index, self._resolved[index])

    def _keep(self, event: Event) -> None:
        with self._lock:
            self._ledger.keep(event)

    def _tell(self, what: str, done: int, total: int) -> None:
        with self._lock:
            self._told(what, done, total)

    def _mourned(self, index: int, worker: Worker, death: WorkerError) -> bool:
        """Note what a worker died at, and whether that is given up: it is when it comes twice."""
        question, resolved = self._job.questions[index], self._resolved.get(index)
        opening = worker.model != question.model
        lack = self._lack(index) if resolved is not None and not opening else Lack(False, ())
        measured = lack.measures[0] if lack.recorded and lack.measures else ""
        what = f"opening {question.model}" if opening else question.label + (f", measured by {measured}" if measured else "")
        with self._lock:
            self._deaths[f"{question.model} {what}"] += 1
            again = self._deaths[f"{question.model} {what}"] < TWICE
            self._ledger.died.append(f"{death} while at work on {what}; {'it was asked of another' if again else 'it was given up'}")
            if again:
                return False
            twice = f"{death} while at work on {what}, and so did one before it"
            if opening:
                self._give_up(question.model, ModelError(f"{twice}; give workers more memory, or take fewer", subject=question.model))
                return True
            failed_id = question.provisional if resolved is None else resolved.wanted[measured] if measured else resolved.run.id
            self._keep(failed(failed_id, question, WorkerError(twice, subject=death.subject), measured))
        return not measured  # the other measurements of the run are still to be asked for

    def _trim(self) -> None:
        """Delete statistics whose last use is over, the earliest first, until the rest fits the limit."""
        root = self._ledger.store.folder / STATISTICS
        if not root.is_dir():
            return
        sizes = {f"sha256:{p.name}": Statistics(root, p.name).bytes() for p in root.iterdir()}
        names = {self._sets[i]: resolved.statistics for i, resolved in self._resolved.items() if resolved.statistics}
        needed = {name for i in self._left | set(self._gathering) for name in names.get(self._sets[i], ())}
        used = dict.fromkeys(name for several in names.values() for name in several)
        over = [name for name in [*(n for n in sizes if n not in used), *used] if name not in needed]
        for name in surplus(sizes, over, int(self._job.limit_gb * 1e9)):
            if (claim := self._ledger.store.claim(name)) is not None:
                with claim:
                    Statistics(root, name).remove()


def _heard(ended: "queue.SimpleQueue[BaseException | None]") -> BaseException | None:
    """The next end of a thread. An interrupt that comes in the instant before a wait begins doesn't end it, so no wait is long."""
    while True:
        with suppress(queue.Empty):
            return ended.get(timeout=WAKE)


class _Ending:
    """Tells the thread that waits how another one ended."""

    def __init__(self, ended: "queue.SimpleQueue[BaseException | None]") -> None:
        self._ended = ended

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self._ended.put(error)
        return True
