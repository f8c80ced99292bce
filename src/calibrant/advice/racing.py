"""A race of calibration sets: pruned with, measured, and left out once they are clearly behind.

A round draws every set that is still in once more, prunes, and measures: one more group of a study, so all of it lies in the study's store, and a
race that was stopped, or is asked to go on for longer, begins where it ended. After each round from the second one on, sets that are worse than
the leader are left out, by an interval over items and draws (`compare.crossed`) that holds jointly for all sets and all rounds. So the field
isn't halved by rank (successive halving, Jamieson and Talwalkar 2016): what cannot be distinguished stays, and that is an answer too.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

from calibrant.advice.goal import Goal
from calibrant.compare import LEVEL, Estimate, read
from calibrant.compare.crossed import combination
from calibrant.compare.groups import DENSE, GroupResults, grouped
from calibrant.errors import DataError
from calibrant.outcomes import Score
from calibrant.progress import Progress, silent
from calibrant.store import Store
from calibrant.study import Study

ROUNDS: Final = 5
"""Draws of a set at most."""
ENOUGH: Final = 3
"""Draws after which a race may end because no difference is large enough to matter."""
MATTERS: Final = 0.01
"""Nats a token: where every interval of a difference is narrower than this to both sides, the race is over."""


@final
@dataclass(frozen=True)
class Standing:
    """What is known of one set: its `increase` over the dense model, and how much worse it is than the baseline and than the leader.

    `dropped` is the round after which it was left out as clearly behind, None if it wasn't. `draws` is how often it was drawn.
    """

    data: str
    increase: Estimate
    against_baseline: Estimate | None
    against_leader: Estimate | None
    draws: int
    dropped: int | None = None


@final
@dataclass(frozen=True)
class RaceResult:
    """How a race ended: `why` is `clear`, `alike`, `draws` or `time`; `standings` the best first, `rounds` how many were run."""

    why: str
    standings: tuple[Standing, ...]
    rounds: int
    unit: str
    failures: tuple[str, ...] = ()


@final
class Race:
    """A race of the sets `arms` in the store `folder`; `template` is a study without sets, draws and groups. `baseline` is always in it."""

    def __init__(self, template: Study, goal: Goal, arms: Sequence[str], baseline: str, folder: Path, progress: Progress = silent) -> None:
        self._template, self._goal, self._folder, self._progress = template, goal, folder, progress
        self._arms, self._baseline = list(dict.fromkeys([*arms, baseline])), baseline
        self._rounds: list[list[str]] = []
        self._dropped: dict[str, int] = {}

    def run(self, minutes: float) -> RaceResult:
        """Race until the leader is clear, no difference is large enough to matter, every set was drawn `ROUNDS` times, or the time is up.

        A first round is run whatever the time. `DataError` if no set could be measured at all, or on scales that can't be averaged.
        """
        began = time.perf_counter()
        while True:
            at = time.perf_counter()
            failures = self._one_round()
            standings, unit = self._standings()
            # Another round takes as long as this one, less what those that were left out now took.
            share = len(self._alive()) / len(self._rounds[-1])
            now = time.perf_counter()
            if why := self._over(standings, (now - began + (now - at) * share) / 60 > minutes):
                return RaceResult(why, tuple(standings), len(self._rounds), unit, failures)

    def _alive(self) -> list[str]:
        return [arm for arm in self._arms if arm not in self._dropped or arm == self._baseline]

    def _one_round(self) -> tuple[str, ...]:
        self._rounds.append(self._alive())
        groups = {f"round {n + 1}": {"data": tuple(arms), "seeds": (n,)} for n, arms in enumerate(self._rounds)}
        study = replace(self._template, data=tuple(self._arms), seeds=(0,), groups=groups, baseline=self._baseline)
        finished = study.run(self._folder, self._progress)
        return tuple(f"{failure['what']}: {failure['error']}" for failure in finished.failures.values())

    def _standings(self) -> tuple[list[Standing], str]:
        """Return where every set stands now, the best first; those that fell clearly behind in this round are marked."""
        results = read(Store(self._folder, create=False))
        ((_, cells),) = grouped(results.cells).items()
        group = GroupResults.of(cells, results)
        measured = [arm for arm in self._arms if arm in group.sides]
        if not measured or DENSE not in group.sides:
            reasons = "; ".join(dict.fromkeys(str(f["error"]) for f in results.failures.values()))
            raise DataError(f"nothing could be measured: {reasons or 'no set has all of its measurements'}", subject=", ".join(self._arms))
        unit = common_unit([side.score for side in group.sides[measured[0]].values()])
        increases = {arm: self._difference(group, arm, DENSE) for arm in measured}
        leader = min((arm for arm in measured if arm not in self._dropped), key=lambda arm: increases[arm].value, default=measured[0])
        behind = {arm: self._difference(group, arm, leader) for arm in measured if arm != leader}
        comparisons = max(1, (len(self._arms) - 1) * ROUNDS)  # every set with the leader, in every round that there may be
        for arm, worse in behind.items():
            if arm not in self._dropped and worse.over_draws and worse.value > 0 and worse.significant(LEVEL, comparisons):
                self._dropped[arm] = len(self._rounds)
        against: dict[str, Estimate] = {}
        if self._baseline in measured:
            against = {arm: self._difference(group, arm, self._baseline) for arm in measured if arm != self._baseline}
        standings = [Standing(arm, increases[arm], against.get(arm), behind.get(arm), group.draws(arm), self._dropped.get(arm)) for arm in measured]
        return sorted(standings, key=lambda standing: (standing.dropped is not None, standing.increase.value)), unit

    def _difference(self, group: GroupResults, arm: str, other: str) -> Estimate:
        """How much worse one set is than another, over the goal's measures with their weights."""
        sides = group.sides[arm]
        weights = {str(evaluator): weight for weight, evaluator in self._goal.measures}
        coefs = {name: weights[text] * sides[name].worse for text, name in group.names.items()}
        return combination([(sides, coefs), (group.sides[other], {name: -c for name, c in coefs.items()})])

    def _over(self, standings: Sequence[Standing], late: bool) -> str:
        """Why the race is over, or nothing; `late` where another round would take it beyond its time."""
        racing = [standing for standing in standings if standing.dropped is None]
        if len(racing) == 1 and len(self._rounds) > 1:
            return "clear"
        estimates = [standing.against_leader for standing in racing if standing.against_leader]
        intervals = [estimate.interval() if estimate.over_draws else None for estimate in estimates]
        if len(self._rounds) >= ENOUGH and all(interval and (interval[1] - interval[0]) / 2 < MATTERS for interval in intervals):
            return "alike"
        return "draws" if len(self._rounds) == ROUNDS else "time" if late else ""


def common_unit(scores: Sequence[Score]) -> str:
    """Return the unit of all of them. `DataError` where they are on scales that can't be averaged."""
    scales = dict.fromkeys(f"{score.metric} in {score.unit}" for score in scores)
    if len(scales) > 1:
        raise DataError(f"what is measured can't be averaged: {', '.join(scales)}; give targets of one kind", subject=", ".join(scales))
    return scores[0].unit


def plain(estimate: Estimate | None, level: float = LEVEL) -> dict[str, Any] | None:
    """Return an estimate as plain data, with its interval."""
    if estimate is None:
        return None
    interval: Mapping[str, float] | None = None
    if bounds := estimate.interval(level):
        interval = {"low": bounds[0], "high": bounds[1]}
    return {"value": estimate.value, "interval": interval, "over_draws": estimate.over_draws, "significant": estimate.significant(level)}
