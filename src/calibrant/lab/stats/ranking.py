"""Calibration sets ranked: each with its losses, its increases over the dense model, its
differences to the others, and how sure they are.
"""

import math
import string
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool

from calibrant.lab.stats.crossed import Pairs, Side, WeightedSides, combination, share_kept
from calibrant.lab.stats.estimate import LEVEL, Estimate
from calibrant.lab.stats.results import DENSE, GroupResults, Results, Setting, missing
from calibrant.results import Cell, Score
from calibrant.results.records import MEASURED
from calibrant.spec.families import Family
from calibrant.spec.grammar import SetLabel

MEAN: Final = "mean"
"""Stands beside the measured sets for the average over those that are averaged."""


@dataclass(frozen=True)
class RankingEntry:
    """One row of a ranking: a calibration set, or a baseline that looks at no data.

    `losses` and `increases` (over the dense model; empty without one) are by measured set; `mean`
    is the mean increase over `averaged` sets, or the mean loss where there is no dense model.
    `to_best` is how much worse it is than the best set, None for the best itself; `tied` says that
    the two cannot be distinguished at the ranking's joint level. `to_baseline` is how much worse it
    is than the ranking's baseline, by measured set and "mean"; empty for the baseline itself, and
    where there is none.

    By measured set and "mean": `letters`, of which two rows share one where they cannot be
    distinguished; `share_kept`, the share of the dense model's performance; `best_on`, where it is
    significantly better than every other row. `ranks` are the first and the last place among the
    sets that fit what is significant. Of an `overlapping` set the draws share rows, and its errors
    cover items only. `label` is a set's name in its parts, None for a baseline and the dense model;
    a `control` is a set without content, that real text ought to beat.
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
    share_kept: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    best_on: frozenset[str] = frozenset()
    overlapping: bool = False
    to_baseline: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    label: SetLabel | None = None

    @property
    def family(self) -> Family | Literal["none"]:
        """What kind of data the set is; `none` for what looks at no data."""
        return "none" if self.label is None else self.label.family


@dataclass(frozen=True)
class Ranking:
    """Calibration sets for one model, method, target and propagation, the best first.

    `baseline` is the set that the others are compared with; empty if it has no place here.
    `missing` names what has no answer, and why; the rows that it is about are `partial`: they hold
    what is known, and their mean is not a number. `units`, `better` and `metrics` are by measured
    set. `bits` is how many bits a weight takes as it is stored; None where it is stored as a dense
    number. `floors` are, by measured set, the divergences below which a difference is none that a
    runtime would keep, where that is known.
    """

    model: str
    method: str
    target: str
    measured: tuple[str, ...]
    averaged: tuple[str, ...]
    unit: str
    entries: tuple[RankingEntry, ...]
    baselines: tuple[RankingEntry, ...]
    dense: RankingEntry | None
    missing: tuple[str, ...]
    level: float = LEVEL
    propagate: str = ""
    partial: tuple[RankingEntry, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    better: Mapping[str, str] = field(default_factory=dict[str, str])
    metrics: Mapping[str, str] = field(default_factory=dict[str, str])
    baseline: str = ""
    bits: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def finished(self) -> bool:
        """Whether its rows are models that are known by their labels, whatever made them."""
        return self.method == MEASURED

    @property
    def best(self) -> RankingEntry:
        """The set with the smallest mean."""
        return self.entries[0]

    @property
    def comparisons(self) -> int:
        """How many comparisons a difference to the best was picked from: every two of the sets
        and baselines.
        """
        return pairs(len(self.entries) + len(self.baselines))

    @property
    def baseline_comparisons(self) -> int:
        """How many comparisons with the baseline there are: every other set and what looks at no
        data, on one measured set.
        """
        return max(1, len(self.entries) + len(self.baselines) - 1)

    @property
    def one_draw(self) -> bool:
        """Whether some set was drawn only once, so that no interval covers another draw."""
        return any(entry.draws == 1 for entry in self.entries)


def pairs(count: int) -> int:
    """Return how many pairs there are among `count`; at least 1."""
    return max(1, count * (count - 1) // 2)


UNKNOWN: Final = Estimate(math.nan, None, 0.0, 0)
"""What stands where a number can't be formed."""


class ComparedGroup:
    """The sets and baselines of one group, every two of them compared: on each measured set and on
    average.

    `rows` are the sides of each by measured set, `measured` is all that was measured, and
    `averaged` what shares the first one's metric and unit. `dense` is the untouched model by
    measured set, empty without one.
    """

    def __init__(
        self,
        setting: Setting,
        cells: Sequence[Cell],
        results: Results,
        level: float = LEVEL,
        baseline: str = "",
    ) -> None:
        self.setting = setting
        self.level = level
        self._cells = cells
        self._results = results
        self._named_baseline = baseline
        self._group = GroupResults.of(cells, results)
        self.dense = self._group.sides.get(DENSE, {})
        self.rows = dict(self._group.sides)
        self.rows.pop(DENSE, None)
        self.measured = tuple(self._group.names.values())
        scores: dict[str, Score] = {}
        for sides in (*self._group.sides.values(), *self._group.partial.values()):
            for name, side in sides.items():
                scores.setdefault(name, side.score)
        self._scores = {name: scores[name] for name in self.measured}
        # Only numbers of one scale have an average: that of the first measure.
        averaged: list[str] = []
        for name in self.measured:
            score = scores[name]
            first = scores[self.measured[0]]
            if (score.metric, score.unit) == (first.metric, first.unit):
                averaged.append(name)
        self.averaged = tuple(averaged)

    @property
    def empty(self) -> bool:
        """Whether nothing that was measured can be shown."""
        return not self._scores

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The calibration sets that have everything, the best first."""
        return tuple(label for label in self._order if label in self._group.sets)

    def label(self, name: str) -> SetLabel:
        """Return what one of the sets is called, in its parts."""
        return self._results.label(name)

    @property
    def units(self) -> Mapping[str, str]:
        """What each measured set is measured in; the averaged ones share the first's."""
        return {name: score.unit for name, score in self._scores.items()}

    @property
    def baseline(self) -> str:
        """The set that the others are compared with, if it has everything."""
        if self._named_baseline in self.sets:
            return self._named_baseline
        return ""

    def difference(
        self, first: Sequence[str], second: Sequence[str], measured: Sequence[str]
    ) -> Estimate:
        """Return how much worse the sets `first`, taken together, are than `second`, averaged
        over `measured`.
        """
        # More is worse, or better, on a measured set whatever the row.
        any_sides = self.rows[first[0]]
        coefs = {name: any_sides[name].worse / len(measured) for name in measured}
        terms: list[WeightedSides] = []
        for sets, sign in ((first, 1), (second, -1)):
            weight = sign / len(sets)
            weighted = {name: weight * coef for name, coef in coefs.items()}
            for label in sets:
                terms.append((self.rows[label], weighted))
        return combination(terms)

    @cached_property
    def tables(self) -> Mapping[str, Pairs]:
        """All pairs of rows, by measured set and on average, the best on average first."""
        return {name: table.among(self._order) for name, table in self._unordered.items()}

    @cached_property
    def _unordered(self) -> Mapping[str, Pairs]:
        if not self.rows:
            return {}
        tables = {name: Pairs.of(self.rows, [name]) for name in self.measured}
        tables[MEAN] = tables[self.averaged[0]]
        if len(self.averaged) > 1:
            tables[MEAN] = Pairs.of(self.rows, self.averaged)
        return tables

    @cached_property
    def _order(self) -> tuple[str, ...]:
        if not self.rows:
            return ()
        table = self._unordered[MEAN]
        # Differences to one row order the rows as their own values would.
        ordered = sorted(zip(table.values[:, 0].tolist(), table.labels, strict=True))
        return tuple(label for _, label in ordered)

    @property
    def _comparisons(self) -> int:
        return pairs(len(self.rows))

    @cached_property
    def _worse(self) -> Mapping[str, Bool[np.ndarray, "n n"]]:
        """By measured set and on average, where the row is significantly worse than the column."""
        worse: dict[str, Bool[np.ndarray, "n n"]] = {}
        for name, table in self.tables.items():
            worse[name] = table.worse(self.level, self._comparisons)
        return worse

    @cached_property
    def _letters(self) -> Mapping[str, Mapping[str, str]]:
        """The letters of each row, by measured set and on average."""
        letters: dict[str, dict[str, str]] = {label: {} for label in self._order}
        for name, worse in self._worse.items():
            # The best of each column has its first letter, so the rows go in the order of that
            # column.
            order = np.argsort(self.tables[name].values[:, 0], kind="stable")
            in_order = worse[np.ix_(order, order)]
            texts = compact_letters(in_order | in_order.T)
            for row, text in zip(order, texts, strict=True):
                letters[self._order[row]][name] = text
        return letters

    @cached_property
    def _best(self) -> Mapping[str, str]:
        """The row that is significantly better than every other, by measured set and on average
        where there is one.
        """
        best: dict[str, str] = {}
        for name, worse in self._worse.items():
            # How many rows are significantly worse than each.
            beaten = worse.sum(0)
            others = len(worse) - 1
            if others > 0 and beaten.max() == others:
                best[name] = self._order[int(beaten.argmax())]
        return best

    @cached_property
    def _ranks(self) -> Mapping[str, tuple[int, int]]:
        """The first and the last place of each set that fit what is significant on average."""
        places = [self._order.index(label) for label in self.sets]
        ranks: dict[str, tuple[int, int]] = {}
        if places:
            worse = self._worse[MEAN][np.ix_(places, places)]
            for row, label in enumerate(self.sets):
                # At best a set comes behind those that it is worse than, at worst before those
                # that are worse than it.
                first = 1 + int(worse[row].sum())
                last = len(places) - int(worse[:, row].sum())
                ranks[label] = (first, last)
        return ranks

    def ranking(self) -> Ranking:
        """Return the table as values."""
        dense: RankingEntry | None = None
        if self.dense:
            dense = self._entry(DENSE)
        baselines = [self._entry(label) for label in self._order if label not in self._group.sets]
        setting = self.setting
        better: dict[str, str] = {}
        metrics: dict[str, str] = {}
        floors: dict[str, float] = {}
        for name, score in self._scores.items():
            better[name] = score.better
            metrics[name] = score.metric
            floor = score.facts.get("floor")
            if floor:
                floors[name] = floor
        return Ranking(
            **setting._asdict(),
            measured=self.measured,
            averaged=self.averaged,
            unit=self._scores[self.measured[0]].unit,
            entries=tuple(map(self._entry, self.sets)),
            baselines=tuple(baselines),
            dense=dense,
            missing=tuple(missing(self._cells, self._results)),
            level=self.level,
            partial=tuple(map(self._entry, self._group.partial)),
            units=self.units,
            better=better,
            metrics=metrics,
            baseline=self.baseline,
            bits=self._results.bits.get((setting.model, setting.method, setting.target)),
            floors=floors,
        )

    def _entry(self, label: str) -> RankingEntry:
        complete = label in self._group.sides
        if complete:
            sides = self._group.sides[label]
        else:
            sides = self._group.partial[label]
        set_label: SetLabel | None = None
        control = False
        if label in self._group.sets:
            set_label = self.label(label)
            control = set_label.control
        losses: dict[str, Estimate] = {}
        increases: dict[str, Estimate] = {}
        for name, side in sides.items():
            losses[name] = _mean({name: side})
            if name in self.dense:
                increases[name] = _mean({name: side}, self.dense)
        mean = UNKNOWN
        if complete:
            averaged = {name: sides[name] for name in self.averaged}
            mean = _mean(averaged, self.dense or None)
        to_best = self._to_best(label)
        tied = False
        if to_best is not None:
            tied = not to_best.significant(self.level, self._comparisons)
        best_on = [name for name, best in self._best.items() if best == label]
        return RankingEntry(
            name=label,
            control=control,
            runs=self._group.runs[label],
            draws=self._group.draws(label),
            losses=losses,
            increases=increases,
            mean=mean,
            to_best=to_best,
            tied=tied,
            letters=self._letters.get(label, {}),
            ranks=self._ranks.get(label, (0, 0)),
            share_kept=self._shares_kept(sides, complete),
            best_on=frozenset(best_on),
            overlapping=label in self._group.overlapping,
            to_baseline=self._to_baseline(label),
            label=set_label,
        )

    def _to_best(self, label: str) -> Estimate | None:
        """Return how much worse a row is than the best set, on average; None for that set itself,
        and for what isn't compared.
        """
        if label not in self.rows or not self.sets or label == self.sets[0]:
            return None
        return self.tables[MEAN].estimate(label, self.sets[0])

    def _to_baseline(self, label: str) -> dict[str, Estimate]:
        """Return how much worse a row is than the baseline, by measured set and on average; nothing
        for the baseline itself, and for what isn't compared.
        """
        if label not in self.rows or self.baseline in ("", label):
            return {}
        return {name: table.estimate(label, self.baseline) for name, table in self.tables.items()}

    def _shares_kept(self, sides: Mapping[str, Side], complete: bool) -> dict[str, Estimate]:
        """Return what a row keeps of the dense model's performance, by measured set, and on
        average if it is complete.
        """
        measured = {name: [name] for name in sides if name in self.dense}
        if complete and self.dense:
            measured[MEAN] = list(self.averaged)
        kept: dict[str, Estimate] = {}
        for name, averaged in measured.items():
            share = share_kept(sides, self.dense, averaged)
            if share is not None:
                kept[name] = share
        return kept


def _mean(sides: Mapping[str, Side], dense: Mapping[str, Side] | None = None) -> Estimate:
    """Return the mean of some measured sets, or how much worse than the dense model it is."""
    count = len(sides)
    if dense is None:
        means = dict.fromkeys(sides, 1 / count)
        return combination([(sides, means)])
    coefs = {name: side.worse / count for name, side in sides.items()}
    negative = {name: -coef for name, coef in coefs.items()}
    return combination([(sides, coefs), (dense, negative)])


_ALPHABET: Final = string.ascii_lowercase + string.ascii_uppercase


def compact_letters(different: Bool[np.ndarray, "n n"]) -> list[str]:
    """Return the letters of things in order, the best first: two share one if and only if they
    aren't `different`, even where that isn't transitive (a like b, b like c, a unlike c).

    A letter stands for a group that is alike in every two; groups grow from the first pair that
    none covers yet, and a group whose every pair others cover is dropped, as in Piepho's display
    (2004). Growing them, unlike inserting and absorbing, takes no exponential time (Gramm et al.
    2006). After fifty-two letters come numbers in brackets.

    >>> first_and_last = np.zeros((3, 3), dtype=bool)
    >>> first_and_last[0, 2] = first_and_last[2, 0] = True
    >>> compact_letters(first_and_last)
    ['a', 'ab', 'b']
    """
    count = len(different)
    alike: list[set[int]] = []
    for row in range(count):
        others = {other for other in range(count) if not different[row, other]}
        alike.append(others - {row})
    groups = _needed(_covering_groups(alike), alike)
    letters = [""] * count
    in_order = sorted(sorted(group) for group in groups)
    for number, group in enumerate(in_order):
        letter = f"[{number + 1}]"
        if number < len(_ALPHABET):
            letter = _ALPHABET[number]
        for member in group:
            letters[member] += letter
    return letters


def _covering_groups(alike: Sequence[Set[int]]) -> list[set[int]]:
    """Return groups of which some holds each pair that is alike. What is like nothing else has one
    of its own.
    """
    groups = [{row} for row, others in enumerate(alike) if not others]
    uncovered = [set(others) for others in alike]
    for row, others in enumerate(uncovered):
        while others:
            group = _grown(row, others, alike)
            groups.append(group)
            for member in group:
                uncovered[member] -= group
    return groups


def _needed(groups: list[set[int]], alike: Sequence[Set[int]]) -> list[set[int]]:
    """Return the groups without those whose every pair others cover."""
    shared = [group for group in groups if len(group) > 1]
    # The smallest first, since those of larger ones are likeliest to cover their pairs.
    for group in sorted(shared, key=len):
        remaining = [other for other in groups if other != group]
        if all(_covers(remaining, member, group & alike[member]) for member in group):
            groups = remaining
    return groups


def _grown(row: int, uncovered: Set[int], alike: Sequence[Set[int]]) -> set[int]:
    """Return a group of `row` and as many others as fit, every two of which are alike.

    Those whose pair with `row` no group holds yet come first.
    """
    group = {row}
    fitting = set(alike[row])
    for candidates in (uncovered, alike[row]):
        while fitting & candidates:
            chosen = min(fitting & candidates)
            group.add(chosen)
            fitting &= alike[chosen]
    return group


def _covers(groups: Sequence[Set[int]], member: int, others: Set[int]) -> bool:
    """Say whether each of the others is in a group with the member."""
    covered: set[int] = set()
    for group in groups:
        if member in group:
            covered |= group
    return others <= covered
