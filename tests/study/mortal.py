"""Workers that are in this process, do what real ones do, and die when a test wants them to."""

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from calibrant.errors import WorkerError
from calibrant.lab.study import Study, StudyResult
from calibrant.lab.study.driver import Message
from calibrant.lab.study.sending import packed
from calibrant.lab.study.workers import FORGIVEN, WORK, Summary, Worker, do_job, received, supervise
from calibrant.results import STUDY, Store
from calibrant.system.progress import silent


class Died(BaseException):
    """Nothing in a driver catches it, as nothing catches a kill."""


class Mortal(Worker):
    """Does its job within this process, and dies before anything of which `deadly(label,
    failure_id)` is true.
    """

    born = 0
    # One after the other: torch has one setting of float32 products for all threads of a process,
    # and what one of them sets would change the last bits of another one's forward.
    _turn = threading.Lock()

    def __init__(self, job: Mapping[str, Any], deadly: Callable[[str, str], bool]) -> None:
        Mortal.born += 1
        self._name, self._job, self._deadly = f"worker {Mortal.born}", job, deadly

    def messages(self) -> Iterator[Message]:
        sent: list[Message] = []  # handed on only when the work has ended

        def report(message: Message) -> None:
            sent.append(message)
            if message[0] == "doing" and self._deadly(message[1], message[2]):
                raise Died

        try:
            with Mortal._turn:
                do_job(self._job, report)
        except Died:
            yield from map(received, sent)
            raise WorkerError(f"{self._name} fell", subject=self._name) from None
        yield from map(received, sent)

    def end(self) -> None:
        pass


def worked(
    study: Study,
    folder: Path,
    deadly: Callable[[str, str], bool] = lambda *_: False,
    groups: str | Sequence[str] = (),
) -> StudyResult:
    """What two such workers make of a study, or of some of its groups."""
    Mortal.born = 0
    with Store(folder) as store, tempfile.TemporaryDirectory() as shared:
        store.write_text(STUDY, study.as_yaml())
        workload = study.workload(groups)
        summary = Summary(store, workload, silent)
        (Path(shared) / WORK).write_bytes(packed(workload))
        (Path(shared) / FORGIVEN).write_text("{}")
        job: dict[str, Any] = {"folder": str(folder), "shared": shared, "count": 2, "threads": 1}
        job["given_up"] = summary.given_up
        starts = [partial(Mortal, {**job, "place": place}, deadly) for place in range(2)]
        return supervise(summary, starts)
