"""What a study is to make, run by run: the union of its groups' grids without what it excludes;
and what came of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from calibrant.activations import Propagation, Statistic
from calibrant.allocations import Allocation
from calibrant.allocations.uniform import Uniform
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet
from calibrant.errors import InputError, TargetError
from calibrant.evaluators import Evaluator
from calibrant.methods import MatrixMethod, Method
from calibrant.methods.pruning.none import Untouched
from calibrant.options import MachineOptions
from calibrant.results import Cell, Record, revisions
from calibrant.spec import Spec, canonical, identity
from calibrant.spec.grammar import SetLabel
from calibrant.system.notebook import card, listing
from calibrant.targets import Sparsity, Target
from calibrant.transforms import Transform

DENSE: Final = "none"
"""The method that leaves the model as it is: the dense model is always among the runs."""
EQUAL: Final = "uniform"
"""The allocation that gives every matrix the same target."""
USUAL: Final[Propagation] = "dense"
"""The propagation that a recipe names where its method looks at no data."""


class Labels(NamedTuple):
    """What a cell of the grid is called, in canonical texts.

    For what looks at no data, `data` and `propagate` are empty and `seed` is 0.
    """

    model: str
    data: str
    seed: int
    method: str
    target: str
    propagate: str
    allocation: str = EQUAL

    @property
    def way(self) -> str:
        """What a table calls the method with its allocation: `wanda`, or `wanda + owl`."""
        if self.allocation == EQUAL:
            return self.method
        return f"{self.method} + {self.allocation}"

    def among(self, values: Mapping[str, Collection[str | int]]) -> bool:
        """Return whether each label is one of the `values` of its kind.

        What looks at no data never matches data, draw or propagation.
        """
        for kind, allowed in values.items():
            if kind in ("data", "seed", "propagate") and not self.data:
                return False
            if getattr(self, kind) not in allowed:
                return False
        return True


@dataclass(frozen=True)
class RunRequest:
    """One run that is to be made and measured.

    `calibration` is the draw of a set; it is None for what looks at no data.
    """

    model: str
    calibration: CalibrationSet | None
    recipe: Recipe

    @cached_property
    def labels(self) -> Labels:
        """What the cell of the grid is called that the run is for."""
        recipe = self.recipe
        data = ""
        seed = 0
        propagate = ""
        if self.calibration is not None:
            data = str(self.calibration)
            seed = self.calibration.seed
            if recipe.walks:
                propagate = recipe.propagate
        return Labels(
            model=self.model,
            data=data,
            seed=seed,
            method=str(recipe.method),
            target=str(recipe.target),
            propagate=propagate,
            allocation=str(recipe.allocation),
        )

    @property
    def cell(self) -> Cell:
        """The cell of the grid that the run is for, with its labels and without ids."""
        labels = self.labels
        return Cell(
            model=labels.model,
            data=labels.data,
            method=labels.way,
            target=labels.target,
            seed=labels.seed,
            run="",
            propagate=labels.propagate,
        )

    @property
    def label(self) -> str:
        """What progress and failures call it."""
        labels = self.labels
        name = f"{labels.way} {labels.target}"
        if labels.way == DENSE:
            name = "the dense model"
        if labels.data:
            name += f" on {labels.data}"
        if labels.seed:
            name += f", draw {labels.seed}"
        return name

    def provisional(self, dtype: str, device: str) -> str:
        """Return an id for failures that come before the run's own id is known, in a study with
        this type and device.
        """
        labels = self.labels
        recipe = self.recipe
        parts = [self.model, repr(self.calibration), recipe.method, labels.target]
        # Stores have ids that were made without what follows. Where it is as usual, they are these.
        if labels.allocation != EQUAL:
            parts.append(recipe.allocation)
        unusual: dict[str, Any] = {}
        usual = propagation(recipe.method, None) or USUAL
        if labels.propagate not in ("", usual):
            unusual["propagate"] = labels.propagate
        if recipe.transforms:
            unusual["transforms"] = recipe.transforms
        if dtype != MachineOptions.dtype:
            unusual["dtype"] = dtype
        if device != MachineOptions.device:
            unusual["device"] = device
        if unusual:
            parts.append(unusual)
        return identity(parts)

    def is_answered_by(self, record: Record, dtype: str) -> bool:
        """Return whether a record with the labels of this request answers it, in numbers of this
        type.

        That is told as far as it can be without the model: by type, method, target, allocation and
        budget. One of an older revision of any of these doesn't.
        """
        run = record.run
        facts = record.data_facts
        recipe = self.recipe
        asked = canonical([recipe.method, recipe.allocation, recipe.transforms])
        if [run.method, run.allocation, list(run.transforms)] != asked:
            return False
        if run.revised != recipe.target.revised or run.dtype != dtype:
            return False
        calibration = self.calibration
        if calibration is None:
            return True
        sets = len(calibration.mixed) or 1
        if calibration.budget is None:
            enough = facts.get("windows") == calibration.samples * sets
        else:
            enough = facts.get("tokens") in (calibration.budget, calibration.budget * sets)
        return enough and facts.get("length") == calibration.length

    @property
    def sets(self) -> frozenset[str]:
        """The calibration set, and those that it mixes."""
        if self.calibration is None:
            return frozenset()
        every = (self.calibration, *self.calibration.mixed)
        return frozenset(repr(calibration) for calibration in every)

    @property
    def shares(self) -> bool:
        """Whether it looks at statistics of the dense model, which others may share."""
        return self.calibration is not None and bool(self.recipe.shared)


def propagation(method: Method, chosen: Propagation | None) -> Propagation | None:
    """Return what a matrix sees in a study: as `chosen`, else the method's own default.

    It is None for a method that looks at no data. One that only scores matrices has `dense`, since
    one pass then serves all its targets.
    """
    if not method.looks:
        return None
    if chosen is not None:
        return chosen
    if isinstance(method, MatrixMethod) and not method.updates:
        return "dense"
    return method.propagate


def aimed(method: Method, target: Target) -> Target:
    """Return a target as `method` takes it.

    One that it doesn't accept stays as it is: `StudyReader` says which those are.
    """
    try:
        return method.aim(target)
    except TargetError:
        return target


@dataclass(frozen=True)
class Axes:
    """One grid: the values on each of its axes, and the transforms that come before every method.

    `blind` is the propagation in recipes of methods that look at no data.
    """

    models: Sequence[str]
    data: Sequence[CalibrationSet]
    methods: Sequence[Method]
    targets: Sequence[Target]
    seeds: Sequence[int]
    allocations: Sequence[Allocation]
    transforms: tuple[Transform, ...] = ()
    propagate: Propagation | None = None
    blind: Propagation = USUAL

    @property
    def looks(self) -> bool:
        """Whether anything in it looks at data."""
        pairs = product(self.methods, self.targets)
        targets = [aimed(method, target) for method, target in pairs]
        return _any_looks(*self.methods, *self.allocations, *self.transforms, *targets)

    def count(self) -> int:
        """Return how many cells it has, before any is made."""
        draws = len(self.data) * len(self.seeds)
        cells = 1  # the dense model
        for method, allocation, target in product(self.methods, self.allocations, self.targets):
            if _any_looks(method, allocation, aimed(method, target), *self.transforms):
                cells += draws
            else:
                cells += 1
        return len(self.models) * cells

    def requests(self) -> Iterator[RunRequest]:
        """Yield a request for every cell, the dense models among them."""
        # The dense model is the model as it came, whatever is done to it for the other methods.
        dense = Recipe(Untouched(), Sparsity(0.0), Uniform(), self.blind)
        for model in self.models:
            yield RunRequest(model, None, dense)
            for method in self.methods:
                if str(method) != DENSE:
                    yield from self._of_method(model, method)

    def _of_method(self, model: str, method: Method) -> Iterator[RunRequest]:
        propagate = propagation(method, self.propagate) or self.blind
        targets = [aimed(method, target) for target in self.targets]
        for allocation in self.allocations:
            looking: list[Recipe] = []
            for target in targets:
                recipe = Recipe(method, target, allocation, propagate, self.transforms)
                if _any_looks(method, allocation, target, *self.transforms):
                    looking.append(recipe)
                else:
                    # What looks at no data has one run, whatever the sets and draws.
                    yield RunRequest(model, None, recipe)
            for calibration in self._draws:
                for recipe in looking:
                    yield RunRequest(model, calibration, recipe)

    @cached_property
    def _draws(self) -> list[CalibrationSet]:
        pairs = product(self.seeds, self.data)
        return [calibration.redrawn(seed) for seed, calibration in pairs]


def _any_looks(*parts: Method | Allocation | Transform | Target) -> bool:
    """Whether one of these looks at data."""
    for part in parts:
        if isinstance(part, Method | Target):
            looks = part.looks
        else:
            looks = bool(part.observes)
        if looks:
            return True
    return False


def union(
    cells: Mapping[Labels, RunRequest],
    exclude: Sequence[Mapping[str, Collection[str | int]]] = (),
) -> dict[Labels, RunRequest]:
    """Return the cells in the order of the work, without those among any of `exclude`.

    A model of which nothing else is left has no dense run either. The order is model by model, what
    looks at no data first, then draw by draw and set by set, so that a set's tokens and statistics
    are used while they are in memory.
    """
    left: list[Labels] = []
    # The models with a compressed run: before anything is left out, and afterwards.
    compressed: set[str] = set()
    remaining: set[str] = set()
    for labels in cells:
        dense = labels.method == DENSE
        excluded = not dense and any(labels.among(entry) for entry in exclude)
        if not excluded:
            left.append(labels)
        if not dense:
            compressed.add(labels.model)
            if not excluded:
                remaining.add(labels.model)
    # A model that is only measured has no compressed run in the first place, and stays.
    gone = compressed - remaining
    # The number of each label on its axis, in the order in which they come.
    places: list[dict[Any, int]] = []
    for values_of_axis in zip(*cells, strict=True):
        distinct = dict.fromkeys(values_of_axis)
        places.append({value: number for number, value in enumerate(distinct)})

    def order(labels: Labels) -> tuple[object, ...]:
        numbers = [places[axis][value] for axis, value in enumerate(labels)]
        model, data, _, method, target, propagate, allocation = numbers
        looks = bool(labels.data)
        return model, looks, labels.seed, data, propagate, method, allocation, target

    kept = sorted((labels for labels in left if labels.model not in gone), key=order)
    return {labels: cells[labels] for labels in kept}


@dataclass(frozen=True)
class Workload:
    """All requests of a study, of which the `chosen` ones, by number, are to be answered now.

    `evaluators` are by their text, and so are the `digests` of the data that they measure on when
    the work begins. `leaked` counts the rows of each calibration set that are also measured.
    `limit_gb` is for statistics on disk, `edits_gb` for edits of runs that no mask brings back.
    `reading` is what a reader of the results needs of the study: its baseline, pools and primary
    contrasts.
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

    def specs(self) -> Iterator[Spec]:
        """Yield every object that a class of somebody's own may be behind."""
        yield from self.evaluators.values()
        for recipe in self.recipes:
            yield recipe.method
            yield recipe.allocation
            yield from recipe.transforms
        for calibration in self.calibrations.values():
            for term in calibration.parts:
                yield term.source

    @property
    def recipes(self) -> list[Recipe]:
        """The recipes, each once."""
        return list(dict.fromkeys(request.recipe for request in self.requests))

    @property
    def calibrations(self) -> dict[str, CalibrationSet]:
        """The calibration sets, draw by draw, each once, by what they print as."""
        sets = [request.calibration for request in self.requests]
        return {repr(calibration): calibration for calibration in sets if calibration is not None}

    @property
    def models(self) -> list[str]:
        """The models, in the order of their requests."""
        return list(dict.fromkeys(request.model for request in self.requests))

    @property
    def sets(self) -> list[SetLabel]:
        """The labels of the calibration sets, each once."""
        first_draws: dict[str, CalibrationSet] = {}
        for calibration in self.calibrations.values():
            first_draws.setdefault(str(calibration), calibration)
        return [calibration.label for calibration in first_draws.values()]

    def about(self, model: str) -> list[int]:
        """Return the numbers of the requests for runs of `model`."""
        numbered = enumerate(self.requests)
        return [number for number, request in numbered if request.model == model]

    def provisional(self, request: RunRequest) -> str:
        """Return the id for failures of a request that come before its run's own id is known."""
        return request.provisional(self.dtype, self.device)

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of every method, allocation, transform and evaluator in it, and of revised
        targets.

        What the store holds of lower ones is stale.
        """
        newest: dict[str, int] = {}
        for recipe in self.recipes:
            newest |= revisions("method", canonical(recipe.method))
            newest |= revisions("allocation", canonical(recipe.allocation))
            newest |= revisions("transform", canonical(recipe.transforms))
            if recipe.target.revised:
                newest[f"target {recipe.target}"] = 1 + recipe.target.revised
        for evaluator in self.evaluators.values():
            newest |= revisions("evaluator", canonical(evaluator))
        return newest

    def measures(self, text: str) -> tuple[Mapping[str, Any], str]:
        """Return what identifies a measurement beside its run.

        That is the canonical evaluator, and the digest of the data.
        """
        return canonical(self.evaluators[text]), self.digests.get(text, "")

    def statistics_wanted(self, request: RunRequest) -> tuple[type[Statistic], ...]:
        """Return the statistics to gather in one pass over the set of `request`.

        They are all that requests for the same set, or for one mixed in it, will want.
        """
        wanted: dict[type[Statistic], None] = {}
        for other in self.requests:
            # A mix shares the statistics of each of its parts with runs on that part alone.
            if other.shares and other.model == request.model and other.sets & request.sets:
                wanted |= dict.fromkeys(other.recipe.shared)
        return tuple(wanted)


def digests_of(evaluators: Mapping[str, Evaluator]) -> dict[str, str]:
    """Return the digest of the data behind each evaluator.

    There is none where the data can't be read, which its measurement will say.
    """
    digests: dict[str, str] = {}
    for text, evaluator in evaluators.items():
        try:
            digest = evaluator.digest()
        except InputError:
            continue
        if digest:
            digests[text] = digest
    return digests


@dataclass(frozen=True)
class StudyResult:
    """What a study came to: its cells with their ids, what was computed, and what was found there.

    `seconds` are by phase. `died` has a sentence for each worker that was lost, and what became of
    its work, `few_tokens` one for each calibration set with fewer tokens than a model has inputs.
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
        facts = {
            "results": self.folder,
            "computed": self.computed,
            "found there": self.found,
            "cells": len(self.cells),
        }
        if not self.failures:
            advice = "calibrant.lab.report.report(…) of it shows the results."
            return card("Study, finished", facts, advice)
        reasons: list[tuple[Any, Any]] = []
        for failure in self.failures.values():
            reasons.append((failure.get("what"), failure.get("error")))
        return card("Study, finished", facts, inside=listing(("what failed", "why"), reasons))
