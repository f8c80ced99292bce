"""The whole job: what the model is for, what is predicted of every candidate, a race of the few best, and the advice."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from calibrant.advice.goal import Goal, default_sources, parse_goal
from calibrant.advice.racing import ROUNDS, Race, RaceResult, Standing, plain
from calibrant.compare import LEVEL
from calibrant.data import CalibrationSet
from calibrant.errors import SpecError
from calibrant.grammar import read_mix
from calibrant.methods import methods
from calibrant.mixtures import Mixture, expression, mix, uniform
from calibrant.mixtures.mixture import BEST, UNIFORM
from calibrant.notebook import card, listing
from calibrant.progress import Progress, silent
from calibrant.study import Study
from calibrant.targets import parse_target

BASELINE: Final = "c4"
"""What most people use."""
RACED: Final = 5
"""Sets in a race, the baseline among them."""
TOKENS: Final = 8192
"""Held-out tokens that a loss is measured on."""
ITEMS: Final = 200
"""Questions of a task."""


@dataclass(frozen=True)
class Candidate:
    """One candidate: its predicted error, and what a race made of it. The differences are how much *worse* it is, with their intervals.

    `status` is `best`, `not significant` (its difference to the best), `behind` (left out after round `dropped`) or `not raced`.
    """

    data: str
    predicted: float | None
    status: str
    increase: Mapping[str, Any] | None = None
    against_baseline: Mapping[str, Any] | None = None
    against_best: Mapping[str, Any] | None = None
    draws: int = 0
    dropped: int | None = None


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
    candidates: tuple[Candidate, ...]
    mixture: Mixture
    failures: tuple[str, ...]
    seconds: Mapping[str, float]
    folder: str

    def to_json(self) -> dict[str, Any]:
        """Return all of it as dicts, lists and numbers."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Recommendation({self.expr!r}, for {self.goal!r})"

    def _repr_html_(self) -> str:
        lines = [
            (one.data, "" if one.predicted is None else f"{one.predicted:.2%}", with_interval(one.against_baseline), one.draws or "", one.status)
            for one in self.candidates
        ]
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
    """Recommend which calibration data to use to prune `model` for `target`, and what is known about it.

    `target` is a source, a file of the user's own, a measure such as `task(name=race)`, or `general`; or several, each perhaps with a weight:
    `["0.7*gsm8k", "0.3*general"]`. Without `sources` the usual ones that can be read here are tried, and the target's own. Each candidate's damage is
    predicted from the statistics of the untouched model (`mixtures.mix`), with the mixture that is best by that measure among them. The few best
    are raced within `minutes` in all, against `baseline` (C4, where it can be read). All measurements lie in `folder`, which a later call continues.

    Raises an `InputError` for what can't be used.

    >>> found = recommend("smollm2", "mine.jsonl", ["gsm8k:cot", "c4"], minutes=10)  # doctest: +SKIP
    >>> recommend("smollm2", "gsm8k", minutes=0)
    Traceback (most recent call last):
    calibrant.errors.SpecError: a budget of 0 minutes leaves no time; give some above 0
    """
    began = time.perf_counter()
    if not minutes > 0:
        raise SpecError(f"a budget of {minutes:g} minutes leaves no time; give some above 0", subject="budget")
    goal = parse_goal([target] if isinstance(target, str) else target, TOKENS, ITEMS, length)
    candidates = [str(CalibrationSet(text, tokens=tokens, length=length)) for text in (sources or default_sources(goal))]
    base = str(CalibrationSet(baseline)) if baseline else BASELINE if BASELINE in candidates else candidates[0]
    template = Study(  # the study that the race is, without its rounds
        models=(model,),
        data=(base,),
        evaluate=tuple(str(evaluator) for _, evaluator in goal.measures),
        methods=(str(methods.build(method)),),
        sparsities=(str(parse_target(sparsity)),),
        tokens=tokens,
        length=length,
        dtype=dtype,
        device=device,
    )
    place = Path(folder) / "race"
    cell = template.labels()[-1]
    mixture = mix(
        cell.model,
        list(dict.fromkeys([*candidates, base])),
        method=cell.method,
        sparsity=cell.target,
        objective=f"target={goal.judge}",
        tokens=tokens,
        length=length,
        folder=place,  # the race finds the statistics here again
        dtype=dtype,
        device=device,
        alone=True,
        progress=progress,
    )
    predicted = predictions(mixture, goal)
    spent = time.perf_counter() - began
    arms = sorted(predicted, key=lambda data: predicted[data])[: RACED - 1]
    race = Race(template, goal, arms, base, place, progress).run(minutes - spent / 60)
    seconds = {"predicting": spent, "racing": time.perf_counter() - began - spent}

    return Recommendation(
        expr=race.standings[0].data,
        text=advice(mixture, goal, base, race),
        model=mixture.model,
        note=mixture.note,
        goal=goal.text,
        judge=goal.judge,
        measures=tuple(f"{weight:.3g}*{evaluator}" if len(goal.measures) > 1 else str(evaluator) for weight, evaluator in goal.measures),
        baseline=base,
        method=mixture.method,
        sparsity=mixture.sparsity,
        tokens=mixture.tokens,
        length=mixture.length,
        unit=race.unit,
        why=race.why,
        rounds=race.rounds,
        candidates=_candidates(race, predicted),
        mixture=mixture,
        failures=race.failures,
        seconds=seconds,
        folder=str(folder),
    )


def _candidates(race: RaceResult, predicted: Mapping[str, float]) -> tuple[Candidate, ...]:
    """Return what is known of every candidate: those of the race first, the best before the others, then the rest by what was predicted."""
    candidates: list[Candidate] = []
    for place, standing in enumerate(race.standings):
        status = "best" if place == 0 else "behind" if standing.dropped is not None else "not significant"
        increase, against_base, against_best = map(plain, (standing.increase, standing.against_baseline, standing.against_leader))
        known = predicted.get(standing.data)
        candidates.append(Candidate(standing.data, known, status, increase, against_base, against_best, standing.draws, standing.dropped))
    raced = {standing.data for standing in race.standings}
    rest = sorted((data for data in predicted if data not in raced), key=lambda data: predicted[data])
    return (*candidates, *(Candidate(data, predicted[data], "not raced") for data in rest))


def predictions(mixture: Mixture, goal: Goal) -> dict[str, float]:
    """Return the predicted error of every candidate under the goal's judge; the uniform mixture and the best one by their expressions."""
    judge = str(CalibrationSet(goal.judge))
    sources = list(mixture.weights)
    texts = {UNIFORM: expression(sources, uniform(len(sources))), BEST: mixture.expr}
    return {texts.get(row.calibrated_on, row.calibrated_on): row.errors[judge] for row in mixture.rows}


ENDS: Final = {
    "clear": "All others are clearly behind",
    "alike": "The sets that are still in the race differ by less than matters, and more draws are not worth their time",
    "draws": "Every set in the race was drawn as often as a race allows",
    "time": "The time was up; the same command goes on from here",
}


def advice(mixture: Mixture, goal: Goal, base: str, race: RaceResult) -> str:
    """Return the paragraph: what to use, what to expect against the baseline, what cannot be distinguished from it, and how the race ended."""
    best, *others = race.standings
    tokens = f"{mixture.tokens:,} tokens" + (" of each part" if read_mix(best.data) else "")
    sentences = [f"To prune {mixture.model} with {mixture.method} to {mixture.sparsity} for {goal.text}, calibrate on {best.data}, with {tokens}."]
    sentences.append(_expected(best, base, race.unit))
    if alike := [standing.data for standing in others if standing.dropped is None]:
        sentences.append(f"Not significantly different from it: {', '.join(alike)}.")
    if behind := [standing.data for standing in others if standing.dropped is not None]:
        sentences.append(f"Clearly behind: {', '.join(behind)}.")
    sentences.append(f"{ENDS[race.why]} ({race.rounds} of {ROUNDS} rounds).")
    return " ".join(sentences)


def _expected(best: Standing, base: str, unit: str) -> str:
    """What the best set is expected to lose, and how that compares with the baseline."""
    increase = f"Expect to lose {with_interval(plain(best.increase))} {unit} against the dense model"
    if best.data == base:
        return f"{increase}; it is the baseline itself."
    against = best.against_baseline
    if against is None:
        return f"{increase}; {base} couldn't be measured."
    if not against.over_draws:
        compared = "less" if against.value < 0 else "more"
        return f"{increase}, {abs(against.value):.3f} {compared} than with {base}, by one draw, which says nothing about the next."
    verdict = f"significant at {LEVEL:.0%}" if against.significant() else "not significant"
    return f"{increase}; against {base} that is {with_interval(plain(against))}: {verdict}."


def with_interval(estimate: Mapping[str, Any] | None) -> str:
    """Return a number, and its interval behind it if that covers draws; nothing for None."""
    if estimate is None:
        return ""
    interval = estimate["interval"] if estimate["over_draws"] else None
    return f"{estimate['value']:+.3f}" + (f" ({interval['low']:+.3f} to {interval['high']:+.3f})" if interval else "")
