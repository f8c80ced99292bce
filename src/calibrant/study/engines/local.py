"""Workers on this machine: this process alone, or processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from calibrant.clock import Clock
from calibrant.data import mirror
from calibrant.errors import DataError, WorkerError
from calibrant.progress import Progress, silent
from calibrant.study.engines.language import LANGUAGE, Reply, Spent
from calibrant.study.engines.station import Station
from calibrant.study.engines.team import Team, Tokens
from calibrant.study.engines.worker import Worker
from calibrant.study.ledger import Ledger
from calibrant.study.question import Finished, Job, without_questions
from calibrant.wire import receive, send

THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Where libraries read, when they are loaded, how many threads they may take."""
OURS: Final = "from calibrant.process import own_process; own_process()"


def run(ledger: Ledger, progress: Progress = silent, workers: int = 1) -> Finished:
    """Answer every question in this process, or with `workers` of them that divide its threads."""
    folder, clock = ledger.store.folder.absolute(), ledger.clock
    if workers == 1:
        return Team(ledger, progress).work([lambda told: Here(ledger.job, folder, told, clock)])
    workers = min(workers, len(ledger.job.questions))
    threads = shared_threads(workers)
    team = Team(ledger, progress, Tokens(ledger.store.corner()))
    return team.work([lambda told: Process(ledger.job, folder, threads, told, clock)] * workers)


def shared_threads(workers: int) -> int:
    """How many threads each of several workers takes: together no more than this process would."""
    return max(1, torch.get_num_threads() // workers)


def environment(threads: int) -> dict[str, str]:
    """What a worker's environment must say beyond this process's own: threads, where modules are, and the mirror of data sets."""
    said = {name: str(threads) for name in THREADS} | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    where = mirror()
    return said if where is None else said | {"CALIBRANT_DATA": str(where)}


class Here(Worker):
    """This process itself, with all its threads."""

    def __init__(self, job: Job, folder: Path, progress: Progress, clock: Clock) -> None:
        super().__init__(progress, clock)
        self._station = Station(lambda: job, folder, progress)

    def call(self, what: str, *given: Any) -> Iterator[Reply]:
        return self._station.perform(what, *given)

    def end(self) -> None:
        pass


class Process(Worker):
    """A process of its own, asked and answering through pipes. It hears no Ctrl-C; it ends when this process ends it, or ends itself."""

    def __init__(self, job: Job, folder: Path, threads: int, progress: Progress, clock: Clock) -> None:
        super().__init__(progress, clock)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"{OURS}; from calibrant.study.engines.station import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment(threads)},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout
        with contextlib.suppress(OSError):  # it died at once, which the first question will tell
            send(self._asks, LANGUAGE.pack((LANGUAGE.pack(without_questions(job)), folder, threads)))

    def call(self, what: str, *given: Any) -> Iterator[Reply]:
        try:
            send(self._asks, LANGUAGE.pack((what, *given)))
            while not isinstance(reply := LANGUAGE.unpack(receive(self._answers)), Spent):
                yield reply
        except (EOFError, OSError, ValueError):  # a closed pipe is a ValueError
            raise WorkerError(f"process {self._process.pid} {self._how()}", subject=str(self._process.pid)) from None
        except DataError as error:
            raise WorkerError(f"process {self._process.pid} said what is no answer ({error})", subject=str(self._process.pid)) from error
        yield reply

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._asks, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def _how(self) -> str:
        """How the process ended."""
        code = self._process.wait()
        if code < 0:
            killed = " (where nobody did that: out of memory)" if -code == signal.SIGKILL else ""
            return f"was ended by {signal.Signals(-code).name}{killed}"
        return f"ended with exit code {code}"
