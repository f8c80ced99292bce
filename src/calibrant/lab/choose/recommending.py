"""The whole job: what the model is for, what is predicted of every candidate, a race of the few
best, and the advice.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any, final

from calibrant.errors import SpecError
from calibrant.lab.choose.advising import advice, command, short, verb_of, with_interval
from calibrant.lab.choose.asking import asked
from calibrant.lab.choose.budget import LEAST, Purse, TimePlan, kept, least_with_sibling
from calibrant.lab.choose.halves import Halves
from calibrant.lab.choose.predicting import Prediction, swapped
from calibrant.lab.choose.racing import Race, RaceResult, plain
from calibrant.lab.mixtures import Mixture
from calibrant.options import RecommendCommand, declaration, with_fields_of
from calibrant.system.notebook import card, listing


def unsaid(sentence: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Candidate:
    """One candidate: its predicted error, and what a race made of it. The differences are how much
    *worse* it is, with their intervals.

    Where the target has a held-out sibling, `predicted_sibling` and `sibling` are the figures on
    it, and the differences are of those. `divergence` is that of its predictions from the dense
    model's (KL, nats a token), where a model is rounded and a loss is measured. `status` is `best`,
    `not significant` (its difference to the best), `behind` (left out after round `dropped`) or
    `not raced`.
    """

    data: str
    predicted: float | None
    status: str
    increase: Mapping[str, Any] | None = None
    against_baseline: Mapping[str, Any] | None = None
    against_best: Mapping[str, Any] | None = None
    draws: int = 0
    dropped: int | None = None
    predicted_sibling: float | None = None
    sibling: Mapping[str, Any] | None = None
    divergence: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """What a sentence calls it: a long mixture by its largest parts."""
        return short(self.data)


@dataclass(frozen=True, repr=False)
class Recommendation:
    """What to calibrate on: `expr` is what `--data` takes, `text` the advice in a paragraph,
    `command` does with it what was measured.

    `verb` is what it does, `prune` or `quantize`, `sparsity` the target of whatever kind, `bits`
    how many a weight takes where it is stored as codes. `predicted_by` says by what a method was
    predicted that reads more than sums of statistics.

    `candidates` are the best first. `baseline` is the set that others are compared with. `why` says
    how the race ended: `clear`, `alike`, `draws` or `time`. `mixture` is what was searched for and
    predicted, `folder` has the store of all that was measured. `plan` is what the `minutes` were to
    buy, `another_draw` the seconds of one draw more, `fitted` what was lowered for small files.
    `siblings` are the halves of the target's files, and how much of a row stands in what its own
    half (`inside`) and the other (`across`) calibrate on; `no_sibling` says why there are none.
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
    command: str
    minutes: float
    plan: TimePlan
    another_draw: float
    fitted: str
    siblings: tuple[Mapping[str, Any], ...]
    no_sibling: str
    verb: str
    bits: float | None
    predicted_by: str

    def to_json(self) -> dict[str, Any]:
        """Return all of it as dicts, lists and numbers."""
        candidates = [{**asdict(one), "name": one.name} for one in self.candidates]
        return {**asdict(self), "candidates": candidates}

    def __repr__(self) -> str:
        return f"Recommendation({self.expr!r}, for {self.goal!r})"

    def _repr_html_(self) -> str:
        lines = [
            (
                one.name,
                "" if one.predicted is None else f"{one.predicted:.2%}",
                with_interval(one.against_baseline),
                one.draws or "",
                one.status,
            )
            for one in self.candidates
        ]
        heads = ("calibrated on", "predicted error", f"worse than {self.baseline}", "draws", "")
        return card(
            f"Calibrate {self.model} on {short(self.expr)}",
            {"for": self.goal, "measured in": self.unit},
            note=self.text,
            inside=listing(heads, lines),
        )


@final
@declaration
class RecommendOptions(RecommendCommand):
    """The options of `recommend`."""

    _: KW_ONLY
    say: Callable[[str], None] = unsaid
    now: Callable[[], float] = time.perf_counter


@with_fields_of(RecommendOptions)
def recommend(options: RecommendOptions) -> Recommendation:
    """Recommend which calibration data to use to prune or quantize `model` for `target`, and what
    is known about it.

    `target` is a source, a file of the user's own, a measure such as `task(name=race)`, or
    `general`; or several, each perhaps with a weight: `["0.7*gsm8k", "0.3*general"]`. `sparsity` is
    what the model's matrices are to become, of any kind: 0.6, `"2:4"`, `"w4g64"`, `"q4_k"`,
    `"Q4_K_M"`; without `method` it is done by the usual one that looks at data (`mixtures.aims`),
    and without either by Wanda at 0.6.

    Without `sources` the usual ones that can be read here are tried, and the target's own. Each
    candidate's damage is predicted from the statistics of the untouched model (`mixtures.mix`),
    with the mixture that is best by that measure among them. The few best are raced against
    `baseline` (C4, where it can be read). All measurements lie in `folder`, which a later call
    continues.

    Where the target is the user's own file, its rows are divided by template into two halves
    (`recommend.halves`): a set that holds the file is judged by what it does on one half when it
    was calibrated on the other. That figure decides; `sibling=False` leaves it out.

    `tokens` (8,192 unless given) of each set in windows of `length` are lowered to what the target
    and every candidate hold. `minutes` are kept: the costs are measured, or known from an earlier
    call, and what they will buy is said before it begins, to `say`; `now` is the clock. Where the
    time is short there are fewer candidates (never of those in `sources`), sets and tokens (never
    if given), and last a single draw.

    Raises an `InputError` for what can't be used.

    >>> found = recommend("smollm2", "mine.jsonl", ["gsm8k:cot", "c4"], minutes=10)  # doctest: +SKIP
    >>> recommend("smollm2", "gsm8k", minutes=0.0)
    Traceback (most recent call last):
    calibrant.errors.SpecError: a budget of 0 minutes leaves no time; give some above 0
    """
    minutes = options.minutes
    say = options.say
    progress = options.progress
    if not minutes > 0:
        raise SpecError(
            f"a budget of {minutes:g} minutes leaves no time; give some above 0", subject="budget"
        )
    purse = Purse(minutes, options.now)
    targets = options.target
    if isinstance(targets, str):
        targets = [targets]
    settings = (
        options.method,
        options.sparsity,
        options.tokens,
        options.length,
        options.baseline,
        Path(options.folder),
        options.dtype,
        options.device,
        options.sibling,
    )
    question = asked(options.model, targets, options.sources, *settings, purse)
    if question.fitted.said:
        say(question.fitted.said)
    costs = kept(question.folder, question.identity) or question.costs(progress)
    plan = question.plan(costs, purse, minutes)
    say(plan.sentence(minutes))
    question = question.within(plan)
    if question.fitted.halves and not plan.halves:
        enough = (
            least_with_sibling(costs, len(question.names), len(question.needed), plan.tokens)
            + purse.spent
        )
        question = question.without_sibling(
            f"the time is too short for one; --budget {math.ceil(enough / 6) / 10:g} is enough"
        )
        say(f"no held-out sibling: {question.no_sibling}")
    began = purse.spent
    mixture, predicted = question.predicted(plan, progress)
    spent, halves, goal = purse.spent, question.fitted.halves, question.fitted.goal
    if mixture.reused < mixture.gathered:
        before = costs.predicting(
            len(mixture.weights) + 2 * bool(halves), 1 + 2 * bool(halves), plan.tokens
        )
        costs = costs.scaled(predicting=max(0.1, (spent - began) / before))
    arms, rounds = (
        _arms(predicted, question.own, question.base, halves, plan.arms),
        question.fitted.rounds,
    )
    race = Race(
        question.template,
        goal,
        arms,
        question.base,
        question.place,
        costs,
        halves,
        rounds,
        plan.share,
        plan.done,
        progress,
    )
    result = race.run(purse)
    race.costs.keep(question.folder, question.identity)
    plan.keep(question.folder, question.identity, minutes, result.rounds)
    best = result.standings[0]
    return Recommendation(
        expr=best.data,
        text=advice(mixture, goal, question.base, result, rounds, halves),
        command=command(
            options.model,
            best.data,
            mixture,
            question.template.propagation(question.method),
            options.dtype,
            options.device,
            question.export,
        ),
        model=mixture.model,
        note=mixture.note,
        goal=goal.text,
        judge=goal.judge,
        measures=tuple(
            f"{weight:.3g}*{evaluator}" if len(goal.measures) > 1 else str(evaluator)
            for weight, evaluator in goal.measures
        ),
        baseline=question.base,
        method=mixture.method,
        sparsity=mixture.sparsity,
        tokens=mixture.tokens,
        length=mixture.length,
        unit=result.unit,
        why=result.why,
        rounds=result.rounds,
        candidates=_candidates(result, predicted),
        mixture=mixture,
        failures=result.failures,
        seconds={"predicting": spent, "racing": purse.spent - spent},
        folder=str(options.folder),
        minutes=minutes,
        plan=plan,
        another_draw=race.another(),
        fitted=question.fitted.said,
        siblings=tuple(
            {
                "source": str(each.source),
                "folders": each.folders,
                "inside": each.inside,
                "across": each.across,
            }
            for each in halves
        ),
        no_sibling=question.no_sibling,
        verb=verb_of(question.target),
        bits=result.bits,
        predicted_by=question.standing.differs,
    )


def _arms(
    predicted: Mapping[str, Prediction],
    own: Sequence[str],
    base: str,
    halves: Sequence[Halves],
    count: int,
) -> list[str]:
    """Return the `count` sets to race, the baseline last and the others the best by prediction
    first.

    Of those that hold the target's file, which cost three runs, there are two at most.
    """
    ranked = sorted(
        (data for data in predicted if data != base), key=lambda data: predicted[data].value
    )
    if not halves:
        return [*ranked[: count - 1], base]
    holding = [data for data in ranked if swapped(data, halves, 0) != data]
    alone = [data for data in own if data in holding][:1]
    allowed = {
        *alone,
        *[data for data in holding if data not in alone][: 1 if count > LEAST else 0],
    }
    raced = [data for data in ranked if data not in holding or data in allowed][: count - 1]
    # The file itself is what its owner wants to know about.
    return [*(raced if not alone or alone[0] in raced else [*raced[: count - 2], *alone]), base]


def _candidates(race: RaceResult, predicted: Mapping[str, Prediction]) -> tuple[Candidate, ...]:
    """Return what is known of every candidate: those of the race first, the best before the
    others, then the rest by what was predicted.
    """
    candidates: list[Candidate] = []
    for place, standing in enumerate(race.standings):
        status = (
            "best"
            if place == 0
            else "behind"
            if standing.dropped is not None
            else "not significant"
        )
        increase, against_base, against_best = map(
            plain, (standing.increase, standing.against_baseline, standing.against_leader)
        )
        known = predicted.get(standing.data, Prediction(None))
        compared = (
            standing.draws,
            standing.dropped,
            known.sibling,
            plain(standing.sibling),
            plain(standing.divergence),
        )
        candidates.append(
            Candidate(
                standing.data, known.own, status, increase, against_base, against_best, *compared
            )
        )
    raced = {standing.data for standing in race.standings}
    rest = sorted(
        (data for data in predicted if data not in raced), key=lambda data: predicted[data].value
    )
    left = (
        Candidate(data, predicted[data].own, "not raced", predicted_sibling=predicted[data].sibling)
        for data in rest
    )
    return (*candidates, *left)
