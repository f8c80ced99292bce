"""Answering a study's questions on this machine, one after another.

Work is done once: the untouched model is kept in memory and put back matrix by matrix, a calibration set is tokenized once for all methods
and sparsities, runs that look at no data (the dense model, magnitude) are computed once whatever the number of sets, and a mask that is in
the store is applied again rather than found again when only a measurement is lacking.
"""

import copy
import io
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from calibrant.compress import Asked, Clock, compress, fitting, peak_memory, provenance
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import InputError, OutputError
from calibrant.evaluators import Evaluator, timed
from calibrant.models import Opened, check_finite, open_model, view
from calibrant.progress import Progress, silent
from calibrant.spec import canonical, identity
from calibrant.store import Cell, Run, Store, measurement_id

MASK = "mask.npz"
"""The kept weights of a run, a bit each, by number of the model's matrix; only where every kept weight is the untouched model's."""


@dataclass(frozen=True)
class Question:
    """One cell of the grid before its answer is known; `calibration` is None for what looks at no data."""

    model: str
    calibration: CalibrationSet | None
    asked: Asked

    @property
    def cell(self) -> Cell:
        """The cell's labels."""
        data, seed = ("", 0) if self.calibration is None else (str(self.calibration), self.calibration.seed)
        return Cell(self.model, data, str(self.asked.method), str(self.asked.target), seed, "")

    @property
    def label(self) -> str:
        """What progress and failures call it."""
        cell = self.cell
        what = "the dense model" if cell.method == "none" else f"{cell.method} {cell.target}"
        return f"{what} on {cell.data}" + (f", draw {cell.seed}" if cell.seed else "") if cell.data else what


@dataclass(frozen=True)
class Finished:
    """What a study came to: its grid with the ids, how many runs and measurements were computed and found, failures, seconds by phase."""

    folder: Path
    cells: tuple[Cell, ...]
    computed: int
    found: int
    failures: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    peak_memory_bytes: int


class Bench:
    """One open model, with what it was before anything was done to it, and the tokens that were last asked for."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.view = opened, view(opened.model)
        check_finite(self.view)
        self._pristine = self.view.snapshot()
        self._tokens: tuple[str, TokenBatch] | None = None
        self._reference: PreTrainedModel | None = None

    def tokens(self, calibration: CalibrationSet | None) -> TokenBatch | None:
        """The set as tokens; kept until another set is asked for."""
        if calibration is None:
            return None
        if self._tokens is None or self._tokens[0] != repr(calibration):
            self._tokens = repr(calibration), calibration.tokens(self.opened.tokenizer)
        return self._tokens[1]

    def restore(self) -> None:
        """Make the model what it was."""
        self.view.restore(self._pristine)

    def reference(self) -> PreTrainedModel:
        """A copy of the untouched model, for measures that compare with it; made when it is first asked for."""
        if self._reference is None:
            self._reference = copy.deepcopy(self.opened.model)
            view(self._reference).restore(self._pristine)
        return self._reference

    def mask(self) -> bytes | None:
        """The nonzero weights as bits; None if some nonzero weight isn't the untouched model's, so that bits can't bring it back."""
        bits: dict[str, np.ndarray] = {}
        for index, weight in enumerate(self.view.weights):
            kept, pristine = weight.stored != 0, self._pristine[weight.name]
            if not torch.equal(torch.where(kept, pristine, torch.zeros_like(pristine)), weight.stored):
                return None
            bits[str(index)] = np.packbits(kept.cpu().numpy())
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **bits)
        return file.getvalue()

    def apply(self, mask: bytes) -> None:
        """Put the model into the state that `mask` was taken from."""
        self.restore()
        with np.load(io.BytesIO(mask), allow_pickle=False) as bits, torch.no_grad():
            for index, weight in enumerate(self.view.weights):
                kept = np.unpackbits(bits[str(index)], count=weight.stored.numel()).astype(bool).reshape(tuple(weight.stored.shape))
                weight.stored.masked_fill_(~torch.from_numpy(kept).to(weight.stored.device), 0)


class Job:
    """One pass over a study's questions."""

    def __init__(
        self,
        store: Store,
        questions: Sequence[Question],
        evaluators: Mapping[str, Evaluator],
        dtype: str,
        device: str,
        masks: bool,
        leaked: Mapping[str, Mapping[str, int]],
        progress: Progress,
    ) -> None:
        self._store, self._questions, self._evaluators, self._progress = store, questions, evaluators, progress
        self._dtype, self._device, self._masks, self._leaked = dtype, device, masks, leaked
        self._cells = [q.cell for q in questions]
        self._clock, self._computed, self._found = Clock(), 0, 0

    def run(self) -> Finished:
        """Answer every question, model by model."""
        models = list(dict.fromkeys(q.model for q in self._questions))
        for model in models:
            bench = self._open(model, alone=len(models) == 1)
            for index, question in enumerate(self._questions):
                if question.model == model and bench is not None:
                    self._progress("study", index, len(self._questions))
                    with self._recording(question, index=index):
                        self._answer(index, question, bench)
                    self._store.write_cells(self._cells)
        self._progress("study", len(self._questions), len(self._questions))
        return Finished(
            self._store.folder,
            tuple(self._cells),
            self._computed,
            self._found,
            self._store.failures(),
            dict(self._clock.seconds),
            peak_memory(),
        )

    def _open(self, model: str, alone: bool) -> Bench | None:
        """The model, ready; where it is one of several and can't be opened, the reason is recorded for each of its questions."""
        try:
            with self._clock.phase("open"):
                return Bench(open_model(model, self._dtype, self._device))
        except InputError as error:
            if alone:
                raise
            for question in self._questions:
                if question.model == model:
                    self._failed(_provisional(question), question, error)
            return None

    @contextmanager
    def _recording(self, question: Question, index: int = -1, measure_id: str = "", measured: str = "") -> Iterator[None]:
        """The engine's boundary: what fails inside is recorded, and the next question is asked."""
        try:
            yield
        except OutputError:
            raise  # a place that can't be written to can't take the record of a failure either
        except Exception as error:  # noqa: BLE001  # one failure must not cost the other answers
            self._failed(measure_id or self._cells[index].run or _provisional(question), question, error, measured)

    def _failed(self, failed_id: str, question: Question, error: Exception, measured: str = "") -> None:
        reason = {
            "what": question.label + (f", measured by {measured}" if measured else ""),
            "cell": [question.cell.model, question.cell.data, question.cell.method, question.cell.target, question.cell.seed],
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exception(error),
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self._store.add_failure(failed_id, reason)

    def _answer(self, index: int, question: Question, bench: Bench) -> None:
        with self._clock.phase("tokenize"):
            batch = bench.tokens(question.calibration)
        fits, note = fitting(question.asked.propagate, bench.view, batch, bench.opened.dtype)
        asked = replace(question.asked, propagate=fits)
        run = asked.run(bench.opened, batch, question.cell.data, question.cell.seed)
        wanted = {text: measurement_id(run.id, canonical(e)) for text, e in self._evaluators.items()}
        self._cells[index] = replace(question.cell, run=run.id, measures=wanted)
        self._store.clear_failure(_provisional(question))
        recorded, here = self._store.record(run.id) is not None, self._store.evaluators(run.id)
        lacking = [text for text, measure_id in wanted.items() if measure_id not in here]
        self._found += recorded + len(wanted) - len(lacking)
        for text in set(wanted) - set(lacking):  # a kill between the finished measure and the end of its journal leaves the journal
            self._store.journal(run.id, canonical(self._evaluators[text])).remove()
        if not recorded or (lacking and not self._reapply(run, bench)):
            self._compress(question, asked, batch, bench, note)
        for text in lacking:
            with self._recording(question, measure_id=wanted[text], measured=text):
                self._measure(question, run, text, bench)

    def _reapply(self, run: Run, bench: Bench) -> bool:
        """Whether the model could be put into the run's state from what the store holds."""
        kept = self._store.file(run.id, MASK)
        if kept is not None:
            bench.apply(kept)
        return kept is not None

    def _compress(self, question: Question, asked: Asked, batch: TokenBatch | None, bench: Bench, note: str) -> None:
        cell, clock = question.cell, Clock()

        def shown(what: str, done: int, total: int) -> None:
            del what  # the question's label says more than the method's name
            self._progress(question.label, done, total)

        with clock.phase("compress"), self._clock.phase("compress"):
            bench.restore()
            record = compress(bench.opened, bench.view, batch, asked, data=cell.data, seed=cell.seed, progress=shown)
        leaked = {"leaked": dict(self._leaked[cell.data])} if cell.data in self._leaked else {}
        record = replace(record, data_facts={**record.data_facts, **leaked}, provenance=provenance(bench.opened, clock, note))
        with self._clock.phase("store"):
            mask = bench.mask() if self._masks and asked.method.observes else None
            self._store.add_record(record, {} if mask is None else {MASK: mask})
        self._computed += 1

    def _measure(self, question: Question, run: Run, text: str, bench: Bench) -> None:
        evaluator = self._evaluators[text]
        self._progress(f"measuring {question.label}", list(self._evaluators).index(text), len(self._evaluators))
        journal = self._store.journal(run.id, canonical(evaluator))
        with self._clock.phase("measure"):
            measurement = timed(evaluator, bench.opened, silent, bench.reference() if evaluator.compares else None, journal)
        with self._clock.phase("store"):
            self._store.add_measurement(run.id, canonical(evaluator), measurement)
            journal.remove()
        self._computed += 1
        self._progress(f"measuring {question.label}", list(self._evaluators).index(text) + 1, len(self._evaluators))


def _provisional(question: Question) -> str:
    """A name for a question that failed before its run's identity could be told."""
    return identity([question.model, repr(question.calibration), question.asked.method, str(question.asked.target)])
