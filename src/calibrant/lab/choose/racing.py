"""A race of calibration sets: pruned with, measured, and left out once they are clearly behind.

A round draws every set that is still in once more, prunes, and measures: one more group of a study,
so all of it lies in the study's store, and a race that was stopped, or is asked to go on for
longer, begins where it ended. After each round from the second one on, sets that are worse than the
leader are left out, by an interval over items and draws (`compare.crossed`) that holds jointly for
all sets and all rounds. So the field isn't halved by rank (successive halving, Jamieson and
Talwalkar 2016): what cannot be distinguished stays, and that is an answer too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

from calibrant.data import CalibrationSet
from calibrant.errors import DataError
from calibrant.lab.choose.budget import LEAST, MARGIN, ROUNDS, Purse, StepCosts
from calibrant.lab.choose.goal import Goal
from calibrant.lab.choose.halves import Halves
from calibrant.lab.choose.predicting import swapped
from calibrant.lab.choose.siblings import held_out_side
from calibrant.lab.stats import LEVEL, Estimate, read
from calibrant.lab.stats.crossed import Side, combination
from calibrant.lab.stats.results import DENSE, GroupResults, grouped
from calibrant.lab.study import Study
from calibrant.results import Store
from calibrant.results.outcomes import Score
from calibrant.system.progress import Progress, silent

ENOUGH: Final = 3
"""Draws after which a race may end because no difference is large enough to matter."""
MATTERS: Final = 0.01
"""Nats a token: where every interval of a difference is narrower than this to both sides, the
race is over.
"""


@final
@dataclass(frozen=True)
class Standing:
    """What is known of one set: its `increase` over the dense model, and how much worse it is than
    the baseline and than the leader.

    `sibling` is the increase on the target's held-out sibling, None where there is none. Where
    there is one, the comparisons are made with it; for a set that holds nothing of the target's
    file the two are the same. `dropped` is the round after which it was left out as clearly behind,
    None if it wasn't. `draws` is how often it was drawn. `divergence` is from the dense model, KL
    in nats a token, None where that isn't measured.
    """

    data: str
    increase: Estimate
    against_baseline: Estimate | None
    against_leader: Estimate | None
    draws: int
    dropped: int | None = None
    sibling: Estimate | None = None
    divergence: Estimate | None = None

    @property
    def deciding(self) -> Estimate:
        """The figure by which sets are ordered."""
        return self.increase if self.sibling is None else self.sibling


@final
@dataclass(frozen=True)
class RaceResult:
    """How a race ended: `why` is `clear`, `alike`, `draws` or `time`; `standings` the best
    first, `rounds` how many were begun; `sibling` whether the target's held-out sibling decided;
    `bits` how many a weight takes as it is stored, None where it isn't stored as codes.
    """

    why: str
    standings: tuple[Standing, ...]
    rounds: int
    unit: str
    failures: tuple[str, ...] = ()
    sibling: bool = False
    bits: float | None = None


@final
class Race:
    """A race of the sets `arms` in the store `folder`; `template` is a study without sets, draws
    and groups. `baseline` is always in it.

    `costs` say how long runs take, on a `share` of the items; `halves` are of the target's files
    that could be divided. `rounds` is the most, and `done` of them were run before.
    """

    def __init__(
        self,
        template: Study,
        goal: Goal,
        arms: Sequence[str],
        baseline: str,
        folder: Path,
        costs: StepCosts,
        halves: Sequence[Halves] = (),
        rounds: int = ROUNDS,
        share: float = 1.0,
        done: int = 0,
        progress: Progress = silent,
    ) -> None:
        self._template, self._folder, self._progress = template, folder, progress
        self._halves, self._most, self._share, self._done = tuple(halves), rounds, share, done
        # The best by prediction and the baseline first: where the time ends in the first round,
        # these are there.
        self._arms, self._baseline = list(dict.fromkeys([*arms[:1], baseline, *arms[1:]])), baseline
        pairs = (
            {arm: (swapped(arm, halves, 0), swapped(arm, halves, 1)) for arm in self._arms}
            if halves
            else {}
        )
        self._twins = {arm: pair for arm, pair in pairs.items() if pair != (arm, arm)}
        self._rounds: list[list[str]] = []
        self._dropped: dict[str, int] = {}
        self._weights = {str(evaluator): weight for weight, evaluator in goal.measures}
        self._bits: float | None = None
        self.costs = costs

    def run(self, purse: Purse) -> RaceResult:
        """Race until the leader is clear, no difference is large enough to matter, every set was
        drawn as often as may be, or the time is up.

        The first sets of a first round are run whatever the time. `DataError` if no set could be
        measured, or on scales that can't be averaged.
        """
        while True:
            failures, whole = self._one_round(purse)
            standings, unit = self._standings()
            late = not whole or self._seconds(self._alive()) * MARGIN > purse.left
            if why := self._over(standings, late):
                return RaceResult(
                    why,
                    tuple(standings),
                    len(self._rounds),
                    unit,
                    failures,
                    bool(self._halves),
                    self._bits,
                )

    def another(self) -> float:
        """Return the seconds that one more draw of all sets that are still in would take."""
        return self._seconds(self._alive(), at=ROUNDS)

    def _alive(self) -> list[str]:
        return [arm for arm in self._arms if arm not in self._dropped or arm == self._baseline]

    def _runs(self, arms: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(run for arm in arms for run in (arm, *self._twins.get(arm, ()))))

    def _seconds(self, arms: Sequence[str], at: int | None = None) -> float:
        """How long round `at` (the next) of these sets takes; the first finds the statistics,
        and measures the dense model too.
        """
        at = len(self._rounds) if at is None else at
        if at < self._done:
            return self.costs.opened
        runs = self._runs(arms)
        parts = [str(part) for each in map(CalibrationSet, runs) for part in each.mixed or (each,)]
        walks = len({*parts}) if at else 0
        return self.costs.round(
            len(runs) + (at == 0), walks, len(parts), self._template.tokens or 0, self._share
        )

    def _one_round(self, purse: Purse) -> tuple[tuple[str, ...], bool]:
        """Run a round, or as many of its sets as can end in time; return what failed, and
        whether the round is whole.
        """
        at, arms = len(self._rounds), self._alive()
        # Where the time is short the sets are run one by one, though that opens the model anew for
        # each.
        lots = (
            [arms]
            if self._seconds(arms, at) * MARGIN**2 <= purse.left or at < self._done
            else [[arm] for arm in arms]
        )
        self._rounds.append([])
        failures: tuple[str, ...] = ()
        for lot in lots:
            needed = self._seconds(lot, at)
            if needed > purse.left and (at or len(self._rounds[-1]) >= LEAST):
                return failures, False
            self._rounds[-1] += lot
            began = purse.spent
            finished = self._study().run(self._folder, self._progress)
            if finished.computed and at >= self._done:  # what was found says nothing about the next
                self.costs = self.costs.scaled(racing=(purse.spent - began) / needed)
            failures = tuple(
                f"{failure['what']}: {failure['error']}" for failure in finished.failures.values()
            )
        return failures, True

    def _study(self) -> Study:
        """All rounds as a study, as far as they were begun."""
        groups = {
            f"round {n + 1}": {"data": tuple(self._runs(arms)), "seeds": (n,)}
            for n, arms in enumerate(self._rounds)
        }
        every = tuple(self._runs([*dict.fromkeys(arm for arms in self._rounds for arm in arms)]))
        baseline = self._baseline if self._baseline in every else every[0]
        return replace(self._template, data=every, seeds=(0,), groups=groups, baseline=baseline)

    def _standings(self) -> tuple[list[Standing], str]:
        """Return where every set stands now, the best first; those that fell clearly behind in
        this round are marked.
        """
        results = read(Store(self._folder, create=False))
        ((_, cells),) = grouped(results.cells).items()
        group = GroupResults.of(cells, results)
        self._bits = next(iter(results.bits.values()), None)
        measured = [arm for arm in self._arms if arm in group.sides]
        if not measured or DENSE not in group.sides:
            reasons = "; ".join(dict.fromkeys(str(f["error"]) for f in results.failures.values()))
            raise DataError(
                f"nothing could be measured: {reasons or 'no set has all of its measurements'}",
                subject=", ".join(self._arms),
            )
        beside = [name for text, name in group.names.items() if text not in self._weights]
        unit = common_unit(
            [side.score for name, side in group.sides[measured[0]].items() if name not in beside]
        )
        sides: dict[str, Mapping[str, Side]] = {arm: group.sides[arm] for arm in (*measured, DENSE)}
        for arm in [arm for arm in measured if arm in self._twins]:
            crossed = held_out_side(cells, results, group, self._twins[arm], self._halves)
            if crossed is None:  # without its sibling's figure it can't be compared with the others
                measured.remove(arm)
            else:
                sides[arm] = crossed
        if not measured:
            raise DataError(
                "no set has the measurements of both halves; look at the failures in the folder",
                subject=", ".join(self._arms),
            )
        siblings = {arm: self._difference(group, sides[arm], sides[DENSE]) for arm in measured}
        increases = {
            arm: self._difference(group, group.sides[arm], sides[DENSE]) for arm in measured
        }
        leader = min(
            (arm for arm in measured if arm not in self._dropped),
            key=lambda arm: siblings[arm].value,
            default=measured[0],
        )
        behind = {
            arm: self._difference(group, sides[arm], sides[leader])
            for arm in measured
            if arm != leader
        }
        comparisons = max(
            1, (len(self._arms) - 1) * ROUNDS
        )  # every set with the leader, in every round that there may be
        for arm, worse in behind.items():
            if (
                arm not in self._dropped
                and worse.over_draws
                and worse.value > 0
                and worse.significant(LEVEL, comparisons)
            ):
                self._dropped[arm] = len(self._rounds)
        against: dict[str, Estimate] = {}
        if self._baseline in measured:
            against = {
                arm: self._difference(group, sides[arm], sides[self._baseline])
                for arm in measured
                if arm != self._baseline
            }
        standings = [
            Standing(
                arm,
                increases[arm],
                against.get(arm),
                behind.get(arm),
                group.draws(arm),
                self._dropped.get(arm),
                siblings[arm] if self._halves else None,
                combination([(group.sides[arm], dict.fromkeys(beside, 1.0))]) if beside else None,
            )
            for arm in measured
        ]
        return sorted(
            standings, key=lambda standing: (standing.dropped is not None, standing.deciding.value)
        ), unit

    def _difference(
        self, group: GroupResults, sides: Mapping[str, Side], other: Mapping[str, Side]
    ) -> Estimate:
        """How much worse one set is than another, over the goal's measures with their weights."""
        coefs = {
            name: self._weights[text] * sides[name].worse
            for text, name in group.names.items()
            if text in self._weights
        }
        return combination([(sides, coefs), (other, {name: -c for name, c in coefs.items()})])

    def _over(self, standings: Sequence[Standing], late: bool) -> str:
        """Why the race is over, or nothing; `late` where another round would take it beyond its
        time.
        """
        racing = [standing for standing in standings if standing.dropped is None]
        if len(racing) == 1 and len(self._rounds) > 1:
            return "clear"
        estimates = [standing.against_leader for standing in racing if standing.against_leader]
        intervals = [estimate.interval() if estimate.over_draws else None for estimate in estimates]
        if len(self._rounds) >= ENOUGH and all(
            interval and (interval[1] - interval[0]) / 2 < MATTERS for interval in intervals
        ):
            return "alike"
        return "draws" if len(self._rounds) == self._most else "time" if late else ""


def common_unit(scores: Sequence[Score]) -> str:
    """Return the unit of all of them. `DataError` where they are on scales that can't be
    averaged.
    """
    scales = dict.fromkeys(f"{score.metric} in {score.unit}" for score in scores)
    if len(scales) > 1:
        raise DataError(
            f"what is measured can't be averaged: {', '.join(scales)}; give targets of one kind",
            subject=", ".join(scales),
        )
    return scores[0].unit


def plain(estimate: Estimate | None, level: float = LEVEL) -> dict[str, Any] | None:
    """Return an estimate as plain data, with its interval."""
    if estimate is None:
        return None
    interval: Mapping[str, float] | None = None
    if bounds := estimate.interval(level):
        interval = {"low": bounds[0], "high": bounds[1]}
    return {
        "value": estimate.value,
        "interval": interval,
        "over_draws": estimate.over_draws,
        "significant": estimate.significant(level),
    }
