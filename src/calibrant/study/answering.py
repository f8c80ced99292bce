"""Answering one question at a time about one open model: nothing is written here, what comes of it is handed on as events.

Work is done once: the untouched model is kept in memory and put back matrix by matrix, a calibration set is tokenized once for all methods
and sparsities, what the untouched model's matrices see of it is kept on disk for all targets, runs that look at no data (the dense model,
magnitude) are computed once whatever the number of sets, and a mask that is in the store is applied again rather than found again when only a
measurement is lacking.
"""

import errno
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from calibrant.activations import Statistic
from calibrant.clock import Clock
from calibrant.compress import compress
from calibrant.compress.costs import provenance
from calibrant.errors import DataError, OutputError
from calibrant.evaluators import Evaluator, timed
from calibrant.outcomes import Journal
from calibrant.progress import Progress, silent
from calibrant.store import EDITS, MASK, PROFILE, measurement_id
from calibrant.study.bench import Bench
from calibrant.study.question import Event, Failed, Job, Measured, Question, Recorded, Resolved
from calibrant.walk.statistics import statistics_ids

T = TypeVar("T")

Journals = Callable[[str, Mapping[str, Any], str], Journal]
"""Where the items of an unfinished measurement wait: of a run's id, a canonical evaluator, and the digest of what it measures."""


class Answering:
    """What one worker does with its open model. `statistics` is the folder of what the untouched models saw; None keeps nothing."""

    def __init__(self, bench: Bench, job: Job, statistics: Path | None, journals: Journals, progress: Progress = silent) -> None:
        self._bench, self._job, self._statistics, self._journals, self._progress = bench, job, statistics, journals, progress
        self.clock = Clock()

    def resolve(self, question: Question) -> Resolved | Failed:
        """The question with its run's identity; or why that can't be told (its tokens can't be had, …)."""
        return attempted(lambda: self._resolve(question), question.provisional, question)

    def answer(
        self, resolved: Resolved, recorded: bool, lacking: Sequence[str], state: bytes | None, kinds: tuple[type[Statistic], ...] = ()
    ) -> Iterator[Event]:
        """What the store lacks of a question: its record unless it is `recorded`, and what `lacking` evaluators measure.

        `state` is what was kept with the record to make the compressed model from, if it is there: it saves compressing again.
        `kinds` are the statistics that others will want of the same set.
        """
        if not recorded or lacking:
            made = attempted(lambda: self._made(resolved, state, kinds), resolved.run.id, resolved.question)
            if not (recorded and isinstance(made, Recorded)):
                yield from () if made is None else (made,)
            if isinstance(made, Failed):
                return
        for text in lacking:
            yield attempted(lambda text=text: self._measure(resolved, text), resolved.wanted[text], resolved.question, text)

    def _resolve(self, question: Question) -> Resolved:
        with self.clock.phase("tokenize"):
            batch = self._bench.tokens(question.calibration)
        recipe, note = self._bench.fitting(question.recipe, batch)
        run = recipe.run(self._bench.opened, batch, question.cell.data, question.cell.seed)
        wanted = {text: measurement_id(run.id, *self._job.asks(text)) for text in self._job.evaluators}
        shared = statistics_ids(self._bench.opened, batch) if question.shares and batch is not None else ()
        return Resolved(question, recipe, note, run, wanted, shared)

    def _made(self, resolved: Resolved, state: bytes | None, kinds: tuple[type[Statistic], ...]) -> Recorded | None:
        """Put the model into the run's state: from what was kept of it, or by compressing it, of which something is to be kept."""
        if state is None:
            return self._compress(resolved, kinds)
        batch = self._bench.tokens(resolved.question.calibration) if any(t.observes for t in resolved.recipe.transforms) else None
        self._bench.apply(state, resolved.recipe.transforms, batch)
        return None

    def _compress(self, resolved: Resolved, kinds: tuple[type[Statistic], ...]) -> Recorded:
        question, bench, clock = resolved.question, self._bench, Clock()

        def shown(what: str, done: int, total: int) -> None:
            del what  # the question's label says more than the method's name
            self._progress(question.label, done, total)

        with self.clock.phase("tokenize"):
            batch = bench.tokens(question.calibration)
        with clock.phase("compress"), self.clock.phase("compress"):
            bench.restore()
            folder = self._statistics if question.shares else None
            told = {"data": question.cell.data, "seed": question.cell.seed}
            record = compress(
                bench.opened, bench.view, batch, resolved.recipe, **told, progress=shown, statistics=folder, kinds=kinds, keep=bench.note
            )
        leaked = {"leaked": dict(self._job.leaked[told["data"]])} if told["data"] in self._job.leaked else {}
        record = replace(record, data_facts={**record.data_facts, **leaked}, provenance=provenance(bench.opened, clock, resolved.note))
        with self.clock.phase("store"):
            looks = resolved.recipe.looks
            mask = bench.mask() if self._job.masks and looks and not resolved.recipe.transforms else None
            edits = bench.edits() if self._job.masks and looks and mask is None else None
            found = {MASK: mask, EDITS: edits, PROFILE: bench.profile(question.calibration, self._job.quotes) if looks else None}
        return Recorded(record, {name: content for name, content in found.items() if content is not None})

    def _measure(self, resolved: Resolved, text: str) -> Measured:
        evaluator, label = self._job.evaluators[text], f"measuring {resolved.question.label}"
        place, count = list(self._job.evaluators).index(text), len(self._job.evaluators)
        self._progress(label, place, count)
        asked, digest = self._job.asks(text)
        journal = self._journals(resolved.run.id, asked, digest)
        with self.clock.phase("measure"):
            measurement = timed(evaluator, self._bench.opened, silent, self._reference(evaluator), journal)
            if evaluator.digest() != digest:
                journal.remove()
                raise DataError(f"what {text} measures has changed since the study began; ask for it again", subject=text)
        self._progress(label, place + 1, count)
        return Measured(resolved.run.id, text, measurement)

    def _reference(self, evaluator: Evaluator):
        return self._bench.reference() if evaluator.compares else None


def attempted(act: Callable[[], T], failed_id: str, question: Question, measured: str = "") -> T | Failed:
    """The engine's boundary: what `act` gives, or why it failed, since one failure must not cost the other answers."""
    try:
        return act()
    except Exception as error:
        # A place that can't be written to can't take the record of a failure either; and it is not the question's fault.
        if isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise
        return failed(failed_id, question, error, measured)


def failed(failed_id: str, question: Question, error: BaseException, measured: str = "") -> Failed:
    """What is told of a failure, with the labels of the cell that is a hole because of it."""
    cell = question.cell
    return Failed(
        failed_id,
        {
            "what": question.label + (f", measured by {measured}" if measured else ""),
            "cell": [cell.model, cell.data, cell.method, cell.target, cell.seed],
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exception(error),
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
