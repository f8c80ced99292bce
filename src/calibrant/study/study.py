"""A study: models × calibration sets × methods × targets × draws, and what is measured on every run."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, InitVar, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from calibrant.allocations import Allocation
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet, Source
from calibrant.errors import SpecError, StudyError
from calibrant.evaluators import Evaluator, leaks, refuse
from calibrant.methods import Method, methods
from calibrant.notebook import card
from calibrant.options import DataOptions, MachineOptions, RecipeOptions
from calibrant.progress import Progress, silent
from calibrant.registry import did_you_mean
from calibrant.store import Store
from calibrant.study.cells import DENSE, EQUAL, Labels
from calibrant.study.cells import propagation as propagated
from calibrant.study.checking import Mistakes, StudyContents, StudyReader
from calibrant.study.contrasts import read_contrasts
from calibrant.study.objects import BUDGET, as_file
from calibrant.study.request import RunRequest, StudyResult, Workload, digests_of
from calibrant.study.workers import answer, check
from calibrant.targets import Target
from calibrant.transforms import Transform

SINGULAR: Final = {"models": "model", "methods": "method", "sparsities": "sparsity", "transforms": "transform"}
"""The keys of a study file whose fields have another name."""
WORDS: Final = {
    "model": "models",
    "method": "methods",
    "sparsity": "sparsities",
    "target": "sparsities",
    "transform": "transforms",
    "seed": "seeds",
}
"""Other words for the lists, in the order of their fields."""
LATER_DEFAULTS: Final = {"edits_gb": 8.0}
"""Keys that came after the first studies were stored; a study with this value of them has the same text as before."""
MAY_BE_EMPTY: Final = ("tokens", "propagate", "transforms", "baseline", "groups", "exclude", "pools", "primary")
"""Keys of a study file that may hold nothing."""


@dataclass(frozen=True)
class Study:
    """Every model × calibration set × method × allocation × target × draw, and the evaluators to measure each with.

    A single value stands for a list of one, and an object for its text: `Study(model="smollm2", data=MySource(), method=[MyMethod(), "wanda"])`.
    `model`, `method`, `sparsity`, `target`, `transform` and `seed` are other words for the lists.

    `seeds` are calibration draws. The dense model is always among the runs; methods that look at no data (magnitude) have one run for each
    target, whatever the sets. `sparsities` are targets of all kinds; each method must accept its targets, so methods that remove and methods
    that round stand in groups of their own. `propagate=None` means `dense` for methods that only score and `arrival` for methods that update
    the weights they keep. With `masks`, a bit for each weight is kept in the store, so that a later measurement needs no new pruning; without
    `quotes`, no excerpt of a calibration set, also where its licence allows one. Rows of a user's file that are also measured stop the study,
    unless `allow_leak`; records then keep their number.

    With `groups`, each a mapping of axes (`model`, `data`, `method`, `allocation`, `sparsity`, `seeds`, `propagate`) to what stands in their place,
    the study is the union of the grids that they make; `exclude` leaves out the cells that match every key of an entry. `baseline` is the set that
    others are compared with, `pools` are sets taken together, `primary` the contrasts that are tested: each a mapping with `compare` and `with`, and
    perhaps `name`, `on` (evaluators), `model`, `method`, `sparsity`, `propagate`. `statistics_gb` is how much the statistics may take on
    disk, `edits_gb` how much the changed weights of runs that no mask brings back.

    Raises `StudyError`, with every mistake at once, when the study is built.
    """

    models: Sequence[str] | str = ()
    data: Sequence[str | CalibrationSet | Source] | str | CalibrationSet | Source = ()
    methods: Sequence[str | Method] | str | Method = ("wanda", "magnitude")
    sparsities: Sequence[float | str | Target] | float | str | Target = (0.5,)
    seeds: Sequence[int] | int = (0,)
    evaluate: Sequence[str | Evaluator] | str | Evaluator = ("loss(source=wikitext)",)
    samples: int = DataOptions.samples
    length: int = DataOptions.length
    tokens: int | None = DataOptions.tokens
    propagate: str | None = RecipeOptions.propagate
    allocation: Sequence[str | Allocation] | str | Allocation = RecipeOptions.allocation
    transforms: Sequence[str | Transform] | str | Transform = RecipeOptions.transform
    dtype: str = MachineOptions.dtype
    device: str = MachineOptions.device
    masks: bool = True
    quotes: bool = True
    allow_leak: bool = False
    baseline: str | None = None
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    exclude: Sequence[Mapping[str, Any]] = ()
    pools: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    primary: Sequence[Mapping[str, Any]] = ()
    statistics_gb: float = 8.0
    edits_gb: float = 8.0
    _contents: StudyContents = field(init=False, repr=False, compare=False)
    model: InitVar[Sequence[str] | str | None] = None
    method: InitVar[Sequence[str | Method] | str | Method | None] = None
    sparsity: InitVar[Sequence[float | str | Target] | float | str | Target | None] = None
    target: InitVar[Sequence[float | str | Target] | float | str | Target | None] = None
    transform: InitVar[Sequence[str | Transform] | str | Transform | None] = None
    seed: InitVar[Sequence[int] | int | None] = None

    def __post_init__(self, *otherwise: Any) -> None:
        mistakes = Mistakes()
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        for word, value in zip(WORDS, otherwise, strict=True):
            if value is None:
                continue
            name = WORDS[word]
            if given[name] != _DEFAULTS[name]:
                mistakes.add((word,), f"{word} says the same as {name}; leave one out")
            given[name] = value
        budget = [given[name] for name in BUDGET]
        entries = {name: as_file(value, (SINGULAR.get(name, name),), budget, mistakes) for name, value in given.items()}
        if mistakes.entries:
            raise StudyError(mistakes.problems())
        object.__setattr__(self, "_contents", read(entries, mistakes))
        if mistakes.entries:
            raise StudyError(mistakes.problems())
        for name, value in entries.items():
            listed = name in ("models", "data", "methods", "sparsities", "seeds", "evaluate", "exclude", "primary", "transforms")
            object.__setattr__(self, name, _frozen(value, listed))

    def _repr_html_(self) -> str:
        cells = self.labels()
        axes = {"models": self.models, "calibration sets": self.data, "methods": self.methods, "targets": self.sparsities, "draws": self.seeds}
        axes |= {} if self.allocation == EQUAL else {"allocations": [self.allocation] if isinstance(self.allocation, str) else self.allocation}
        names = {name: ", ".join(map(str, axis)) for name, axis in axes.items()}
        budget = f"{self.samples} windows" if self.tokens is None else f"{self.tokens:,} real tokens"
        measured = {"budget": f"{budget} of {self.length:,} tokens", "measured by": ", ".join(self.evaluators())}
        return card(f"Study of {len(cells):,} runs", {**names, **measured, "primary contrasts": len(self.primary) or ""})

    def propagation(self, method: str | Method) -> str:
        """Return what a matrix sees in this study with `method`: the method's own default unless `propagate` says otherwise."""
        built = methods.build(method)
        return propagated(built, self.propagate) or self.propagate or "dense"

    def evaluators(self) -> dict[str, Evaluator]:
        """Return what measures every run, by its text."""
        return dict(self._contents.evaluators)

    def labels(self) -> list[Labels]:
        """Return the labels of the cells: the union of the groups, each cell once, without what is excluded, in the order of `requests`."""
        return list(self._contents.labels)

    def chosen(self, groups: Sequence[str] = ()) -> frozenset[int]:
        """Return which of `requests` are of one of these groups, by number: all without any. `SpecError` for one that the study doesn't have."""
        available = self._contents.groups
        for name in groups:
            if name not in available:
                allowed = f"its groups are {', '.join(available)}" if available else "it has none"
                raise SpecError(f"the study has no group called {name!r}{did_you_mean(name, available)}; {allowed}", subject=name)
        return frozenset(number for number, of in enumerate(self._contents.labels) if not groups or any(of in available[name] for name in groups))

    def requests(self) -> list[RunRequest]:
        """Return the requests, one a cell, in the order of the work: model by model, what looks at no data first, then draw by draw."""

        @cache
        def calibration(data: str, seed: int) -> CalibrationSet:
            return self._contents.sets[data].redrawn(seed)

        @cache
        def recipe(method: str, target: str, propagate: str, allocation: str) -> Recipe:
            how = propagate or self.propagation(method)
            if method == DENSE:  # the model as it came, whatever is done to it for the other methods
                return Recipe.parse(method, target, how)
            return Recipe.parse(method, target, how, allocation, tuple(cast("Sequence[str]", self.transforms)))

        return [
            RunRequest(of.model, calibration(of.data, of.seed) if of.data else None, recipe(of.method, of.target, of.propagate, of.allocation))
            for of in self._contents.labels
        ]

    def for_reading(self) -> dict[str, Any]:
        """Return what readers of the results need of the study, as plain data: `baseline`, `pools` and `primary`, in canonical texts."""
        return {"baseline": self._contents.baseline, "pools": dict(self._contents.pools), "primary": list(self._contents.primary)}

    def as_yaml(self) -> str:
        """Return the study as a YAML file that reads back as an equal one: one key a line, its value in YAML's JSON subset."""
        entries = {SINGULAR.get(f.name, f.name): getattr(self, f.name) for f in fields(self) if f.init}
        values = {name: value for name, value in entries.items() if value not in ((), {}, None) and value != LATER_DEFAULTS.get(name)}
        return "# a study of calibrant, as asked\n" + "".join(f"{name}: {_as_json(value)}\n" for name, value in values.items())

    def run(
        self,
        folder: str | Path,
        progress: Progress = silent,
        *,
        engine: str = "local",
        workers: int = 1,
        retry: bool = False,
        address: str | None = None,
        gpus: float = 0.0,
        groups: Sequence[str] = (),
    ) -> StudyResult:
        """Compute what the store in `folder` lacks. Interrupted, it loses at most the step it was at; run again, it goes on from there.

        `engine` is `local` (this machine; `workers` processes share it) or `ray` (`workers` of a cluster at `address`, each with `gpus`). What
        failed before is tried again only with `retry`. With `groups` only theirs is computed: the index of the store is the whole study's.

        Raises `OutputError` for a folder that isn't ours or a full disk, and a lone model's own error if it can't be opened. Whatever else
        fails is recorded in the store's `failures/`, and the rest goes on.
        """
        check(engine, workers, address, gpus)
        work = self.workload(groups)
        with Store(folder) as store:
            if engine == "local":
                return answer(store, work, self.as_yaml(), progress, retry=retry, workers=workers)
            from calibrant.study.ray import starting

            with starting(min(workers, len(work.requests)), address, gpus) as start:
                return answer(store, work, self.as_yaml(), progress, retry=retry, workers=workers, start=start)

    def workload(self, groups: Sequence[str] = ()) -> Workload:
        """Return what there is to make. Raises `DataError` if a calibration set holds rows that are measured, unless that is allowed."""
        leaked = leaks((request.calibration for request in self.requests() if request.calibration), list(self.evaluators().values()))
        if not self.allow_leak:
            refuse(leaked)
        return Workload(
            tuple(self.requests()),
            self.chosen(groups),
            self.evaluators(),
            self.dtype,
            self.device,
            digests_of(self.evaluators()),
            self.masks,
            self.quotes,
            leaked,
            self.statistics_gb,
            self.edits_gb,
            self.for_reading(),
        )


_DEFAULTS: Final = {f.name: f.default_factory() if f.default is MISSING and f.default_factory is not MISSING else f.default for f in fields(Study)}
"""What each entry is where a study doesn't say it."""


def read(entries: Mapping[str, Any], mistakes: Mistakes) -> StudyContents:
    """Read a study's entries, by the names of the fields of `Study`, what is left out at its default; what is wrong with it goes to `mistakes`."""
    whole = {name: () if value is MISSING else value for name, value in {**_DEFAULTS, **entries}.items()}
    reader = StudyReader({SINGULAR.get(name, name): value for name, value in whole.items()}, mistakes)
    contents = reader.grid()
    return contents if reader.refused else read_contrasts(reader)


def _frozen(value: Any, listed: bool = False) -> Any:
    """Return a checked value as it is stored: lists as tuples, keys by their canonical names."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return (_frozen(value),) if listed else value


def _as_json(value: Any) -> str:
    """Return JSON that is YAML too: what YAML takes for the end of a line, or doesn't print, is written as its number."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[^ -~]", _printable, text)


def _printable(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else _escaped(match[0])


def _escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
