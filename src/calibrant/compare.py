"""Which differences are real: paired comparisons of what was measured, with their uncertainty. No torch here.

Two runs are measured on the same items (documents), so they are compared item by item: a document that is hard for both says nothing
about which is better. A loss is a ratio, Σ nats / Σ tokens over documents; its error, and that of a difference of two, comes from the
residuals of the linearised ratio, with the document as the unit (tokens of one document are anything but independent). Intervals are
Student's t with Satterthwaite's degrees of freedom.

Two sources of uncertainty are kept apart. *Items*: other documents of the same kind would have given other numbers; measured sets are
independent of one another. *Draws*: another sample of the same calibration source would have made another model. With two draws or
more both are in the interval (their variances add; what they share is counted twice, so it is a little wide). With one draw only the
first is: such an interval says nothing about the next draw, and whoever shows it must say so (`Ranking.one_draw`).

The best set is picked from the same numbers that it is judged by, so a difference to it may be any of the differences between two sets. Its
interval is therefore widened for all pairs (Bonferroni): if all sets were equal, one would be called worse in at most 5 % of studies.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibrant.errors import DataError
from calibrant.store import Cell, Measurement, Store

LEVEL: Final = 0.95
CONTROLS: Final = frozenset({"random_tokens", "full_stops"})
"""Calibration sets without content, that real text ought to beat."""

Draws = Sequence[Measurement]
"""One measured set: what each draw of a calibration set gave on it (one, for a run that takes no draws)."""


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    `stderr` is None where a single item leaves none to estimate. `df` are the degrees of freedom behind it, `items` the documents.
    """

    value: float
    stderr: float | None
    df: float
    items: int

    def interval(self, level: float = LEVEL, looks: int = 1) -> tuple[float, float] | None:
        """Student's t interval at `level`, jointly over `looks` comparisons; None without a standard error."""
        if self.stderr is None:
            return None
        half = t_quantile(1 - (1 - level) / (2 * looks), self.df) * self.stderr
        return self.value - half, self.value + half

    def apart(self, level: float = LEVEL, looks: int = 1) -> bool:
        """Whether the interval leaves out zero. Without an interval nothing can be told apart."""
        interval = self.interval(level, looks)
        return interval is not None and not interval[0] <= 0 <= interval[1]


def contrast(a: Mapping[str, Draws], b: Mapping[str, Draws] | None = None) -> Estimate:
    """How much *worse* `a` is than `b`, averaged over the measured sets that both map to their draws; without `b`, the plain mean of `a`.

    Raises `DataError` where the two weren't measured on the same items, in the same unit, at the same context length.
    """
    if b is not None and a.keys() != b.keys():
        raise DataError(f"{sorted(a)} can't be compared with {sorted(b)}: compare runs that were measured on the same sets")
    sides = [a] if b is None else [a, b]
    parts = [[_Part.of(side[name]) for side in sides] for name in a]
    for name, pair in zip(a, parts, strict=True):
        _check_paired(name, pair)
    better = [-1.0 if b is not None and side.better == "higher" else 1.0 for side, *_ in parts]
    value = float(np.mean([s * (p[0].value - (p[1].value if b is not None else 0.0)) for s, p in zip(better, parts, strict=True)]))
    components: list[tuple[float | None, float]] = []
    for pair in parts:
        residuals = pair[0].residuals - (pair[1].residuals if b is not None else 0.0)
        components.append((_variance(residuals / len(parts)), len(residuals) - 1.0))
    for side in zip(*parts, strict=True):
        over_draws = np.mean([s * p.draws for s, p in zip(better, side, strict=True)], axis=0)
        if len(over_draws) > 1:
            components.append((float(np.var(over_draws, ddof=1)) / len(over_draws), len(over_draws) - 1.0))
    stderr, df = _combined(components)
    return Estimate(value, stderr, df, sum(len(pair[0].items) for pair in parts))


@dataclass(frozen=True)
class _Part:
    """One side of one measured set: each draw's ratio, and the items' linearised residuals, averaged over draws."""

    items: tuple[str, ...]
    weights: NDArray[np.float64]
    draws: NDArray[np.float64]
    residuals: NDArray[np.float64]
    better: str
    scale: tuple[str, str, Any]

    @property
    def value(self) -> float:
        return float(self.draws.mean())

    @staticmethod
    def of(draws: Draws) -> "_Part":
        tables = [sorted((o.item, o.value, o.weight) for o in m.outcomes) for m in draws]
        items = tuple(item for item, _, _ in tables[0])
        for m, table in zip(draws, tables, strict=True):
            _check_items(m.score.measured, items, tuple(item for item, _, _ in table))
        values = np.array([[v for _, v, _ in table] for table in tables], dtype=np.float64)
        weights = np.array([[w for _, _, w in table] for table in tables], dtype=np.float64)
        totals = weights.sum(1)
        if len(items) == 0 or (totals <= 0).any():
            raise DataError(f"{draws[0].score.measured!r} has no items with outcomes; there is nothing to compare", subject=draws[0].score.measured)
        ratios = values.sum(1) / totals
        residuals = ((values - ratios[:, None] * weights) / totals[:, None]).mean(0)
        score = draws[0].score
        scale = (score.metric, score.unit, score.facts.get("length"))
        return _Part(items, weights[0], ratios, residuals, score.better, scale)


def _check_items(measured: str, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    if ours != theirs:
        odd = sorted(set(ours) ^ set(theirs))
        raise DataError(
            f"two runs on {measured!r} can't be paired: {len(ours)} and {len(theirs)} items, {len(odd)} of them in one alone"
            + (f" (such as {odd[0]!r})" if odd else "")
            + "; measure both with the same evaluator",
            subject=measured,
        )


def _check_paired(name: str, pair: Sequence[_Part]) -> None:
    if len(pair) < 2:
        return
    a, b = pair
    _check_items(name, a.items, b.items)
    if a.scale != b.scale:
        raise DataError(f"two runs on {name!r} can't be compared: {_said(a.scale)} and {_said(b.scale)}", subject=name)
    if not np.array_equal(a.weights, b.weights):
        raise DataError(f"two runs on {name!r} can't be paired: the same items hold {a.weights.sum():g} and {b.weights.sum():g} tokens", subject=name)


def _said(scale: tuple[str, str, Any]) -> str:
    metric, unit, length = scale
    return f"{metric} in {unit}" + (f" at context length {length}" if length is not None else "")


def _variance(residuals: NDArray[np.float64]) -> float | None:
    """Of the sum of `residuals`, one independent item each; unknown for a single item."""
    n = len(residuals)
    return float((residuals**2).sum()) * n / (n - 1) if n > 1 else None


def _combined(components: Sequence[tuple[float | None, float]]) -> tuple[float | None, float]:
    """The standard error of a sum of independent parts, and Satterthwaite's degrees of freedom for it."""
    if any(variance is None for variance, _ in components):
        return None, 0.0
    known = [(v, df) for v, df in components if v]
    total = sum(v for v, _ in known)
    if not known:
        return 0.0, max(df for _, df in components)
    return math.sqrt(total), total**2 / sum(v**2 / df for v, df in known)


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """The `p` quantile (p > 0.5) of Student's t with `df` ≥ 1 degrees of freedom, which needn't be whole.

    With t = √df·tan θ the density becomes cos^(df−1) θ, smooth on a finite interval: integrated by Gauss and Legendre, solved by bisection.
    """
    if df > 1e6:
        return NormalDist().inv_cdf(p)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        area = 0.5 + scale * middle / 2 * float(weights @ np.cos(middle * (nodes + 1) / 2) ** (df - 1))
        low, high = (middle, high) if area < p else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


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
