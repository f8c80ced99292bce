"""What of a study the store holds, and how what comes back is kept in it. All engines write through it, and nothing else does."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from calibrant.clock import Clock
from calibrant.compress.costs import peak_memory
from calibrant.errors import DataError
from calibrant.store import EDITS, MASK, Cell, Store
from calibrant.study.question import Event, Failed, Finished, Job, Measured, Recorded, Resolved


class Lack(NamedTuple):
    """What the store lacks of one question: its record, unless it is `recorded`, and what these evaluators measure."""

    recorded: bool
    measures: Sequence[str]

    def __bool__(self) -> bool:
        return not self.recorded or bool(self.measures)


def known(store: Store, study: str) -> list[Cell]:
    """The cells that the store tells of, if `study`, a file's text, is what was last asked of it; nothing of another, or where that can't be read."""
    try:
        return store.cells() if store.study_text() == study else []
    except DataError:
        return []


class Ledger:
    """The store of a study while an engine works. What failed before isn't asked again, unless `retry`.

    `known` are cells that are told in the store until an engine comes to them: those of the same study before it was interrupted, or none.
    """

    def __init__(self, store: Store, job: Job, retry: bool = False, known: Sequence[Cell] = ()) -> None:
        self.store, self.job, self._forgiven = store, job, store.failures() if retry else {}
        before = {cell.labels: cell for cell in known}
        self._cells = [before.get(q.cell.labels, q.cell) for q in job.questions]
        self.clock, self.computed, self.died = Clock(), 0, list[str]()
        self._found, self._own = dict[int, int](), set[str]()

    def failed(self, failed_id: str) -> bool:
        """Whether this failed, here or in another process, and isn't to be tried again."""
        reason = self.store.failure(failed_id)
        return reason is not None and reason != self._forgiven.get(failed_id)

    def passed_over(self, index: int) -> bool:
        """Whether a question failed before its run's identity could be told, and isn't asked again."""
        return self.failed(self.job.questions[index].provisional)

    def lack(self, index: int, resolved: Resolved) -> Lack:
        """What is to be computed for a question: nothing for one that wasn't chosen. What is there is entered into the grid."""
        run_id, wanted = resolved.run.id, resolved.wanted
        self._cells[index] = replace(resolved.question.cell, run=run_id, measures=dict(wanted))
        self.store.clear_failure(resolved.question.provisional)
        recorded, here = self.store.has_record(run_id), self.store.measured(run_id)
        lacking = [text for text, measure_id in wanted.items() if measure_id not in here]
        for text in set(wanted) - set(lacking):  # a kill between the finished measure and the end of its journal leaves the journal
            self.store.journal(run_id, *self.job.asks(text)).remove()
        there = {run_id} if recorded else set[str]()
        self._found[index] = len((there | {wanted[text] for text in wanted if text not in lacking}) - self._own)
        if index not in self.job.chosen or self.failed(run_id):
            return Lack(recorded=True, measures=())
        return Lack(recorded, [text for text in lacking if not self.failed(wanted[text])])

    def state(self, run_id: str) -> bytes | None:
        """What the compressed model of a recorded run can be made from without compressing it again; None if nothing was kept."""
        return next((found for name in (MASK, EDITS) if (found := self.store.file(run_id, name)) is not None), None)

    def keep(self, event: Event) -> None:
        """Write what came back. `OutputError` where the store can't take it."""
        with self.clock.phase("store"):
            match event:
                case Recorded(record, files):
                    self._own.add(self.store.add_record(record, self._affordable(files)))
                case Measured(run_id, text, measurement):
                    evaluator, data = self.job.asks(text)
                    self._own.add(self.store.add_measurement(run_id, evaluator, measurement, data))
                    self.store.journal(run_id, evaluator, data).remove()
                case Failed(failed_id, reason):
                    self.store.add_failure(failed_id, reason)
        self.computed += not isinstance(event, Failed)

    def _affordable(self, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """These files, without edits where the store would hold more of them than may be kept: such a run is compressed again if need be."""
        if EDITS not in files:
            return files
        there = sum(path.stat().st_size for path in self.store.folder.glob(f"runs/*/{EDITS}"))
        fits = there + len(files[EDITS]) <= self.job.edits_gb * 1e9
        return files if fits else {name: content for name, content in files.items() if name != EDITS}

    def write_cells(self) -> None:
        """Say in the store which grid it answers, as far as it is known."""
        self.store.write_cells(self._cells, self.job.reading, self.job.revisions, self.job.sets)

    def finished(self) -> Finished:
        """What it came to."""
        self.write_cells()
        return Finished(
            self.store.folder,
            tuple(self._cells),
            self.computed,
            sum(self._found.values()),
            self.store.failures(),
            dict(self.clock.seconds),
            peak_memory(),
            tuple(self.died),
        )
