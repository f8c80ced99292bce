"""A study: models × calibration sets × methods × targets × draws, and what is measured on each."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, cast

from calibrant.activations import Propagation
from calibrant.allocations import Allocation
from calibrant.data import CalibrationSet, Data, Source
from calibrant.data.calibration import WINDOWS
from calibrant.errors import SpecError, StudyError
from calibrant.evaluators import Evaluator, leaks, refuse
from calibrant.lab.study.checking import (
    Mistakes,
    StudyContents,
    StudyReader,
    gathered,
    handed_over,
    written,
)
from calibrant.lab.study.contrasts import read_contrasts
from calibrant.lab.study.request import (
    EQUAL,
    USUAL,
    Labels,
    RunRequest,
    StudyResult,
    Workload,
    digests_of,
    propagation,
)
from calibrant.lab.study.workers import answer, check
from calibrant.methods import Method, methods
from calibrant.options import DataOptions, MachineOptions, RecipeOptions, check_word
from calibrant.results import Store
from calibrant.spec.foreign import did_you_mean
from calibrant.system.notebook import card
from calibrant.system.progress import Progress, silent
from calibrant.targets import Target
from calibrant.transforms import Transform

KEY_OF_FIELD: Final = {
    "models": "model",
    "methods": "method",
    "targets": "target",
    "transforms": "transform",
}
"""The keys of a study file whose fields have another name."""
FIELD_OF_WORD: Final = {
    "model": "models",
    "method": "methods",
    "target": "targets",
    "transform": "transforms",
    "seed": "seeds",
}
"""Other words for the lists, in the order of their fields."""
NOTHING: Final = ((), {}, None)
LATER_DEFAULTS: Final = {"edits_gb": 8.0}
"""Keys that came after the first studies were stored; a study with this value of them has the same
text as before."""


@dataclass(frozen=True)
class Study:
    """Every model × calibration set × method × allocation × target × draw, and what measures each.

    A single value stands for a list of one, and an object for its text:
    `Study(model="smollm2", data=MySource(), method=[MyMethod(), "wanda"])`. `model`, `method`,
    `target`, `transform` and `seed` are other words for the lists.

    `seeds` are calibration draws. The dense model is always among the runs; methods that look at no
    data (magnitude) have one run for each target, whatever the sets. `targets` are of
    all kinds; each method must accept its targets, so methods that remove and methods that round
    stand in groups of their own. `propagate=None` means `dense` for methods that only score,
    `arrival` for methods that update the weights they keep, and the one way of a method that has
    one. With `masks`, a bit for each weight is
    kept in the store, so that a later measurement needs no new pruning; without `quotes`, no
    excerpt of a calibration set, also where its licence allows one. Rows of a user's file that are
    also measured stop the study, unless `allow_leak`; records then keep their number.

    A set among `data` may be a mapping with a short `name` and its `data`; reports call it so, and
    so may groups, `baseline` and contrasts.

    With `groups`, each a mapping of axes (`model`, `data`, `method`, `allocation`, `target`,
    `seeds`, `propagate`) to what stands in their place, the study is the union of the grids that
    they make; `exclude` leaves out the cells that match every key of an entry. `baseline` is the
    set that others are compared with, `pools` are sets taken together, `primary` the contrasts that
    are tested: each a mapping with `compare` and `with`, and perhaps `name`, `on` (evaluators),
    `model`, `method`, `target`, `propagate`. `statistics_gb` is how much the statistics may take
    on disk, `edits_gb` how much the changed weights of runs that no mask brings back.

    The fields keep what was given, objects as their texts. What it means is read once, when the
    study is built: `requests` and `evaluators` give the objects.

    Raises `StudyError`, with every mistake at once, when the study is built.
    """

    models: Sequence[str] | str = ()
    data: Sequence[Data | Mapping[str, Any]] | str | CalibrationSet | Source = ()
    methods: Sequence[str | Method] | str | Method = ("wanda", "magnitude")
    targets: Sequence[float | str | Target] | float | str | Target = (0.5,)
    seeds: Sequence[int] | int = (0,)
    evaluate: Sequence[str | Evaluator] | str | Evaluator = ("loss(source=wikitext)",)
    samples: int = WINDOWS
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
    target: InitVar[Sequence[float | str | Target] | float | str | Target | None] = None
    transform: InitVar[Sequence[str | Transform] | str | Transform | None] = None
    seed: InitVar[Sequence[int] | int | None] = None
    sparsity: InitVar[None] = None

    def __post_init__(self, *initial: Any) -> None:
        *otherwise, sparsity = initial
        if sparsity is not None:
            check_word("sparsity")
        mistakes = Mistakes()
        given = {name: getattr(self, name) for name in DEFAULTS}
        words: dict[str, str] = {}
        for (word, name), value in zip(FIELD_OF_WORD.items(), otherwise, strict=True):
            if value is None:
                continue
            if name in words or given[name] != DEFAULTS[name]:
                first = words.get(name, name)
                mistakes.add((word,), f"{word} says the same as {first}; leave one out")
            words[name] = word
            given[name] = value
        given["data"] = handed_over(mistakes, given["data"])
        if mistakes.entries:
            raise StudyError(mistakes.problems())
        entries = {name: gathered(value) for name, value in given.items()}
        contents = read(entries, mistakes)
        if mistakes.entries:
            raise StudyError(mistakes.problems())
        self._hold(entries, contents)

    @classmethod
    def holding(cls, entries: Mapping[str, Any], contents: StudyContents) -> "Study":
        """Return the study of `entries`, by its fields' names, that `contents` were read from."""
        # Its constructor would read everything a second time.
        study = object.__new__(cls)
        study._hold({**DEFAULTS, **entries}, contents)
        return study

    def _hold(self, entries: Mapping[str, Any], contents: StudyContents) -> None:
        object.__setattr__(self, "_contents", contents)
        for name, value in entries.items():
            kept = _frozen(written(value))
            # A single value stands for a list of one, but for the key `allocation`.
            if isinstance(DEFAULTS[name], tuple) and not isinstance(kept, tuple | dict):
                if kept is None:
                    kept = ()
                else:
                    kept = (kept,)
            object.__setattr__(self, name, kept)

    def _repr_html_(self) -> str:
        axes: dict[str, Any] = {
            "models": self.models,
            "calibration sets": self.data,
            "methods": self.methods,
            "targets": self.targets,
            "draws": self.seeds,
        }
        if self.allocation != EQUAL:
            axes["allocations"] = self.allocation
            if isinstance(self.allocation, str):
                axes["allocations"] = [self.allocation]
        facts: dict[str, object] = {}
        for name, values in axes.items():
            facts[name] = ", ".join(map(str, values))
        budget = f"{self.samples} windows"
        if self.tokens is not None:
            budget = f"{self.tokens:,} real tokens"
        facts["budget"] = f"{budget} of {self.length:,} tokens"
        facts["measured by"] = ", ".join(self.evaluators())
        facts["primary contrasts"] = len(self.primary) or ""
        return card(f"Study of {len(self.labels()):,} runs", facts)

    def propagation(self, method: str | Method) -> Propagation:
        """Return what a matrix sees in this study with `method`.

        It is the method's own default unless `propagate` says otherwise.
        """
        chosen = cast("Propagation | None", self.propagate)
        return propagation(methods.build(method), chosen) or chosen or USUAL

    def evaluators(self) -> dict[str, Evaluator]:
        """Return what measures every run, by its text."""
        return dict(self._contents.evaluators)

    def labels(self) -> list[Labels]:
        """Return the labels of the cells in the order of `requests`.

        The cells are the union of the groups, each once, without what is excluded.
        """
        return list(self._contents.requests)

    def chosen(self, groups: str | Sequence[str] = ()) -> frozenset[int]:
        """Return which of `requests` are of one of these groups, by number: all without any.

        Raises `SpecError` for a group that the study doesn't have.
        """
        if isinstance(groups, str):
            groups = [groups]
        available = self._contents.groups
        for name in groups:
            if name not in available:
                allowed = "it has none"
                if available:
                    allowed = f"its groups are {', '.join(available)}"
                hint = did_you_mean(name, available)
                message = f"the study has no group called {name!r}{hint}; {allowed}"
                raise SpecError(message, subject=name)
        cells = self._contents.requests
        if not groups:
            return frozenset(range(len(cells)))
        wanted: set[Labels] = set()
        for name in groups:
            wanted |= available[name]
        return frozenset(number for number, labels in enumerate(cells) if labels in wanted)

    def requests(self) -> list[RunRequest]:
        """Return the requests, one a cell, in the order of the work.

        It is model by model, what looks at no data first, then draw by draw.
        """
        return list(self._contents.requests.values())

    def for_reading(self) -> dict[str, Any]:
        """Return what readers of the results need of the study, as plain data.

        That is `baseline`, `pools` and `primary`, in canonical texts, and `names`, the short names
        of sets by their canonical texts, where there are any.
        """
        contents = self._contents
        reading: dict[str, Any] = {
            "baseline": contents.baseline,
            "pools": dict(contents.pools),
            "primary": list(contents.primary),
        }
        if contents.names:
            reading["names"] = dict(contents.names)
        return reading

    def as_yaml(self) -> str:
        """Return the study as a YAML file that reads back as an equal one.

        It has one key a line, its value in YAML's JSON subset.
        """
        lines = ["# a study of calibrant, as asked\n"]
        for name, usual in DEFAULTS.items():
            key = KEY_OF_FIELD.get(name, name)
            value = getattr(self, name)
            left_out = value in NOTHING and usual in NOTHING
            if not left_out and value != LATER_DEFAULTS.get(key):
                lines.append(f"{key}: {_as_json(value)}\n")
        return "".join(lines)

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
        groups: str | Sequence[str] = (),
    ) -> StudyResult:
        """Compute what the store in `folder` lacks.

        Interrupted, it loses at most the step it was at; run again, it goes on from there.

        `engine` is `local` (this machine; `workers` processes share it) or `ray` (`workers` of a
        cluster at `address`, each with `gpus`). What failed before is tried again only with
        `retry`. With `groups` only theirs is computed: the index of the store is the whole study's.

        Raises `SpecError` for an engine or a group that doesn't exist, `DataError` if a calibration
        set holds rows that are measured, `OutputError` for a folder that isn't ours or a full disk,
        and a lone model's own error if it can't be opened. Whatever else fails is recorded in the
        store, and the rest goes on.
        """
        check(engine, workers, address, gpus)
        work = self.workload(groups)
        text = self.as_yaml()
        with Store(folder) as store:
            if engine == "local":
                return answer(store, work, text, progress, retry=retry, workers=workers)
            from calibrant.lab.study.ray import ray_workers

            count = min(workers, len(work.requests))
            with ray_workers(count, address, gpus) as start:
                return answer(
                    store, work, text, progress, retry=retry, workers=workers, start=start
                )

    def workload(self, groups: str | Sequence[str] = ()) -> Workload:
        """Return what there is to make.

        Raises `DataError` if a calibration set holds rows that are measured, unless that is
        allowed.
        """
        requests = self.requests()
        evaluators = self.evaluators()
        sets = [request.calibration for request in requests if request.calibration]
        # Calibrating on what is measured would make a set look better than it is.
        leaked = leaks(sets, list(evaluators.values()))
        if not self.allow_leak:
            refuse(leaked)
        return Workload(
            requests=tuple(requests),
            chosen=self.chosen(groups),
            evaluators=evaluators,
            dtype=self.dtype,
            device=self.device,
            digests=digests_of(evaluators),
            masks=self.masks,
            quotes=self.quotes,
            leaked=leaked,
            limit_gb=self.statistics_gb,
            edits_gb=self.edits_gb,
            reading=self.for_reading(),
        )


def _defaults() -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for entry in fields(Study):
        if not entry.init:
            continue
        if entry.default_factory is MISSING:
            defaults[entry.name] = entry.default
        else:
            defaults[entry.name] = entry.default_factory()
    return defaults


DEFAULTS: Final = _defaults()
"""What each entry is where a study doesn't say it."""


def read(entries: Mapping[str, Any], mistakes: Mistakes) -> StudyContents:
    """Read a study's entries, by the names of the fields of `Study`.

    What is left out is at its default. What is wrong goes to `mistakes`.
    """
    whole = {**DEFAULTS, **entries}
    keys = {KEY_OF_FIELD.get(name, name): value for name, value in whole.items()}
    reader = StudyReader(keys, mistakes)
    contents = reader.grid()
    # Without cells every contrast would be a mistake.
    if reader.refused:
        return contents
    return read_contrasts(reader)


def _frozen(value: Any) -> Any:
    """Return a checked value as it is stored: lists as tuples."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value


def _as_json(value: Any) -> str:
    """Return JSON that is YAML too.

    What YAML takes for the end of a line, or doesn't print, is written as its number.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[^ -~]", _printable, text)


def _printable(match: re.Match[str]) -> str:
    letter = match[0]
    if letter.isprintable():
        return letter
    number = ord(letter)
    if number < 0x10000:
        return f"\\u{number:04x}"
    return f"\\U{number:08x}"
