"""A race of calibration sets: pruned with, measured, and left out once they are clearly behind.

A round draws every set that is still in once more, prunes, and measures: one more group of a study, so all of it lies in the study's store, and a
race that was stopped, or is asked to go on for longer, begins where it ended. After each round from the second one on, sets that are worse than
the leader are left out, by an interval over items and draws (`compare.crossed`) that holds jointly for all sets and all rounds. So the field
isn't halved by rank (successive halving, Jamieson and Talwalkar 2016): what can't be told apart stays, and that is an answer too.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

from calibrant.compare import LEVEL, Estimate, read
from calibrant.compare.answers import DENSE, Answers, grouped
from calibrant.compare.crossed import combination
from calibrant.errors import DataError
from calibrant.outcomes import Score
from calibrant.progress import Progress, silent
from calibrant.recommend.goal import Goal
from calibrant.store import Store
from calibrant.study import Study

ROUNDS: Final = 5
"""Draws of a set at most."""
ENOUGH: Final = 3
"""Draws after which a race may end because nothing that matters can be told apart."""
MATTERS: Final = 0.01
"""Nats a token: where every interval of a difference is narrower than this to both sides, no more is asked."""


@final
@dataclass(frozen=True)
class Runner:
    """What is known of one set: its `rise` over the dense model, and how much worse it is than the baseline and than the leader.

    `left` is the round after which it was left out as clearly behind, None if it wasn't. `draws` is how often it was drawn.
    """

    data: str
    rise: Estimate
    against_baseline: Estimate | None
    against_leader: Estimate | None
    draws: int
    left: int | None = None


@final
@dataclass(frozen=True)
class Outcome:
    """How a race ended: `why` is `clear`, `alike`, `draws` or `time`; `runners` the best first, `rounds` how many were run."""

    why: str
    runners: tuple[Runner, ...]
    rounds: int
    unit: str
    failures: tuple[str, ...] = ()


@final
class Race:
    """A race of the sets `arms` in the store `folder`; `template` is a study without sets, draws and groups. `baseline` is always in it."""

    def __init__(self, template: Study, goal: Goal, arms: Sequence[str], baseline: str, folder: Path, progress: Progress = silent) -> None:
        self._template, self._goal, self._folder, self._told = template, goal, folder, progress
        self._arms, self._baseline = list(dict.fromkeys([*arms, baseline])), baseline
        self._rounds: list[list[str]] = []
        self._left: dict[str, int] = {}

    def run(self, minutes: float) -> Outcome:
        """Race until the leader is clear, nothing that matters can be told apart, every set was drawn `ROUNDS` times, or the time is up.

        A first round is run whatever the time. `DataError` if no set could be measured at all, or on scales that can't be averaged.
        """
        began = time.perf_counter()
        while True:
            at = time.perf_counter()
            failures = self._one_round()
            runners, unit = self._standing()
            share = len(self._alive()) / len(self._rounds[-1])
            now = time.perf_counter()
            if why := self._over(runners, (now - began + (now - at) * share) / 60 > minutes):
                return Outcome(why, tuple(runners), len(self._rounds), unit, failures)

    def _alive(self) -> list[str]:
        return [arm for arm in self._arms if arm not in self._left or arm == self._baseline]

    def _one_round(self) -> tuple[str, ...]:
        self._rounds.append(self._alive())
        groups = {f"round {n + 1}": {"data": tuple(arms), "seeds": (n,)} for n, arms in enumerate(self._rounds)}
        study = replace(self._template, data=tuple(self._arms), seeds=(0,), groups=groups, baseline=self._baseline)
        finished = study.run(self._folder, self._told)
        return tuple(f"{failure['what']}: {failure['error']}" for failure in finished.failures.values())

    def _standing(self) -> tuple[list[Runner], str]:
        """Where every set stands now, the best first; those that fell clearly behind in this round are marked."""
        reading = read(Store(self._folder, create=False))
        ((_, cells),) = grouped(reading.cells).items()
        answers = Answers.of(cells, reading)
        here = [arm for arm in self._arms if arm in answers.sides]
        if not here or DENSE not in answers.sides:
            reasons = "; ".join(dict.fromkeys(str(f["error"]) for f in reading.failures.values()))
            raise DataError(f"nothing could be measured: {reasons or 'no set has all of its measurements'}", subject=", ".join(self._arms))
        unit = common_unit([side.score for side in answers.sides[here[0]].values()])
        rises = {arm: self._difference(answers, arm, DENSE) for arm in here}
        leader = min((arm for arm in here if arm not in self._left), key=lambda arm: rises[arm].value, default=here[0])
        behind = {arm: self._difference(answers, arm, leader) for arm in here if arm != leader}
        comparisons = max(1, (len(self._arms) - 1) * ROUNDS)
        for arm, worse in behind.items():
            if arm not in self._left and worse.over_draws and worse.value > 0 and worse.significant(LEVEL, comparisons):
                self._left[arm] = len(self._rounds)
        against = {arm: self._difference(answers, arm, self._baseline) for arm in here if arm != self._baseline and self._baseline in here}
        found = [Runner(arm, rises[arm], against.get(arm), behind.get(arm), answers.draws(arm), self._left.get(arm)) for arm in here]
        return sorted(found, key=lambda runner: (runner.left is not None, runner.rise.value)), unit

    def _difference(self, answers: Answers, arm: str, other: str) -> Estimate:
        """How much worse one set is than another, over the goal's measures with their weights."""
        sides = answers.sides[arm]
        weights = {str(evaluator): weight for weight, evaluator in self._goal.measures}
        turned = {name: weights[text] * sides[name].worse for text, name in answers.names.items()}
        return combination([(sides, turned), (answers.sides[other], {name: -c for name, c in turned.items()})])

    def _over(self, runners: Sequence[Runner], late: bool) -> str:
        """Why the race is over, or nothing; `late` where another round would take it beyond its time."""
        still = [runner for runner in runners if runner.left is None]
        if len(still) == 1 and len(self._rounds) > 1:
            return "clear"
        halves = [_half(runner.against_leader) for runner in still if runner.against_leader]
        if len(self._rounds) >= ENOUGH and all(half is not None and half < MATTERS for half in halves):
            return "alike"
        return "draws" if len(self._rounds) == ROUNDS else "time" if late else ""


def common_unit(scores: Sequence[Score]) -> str:
    """The unit of all of them. `DataError` where they are on scales that can't be averaged."""
    scales = dict.fromkeys(f"{score.metric} in {score.unit}" for score in scores)
    if len(scales) > 1:
        raise DataError(f"what is measured can't be averaged: {', '.join(scales)}; give targets of one kind", subject=", ".join(scales))
    return scores[0].unit


def _half(estimate: Estimate) -> float | None:
    """Half the width of the interval; None where it doesn't cover draws."""
    interval = estimate.interval() if estimate.over_draws else None
    return None if interval is None else (interval[1] - interval[0]) / 2


def plain(estimate: Estimate | None, level: float = LEVEL) -> dict[str, Any] | None:
    """An estimate as plain data, with its interval."""
    if estimate is None:
        return None
    interval: Mapping[str, float] | None = None
    if bounds := estimate.interval(level):
        interval = {"low": bounds[0], "high": bounds[1]}
    return {"value": estimate.value, "interval": interval, "over_draws": estimate.over_draws, "significant": estimate.significant(level)}
