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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from calibrant.errors import SpecError
from calibrant.lab.stats.contrasts import Contrast, contrasts
from calibrant.lab.stats.crossed import Pairs
from calibrant.lab.stats.estimate import LEVEL
from calibrant.lab.stats.questions import PaperQuestion, questions
from calibrant.lab.stats.ranking import MEAN, ComparedGroup, Ranking, RankingEntry, pairs
from calibrant.lab.stats.results import UNTOUCHED, Results, grouped, narrowed, read, unranked
from calibrant.lab.stats.sensitivity import Sensitivity, sensitivity
from calibrant.results import Store


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
    `missing` names every hole with its reason, `stale` counts runs of an older revision, `one_draw`
    says that some set was drawn only once.
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

    @property
    def only_measured(self) -> bool:
        """Whether nothing was compressed: finished models, or untouched ones, were measured."""
        return (
            not self.rankings
            and bool(self.unranked)
            and all(ranking.method == UNTOUCHED for ranking in self.unranked)
        )


def compare(
    store: Store | Results, measures: Sequence[str] = (), level: float = LEVEL, baseline: str = ""
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
    ranked = tuple(group.ranking() for group in groups)
    alone = (
        ComparedGroup(setting, cells, chosen, level)
        for setting, cells in unranked(chosen.cells).items()
    )
    without_sets = tuple(group.ranking() for group in alone if not group.empty)
    return Comparison(
        ranked,
        tuple(contrasts(results, level)),
        tuple(agreements(groups)),
        comparisons=sum(
            r.comparisons * (len(r.measured) + (len(r.averaged) > 1))
            for r in ranked
            if len(r.entries) + len(r.baselines) > 1
        ),
        missing=tuple(dict.fromkeys(hole for r in (*ranked, *without_sets) for hole in r.missing)),
        stale=len(results.stale & results.records.keys()),
        one_draw=any(r.one_draw for r in ranked),
        questions=tuple(questions(groups)),
        unranked=without_sets,
        sensitivities=tuple(found for group in groups if (found := sensitivity(group)) is not None),
    )


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
            f"no calibration set here is called {baseline!r} (there are: {', '.join(sets) or 'none'}); name one of these",
            subject=baseline,
        )
    if not baseline:
        default = next(
            (label for label in sets if results.label(label).source == "c4"),
            sets[0] if sets else "",
        )
        baseline = str(results.study.get("baseline") or default)
    groups = [
        ComparedGroup(setting, cells, results, level, baseline)
        for setting, cells in grouped(results.cells).items()
    ]
    return [group for group in groups if not group.empty]


def agreements(groups: Sequence[ComparedGroup]) -> Iterator[RankAgreement]:
    """Yield every two rankings of three sets or more that differ in one thing only: the method,
    the target, or what is measured.
    """
    for a, b in combinations(groups, 2):
        ours, theirs = a.setting, b.setting
        if (
            ours.model == theirs.model
            and ours.propagate == theirs.propagate
            and a.averaged == b.averaged
        ):
            if ours.target == theirs.target:
                yield from _agreement(
                    "method", (ours.method, theirs.method), (a, b), (MEAN, MEAN), ours.target
                )
            elif ours.method == theirs.method:
                yield from _agreement(
                    "target", (ours.target, theirs.target), (a, b), (MEAN, MEAN), ours.method
                )
    for group in groups:
        for pair in combinations(group.measured, 2):
            yield from _agreement(
                "measured",
                pair,
                (group, group),
                pair,
                f"{group.setting.method} at {group.setting.target}",
            )


def _agreement(
    along: Literal["method", "target", "measured"],
    names: tuple[str, str],
    groups: tuple[ComparedGroup, ComparedGroup],
    measured: tuple[str, str],
    within: str,
) -> Iterator[RankAgreement]:
    first, second = groups
    sets = [
        label for label in first.sets if label in second.sets and not first.label(label).control
    ]
    if len(sets) >= 3:
        a, b = (
            group.tables[name].among(sets) for group, name in zip(groups, measured, strict=True)
        )
        tau, interval = tau_b(a.values, b.values), tau_interval(a, b, first.level)
        yield RankAgreement(along, *names, first.setting.model, tau, interval, len(sets), within)


def tau_b(a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"]) -> float:
    """Return Kendall's τ-b of two tables of differences between the same things; 0 where one of
    them ranks nothing.
    """
    # A pair agrees where the signs' product is 1; ties are 0, and τ-b leaves them out of each
    # ranking's own count.
    first, second = np.sign(a), np.sign(b)
    both = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / both if both else 0.0


def tau_interval(a: Pairs, b: Pairs, level: float) -> tuple[float, float] | None:
    """Return the least and the largest τ that fit what is significant in both tables; None where a
    table has no errors.

    A sign is wrong with half the probability that a two-sided test is, and there are two tables, so
    as many comparisons as pairs make it joint.
    """
    if np.isnan(a.spread.variance).any() or np.isnan(b.spread.variance).any():
        return None
    comparisons = pairs(len(a.labels))
    first, second = (
        (worse := table.worse(level, comparisons)).astype(int) - worse.T for table in (a, b)
    )
    every = len(a.labels) * (len(a.labels) - 1)
    # What is significant in both tables has its sign in τ; every other pair may go either way.
    known, open_ = int((first * second).sum()), every - int((first * second != 0).sum())
    return (known - open_) / every, (known + open_) / every


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
        for i, name in enumerate(self.sets):
            known = [
                (m, float(self.by[i, at]), bool(self.significant[i, at]))
                for at, m in enumerate(self.measured)
                if np.isfinite(self.by[i, at])
            ]
            rows[name] = {
                m: {"regret": value, "significant": significant} for m, value, significant in known
            }
        return {"best": dict(zip(self.measured, self.best, strict=True)), "sets": rows}


def regret(ranking: Ranking) -> Regret:
    """Return the regrets of a ranking's calibration sets, those with holes too. Columns that
    were measured on different scales aren't comparable.
    """
    entries = (*ranking.entries, *ranking.partial)
    names, own = ranking.measured, np.full((len(entries), len(ranking.measured)), np.nan)
    # Losses as they are, and scores of which more is better turned round, so that more is worse
    # everywhere.
    turn = [-1.0 if ranking.better.get(m, "lower") == "higher" else 1.0 for m in names]
    for at, entry in enumerate(entries):
        own[at] = [
            sign * entry.losses[m].value if m in entry.losses else np.nan
            for m, sign in zip(names, turn, strict=True)
        ]
    at_best = [int(np.nanargmin(column)) if np.isfinite(column).any() else -1 for column in own.T]
    by = (
        own - np.array([own[i, m] if i >= 0 else np.nan for m, i in enumerate(at_best)])
        if entries
        else own
    )
    columns = list(zip(names, at_best, strict=True))
    significant = np.array(
        [
            [i >= 0 and significantly_different(e, entries[i], m) for m, i in columns]
            for e in entries
        ],
        dtype=bool,
    )
    order = sorted(
        range(len(entries)),
        key=lambda i: (not np.isfinite(by[i]).all(), float(np.max(by[i], initial=0.0)), i),
    )
    best = tuple(entries[i].name if i >= 0 else "" for i in at_best)
    return Regret(
        tuple(entries[i].name for i in order),
        names,
        by[order],
        significant.reshape(own.shape)[order],
        best,
    )


def significantly_different(a: RankingEntry, b: RankingEntry, measured: str) -> bool:
    """Whether two sets differ significantly on `measured`: both have letters there and share
    none.
    """
    ours, theirs = (
        set(re.findall(r"\[\d+\]|[a-zA-Z]", entry.letters.get(measured, ""))) for entry in (a, b)
    )
    return bool(ours and theirs and not ours & theirs)
