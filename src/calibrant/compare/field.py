"""From answers to a ranking: everything that is compared in one table."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from calibrant.compare.answers import DENSE, Answers, Setting, holes
from calibrant.compare.crossed import Side, combination
from calibrant.compare.effects import kept
from calibrant.compare.estimate import LEVEL, Estimate
from calibrant.compare.letters import compact_letters
from calibrant.compare.pairwise import Pairs
from calibrant.compare.ranking import MEAN, Ranking, RankingEntry, pairs
from calibrant.compare.results import Results
from calibrant.grammar import SetLabel
from calibrant.outcomes import Score
from calibrant.store import Cell

UNKNOWN = Estimate(math.nan, None, 0.0, 0)
"""What stands where a number can't be formed."""


class Field:
    """The sets and baselines of one group, compared in every two: on each measured set and on average."""

    def __init__(self, group: Setting, cells: Sequence[Cell], reading: Results, level: float = LEVEL, baseline: str = "") -> None:
        self.group, self.level, self._wanted = group, level, baseline
        self._cells, self._reading = cells, reading
        self._answers = Answers.of(cells, reading)
        self._dense = self._answers.sides.get(DENSE, {})
        self._rows = {label: sides for label, sides in self._answers.sides.items() if label != DENSE}
        self.measured = tuple(self._answers.names.values())
        self._scores = self._scales()
        first = next(iter(self._scores.values()), None)
        self.averaged = tuple(m for m, s in self._scores.items() if first and (s.metric, s.unit) == (first.metric, first.unit))

    @property
    def empty(self) -> bool:
        """Whether nothing that was measured can be shown."""
        return not self._scores

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The calibration sets that have everything, the best first."""
        return tuple(label for label in self._order if label in self._answers.sets)

    def label(self, name: str) -> SetLabel:
        """What one of the sets is called, in its parts."""
        return self._reading.label(name)

    @property
    def units(self) -> Mapping[str, str]:
        """What each measured set is measured in; the averaged ones share the first's."""
        return {m: s.unit for m, s in self._scores.items()}

    @property
    def baseline(self) -> str:
        """The set that the others are compared with, if it has everything."""
        return self._wanted if self._wanted in self.sets else ""

    def difference(self, first: Sequence[str], second: Sequence[str], measured: Sequence[str]) -> Estimate:
        """How much worse the sets `first`, taken together, are than `second`, averaged over `measured`."""
        coefs = {m: next(iter(self._rows.values()))[m].worse / len(measured) for m in measured}
        weights = [(label, 1 / len(first)) for label in first] + [(label, -1 / len(second)) for label in second]
        return combination([(self._rows[label], {m: weight * c for m, c in coefs.items()}) for label, weight in weights])

    @cached_property
    def tables(self) -> Mapping[str, Pairs]:
        """All pairs of rows, by measured set and on average, the best on average first."""
        return {name: table.among(self._order) for name, table in self._unordered.items()}

    @cached_property
    def _unordered(self) -> Mapping[str, Pairs]:
        if not self._rows:
            return {}
        found = {m: Pairs.of(self._rows, [m]) for m in self.measured}
        several = len(self.averaged) > 1
        return {**found, MEAN: Pairs.of(self._rows, self.averaged) if several else found[self.averaged[0]]}

    @cached_property
    def _order(self) -> tuple[str, ...]:
        if not self._rows:
            return ()
        table = self._unordered[MEAN]
        return tuple(label for _, label in sorted(zip(table.values[:, 0].tolist(), table.labels, strict=True)))

    @cached_property
    def _worse(self) -> Mapping[str, Bool[np.ndarray, "n n"]]:
        """By measured set and on average, where the row is surely worse than the column."""
        return {name: table.worse(self.level, self._looks) for name, table in self.tables.items()}

    @cached_property
    def _letters(self) -> Mapping[str, Mapping[str, str]]:
        """By measured set and on average, each row's letters; the best of that column has the first."""
        found: dict[str, Mapping[str, str]] = {}
        for name, worse in self._worse.items():
            order = np.argsort(self.tables[name].values[:, 0], kind="stable")
            own = worse[np.ix_(order, order)]
            found[name] = dict(zip((self._order[i] for i in order), compact_letters(own | own.T), strict=True))
        return found

    @cached_property
    def _best_on(self) -> Mapping[str, str]:
        """By measured set and on average, the row that is surely better than every other, if there is one."""
        beaten = {name: worse.sum(0) for name, worse in self._worse.items() if len(worse) > 1}
        return {name: self._order[int(count.argmax())] for name, count in beaten.items() if count.max() == len(count) - 1}

    @cached_property
    def _ranks(self) -> Mapping[str, tuple[int, int]]:
        if not self.sets:
            return {}
        at = [i for i, label in enumerate(self._order) if label in self._answers.sets]
        worse = self._worse[MEAN][np.ix_(at, at)]
        return {label: (1 + int(worse[i].sum()), len(at) - int(worse[:, i].sum())) for i, label in enumerate(self.sets)}

    @property
    def _looks(self) -> int:
        return pairs(len(self._rows))

    def ranking(self) -> Ranking:
        """The table as values."""
        return Ranking(
            **self.group._asdict(),
            measured=self.measured,
            averaged=self.averaged,
            unit=next(iter(self.units.values())),
            entries=tuple(map(self._entry, self.sets)),
            baselines=tuple(self._entry(label) for label in self._order if label not in self._answers.sets),
            dense=self._entry(DENSE) if DENSE in self._answers.sides else None,
            missing=tuple(holes(self._cells, self._reading)),
            level=self.level,
            partial=tuple(map(self._entry, self._answers.partial)),
            units=self.units,
            better={m: s.better for m, s in self._scores.items()},
            metrics={m: s.metric for m, s in self._scores.items()},
            baseline=self.baseline,
        )

    def _entry(self, label: str) -> RankingEntry:
        """The row of one label."""
        whole, best = label in self._answers.sides, self.sets[0] if self.sets else ""
        mine = self._answers.sides[label] if whole else self._answers.partial[label]
        known = [m for m in mine if m in self._dense]
        to_best = self.tables[MEAN].estimate(label, best) if label in self._rows and best not in ("", label) else None
        return RankingEntry(
            name=label,
            control=label in self._answers.sets and self.label(label).control,
            runs=self._answers.runs[label],
            draws=self._answers.draws(label),
            losses={m: self._of({m: mine[m]}) for m in mine},
            increases={m: self._of({m: mine[m]}, self._dense) for m in known},
            mean=self._of({m: mine[m] for m in self.averaged}, self._dense or None) if whole else UNKNOWN,
            to_best=to_best,
            tied=to_best is not None and not to_best.significant(self.level, self._looks),
            letters={name: letters[label] for name, letters in self._letters.items() if label in letters},
            ranks=self._ranks.get(label, (0, 0)),
            share_kept=self._kept(mine, known, whole),
            best_on=frozenset(name for name, best in self._best_on.items() if best == label),
            overlapping=label in self._answers.overlapping,
            to_baseline=self._to_baseline(label),
            label=self.label(label) if label in self._answers.sets else None,
        )

    def _to_baseline(self, label: str) -> dict[str, Estimate]:
        if label not in self._rows or self.baseline in ("", label):
            return {}
        return {name: table.estimate(label, self.baseline) for name, table in self.tables.items()}

    def _of(self, mine: Mapping[str, Side], dense: Mapping[str, Side] | None = None) -> Estimate:
        """The mean of some measured sets, or how much worse than the dense model it is."""
        if dense is None:
            return combination([(mine, {m: 1 / len(mine) for m in mine})])
        coefs = {m: side.worse / len(mine) for m, side in mine.items()}
        return combination([(mine, coefs), (dense, {m: -c for m, c in coefs.items()})])

    def _kept(self, mine: Mapping[str, Side], known: Sequence[str], whole: bool) -> dict[str, Estimate]:
        asked = {m: [m] for m in known} | ({MEAN: self.averaged} if whole and self._dense else {})
        return {name: share for name, over in asked.items() if (share := kept(mine, self._dense, over)) is not None}

    def _scales(self) -> dict[str, Score]:
        everything = [*self._answers.sides.values(), *self._answers.partial.values()]
        return {m: next(side[m].score for side in everything if m in side) for m in self.measured}
