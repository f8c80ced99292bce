"""Everything that can be compared in a store at once: rankings, contrasts, and what the rankings
say together: agreement and regret.

**Agreement.** The interval of Kendall's τ holds every τ that the order of the sets may have, given
which two differ significantly: jointly over all pairs in both rankings, so that it covers the truth
whatever the effects are. Resampling sets is hopeless with few of them, and resampling their
estimates draws τ towards zero, since what is resampled is noisier than the truth: where effects are
small, that interval misses it.

**Regret.** A ranking compares sets by their mean. Where sets are languages or domains, what counts
is the row: a set that is never best but never far behind is the one to take when it isn't known
what the model will be used for.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from calibrant.errors import SpecError
from calibrant.lab.stats.contrasts import Contrast, contrasts
from calibrant.lab.stats.crossed import Pairs
from calibrant.lab.stats.estimate import LEVEL
from calibrant.lab.stats.questions import PaperQuestion, questions
from calibrant.lab.stats.ranking import MEAN, ComparedGroup, Ranking, RankingEntry, pairs
from calibrant.lab.stats.results import (
    Results,
    Setting,
    UncountedRun,
    grouped,
    narrowed,
    read,
    unranked,
)
from calibrant.lab.stats.sensitivity import Sensitivity, sensitivity
from calibrant.results import Store
from calibrant.results.records import MEASURED, UNTOUCHED


@dataclass(frozen=True)
class RankAgreement:
    """How far two rankings of the same `sets` calibration sets agree: Kendall's τ-b, 1 for the same
    order, −1 for the reverse.

    `a` and `b` are two methods, targets or measured sets of `model`; `within` says what both have
    in common. Controls are left out: that both put them last is no agreement worth a number.
    `interval` is None where the estimates have no errors to make one from.
    """

    along: Literal["method", "target", "measured"]
    a: str
    b: str
    model: str
    tau: float
    interval: tuple[float, float] | None
    sets: int
    within: str = ""


@dataclass(frozen=True)
class Comparison:
    """What a store's numbers say.

    `rankings` are descriptive and `comparisons` counts the comparisons that they show; `contrasts`
    are those that the study named before it ran; `questions` are those of the study that this
    project is named after, answered for this one. `unranked` are methods that look at no data, with
    a target that no set has: rankings without sets, which have one baseline each. `sensitivities`
    say for each ranking whose sets were drawn more than once how much the choice of set decides.
    `missing` names every hole with its reason, `stale` counts runs and measurements of an older
    revision, `one_draw` says that some set was drawn only once. `uncounted` are runs of cells that
    another run stands for, `dtypes` the types of numbers of those models whose runs that count were
    computed in several.
    """

    rankings: tuple[Ranking, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    agreements: tuple[RankAgreement, ...] = ()
    comparisons: int = 0
    missing: tuple[str, ...] = ()
    stale: int = 0
    one_draw: bool = False
    questions: tuple[PaperQuestion, ...] = ()
    unranked: tuple[Ranking, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()
    tested: int = 0
    uncounted: tuple[UncountedRun, ...] = ()
    dtypes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def of_sets(self) -> tuple[Ranking, ...]:
        """The rankings of calibration sets, without those of finished models."""
        return tuple(ranking for ranking in self.rankings if not ranking.finished)

    @property
    def finished(self) -> tuple[Ranking, ...]:
        """The rankings of finished models, by their labels."""
        return tuple(ranking for ranking in self.rankings if ranking.finished)

    @property
    def only_measured(self) -> bool:
        """Whether only untouched models were measured."""
        if self.rankings or not self.unranked:
            return False
        return all(ranking.method == UNTOUCHED for ranking in self.unranked)


def compare(
    store: Store | Results,
    measures: str | Sequence[str] = (),
    level: float = LEVEL,
    baseline: str = "",
) -> Comparison:
    """Compare everything that a store holds.

    `measures` narrows what the rankings show: what begins with one of them, an evaluator or a
    measured set. Primary contrasts stay as the study named them. `baseline` is the set that others
    are compared with: without it the study's own, else c4, else the first set of the grid. Raises
    `DataError` for results that can't be compared with one another, `SpecError` where nothing
    measured begins with one of `measures`, and for a baseline that isn't there.
    """
    results = store if isinstance(store, Results) else read(store)
    chosen = narrowed(results, measures)
    groups = compared_groups(chosen, level, baseline)
    ranked = [group.ranking() for group in groups]
    without_sets: list[Ranking] = []
    for setting, cells in unranked(chosen.cells).items():
        group = ComparedGroup(setting, cells, chosen, level)
        if not group.empty:
            without_sets.append(group.ranking())
    missing: dict[str, None] = {}
    for ranking in (*ranked, *without_sets):
        missing |= dict.fromkeys(ranking.missing)
    of_sets = [group for group in groups if group.setting.method != MEASURED]
    sensitivities: list[Sensitivity] = []
    for group in of_sets:
        found = sensitivity(group)
        if found is not None:
            sensitivities.append(found)
    tested = contrasts(results, level)
    return Comparison(
        tuple(ranked),
        tuple(tested),
        tuple(agreements(of_sets)),
        comparisons=sum(map(comparisons_in, ranked)),
        missing=tuple(missing),
        stale=_stale(results),
        one_draw=any(ranking.one_draw for ranking in ranked),
        questions=tuple(questions(of_sets)),
        unranked=tuple(without_sets),
        sensitivities=tuple(sensitivities),
        tested=len(tested),
        uncounted=results.uncounted,
        dtypes=_several_dtypes(results),
    )


def _stale(results: Results) -> int:
    """Return how many runs and measurements of the grid are of an older revision."""
    asked: set[str] = set()
    for cell in results.cells:
        asked.update((cell.run, *cell.measures.values()))
    return len(results.stale & asked)


def _several_dtypes(results: Results) -> dict[str, tuple[str, ...]]:
    """Return the types that the runs of a model were computed in, where they are several."""
    dtypes: dict[str, set[str]] = {}
    for cell in results.cells:
        if cell.run in results.records:
            dtypes.setdefault(cell.model, set()).add(results.records[cell.run].run.dtype)
    return {model: tuple(sorted(found)) for model, found in dtypes.items() if len(found) > 1}


def comparisons_in(ranking: Ranking) -> int:
    """Return how many comparisons a ranking shows: of every two rows, in each column."""
    if len(ranking.entries) + len(ranking.baselines) < 2:
        return 0
    means = 1 if len(ranking.averaged) > 1 else 0
    return ranking.comparisons * (len(ranking.measured) + means)


def rankings(store: Store | Results, level: float = LEVEL) -> list[Ranking]:
    """Return a ranking for each model, method, target and propagation of the grid that has
    results. A set that lacks a measure is named in it.
    """
    results = store if isinstance(store, Results) else read(store)
    return [group.ranking() for group in compared_groups(results, level)]


def compared_groups(
    results: Results, level: float = LEVEL, baseline: str = ""
) -> list[ComparedGroup]:
    """Return what each ranking is made from. A group of which nothing at all was measured has
    none.
    """
    sets = list(dict.fromkeys(cell.data for cell in results.cells if cell.data))
    if baseline and baseline not in sets:
        raise SpecError(
            f"no calibration set here is called {baseline!r} "
            f"(there are: {', '.join(sets) or 'none'}); name one of these",
            subject=baseline,
        )
    baseline = baseline or str(results.study.get("baseline") or "")
    if not baseline and sets:
        c4_sets = [label for label in sets if results.label(label).source == "c4"]
        baseline = c4_sets[0] if c4_sets else sets[0]
    groups: list[ComparedGroup] = []
    for setting, cells in grouped(results.cells).items():
        group = ComparedGroup(setting, cells, results, level, baseline)
        if not group.empty:
            groups.append(group)
    return groups


def agreements(groups: Sequence[ComparedGroup]) -> Iterator[RankAgreement]:
    """Yield every two rankings of three sets or more that differ in one thing only: the method,
    the target, or what is measured.

    Two methods are each taken in the propagation that they were used with, where each has one.
    """
    propagations = Counter(_without_propagation(group.setting) for group in groups)
    for two in combinations(groups, 2):
        first_group, second_group = two
        if first_group.averaged != second_group.averaged:
            continue
        first = first_group.setting
        second = second_group.setting
        if first.model != second.model:
            continue
        if first.propagate != second.propagate:
            counts = [propagations[_without_propagation(setting)] for setting in (first, second)]
            if first.method == second.method or counts != [1, 1]:
                continue
        if first.target == second.target:
            names = (first.method, second.method)
            yield from _agreement("method", names, two, (MEAN, MEAN), first.target)
        elif first.method == second.method:
            names = (first.target, second.target)
            yield from _agreement("target", names, two, (MEAN, MEAN), first.method)
    for group in groups:
        within = f"{group.setting.method} at {group.setting.target}"
        for pair in combinations(group.measured, 2):
            yield from _agreement("measured", pair, (group, group), pair, within)


def _without_propagation(setting: Setting) -> Setting:
    return setting._replace(propagate="")


def _agreement(
    along: Literal["method", "target", "measured"],
    names: tuple[str, str],
    groups: tuple[ComparedGroup, ComparedGroup],
    measured: tuple[str, str],
    within: str,
) -> Iterator[RankAgreement]:
    first, second = groups
    sets: list[str] = []
    for label in first.sets:
        # Two rankings that both put the controls last agree on nothing worth a number.
        if label in second.sets and not first.label(label).control:
            sets.append(label)
    if len(sets) < 3:
        return
    a = first.tables[measured[0]].among(sets)
    b = second.tables[measured[1]].among(sets)
    tau = tau_b(a.values, b.values)
    interval = tau_interval(a, b, first.level)
    yield RankAgreement(along, *names, first.setting.model, tau, interval, len(sets), within)


def tau_b(a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"]) -> float:
    """Return Kendall's τ-b of two tables of differences between the same things; 0 where one of
    them ranks nothing.
    """
    # A pair agrees where the signs' product is 1; ties are 0, and τ-b leaves them out of each
    # ranking's own count.
    first = np.sign(a)
    second = np.sign(b)
    both = float(np.sqrt((first**2).sum() * (second**2).sum()))
    if not both:
        return 0.0
    return float((first * second).sum()) / both


def tau_interval(a: Pairs, b: Pairs, level: float) -> tuple[float, float] | None:
    """Return the least and the largest τ that fit what is significant in both tables; None where a
    table has no errors.

    A sign is wrong with half the probability that a two-sided test is, and there are two tables, so
    as many comparisons as pairs make it joint.
    """
    if np.isnan(a.spread.variance).any() or np.isnan(b.spread.variance).any():
        return None
    comparisons = pairs(len(a.labels))
    first = _signs(a.worse(level, comparisons))
    second = _signs(b.worse(level, comparisons))
    # What is significant in both tables has its sign in τ; every other pair may go either way.
    every = len(a.labels) * (len(a.labels) - 1)
    product = first * second
    decided = int(product.sum())
    undecided = every - int((product != 0).sum())
    return (decided - undecided) / every, (decided + undecided) / every


def _signs(worse: Bool[np.ndarray, "n n"]) -> Int[np.ndarray, "n n"]:
    """Return 1 where the row is significantly worse than the column, -1 where the column is."""
    return worse.astype(int) - worse.T.astype(int)


@dataclass(frozen=True)
class Regret:
    """Calibration sets by measured sets, those with the smallest worst regret first.

    `by` is how much worse a set is than the best one of its column, in that column's unit; NaN
    where it has no number. `significant` says where that difference is, jointly over all pairs of
    the column: elsewhere the regret may be chance. `best` names each column's best.
    """

    sets: tuple[str, ...]
    measured: tuple[str, ...]
    by: Float[np.ndarray, "set measured"]
    significant: Bool[np.ndarray, "set measured"]
    best: tuple[str, ...]

    @property
    def worst(self) -> Float[np.ndarray, " set"]:
        """Each set's largest regret; NaN for a set with a hole."""
        return self.by.max(1)

    def to_json(self) -> dict[str, Any]:
        """Return plain data: by set and measured set the regret and whether it is significant;
        without the holes.
        """
        rows: dict[str, Any] = {}
        for row, name in enumerate(self.sets):
            found: dict[str, Any] = {}
            for column, measured in enumerate(self.measured):
                value = float(self.by[row, column])
                if np.isfinite(value):
                    significant = bool(self.significant[row, column])
                    found[measured] = {"regret": value, "significant": significant}
            rows[name] = found
        return {"best": dict(zip(self.measured, self.best, strict=True)), "sets": rows}


def regret(ranking: Ranking) -> Regret:
    """Return the regrets of a ranking's calibration sets, those with holes too. Columns that
    were measured on different scales aren't comparable.
    """
    entries = (*ranking.entries, *ranking.partial)
    by = np.full((len(entries), len(ranking.measured)), np.nan)
    significant = np.zeros(by.shape, dtype=bool)
    best: list[str] = []
    for column, measured in enumerate(ranking.measured):
        # Scores of which more is better change their sign, so that more is worse everywhere.
        sign = -1.0 if ranking.better.get(measured, "lower") == "higher" else 1.0
        for row, entry in enumerate(entries):
            if measured in entry.losses:
                by[row, column] = sign * entry.losses[measured].value
        if not np.isfinite(by[:, column]).any():
            best.append("")
            continue
        least = entries[int(np.nanargmin(by[:, column]))]
        by[:, column] -= np.nanmin(by[:, column])
        best.append(least.name)
        for row, entry in enumerate(entries):
            significant[row, column] = significantly_different(entry, least, measured)
    worst = by.max(1, initial=0.0)

    def place(row: int) -> tuple[bool, float]:
        return bool(np.isnan(worst[row])), float(worst[row])

    # Sets with a hole last. Sorting keeps the ranking's order among equals.
    order = sorted(range(len(entries)), key=place)
    names = [entries[row].name for row in order]
    return Regret(
        tuple(names),
        ranking.measured,
        by[order],
        significant[order],
        tuple(best),
    )


def significantly_different(a: RankingEntry, b: RankingEntry, measured: str) -> bool:
    """Say whether two sets differ significantly on `measured`: both have letters there and share
    none.
    """
    first = _letters(a, measured)
    second = _letters(b, measured)
    return bool(first) and bool(second) and first.isdisjoint(second)


def _letters(entry: RankingEntry, measured: str) -> set[str]:
    text = entry.letters.get(measured, "")
    return set(re.findall(r"\[\d+\]|[a-zA-Z]", text))
