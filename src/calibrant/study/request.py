"""What a study is to make, run by run, and what came of it: plain data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrant.activations import Statistic
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet
from calibrant.errors import InputError
from calibrant.evaluators import Evaluator, evaluators
from calibrant.grammar import SetLabel
from calibrant.notebook import card, listing
from calibrant.spec import canonical, identity
from calibrant.store import Cell, revisions
from calibrant.study.cells import EQUAL, named
from calibrant.study.objects import arrived, travelling


@dataclass(frozen=True)
class RunRequest:
    """One run that is to be made and measured; `calibration` is None for what looks at no data."""

    model: str
    calibration: CalibrationSet | None
    recipe: Recipe

    @property
    def cell(self) -> Cell:
        """The cell of the grid that the run is for, with its labels and without ids."""
        data, seed = ("", 0) if self.calibration is None else (str(self.calibration), self.calibration.seed)
        seen = self.recipe.propagate if data and self.recipe.method.looks else ""
        way = named(str(self.recipe.method), str(self.recipe.allocation))
        return Cell(self.model, data, way, str(self.recipe.target), seed, "", propagate=seen)

    @property
    def label(self) -> str:
        """What progress and failures call it."""
        cell = self.cell
        what = "the dense model" if cell.method == "none" else f"{cell.method} {cell.target}"
        return f"{what} on {cell.data}" + (f", draw {cell.seed}" if cell.seed else "") if cell.data else what

    @property
    def provisional(self) -> str:
        """An id for failures that come before the run's own id is known."""
        shares = [] if str(self.recipe.allocation) == EQUAL else [self.recipe.allocation]
        return identity([self.model, repr(self.calibration), self.recipe.method, str(self.recipe.target), *shares])

    @property
    def sets(self) -> frozenset[str]:
        """The calibration set, and those that it mixes."""
        return frozenset() if self.calibration is None else frozenset(map(repr, (self.calibration, *self.calibration.mixed)))

    @property
    def shares(self) -> bool:
        """Whether something in it looks at the statistics of the dense model, which others may share."""
        return self.calibration is not None and bool(self.recipe.shared)


@dataclass(frozen=True)
class Workload:
    """All requests of a study, of which the `chosen` ones, by number, are to be answered now.

    `evaluators` are by their text, and so are the `digests` of the data that they measure on when the work begins. `leaked` counts the rows of each
    calibration set that are also measured, `limit_gb` is for statistics on disk, `edits_gb` for edits of runs that no mask brings back.
    `reading` is what a reader of the results needs of the study: its baseline, pools and primary contrasts.
    """

    requests: tuple[RunRequest, ...]
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

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, for another process: specs and sets as texts, which its registries read, and where classes of your own are."""
        sets = [request.calibration for request in self.requests]
        return {
            **{name: value for name, value in vars(self).items() if name not in ("requests", "evaluators")},
            "classes": travelling(self._things()),
            "chosen": sorted(self.chosen),
            "evaluators": list(self.evaluators),
            "sets": [None if of is None else [of.expr, of.samples, of.length, of.budget, of.seed] for of in sets],
            "recipes": [
                [request.model, str(of.method), str(of.target), of.propagate, str(of.allocation), list(map(str, of.transforms))]
                for request in self.requests
                for of in (request.recipe,)
            ],
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Workload":
        """Return the workload that `to_json` wrote. Raises `InputError` where something that it names isn't there any more."""
        arrived(plain["classes"])
        fields = {name: value for name, value in plain.items() if name not in ("sets", "recipes", "classes")}
        sets = _built(plain["sets"])
        requests = [RunRequest(model, of, Recipe.parse(*texts)) for (model, *texts), of in zip(plain["recipes"], sets, strict=True)]
        evaluators_ = {text: evaluators.build(text) for text in plain["evaluators"]}
        return cls(**{**fields, "requests": tuple(requests), "chosen": frozenset(plain["chosen"]), "evaluators": evaluators_})

    def _things(self) -> Iterator[Any]:
        """Yield every object that a class of somebody's own may be behind."""
        yield from self.evaluators.values()
        for request in self.requests:
            yield from (request.recipe.method, request.recipe.allocation, *request.recipe.transforms)
            yield from (term.source for term in (request.calibration.parts if request.calibration else ()))

    @property
    def models(self) -> list[str]:
        """The models, in the order of their requests."""
        return list(dict.fromkeys(request.model for request in self.requests))

    @property
    def sets(self) -> list[SetLabel]:
        """The labels of the calibration sets, each once."""
        sets = {str(request.calibration): request.calibration for request in self.requests if request.calibration}
        return [calibration.label for calibration in sets.values()]

    def about(self, model: str) -> list[int]:
        """The numbers of the requests about `model`."""
        return [index for index, request in enumerate(self.requests) if request.model == model]

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of every method, allocation, transform and evaluator in it: what the store holds of lower ones is stale."""
        newest: dict[str, int] = {}
        for recipe in {request.recipe for request in self.requests}:
            newest |= revisions("method", canonical(recipe.method)) | revisions("allocation", canonical(recipe.allocation))
            newest |= revisions("transform", [canonical(transform) for transform in recipe.transforms])
        for evaluator in self.evaluators.values():
            newest |= revisions("evaluator", canonical(evaluator))
        return newest

    def measures(self, text: str) -> tuple[Mapping[str, Any], str]:
        """What identifies a measurement beside its run: the canonical evaluator, and the digest of the data."""
        return canonical(self.evaluators[text]), self.digests.get(text, "")

    def kinds(self, request: RunRequest) -> tuple[type[Statistic], ...]:
        """The statistics to gather in one pass over the set of `request`: all that requests for the same set, or for one mixed in it, will want."""
        sharing = [other for other in self.requests if other.shares and other.model == request.model and other.sets & request.sets]
        return tuple(dict.fromkeys(kind for other in sharing for kind in other.recipe.shared))


def _built(written: Sequence[Sequence[Any] | None]) -> list[CalibrationSet | None]:
    """The calibration sets of what was written of them, None for each that is none."""
    built: dict[str, CalibrationSet] = {}
    sets: list[CalibrationSet | None] = []
    for parts in written:
        key = json.dumps(parts, allow_nan=False)
        # A set of the user's own files looks into them when it is built: once is enough.
        if parts is not None and key not in built:
            built[key] = CalibrationSet(*parts)
        sets.append(None if parts is None else built[key])
    return sets


def digests_of(evaluators: Mapping[str, Evaluator]) -> dict[str, str]:
    """Return the digest of the data behind each evaluator; none where it can't be read, which its measurement will say."""
    digests: dict[str, str] = {}
    for text, evaluator in evaluators.items():
        try:
            digests |= {text: digest} if (digest := evaluator.digest()) else {}
        except InputError:
            continue
    return digests


@dataclass(frozen=True)
class StudyResult:
    """What a study came to: its cells with their ids, how many runs and measurements were computed and found there, failures, seconds by phase.

    `died` has a sentence for each worker that was lost, and what became of its work, `few_tokens` one for each calibration set with fewer tokens
    than a model has inputs.
    """

    folder: Path
    cells: tuple[Cell, ...]
    computed: int
    found: int
    failures: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    peak_memory_bytes: int
    died: tuple[str, ...] = ()
    few_tokens: Mapping[str, str] = field(default_factory=dict[str, str])

    def _repr_html_(self) -> str:
        facts = {"results": self.folder, "computed": self.computed, "found there": self.found, "cells": len(self.cells)}
        failed = listing(("what failed", "why"), [(f.get("what"), f.get("error")) for f in self.failures.values()]) if self.failures else ""
        return card("Study, finished", facts, "" if failed else "calibrant.report.report(…) of it shows the results.", failed)
