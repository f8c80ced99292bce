"""What a study asks, cell by cell, and what comes back: plain data that may travel between processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibrant.activations import Statistic
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet
from calibrant.errors import InputError
from calibrant.evaluators import Evaluator
from calibrant.grammar import SetLabel
from calibrant.notebook import card, listing
from calibrant.spec import canonical, identity
from calibrant.store import Cell, Measurement, Record, Run, revisions


@dataclass(frozen=True)
class Question:
    """One cell of the grid before its answer is known; `calibration` is None for what looks at no data."""

    model: str
    calibration: CalibrationSet | None
    recipe: Recipe

    @property
    def cell(self) -> Cell:
        """The cell's labels."""
        data, seed = ("", 0) if self.calibration is None else (str(self.calibration), self.calibration.seed)
        return Cell(
            self.model,
            data,
            str(self.recipe.method),
            str(self.recipe.target),
            seed,
            "",
            propagate=self.recipe.propagate if data and self.recipe.method.looks else "",
        )

    @property
    def label(self) -> str:
        """What progress and failures call it."""
        cell = self.cell
        what = "the dense model" if cell.method == "none" else f"{cell.method} {cell.target}"
        return f"{what} on {cell.data}" + (f", draw {cell.seed}" if cell.seed else "") if cell.data else what

    @property
    def provisional(self) -> str:
        """A name for a question whose run's identity can't be told, because something failed before."""
        return identity([self.model, repr(self.calibration), self.recipe.method, str(self.recipe.target)])

    @property
    def sets(self) -> frozenset[str]:
        """The set, and those that it mixes."""
        return frozenset() if self.calibration is None else frozenset(map(repr, (self.calibration, *self.calibration.mixed)))

    @property
    def shares(self) -> bool:
        """Whether something in it looks at what the untouched model's matrices see, which others may share."""
        return self.calibration is not None and bool(self.recipe.shared)


@dataclass(frozen=True)
class Job:
    """Everything that an engine is to do: of the study's questions the `chosen` ones, by number.

    `evaluators` are by their text, and so are the `digests` of what they measure when the job begins; `leaked` are rows by calibration set,
    `limit_gb` is for statistics on disk, `edits_gb` for edits that no mask brings back.
    `reading` is what those who compare results need to know of the study: its baseline, pools and primary contrasts.
    """

    questions: tuple[Question, ...]
    chosen: frozenset[int]
    evaluators: Mapping[str, Evaluator]
    dtype: str = "auto"
    device: str = "auto"
    digests: Mapping[str, str] = field(default_factory=dict[str, str])
    masks: bool = True
    quotes: bool = True
    leaked: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    limit_gb: float = 8.0
    edits_gb: float = 8.0
    reading: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def models(self) -> list[str]:
        """The models, in the order in which they are asked about."""
        return list(dict.fromkeys(question.model for question in self.questions))

    @property
    def sets(self) -> list[SetLabel]:
        """What the calibration sets are called, in their parts, each once."""
        found = {str(q.calibration): q.calibration for q in self.questions if q.calibration}
        return [calibration.label for calibration in found.values()]

    def of(self, model: str) -> list[int]:
        """Which questions are about `model`, by number."""
        return [index for index, question in enumerate(self.questions) if question.model == model]

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of every method, allocation and evaluator that is asked for: what the store holds of lower ones is stale."""
        found: dict[str, int] = {}
        for recipe in {question.recipe for question in self.questions}:
            found |= revisions("method", canonical(recipe.method)) | revisions("allocation", canonical(recipe.allocation))
            found |= revisions("transform", [canonical(transform) for transform in recipe.transforms])
        for evaluator in self.evaluators.values():
            found |= revisions("evaluator", canonical(evaluator))
        return found

    def asks(self, text: str) -> tuple[Mapping[str, Any], str]:
        """What identifies a measurement beside its run: the canonical evaluator, and the digest of what it measures."""
        return canonical(self.evaluators[text]), self.digests.get(text, "")

    def kinds(self, question: Question) -> tuple[type[Statistic], ...]:
        """All that is kept on disk for methods which share statistics with this question: of its set, or of what is mixed in it.

        One pass gathers it.
        """
        sharing = [q for q in self.questions if q.shares and q.model == question.model and q.sets & question.sets]
        return tuple(dict.fromkeys(kind for q in sharing for kind in q.recipe.shared))


def without_questions(job: Job) -> Job:
    """What a worker needs of a job: it is asked the questions one by one."""
    return replace(job, questions=(), chosen=frozenset())


def digests_of(evaluators: Mapping[str, Evaluator]) -> dict[str, str]:
    """The digest of what each evaluator measures; nothing where it can't be read, which is for its measurement to say."""
    return {text: digest for text, evaluator in evaluators.items() if (digest := _digest(evaluator))}


def _digest(evaluator: Evaluator) -> str:
    try:
        return evaluator.digest()
    except InputError:
        return ""


@dataclass(frozen=True)
class Resolved:
    """A question whose run can be named: by what is to be done (`asked`, with a `note` if that isn't what was asked for).

    `wanted` are the measurements' ids by evaluator, `statistics` the ids of what it may share with others.
    """

    question: Question
    recipe: Recipe
    note: str
    run: Run
    wanted: Mapping[str, str]
    statistics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """A model was compressed; `files` belong beside its record."""

    record: Record
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Measured:
    """A compressed model was measured, by the evaluator called `text`."""

    run_id: str
    text: str
    measurement: Measurement


@dataclass(frozen=True)
class Failed:
    """Something isn't there, and why: `failed_id` is the run's, the measurement's or a provisional one."""

    failed_id: str
    reason: Mapping[str, Any]


Event = Recorded | Measured | Failed


@dataclass(frozen=True)
class Finished:
    """What a study came to: its grid with the ids, how many runs and measurements were computed and found, failures, seconds by phase.

    `died` has a sentence for each worker that was lost on the way, and what became of its question.
    """

    folder: Path
    cells: tuple[Cell, ...]
    computed: int
    found: int
    failures: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    peak_memory_bytes: int
    died: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        facts = {"results": self.folder, "computed": self.computed, "found there": self.found, "cells": len(self.cells)}
        failed = listing(("what failed", "why"), [(f.get("what"), f.get("error")) for f in self.failures.values()]) if self.failures else ""
        return card("Study, finished", facts, "" if failed else "calibrant.report.report(…) of it shows what was found.", failed)
