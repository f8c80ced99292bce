"""The whole job: what the model is for, what is predicted of every candidate, a race of the few best, and the advice."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from calibrant.compare import LEVEL
from calibrant.data import CalibrationSet
from calibrant.errors import SpecError
from calibrant.grammar import read_mix
from calibrant.methods import methods
from calibrant.mixtures import Mixture, expression, mix, uniform
from calibrant.mixtures.mixture import FOUND, UNIFORM
from calibrant.notebook import card, listing
from calibrant.progress import Progress, silent
from calibrant.recommend.goal import Goal, parse_goal, usual
from calibrant.recommend.racing import ROUNDS, Outcome, Race, Runner, plain
from calibrant.study import Study
from calibrant.targets import parse_target

BASELINE: Final = "c4"
"""What everybody uses without asking."""
RACED: Final = 5
"""Sets in a race, the baseline among them."""
TOKENS: Final = 8192
"""Held-out tokens that a loss is measured on."""
ITEMS: Final = 200
"""Questions of a task."""


@dataclass(frozen=True)
class Advised:
    """One candidate: its predicted error, and what a race made of it. The differences are how much *worse* it is, with their intervals.

    `said` is `best`, `not told apart`, `behind` (left out after round `left`) or `not raced`.
    """

    data: str
    predicted: float | None
    said: str
    rise: Mapping[str, Any] | None = None
    against_baseline: Mapping[str, Any] | None = None
    against_best: Mapping[str, Any] | None = None
    draws: int = 0
    left: int | None = None


@dataclass(frozen=True, repr=False)
class Recommendation:
    """What to calibrate on: `expr` is what `--data` takes, `text` the advice in a paragraph.

    `candidates` are the best first. `baseline` is the set that others are compared with. `why` says how the race ended: `clear`, `alike`, `draws` or
    `time`. `mixture` is what was searched for and predicted, `folder` has the store of all that was measured.
    """

    expr: str
    text: str
    model: str
    note: str
    goal: str
    judge: str
    measures: tuple[str, ...]
    baseline: str
    method: str
    sparsity: str
    tokens: int
    length: int
    unit: str
    why: str
    rounds: int
    candidates: tuple[Advised, ...]
    mixture: Mixture
    failures: tuple[str, ...]
    seconds: Mapping[str, float]
    folder: str

    def to_json(self) -> dict[str, Any]:
        """All of it as dicts, lists and numbers."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Recommendation({self.expr!r}, for {self.goal!r})"

    def _repr_html_(self) -> str:
        lines = [(one.data, _number(one.predicted), _told(one.against_baseline), one.draws or "", one.said) for one in self.candidates]
        heads = ("calibrated on", "predicted error", f"worse than {self.baseline}", "draws", "")
        return card(
            f"Calibrate {self.model} on {self.expr}", {"for": self.goal, "measured in": self.unit}, note=self.text, inside=listing(heads, lines)
        )


def recommend(
    model: str,
    target: str | Sequence[str],
    sources: Sequence[str] = (),
    *,
    method: str = "wanda",
    sparsity: float | str = 0.6,
    minutes: float = 30.0,
    tokens: int = 8192,
    length: int = 512,
    baseline: str = "",
    folder: str | Path = "calibrant-recommendation",
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> Recommendation:
    """Say which calibration data to use to prune `model` for `target`, and what is known about it.

    `target` is a source, a file of the user's own, a measure such as `task(name=race)`, or `general`; or several, each perhaps with a weight:
    `["0.7*gsm8k", "0.3*general"]`. Without `sources` the usual ones that can be read here are tried, and the target's own. Each candidate's damage is
    predicted from the statistics of the untouched model (`mixtures.mix`), with the mixture that is best by that measure among them. The few best
    are raced within `minutes` in all, against `baseline` (C4, where it can be read). All measurements lie in `folder`, which a later call continues.

    Raises an `InputError` for what can't be used.
    """
    began = time.perf_counter()
    if not minutes > 0:
        raise SpecError(f"a budget of {minutes:g} minutes leaves no time; give some above 0", subject="budget")
    goal = parse_goal([target] if isinstance(target, str) else target, TOKENS, ITEMS, length)
    candidates = [str(CalibrationSet(text, tokens=tokens, length=length)) for text in (sources or usual(goal))]
    base = _baseline(baseline, candidates)
    template = _template(model, base, goal, method, sparsity, tokens=tokens, length=length, dtype=dtype, device=device)
    place = Path(folder) / "race"
    found = _predicted(template, list(dict.fromkeys([*candidates, base])), goal, place, progress)
    predicted = predictions(found, goal)
    spent = time.perf_counter() - began
    arms = sorted(predicted, key=lambda data: predicted[data])[: RACED - 1]
    outcome = Race(template, goal, arms, base, place, progress).run(minutes - spent / 60)
    seconds = {"predicting": spent, "racing": time.perf_counter() - began - spent}
    return _advice(found, goal, base, predicted, outcome, str(folder), seconds)


def _baseline(asked: str, candidates: Sequence[str]) -> str:
    """What is asked for, else C4 if it is among the candidates, else the first of them."""
    if asked:
        return str(CalibrationSet(asked))
    return BASELINE if BASELINE in candidates else candidates[0]


def _template(model: str, base: str, goal: Goal, method: str, sparsity: float | str, **budget: Any) -> Study:
    """The study that a race is, without its rounds."""
    asked: dict[str, Any] = {"methods": (str(methods.build(method)),), "sparsities": (str(parse_target(sparsity)),)}
    return Study(models=(model,), data=(base,), evaluate=tuple(str(evaluator) for _, evaluator in goal.measures), **asked, **budget)


def _predicted(study: Study, sources: Sequence[str], goal: Goal, place: Path, progress: Progress) -> Mixture:
    """What is predicted of all sources and their mixtures, by statistics that lie in `place`, where the race finds them again."""
    cell = study.labels()[-1]
    asked: dict[str, Any] = {"tokens": study.tokens, "length": study.length, "dtype": study.dtype, "device": study.device}
    asked |= {"method": cell.method, "sparsity": cell.target, "objective": f"target={goal.judge}"}
    return mix(cell.model, sources, folder=place, alone=True, progress=progress, **asked)


def predictions(found: Mixture, goal: Goal) -> dict[str, float]:
    """The predicted error of every candidate under the goal's judge; the uniform mixture and the one that was found by their expressions."""
    judge = str(CalibrationSet(goal.judge))
    sources = list(found.weights)
    equal = expression(sources, uniform(len(sources)))
    called = {UNIFORM: equal, FOUND: found.expr}
    return {called.get(row.calibrated_on, row.calibrated_on): row.errors[judge] for row in found.rows}


def _advice(
    found: Mixture, goal: Goal, base: str, predicted: Mapping[str, float], outcome: Outcome, folder: str, seconds: Mapping[str, float]
) -> Recommendation:
    raced = {runner.data: runner for runner in outcome.runners}
    best = outcome.runners[0]
    rows = [_advised(runner, predicted.get(runner.data), best.data) for runner in outcome.runners]
    rest = sorted((data for data in predicted if data not in raced), key=lambda data: predicted[data])
    rows += [Advised(data, predicted[data], "not raced") for data in rest]
    return Recommendation(
        expr=best.data,
        text=advice(found, goal, base, outcome),
        model=found.model,
        note=found.note,
        goal=goal.text,
        judge=goal.judge,
        measures=tuple(f"{weight:.3g}*{evaluator}" if len(goal.measures) > 1 else str(evaluator) for weight, evaluator in goal.measures),
        baseline=base,
        method=found.method,
        sparsity=found.sparsity,
        tokens=found.tokens,
        length=found.length,
        unit=outcome.unit,
        why=outcome.why,
        rounds=outcome.rounds,
        candidates=tuple(rows),
        mixture=found,
        failures=outcome.failures,
        seconds=seconds,
        folder=folder,
    )


def _advised(runner: Runner, predicted: float | None, best: str) -> Advised:
    said = "best" if runner.data == best else "behind" if runner.left is not None else "not told apart"
    told = (plain(estimate) for estimate in (runner.rise, runner.against_baseline, runner.against_leader))
    rise, base, leader = told
    return Advised(runner.data, predicted, said, rise, base, leader, runner.draws, runner.left)


ENDS: Final = {
    "clear": "All others are clearly behind",
    "alike": "What is still in the race differs by less than matters, and more draws are not worth their time",
    "draws": "Every set in the race was drawn as often as a race allows",
    "time": "The time was up; the same command goes on from here",
}


def advice(found: Mixture, goal: Goal, base: str, outcome: Outcome) -> str:
    """The paragraph: what to use, what to expect against the baseline, what can't be told apart, and how it ended."""
    best, *others = outcome.runners
    tokens = f"{found.tokens:,} tokens" + (" of each part" if read_mix(best.data) else "")
    said = [f"To prune {found.model} with {found.method} to {found.sparsity} for {goal.text}, calibrate on {best.data}, with {tokens}."]
    said.append(_expected(best, base, outcome.unit))
    alike = [runner.data for runner in others if runner.left is None]
    if alike:
        said.append(f"Not told apart from it: {', '.join(alike)}.")
    behind = [runner.data for runner in others if runner.left is not None]
    if behind:
        said.append(f"Clearly behind: {', '.join(behind)}.")
    rounds = f"{outcome.rounds} of {ROUNDS} rounds"
    said.append(f"{ENDS[outcome.why]} ({rounds}).")
    return " ".join(said)


def _expected(best: Runner, base: str, unit: str) -> str:
    """What the best set is expected to lose, and how that compares with the baseline."""
    rise = f"Expect to lose {_told(plain(best.rise))} {unit} against the dense model"
    if best.data == base:
        return f"{rise}; it is the baseline itself."
    against = best.against_baseline
    if against is None:
        return f"{rise}; {base} couldn't be measured."
    if not against.over_draws:
        compared = "less" if against.value < 0 else "more"
        return f"{rise}, {abs(against.value):.3f} {compared} than with {base}, by one draw, which says nothing about the next."
    verdict = f"the difference holds at {LEVEL:.0%}" if against.significant() else "it can't be told from none"
    return f"{rise}; against {base} that is {_told(plain(against))}: {verdict}."


def _told(estimate: Mapping[str, Any] | None) -> str:
    """A number, and its interval if that covers draws."""
    if estimate is None:
        return ""
    interval = estimate["interval"] if estimate["over_draws"] else None
    return f"{estimate['value']:+.3f}" + (f" ({interval['low']:+.3f} to {interval['high']:+.3f})" if interval else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
