"""A race of calibration sets: each compresses the model and is measured, until one is clearly best.

A round draws every set that is still in the race once more, compresses, and measures. It is one
more group of a study, so everything lies in the study's store, and a race that was stopped begins
where it ended. From the second round on, sets that are clearly worse than the leader are left out.
That is decided by an interval over items and draws (`lab.stats.crossed`) which holds jointly for
every set in every round. The correction doesn't allow for the leader having been picked as the
best. So the field isn't halved by rank (successive halving, Jamieson and Talwalkar 2016): what
cannot be distinguished stays, and that is an answer too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

from calibrant.data import CalibrationSet
from calibrant.errors import DataError
from calibrant.evaluators.agreement import MEASURED_ROLES
from calibrant.lab.choose.budget import LEAST, MARGIN, ROUNDS, StepCosts, TimeBudget
from calibrant.lab.choose.goal import Goal
from calibrant.lab.choose.halves import Halves, held_out_side, swapped
from calibrant.lab.choose.instruct import is_written
from calibrant.lab.stats import LEVEL, Estimate, read
from calibrant.lab.stats.crossed import Side, combination
from calibrant.lab.stats.results import DENSE, GroupResults, Results, Setting, grouped
from calibrant.lab.study import Study
from calibrant.results import Cell, Store
from calibrant.results.outcomes import Score
from calibrant.results.store import is_store
from calibrant.system.progress import Progress, silent

ENOUGH: Final = 3
"""Draws after which a race may end because no difference is large enough to matter."""
MATTERS: Final = 0.01
"""Nats a token: where every interval of a difference lies within this on both sides of zero, the
race is over.
"""


@final
@dataclass(frozen=True)
class Standing:
    """What is known of one set.

    `increase` is its loss over that of the dense model; then follows how much worse it is than the
    baseline and than the leader. `draws` is how often it was drawn. `dropped` is the round after
    which it was left out as clearly behind, None if it wasn't.

    `sibling` is the increase on the goal's held-out sibling, None where there is none. Where
    there is one, the comparisons are made with it. For a set that holds nothing of the goal's
    file the two are the same. `divergence` is that from the dense model (KL, nats a token), None
    where it isn't measured. `by_role` is the increase on tokens of the template, of questions and
    of answers, where a conversation's roles were told apart.
    """

    data: str
    increase: Estimate
    against_baseline: Estimate | None
    against_leader: Estimate | None
    draws: int
    dropped: int | None = None
    sibling: Estimate | None = None
    divergence: Estimate | None = None
    by_role: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def deciding(self) -> Estimate:
        """The figure by which sets are ordered."""
        return self.increase if self.sibling is None else self.sibling


@final
@dataclass(frozen=True)
class RaceResult:
    """How a race ended: `why` is `clear`, `alone`, `alike`, `draws` or `time`.

    `standings` are the best first, and `rounds` is how many were run whole. `sibling` says whether
    the goal's held-out sibling decided. `bits` is how many a weight takes as it is stored, None
    where it isn't stored as codes, and where runs differ in it. `unmeasured` are the sets that have
    no standing, since what was begun of them failed.
    """

    why: str
    standings: tuple[Standing, ...]
    rounds: int
    unit: str
    failures: tuple[str, ...] = ()
    sibling: bool = False
    bits: float | None = None
    unmeasured: tuple[str, ...] = ()

    @property
    def comparisons(self) -> int:
        """How many sets are compared with the baseline. Over all rounds, each is compared with the
        leader `ROUNDS` times as often.
        """
        return max(1, len(self.standings) - 1)


@final
class Race:
    """A race of calibration sets, whose results lie in the store `folder`.

    `base_study` is the study of the race without its sets, draws and groups. `baseline` is always
    in the race. `costs` say how long runs take, on a `share` of the items. `halves` are of the
    goal's files that could be divided. `rounds` is the most; `done` of them were run by an earlier
    call.
    """

    def __init__(
        self,
        base_study: Study,
        goal: Goal,
        candidates: Sequence[str],
        baseline: str,
        folder: Path,
        costs: StepCosts,
        halves: Sequence[Halves] = (),
        rounds: int = ROUNDS,
        share: float = 1.0,
        done: int = 0,
        progress: Progress = silent,
    ) -> None:
        self.costs = costs
        self._base_study = base_study
        self._folder = folder
        self._baseline = baseline
        self._halves = tuple(halves)
        self._most_rounds = rounds
        self._share = share
        self._done = done
        self._progress = progress
        # The best by prediction and the baseline come first: where the time ends in the first
        # round, these two are there.
        # `fromkeys`, since the baseline is mostly a candidate too.
        self._names = list(dict.fromkeys([*candidates[:1], baseline, *candidates[1:]]))
        self._half_runs = _half_runs(self._names, self._halves)
        self._sets: dict[str, CalibrationSet] = {}
        for name in self._runs(self._names):
            self._sets[name] = CalibrationSet(name)
        # The sets of each round that was begun, and after which round a set was left out.
        self._rounds: list[list[str]] = []
        # How many runs and measurements of these rounds are in the store.
        self._stored = 0
        self._dropped: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        for weight, evaluator in goal.measures:
            self._weights[str(evaluator)] = weight
        self._bits: float | None = None
        self._compared: _Sides | None = None

    def run(self, budget: TimeBudget) -> RaceResult:
        """Race until one of five things: the leader is clear, it is alone since others failed, no
        difference is large enough to matter, every set was drawn as often as may be, or the time
        is up.

        The first sets of a first round are run whatever the time. What failed in an earlier call is
        tried again. Raises `DataError` if no set could be measured, or on scales that can't be
        averaged.
        """
        self._forget_failures()
        while True:
            failures, is_whole = self._run_round(budget)
            standings, unit = self._standings()
            whole_rounds = len(self._rounds) if is_whole else len(self._rounds) - 1
            next_round = self._seconds(self._racing(), len(self._rounds))
            is_late = not is_whole or next_round * MARGIN > budget.left
            reason = self._why_over(standings, whole_rounds, is_late)
            if reason:
                return RaceResult(
                    reason,
                    tuple(standings),
                    rounds=whole_rounds,
                    unit=unit,
                    failures=failures,
                    sibling=bool(self._halves),
                    bits=self._bits,
                    unmeasured=self._unmeasured(standings),
                )

    def _forget_failures(self) -> None:
        """Forget what failed in an earlier call, such as for want of memory."""
        if not is_store(self._folder):
            return
        own = self._runs(self._names)
        with Store(self._folder) as store:
            for failed_id, failure in store.failures().items():
                _, data, *_ = failure["cell"]
                # The dense model has no data.
                if not data or data in own:
                    store.clear_failure(failed_id)

    def worse(self, name: str, other: str) -> Estimate | None:
        """Return how much worse one set is than another, pair by pair; None before both are
        measured.
        """
        compared = self._compared
        if compared is None or not compared.sides.keys() >= {name, other}:
            return None
        return compared.worse(name, other)

    def another_draw(self) -> float:
        """Return the seconds that one more draw of all sets that are still in would take."""
        return self._seconds(self._racing(), ROUNDS)

    def _racing(self) -> list[str]:
        """The sets that are still in; the baseline always is."""
        racing: list[str] = []
        for name in self._names:
            if name == self._baseline or name not in self._dropped:
                racing.append(name)
        return racing

    def _runs(self, names: Sequence[str]) -> list[str]:
        """What a draw of these sets compresses with.

        That is the sets themselves, and of those with the goal's file both versions that have a
        half of it in its place.
        """
        needed_runs: list[str] = []
        for name in names:
            needed_runs += [name, *self._half_runs.get(name, ())]
        return list(dict.fromkeys(needed_runs))

    def _seconds(self, names: Sequence[str], number: int) -> float:
        """How long round `number` (from 0) of these sets takes.

        The first one finds the statistics of the prediction. What is run first measures the dense
        model too.
        """
        if number < self._done:
            return self.costs.opened
        runs = self._runs(names)
        parts: list[str] = []
        for name in runs:
            data = self._sets[name]
            sets_walked = data.mixed or (data,)
            parts += map(str, sets_walked)
        compressed = len(runs)
        if not any(self._rounds):
            compressed += 1
        # Draws of earlier rounds, and that of the prediction, are written already.
        gathered = 0
        written = 0
        if number > 0:
            different_parts = set(parts)
            gathered = len(different_parts)
            written = sum(map(is_written, different_parts))
        tokens = self._base_study.tokens or 0
        return self.costs.round(compressed, gathered, len(parts), tokens, self._share, written)

    def _run_round(self, budget: TimeBudget) -> tuple[tuple[str, ...], bool]:
        """Run a round, or as many of its sets as can end in time.

        Returns what failed, and whether the round is whole.
        """
        number = len(self._rounds)
        names = self._racing()
        portions = [names]
        is_known = number < self._done
        # A round is run as a whole where it would end in time even with the margin taken twice.
        if not is_known and self._seconds(names, number) * MARGIN**2 > budget.left:
            # The time is short: one by one, though each set opens the model anew.
            portions = [[name] for name in names]
        self._rounds.append([])
        failures: tuple[str, ...] = ()
        for portion in portions:
            expected_seconds = self._seconds(portion, number)
            may_stop = number > 0 or len(self._rounds[-1]) >= LEAST
            if expected_seconds > budget.left and may_stop:
                return failures, False
            self._rounds[-1] += portion
            began = budget.spent
            finished = self._study().run(self._folder, self._progress)
            # The study has all rounds, so it finds what is known to be there.
            found = finished.found - self._stored
            self._stored = finished.found + finished.computed
            if finished.computed and not found and not is_known:
                # What was found in the store says nothing about how long the next run takes.
                self.costs = self.costs.scaled(racing=(budget.spent - began) / expected_seconds)
            # These are all failures so far.
            messages: list[str] = []
            for failure in finished.failures.values():
                messages.append(f"{failure['what']}: {failure['error']}")
            failures = tuple(messages)
        return failures, True

    def _study(self) -> Study:
        """All rounds as a study, as far as they were begun."""
        groups: dict[str, Any] = {}
        begun: list[str] = []
        for seed, names in enumerate(self._rounds):
            round_name = f"round {seed + 1}"
            groups[round_name] = {"data": tuple(self._runs(names)), "seeds": (seed,)}
            begun += names
        runs = tuple(self._runs(begun))
        baseline = self._baseline if self._baseline in runs else runs[0]
        return replace(self._base_study, data=runs, seeds=(0,), groups=groups, baseline=baseline)

    def _setting(self) -> Setting:
        """The one model, method and target of all runs of the race."""
        settings: set[Setting] = set()
        for labels in self._study().labels():
            if labels.data:
                setting = Setting(labels.model, labels.way, labels.target, labels.propagate)
                settings.add(setting)
        (own_setting,) = settings
        return own_setting

    def _standings(self) -> tuple[list[Standing], str]:
        """Where every set stands now, the best first, and the unit of the figures.

        Sets that fell clearly behind in this round are marked.
        """
        results = read(Store(self._folder, create=False))
        # Somebody may have measured other models into the folder.
        cells = grouped(results.cells)[self._setting()]
        group = GroupResults.of(cells, results)
        # One target, so all runs take as many bits; but for a budget each chooses its kinds.
        bits = set(results.bits.values())
        self._bits = bits.pop() if len(bits) == 1 else None
        measured = [name for name in self._names if name in group.sides]
        if not measured or DENSE not in group.sides:
            errors = dict.fromkeys(str(failure["error"]) for failure in results.failures.values())
            reasons = "; ".join(errors) or "no set has all of its measurements"
            names = ", ".join(self._names)
            raise DataError(f"nothing could be measured: {reasons}", subject=names)
        beside = [name for text, name in group.names.items() if text not in self._weights]
        scores: list[Score] = []
        for name, side in group.sides[measured[0]].items():
            if name not in beside:
                scores.append(side.score)
        unit = common_unit(scores)
        deciding = self._deciding_sides(cells, results, group, measured)
        compared = _Sides(deciding, self._coefficients(group))
        self._compared = compared
        leader = self._leader(compared)
        self._drop_behind(compared, leader)
        standings: list[Standing] = []
        for name in deciding:
            if name != DENSE:
                by_role = self._by_role(cells, results, name)
                standing = self._standing(name, compared, leader, group, beside)
                standings.append(replace(standing, by_role=by_role))
        standings.sort(key=_order)
        return standings, unit

    def _deciding_sides(
        self,
        cells: Sequence[Cell],
        results: Results,
        group: GroupResults,
        measured: Sequence[str],
    ) -> dict[str, Mapping[str, Side]]:
        """By set and measure, the values that decide: those on the held-out sibling, where the set
        holds the goal's file. Those of the dense model are among them.
        """
        sides: dict[str, Mapping[str, Side]] = {DENSE: group.sides[DENSE]}
        for name in measured:
            if name not in self._half_runs:
                sides[name] = group.sides[name]
                continue
            held_out = held_out_side(cells, results, group, self._half_runs[name], self._halves)
            # Without its sibling's figure a set can't be compared with the others.
            if held_out is not None:
                sides[name] = held_out
        if len(sides) == 1:
            message = (
                "no set has the measurements of both halves; look at the failures in the folder"
            )
            raise DataError(message, subject=", ".join(self._names))
        return sides

    def _by_role(self, cells: Sequence[Cell], results: Results, name: str) -> dict[str, float]:
        """Return a set's divergence on tokens of each role, over its draws and the goal's
        conversations by their weights.
        """
        sums: dict[str, float] = {}
        weights: dict[str, float] = {}
        for text, weight in self._weights.items():
            for score in _scores_beside(cells, results, name, text):
                role = score.metric.removeprefix("kl_")
                sums[role] = sums.get(role, 0.0) + weight * score.value
                weights[role] = weights.get(role, 0.0) + weight
        means: dict[str, float] = {}
        for role in MEASURED_ROLES:
            if role in sums:
                means[role] = sums[role] / weights[role]
        return means

    def _coefficients(self, group: GroupResults) -> dict[str, float]:
        """The weight of each measure of the goal, positive where more is worse."""
        coefficients: dict[str, float] = {}
        for text, name in group.names.items():
            if text in self._weights:
                coefficients[name] = self._weights[text] * group.sides[DENSE][name].worse
        return coefficients

    def _leader(self, compared: "_Sides") -> str:
        """The best of the sets that are still in."""
        names = [name for name in compared.sides if name != DENSE]
        racing = [name for name in names if name not in self._dropped]
        if not racing:
            return names[0]

        def increase(name: str) -> float:
            return compared.worse(name, DENSE).value

        return min(racing, key=increase)

    def _drop_behind(self, compared: "_Sides", leader: str) -> None:
        """Leave out the sets that are clearly worse than the leader."""
        # Every set is compared with the leader in every round that there may be.
        others = len(compared.sides.keys() - {DENSE, leader})
        comparisons = max(1, others * ROUNDS)
        for name in compared.sides:
            if name in (DENSE, leader) or name in self._dropped:
                continue
            behind = compared.worse(name, leader)
            is_clear = behind.over_draws and behind.significant(LEVEL, comparisons)
            if is_clear and behind.value > 0:
                self._dropped[name] = len(self._rounds)

    def _standing(
        self,
        name: str,
        compared: "_Sides",
        leader: str,
        group: GroupResults,
        beside: Sequence[str],
    ) -> Standing:
        """What is known of one set; `beside` are measures that decide nothing."""
        own_side = group.sides[name]
        on_own_rows = _Sides({name: own_side, DENSE: group.sides[DENSE]}, compared.weights)
        against_baseline: Estimate | None = None
        if self._baseline in compared.sides and name != self._baseline:
            against_baseline = compared.worse(name, self._baseline)
        against_leader: Estimate | None = None
        if name != leader:
            against_leader = compared.worse(name, leader)
        sibling: Estimate | None = None
        if self._halves:
            sibling = compared.worse(name, DENSE)
        divergence: Estimate | None = None
        if beside:
            divergence = combination([(own_side, dict.fromkeys(beside, 1.0))])
        return Standing(
            name,
            on_own_rows.worse(name, DENSE),
            against_baseline,
            against_leader,
            draws=group.draws(name),
            dropped=self._dropped.get(name),
            sibling=sibling,
            divergence=divergence,
        )

    def _why_over(self, standings: Sequence[Standing], whole_rounds: int, is_late: bool) -> str:
        """Why the race is over, empty where it isn't.

        `is_late` says that another round would take it beyond its time.
        """
        racing = [standing for standing in standings if standing.dropped is None]
        if len(racing) == 1 and len(self._rounds) > 1:
            # Of a set that failed nobody knows whether it is behind.
            is_clear = len(standings) > 1 and not self._unmeasured(standings)
            return "clear" if is_clear else "alone"
        if whole_rounds >= ENOUGH and _are_alike(racing):
            return "alike"
        if whole_rounds == self._most_rounds:
            return "draws"
        return "time" if is_late else ""

    def _unmeasured(self, standings: Sequence[Standing]) -> tuple[str, ...]:
        """The sets of which a draw was begun, and that have no standing all the same."""
        measured = {standing.data for standing in standings}
        begun: set[str] = set()
        for names in self._rounds:
            begun.update(names)
        return tuple(name for name in self._names if name in begun - measured)


def _scores_beside(
    cells: Sequence[Cell], results: Results, name: str, text: str
) -> Iterator[Score]:
    """Yield what stands beside a measure of a set, draw by draw."""
    for cell in cells:
        measured = results.items.get(cell.run, {})
        if cell.data == name and cell.measures.get(text, "") in measured:
            yield from measured[cell.measures[text]].beside


@dataclass(frozen=True)
class _Sides:
    """Sets by what was measured on each (`sides`), compared over measures with `weights`."""

    sides: Mapping[str, Mapping[str, Side]]
    weights: Mapping[str, float]

    def worse(self, name: str, other: str) -> Estimate:
        """Return how much worse one set is than another."""
        opposite = {measure: -weight for measure, weight in self.weights.items()}
        return combination([(self.sides[name], self.weights), (self.sides[other], opposite)])


def _half_runs(names: Sequence[str], halves: Sequence[Halves]) -> dict[str, tuple[str, str]]:
    """For each set that holds the goal's file, the set with its first half in its place, and
    the one with its second half.
    """
    half_runs: dict[str, tuple[str, str]] = {}
    for name in names:
        pair = (swapped(name, halves, 0), swapped(name, halves, 1))
        if pair != (name, name):
            half_runs[name] = pair
    return half_runs


def _order(standing: Standing) -> tuple[bool, float]:
    """The best first, and those that were left out last."""
    return standing.dropped is not None, standing.deciding.value


def _are_alike(standings: Sequence[Standing]) -> bool:
    """Whether every difference to the leader is known, and too small to matter."""
    for standing in standings:
        estimate = standing.against_leader
        if estimate is None:
            continue
        interval = estimate.interval() if estimate.over_draws else None
        if interval is None:
            return False
        low, high = interval
        if max(abs(low), abs(high)) >= MATTERS:
            return False
    return True


def common_unit(scores: Sequence[Score]) -> str:
    """Return the unit of all scores. Raises `DataError` for scales that can't be averaged."""
    scales = dict.fromkeys(f"{score.metric} in {score.unit}" for score in scores)
    listed = ", ".join(scales)
    if len(scales) > 1:
        message = f"what is measured can't be averaged: {listed}; give goals of one kind"
        raise DataError(message, subject=listed)
    return scores[0].unit


def plain(
    estimate: Estimate | None, level: float = LEVEL, comparisons: int = 1
) -> dict[str, Any] | None:
    """Return an estimate as plain data, with its interval jointly over so many `comparisons`."""
    if estimate is None:
        return None
    bounds = estimate.interval(level, comparisons)
    interval: Mapping[str, float] | None = None
    if bounds is not None:
        interval = {"low": bounds[0], "high": bounds[1]}
    return {
        "value": estimate.value,
        "interval": interval,
        "over_draws": estimate.over_draws,
        "significant": estimate.significant(level, comparisons),
    }
