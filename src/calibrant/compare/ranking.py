"""Calibration sets ranked, the best first. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from calibrant.compare.crossed import Draws, contrast
from calibrant.compare.estimate import LEVEL, Estimate
from calibrant.store import Cell, Measurement, Store

CONTROLS: Final = frozenset({"random_tokens", "full_stops"})
"""Calibration sets without content, that real text ought to beat."""


@dataclass(frozen=True)
class Entry:
    """One row of a ranking: a calibration set, or a baseline that looks at no data.

    `losses` and `increases` (over the dense model; empty without one) are by measured set; `mean` is the mean increase over `averaged` sets,
    or the mean loss where there is no dense model. `to_best` is how much worse it is than the best set, None for the best itself; `tied` says
    that it can't be told apart from the best at the ranking's joint level.
    """

    name: str
    control: bool
    runs: tuple[str, ...]
    draws: int
    losses: Mapping[str, Estimate]
    increases: Mapping[str, Estimate]
    mean: Estimate
    to_best: Estimate | None
    tied: bool
    letters: Mapping[str, str] = field(default_factory=dict[str, str])
    ranks: tuple[int, int] = (0, 0)
    kept: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    best_on: frozenset[str] = frozenset()
    overlapping: bool = False


@dataclass(frozen=True)
class Ranking:
    """Calibration sets for one model, method and target, the best first; `missing` names what has no answer, and why."""

    model: str
    method: str
    target: str
    measured: tuple[str, ...]
    averaged: tuple[str, ...]
    unit: str
    entries: tuple[Entry, ...]
    baselines: tuple[Entry, ...]
    dense: Entry | None
    missing: tuple[str, ...]
    level: float = LEVEL
    propagate: str = ""
    partial: tuple[Entry, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    better: Mapping[str, str] = field(default_factory=dict[str, str])
    metrics: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def best(self) -> Entry:
        """The set with the smallest mean."""
        return self.entries[0]

    @property
    def looks(self) -> int:
        """Pairs that a difference to the best was picked from: every two of the sets and baselines."""
        return pairs(len(self.entries) + len(self.baselines))

    @property
    def one_draw(self) -> bool:
        """Whether some set was drawn only once, so that no interval covers another draw."""
        return any(e.draws == 1 for e in self.entries)


Answers = dict[str, dict[str, list[Measurement]]]
"""name of a set or baseline -> measured set -> its draws"""


def rankings(store: Store, level: float = LEVEL) -> list[Ranking]:
    """A ranking for each model, method and target of the grid that the store answers. A set that lacks a measure is left out and named."""
    cells = store.cells()
    kept = {cell.run: store.measurements(cell.run) for cell in cells if cell.run}
    groups = sorted({(c.model, c.method, c.target) for c in cells if c.data})
    return [r for group in groups if (r := _ranking(group, cells, kept, store, level)) is not None]


def _ranking(
    group: tuple[str, str, str], cells: Sequence[Cell], kept: Mapping[str, Mapping[str, Measurement]], store: Store, level: float
) -> Ranking | None:
    model, method, target = group
    ours = [c for c in cells if c.model == model and ((c.method == method and c.data and c.target == target) or _is_baseline(c, target))]
    names = _measured_names(ours, kept)
    answers, runs = _answers(ours, kept, names)
    labels = list(dict.fromkeys(c.data for c in ours if c.data in answers and c.data))
    if not labels:
        return None
    scale = {m: answers[labels[0]][m][0].score for m in names.values()}
    first = next(iter(scale.values()))
    averaged = tuple(m for m, s in scale.items() if (s.metric, s.unit) == (first.metric, first.unit))
    field = _Field(answers, runs, labels, averaged, level)
    baselines = [n for n in answers if n not in labels and n != "dense"]
    return Ranking(
        model=model,
        method=method,
        target=target,
        measured=tuple(names.values()),
        averaged=averaged,
        unit=first.unit,
        entries=tuple(map(field.entry, field.order)),
        baselines=tuple(sorted(map(field.entry, baselines), key=lambda e: e.mean.value)),
        dense=field.entry("dense") if "dense" in answers else None,
        missing=tuple(_holes(ours, kept, list(dict.fromkeys(text for c in ours for text in c.measures)), store)),
        level=level,
    )


class _Field:
    """Everything that one ranking compares, by label: sets, baselines and the dense model."""

    def __init__(self, answers: Answers, runs: Mapping[str, Sequence[str]], sets: Sequence[str], averaged: Sequence[str], level: float) -> None:
        self._answers, self._runs, self._sets, self._averaged, self._level = answers, runs, sets, averaged, level
        self._dense = answers.get("dense")
        self._looks = pairs(len(answers) - (self._dense is not None))
        self._means = {name: contrast(self._averages(name), self._averages("dense") if self._dense else None) for name in answers}
        self.order = sorted(sets, key=lambda n: (self._means[n].value, n))

    def _averages(self, name: str) -> dict[str, Draws]:
        return {m: self._answers[name][m] for m in self._averaged}

    def entry(self, name: str) -> Entry:
        """The row of one label."""
        mine, best = self._answers[name], self.order[0]
        to_best = None if name == best else contrast(self._averages(name), self._averages(best))
        return Entry(
            name=name,
            control=name in self._sets and source_name(name) in CONTROLS,
            runs=tuple(self._runs[name]),
            draws=len(self._runs[name]) if name in self._sets else 0,
            losses={m: contrast({m: mine[m]}) for m in mine},
            increases={m: contrast({m: mine[m]}, {m: self._dense[m]}) for m in mine} if self._dense else {},
            mean=self._means[name],
            to_best=to_best,
            tied=to_best is not None and not to_best.apart(self._level, self._looks),
        )


def pairs(count: int) -> int:
    """How many twos there are among `count`; at least 1."""
    return max(1, count * (count - 1) // 2)


def source_name(expression: str) -> str:
    """`gsm8k` of `gsm8k:cot@many`."""
    return expression.partition(":")[0].partition("@")[0].strip()


def _is_baseline(cell: Cell, target: str) -> bool:
    return not cell.data and (cell.method == "none" or cell.target == target)


def _label(cell: Cell) -> str:
    return cell.data or ("dense" if cell.method == "none" else cell.method)


def _measured_names(cells: Sequence[Cell], kept: Mapping[str, Mapping[str, Measurement]]) -> dict[str, str]:
    """Evaluator text -> the name of what it measured, made distinct where two measure the same thing differently."""
    found: dict[str, str] = {}
    for cell in cells:
        for text, measure_id in cell.measures.items():
            if (m := kept.get(cell.run, {}).get(measure_id)) is not None:
                found.setdefault(text, m.score.measured)
    seen = list(found.values())
    return {text: name if seen.count(name) == 1 else f"{name} [{text}]" for text, name in found.items()}


def _holes(cells: Sequence[Cell], kept: Mapping[str, Mapping[str, Measurement]], wanted: Sequence[str], store: Store) -> Iterator[str]:
    failures = store.failures()
    by_cell = {tuple(f["cell"]): f for f in failures.values() if "cell" in f}
    for cell in cells:
        for text in wanted:
            measure_id = cell.measures.get(text, "")
            if measure_id not in kept.get(cell.run, {}):
                labels = (cell.model, cell.data, cell.method, cell.target, cell.seed)
                why = failures.get(measure_id) or failures.get(cell.run) or by_cell.get(labels) or {"error": "not computed yet"}
                yield f"{_label(cell)} (draw {cell.seed}) on {text}: {why.get('error')}"


def _answers(cells: Sequence[Cell], kept: Mapping[str, Mapping[str, Measurement]], names: Mapping[str, str]) -> tuple[Answers, dict[str, list[str]]]:
    answers: Answers = {}
    runs: dict[str, list[str]] = {}
    for cell in cells:
        here, label = kept.get(cell.run, {}), _label(cell)
        # One run that answers several cells (a source that gives the same tokens for every seed) is one draw, not several.
        if cell.run in runs.get(label, ()) or not all(cell.measures.get(text, "") in here for text in names):
            continue
        runs.setdefault(label, []).append(cell.run)
        for text, name in names.items():
            answers.setdefault(label, {}).setdefault(name, []).append(here[cell.measures[text]])
    return answers, runs


def tidy(store: Store) -> list[dict[str, Any]]:
    """Every score of the store as one flat row: what was asked, what was measured, the value."""
    return [
        {
            "model": c.model,
            "data": c.data,
            "method": c.method,
            "target": c.target,
            "seed": c.seed,
            "measured": m.score.measured,
            "metric": m.score.metric,
            "unit": m.score.unit,
            "value": m.score.value,
            "stderr": m.score.stderr,
            "n": m.score.n,
            "run": c.run,
        }
        for c in store.cells()
        if c.run
        for m in store.measurements(c.run).values()
    ]
