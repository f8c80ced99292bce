"""Calibration sets ranked: each with its losses, its increases over the dense model, its
differences to the others, and how sure they are.
"""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import or_
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool

from calibrant.lab.stats.crossed import Pairs, Side, combination, share_kept
from calibrant.lab.stats.estimate import LEVEL, Estimate
from calibrant.lab.stats.results import DENSE, GroupResults, Results, Setting, missing
from calibrant.results import Cell
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
        return any(e.draws == 1 for e in self.entries)


def pairs(count: int) -> int:
    """Return how many pairs there are among `count`; at least 1."""
    return max(1, count * (count - 1) // 2)


UNKNOWN: Final = Estimate(math.nan, None, 0.0, 0)
"""What stands where a number can't be formed."""


class ComparedGroup:
    """The sets and baselines of one group, compared in every two: on each measured set and on
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
        self.setting, self.level = setting, level
        self._cells, self._results, self._named_baseline = cells, results, baseline
        self._group = GroupResults.of(cells, results)
        self.dense = self._group.sides.get(DENSE, {})
        self.rows = {label: sides for label, sides in self._group.sides.items() if label != DENSE}
        self.measured = tuple(self._group.names.values())
        every_side = [*self._group.sides.values(), *self._group.partial.values()]
        self._scores = {
            m: next(side[m].score for side in every_side if m in side) for m in self.measured
        }
        first = next(iter(self._scores.values()), None)
        self.averaged = tuple(
            m
            for m, s in self._scores.items()
            if first and (s.metric, s.unit) == (first.metric, first.unit)
        )

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
        return {m: s.unit for m, s in self._scores.items()}

    @property
    def baseline(self) -> str:
        """The set that the others are compared with, if it has everything."""
        return self._named_baseline if self._named_baseline in self.sets else ""

    def difference(
        self, first: Sequence[str], second: Sequence[str], measured: Sequence[str]
    ) -> Estimate:
        """Return how much worse the sets `first`, taken together, are than `second`, averaged
        over `measured`.
        """
        coefs = {m: next(iter(self.rows.values()))[m].worse / len(measured) for m in measured}
        weights = [(label, 1 / len(first)) for label in first] + [
            (label, -1 / len(second)) for label in second
        ]
        return combination(
            [
                (self.rows[label], {m: weight * c for m, c in coefs.items()})
                for label, weight in weights
            ]
        )

    @cached_property
    def tables(self) -> Mapping[str, Pairs]:
        """All pairs of rows, by measured set and on average, the best on average first."""
        return {name: table.among(self._order) for name, table in self._unordered.items()}

    @cached_property
    def _unordered(self) -> Mapping[str, Pairs]:
        if not self.rows:
            return {}
        tables = {m: Pairs.of(self.rows, [m]) for m in self.measured}
        several = len(self.averaged) > 1
        return {
            **tables,
            MEAN: Pairs.of(self.rows, self.averaged) if several else tables[self.averaged[0]],
        }

    @cached_property
    def _order(self) -> tuple[str, ...]:
        if not self.rows:
            return ()
        table = self._unordered[MEAN]
        # Differences to one row order the rows as their own values would.
        return tuple(
            label
            for _, label in sorted(zip(table.values[:, 0].tolist(), table.labels, strict=True))
        )

    @property
    def _comparisons(self) -> int:
        return pairs(len(self.rows))

    @cached_property
    def _worse(self) -> Mapping[str, Bool[np.ndarray, "n n"]]:
        """By measured set and on average, where the row is significantly worse than the column."""
        return {
            name: table.worse(self.level, self._comparisons) for name, table in self.tables.items()
        }

    def ranking(self) -> Ranking:
        """Return the table as values."""
        letters: dict[str, Mapping[str, str]] = {}
        best_on: dict[str, str] = {}
        for name, worse in self._worse.items():
            # The best of each column has its first letter, so the rows go in the order of that
            # column.
            order = np.argsort(self.tables[name].values[:, 0], kind="stable")
            own = worse[np.ix_(order, order)]
            letters[name] = dict(
                zip((self._order[i] for i in order), compact_letters(own | own.T), strict=True)
            )
            beaten = worse.sum(0)
            if len(worse) > 1 and beaten.max() == len(beaten) - 1:
                best_on[name] = self._order[int(beaten.argmax())]
        ranks: dict[str, tuple[int, int]] = {}
        if self.sets:
            at = [i for i, label in enumerate(self._order) if label in self._group.sets]
            worse = self._worse[MEAN][np.ix_(at, at)]
            # At best a set comes behind those that it is worse than, at worst before those that are
            # worse than it.
            ranks = {
                label: (1 + int(worse[i].sum()), len(at) - int(worse[:, i].sum()))
                for i, label in enumerate(self.sets)
            }

        def entry(label: str) -> RankingEntry:
            return self._entry(
                label,
                {name: of[label] for name, of in letters.items() if label in of},
                ranks.get(label, (0, 0)),
                best_on,
            )

        return Ranking(
            **self.setting._asdict(),
            measured=self.measured,
            averaged=self.averaged,
            unit=next(iter(self.units.values())),
            entries=tuple(map(entry, self.sets)),
            baselines=tuple(entry(label) for label in self._order if label not in self._group.sets),
            dense=entry(DENSE) if DENSE in self._group.sides else None,
            missing=tuple(missing(self._cells, self._results)),
            level=self.level,
            partial=tuple(map(entry, self._group.partial)),
            units=self.units,
            better={m: s.better for m, s in self._scores.items()},
            metrics={m: s.metric for m, s in self._scores.items()},
            baseline=self.baseline,
            bits=self._results.bits.get(
                (self.setting.model, self.setting.method, self.setting.target)
            ),
            floors={m: s.facts["floor"] for m, s in self._scores.items() if s.facts.get("floor")},
        )

    def _entry(
        self,
        label: str,
        letters: Mapping[str, str],
        ranks: tuple[int, int],
        best_on: Mapping[str, str],
    ) -> RankingEntry:
        complete, best = label in self._group.sides, self.sets[0] if self.sets else ""
        own = self._group.sides[label] if complete else self._group.partial[label]
        known = [m for m in own if m in self.dense]
        to_best = (
            self.tables[MEAN].estimate(label, best)
            if label in self.rows and best not in ("", label)
            else None
        )
        compared = label in self.rows and self.baseline not in ("", label)
        over = {m: [m] for m in known} | ({MEAN: self.averaged} if complete and self.dense else {})
        return RankingEntry(
            name=label,
            control=label in self._group.sets and self.label(label).control,
            runs=self._group.runs[label],
            draws=self._group.draws(label),
            losses={m: _mean({m: own[m]}) for m in own},
            increases={m: _mean({m: own[m]}, self.dense) for m in known},
            mean=_mean({m: own[m] for m in self.averaged}, self.dense or None)
            if complete
            else UNKNOWN,
            to_best=to_best,
            tied=to_best is not None and not to_best.significant(self.level, self._comparisons),
            letters=letters,
            ranks=ranks,
            share_kept={
                name: share
                for name, sets in over.items()
                if (share := share_kept(own, self.dense, sets)) is not None
            },
            best_on=frozenset(name for name, best in best_on.items() if best == label),
            overlapping=label in self._group.overlapping,
            to_baseline={
                name: table.estimate(label, self.baseline) for name, table in self.tables.items()
            }
            if compared
            else {},
            label=self.label(label) if label in self._group.sets else None,
        )


def _mean(sides: Mapping[str, Side], dense: Mapping[str, Side] | None = None) -> Estimate:
    """The mean of some measured sets, or how much worse than the dense model it is."""
    if dense is None:
        return combination([(sides, {m: 1 / len(sides) for m in sides})])
    coefs = {m: side.worse / len(sides) for m, side in sides.items()}
    return combination([(sides, coefs), (dense, {m: -c for m, c in coefs.items()})])


_ALPHABET: Final = string.ascii_lowercase + string.ascii_uppercase


def compact_letters(different: Bool[np.ndarray, "n n"]) -> list[str]:
    """Return the letters of things in order, the best first: two share one if and only if they
    aren't `different`, even where that isn't transitive (a like b, b like c, a unlike c).

    A letter stands for a group that is alike in every two; groups grow from the first pair that
    none covers yet, and a group whose every pair others cover is dropped, as in Piepho's display
    (2004). Growing them, unlike inserting and absorbing, takes no exponential time (Gramm et al.
    2006). After fifty-two letters come numbers in brackets.

    >>> compact_letters(np.array([[False, False, True], [False, False, False], [True, False, False]]))
    ['a', 'ab', 'b']
    """
    count = len(different)
    # Sets of things are the bits of a number, so that "in both" is & and "in neither" is ~; `alike`
    # has a set for each thing.
    alike = [
        sum(1 << j for j in range(count) if j != i and not different[i, j]) for i in range(count)
    ]
    left, groups = list(alike), [1 << i for i, others in enumerate(alike) if not others]
    for i in range(count):
        while left[i]:
            group = _grown(i, left[i], alike)
            groups.append(group)
            for j in _members(group):
                left[j] &= ~group
    for group in sorted((g for g in groups if g.bit_count() > 1), key=int.bit_count):
        others = [g for g in groups if g != group]
        covered = {i: reduce(or_, (g for g in others if g >> i & 1), 0) for i in _members(group)}
        if not any(group & alike[i] & ~pairs_of for i, pairs_of in covered.items()):
            groups = others
    letters = [""] * count
    for number, group in enumerate(sorted(groups, key=_members)):
        for i in _members(group):
            letters[i] += _ALPHABET[number] if number < len(_ALPHABET) else f"[{number + 1}]"
    return letters


def _grown(i: int, uncovered: int, alike: Sequence[int]) -> int:
    """A group of `i` and as much as is alike in every two: pairs that no group holds yet come
    first, then whatever else fits.
    """
    group, fitting = 1 << i, alike[i]
    for candidates in (uncovered, alike[i]):
        while chosen := fitting & candidates:
            j = (chosen & -chosen).bit_length() - 1  # the lowest bit
            group, fitting = group | 1 << j, fitting & alike[j]
    return group


def _members(group: int) -> list[int]:
    return [i for i in range(group.bit_length()) if group >> i & 1]
