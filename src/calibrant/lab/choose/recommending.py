"""The whole job: what the model is for, what is predicted of every candidate, a race of the few
best, and the advice.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

from calibrant.data import CalibrationSet
from calibrant.errors import CalibrantError, DataError, OutputError
from calibrant.handover import WrittenData, as_sum, tool_named, write_over
from calibrant.lab.choose.advising import (
    advice,
    command,
    in_own_names,
    short,
    template_worth,
    with_interval,
)
from calibrant.lab.choose.asking import Prepared, asked
from calibrant.lab.choose.budget import (
    LEAST,
    ROUNDS,
    StepCosts,
    TimeBudget,
    TimePlan,
    kept_costs,
    least_with_sibling,
    to_a_tenth,
)
from calibrant.lab.choose.fitting import Fitted
from calibrant.lab.choose.halves import Halves, swapped
from calibrant.lab.choose.instruct import is_written, plain_forms
from calibrant.lab.choose.planning import check_settings, planned_recommendation
from calibrant.lab.choose.predicting import Prediction
from calibrant.lab.choose.racing import Race, RaceResult, plain
from calibrant.lab.mixtures import Mixture
from calibrant.models import is_object, name_of, only_looks, opened_of, save
from calibrant.models.hashing import OF_TENSORS, digest_of
from calibrant.numerics import type_name
from calibrant.options import RecommendCommand, WriteDataOptions, declaration, with_fields_of
from calibrant.spec.foreign import user_path
from calibrant.system.notebook import card, listing
from calibrant.system.progress import Progress

MODELS: Final = "models"
"""The folder, in that of a recommendation, of models that were given as objects."""


def unsaid(sentence: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Candidate:
    """One candidate: its predicted error, and what a race made of it.

    `data` is what `--data` takes. `name` is what sentences and tables call it: a long mixture by
    its largest parts, an object "your data".

    The differences are how much *worse* it is, with intervals that hold jointly for all sets, and
    to the best for all rounds too. Where the goal has a
    held-out sibling, `predicted_sibling` and `sibling` are the figures on it, and the differences
    are of those. `divergence` is that of its predictions from the dense model's (KL, nats a token);
    it is measured where a model is rounded. `by_role` is the increase on tokens of the chat
    template, of questions and of answers, of an instruct model. `status` is `best`, `not
    significant` (its difference to the best), `behind` (left out after round `dropped`) or `not
    raced`.
    """

    data: str
    name: str
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
    by_role: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, repr=False)
class Recommendation:
    """What to calibrate on, and how that was found.

    `expr` is what `--data` takes, `text` the advice in a paragraph, and `command` does what was
    measured. `verb` is what it does, `prune` or `quantize`, and `target` is of whatever kind.
    `bits` is how many a weight takes where it is stored as codes, None where runs differ in it.
    `predicted_by` says by what a method was predicted that reads more than sums of statistics.

    `candidates` are the best first, and `baseline` is what they are compared with. `why` says how
    the race ended: `clear`, `alone` (some set failed, and no other is left), `alike`, `draws` or
    `time`. `mixture` is what was searched for and predicted, and `folder` has the store of all that
    was measured.

    `plan` is what the `minutes` were to buy, `another_draw` the seconds of one draw more, `fitted`
    what was lowered for small files. `siblings` are the halves of the goal's files: how much of a
    row stands in what its own half (`inside`) and the other (`across`) calibrate on. `no_sibling`
    says why there are none. `written` is the file for another tool, where one was asked for.
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
    target: str
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
    written: WrittenData | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as dicts, lists and numbers."""
        facts = asdict(self)
        if self.written is not None:
            facts["written"] = self.written.to_json()
        return facts

    def __repr__(self) -> str:
        return f"Recommendation({self.expr!r}, for {self.goal!r})"

    def _repr_html_(self) -> str:
        lines: list[tuple[Any, ...]] = []
        names = {candidate.data: candidate.name for candidate in self.candidates}
        for candidate in self.candidates:
            predicted = ""
            if candidate.predicted is not None:
                predicted = f"{candidate.predicted:.2%}"
            against = with_interval(candidate.against_baseline)
            draws = candidate.draws or ""
            lines.append((candidate.name, predicted, against, draws, candidate.status))
        baseline = names.get(self.baseline, self.baseline)
        heads = ("calibrated on", "predicted error", f"worse than {baseline}", "draws", "")
        return card(
            f"Calibrate {self.model} on {names[self.expr]}",
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


@with_fields_of(RecommendOptions, planned_recommendation)
@only_looks
def recommend(options: RecommendOptions) -> Recommendation:
    """Recommend which calibration data to use to prune or quantize `model` for `goal`, and what is
    known about it.

    `goal` is a source, a file of the user's own, a measure such as `task(name=race)`, or
    `general`; or several, each perhaps with a weight: `["0.7*gsm8k", "0.3*general"]`. It may be
    data as an object too: rows, conversations or a `datasets.Dataset`. Texts in a list are several
    goals, so hand over rows in their place: `[{"text": text} for text in texts]`. `target` is
    what the model's matrices are to become, of any kind: 0.6, `"2:4"`, `"w4g64"`, `"q4_k"`,
    `"Q4_K_M"`, `"gguf 90MB"`; without `method` it is done by the usual one that looks at data
    (`mixtures.aims`), and without either by Wanda at 0.6.

    Without `sources` the usual ones that can be read here are tried, and the goal's own. Each
    candidate's damage is predicted from the statistics of the untouched model (`mixtures.mix`),
    with the mixture that is best by that measure among them. The few best are raced against
    `baseline` (C4 where it is a candidate, else the first of them). All measurements lie in
    `folder`, which a later call continues.

    Where the goal is the user's own file, its rows are divided by template into two halves
    (`recommend.halves`): a set that holds the file is judged by what it does on one half when it
    was calibrated on the other. That figure decides; `sibling=False` leaves it out.

    A model with a chat template is measured in it where the goal is conversations or questions: by
    its divergence from the dense model, beside it by role. Without `sources` the same rows are
    tried in the template, as plain text and answered by the model itself. The text says what the
    template was worth.

    `tokens` (8,192 unless given) of each set in windows of `length` are lowered to what the goal
    and every candidate hold. `minutes` are kept: the costs are measured, or known from an earlier
    call, and what they will buy is said before it begins, to `say`; `now` is the clock. Where the
    time is short there are fewer candidates (never of those in `sources`), sets and tokens (never
    if given), and last a single draw.

    Runs of a race open the model by name. So a model of transformers, which comes with its
    `tokenizer`, is written into `folder` once, unless it is still what it was loaded from.

    With `tool` the recommended data is written into `folder` for another tool, as `write_data` does
    it.

    Raises an `InputError` for what can't be used.

    >>> recommend("smollm2", goal="gsm8k", minutes=0.0)
    Traceback (most recent call last):
    calibrant.errors.SpecError: a budget of 0 minutes leaves no time; give some above 0
    """
    check_settings(options)
    options = replace(options, folder=user_path(options.folder, OutputError))
    budget = TimeBudget(options.minutes, options.now)
    own_name = ""
    if is_object(options.model):
        own_name = name_of(options.model)
        options = _with_name(options)
    prepared = asked(options, budget)
    names = prepared.own_names()
    if own_name:
        names[prepared.opened.name] = own_name
    if prepared.fitted.said:
        options.say(in_own_names(prepared.fitted.said, names))
    if prepared.no_template:
        options.say(f"measured out of the chat template: {prepared.no_template}")
    prepared, plan, costs = _within_time(prepared, budget, options)
    fitted = prepared.fitted
    began = budget.spent
    mixture, predicted = prepared.predicted(plan, options.progress)
    predicting = budget.spent
    # What was read again says nothing about what gathering costs.
    if not mixture.reused:
        costs = _corrected_costs(costs, predicting - began, mixture, fitted, plan)
    # Before the race too: if it is killed, the next call goes on with the same sets.
    costs.keep(prepared.folder, prepared.identity)
    plan.keep(prepared.folder, prepared.identity, plan.done)
    race = _race(prepared, predicted, plan, costs, options.progress)
    result = race.run(budget)
    race.costs.keep(prepared.folder, prepared.identity)
    plan.keep(prepared.folder, prepared.identity, result.rounds)
    best = result.standings[0].data
    text = _advice_text(mixture, prepared, race, result, predicted)
    mixture = replace(mixture, model=in_own_names(mixture.model, names))
    shell_command = command(
        prepared.opened.name,
        best,
        mixture,
        prepared.base_study.propagation(prepared.method),
        options.dtype,
        options.device,
        prepared.export,
    )
    recommendation = Recommendation(
        expr=best,
        text=in_own_names(text, names),
        command=shell_command,
        model=mixture.model,
        note=mixture.note,
        goal=in_own_names(fitted.goal.text, names),
        judge=fitted.goal.judge,
        measures=fitted.goal.texts,
        baseline=prepared.baseline,
        method=mixture.method,
        target=mixture.target,
        tokens=mixture.tokens,
        length=mixture.length,
        unit=result.unit,
        why=result.why,
        rounds=result.rounds,
        candidates=_candidates(result, predicted, names),
        mixture=mixture,
        failures=result.failures,
        seconds={"predicting": predicting, "racing": budget.spent - predicting},
        folder=str(options.folder),
        minutes=options.minutes,
        plan=plan,
        another_draw=race.another_draw(),
        fitted=in_own_names(fitted.said, names),
        siblings=tuple(_sibling_facts(halves) for halves in fitted.halves),
        no_sibling=in_own_names(prepared.no_sibling, names),
        verb=prepared.target.verb,
        bits=result.bits,
        predicted_by=prepared.stand_in.differs,
    )
    try:
        written_data = _written(options, mixture, best)
    except CalibrantError:
        # What was found out is told before the error that ends the call.
        options.say(f"{recommendation.text}; {shell_command}")
        raise
    return replace(recommendation, written=written_data)


def _corrected_costs(
    costs: StepCosts, seconds: float, mixture: Mixture, fitted: Fitted, plan: TimePlan
) -> StepCosts:
    """The costs of steps, scaled by how long the prediction took against what was expected."""
    # With a sibling, both halves are walked through too, and judge too.
    halves = 2 if fitted.halves else 0
    sources = len(mixture.weights) + halves
    expected = costs.predicting(sources, 1 + halves, plan.tokens)
    return costs.scaled(predicting=max(0.1, seconds / expected))


def _race(
    prepared: Prepared,
    predicted: Mapping[str, Prediction],
    plan: TimePlan,
    costs: StepCosts,
    progress: Progress,
) -> Race:
    """The race that the plan has time for."""
    fitted = prepared.fitted
    return Race(
        prepared.base_study,
        fitted.goal,
        _raced(predicted, prepared, plan.sets),
        prepared.baseline,
        prepared.race_folder,
        costs,
        fitted.halves,
        fitted.rounds,
        plan.share,
        plan.done,
        progress,
    )


def _advice_text(
    mixture: Mixture,
    prepared: Prepared,
    race: Race,
    result: RaceResult,
    predicted: Mapping[str, Prediction],
) -> str:
    """The advice, and after it what the chat template is worth."""
    fitted = prepared.fitted
    text = advice(mixture, fitted.goal, prepared.baseline, result, fitted.rounds, fitted.halves)
    for in_template, as_text in plain_forms(fitted.goal.conversations).items():
        worth = template_worth(race, result.standings, predicted, in_template, as_text)
        text = f"{text} {worth}".strip()
    return text


def _within_time(
    prepared: Prepared, budget: TimeBudget, options: RecommendOptions
) -> tuple[Prepared, TimePlan, StepCosts]:
    """Plan the time, say what it buys and what is left out for it, and have the model write its own
    answers. Return what is left of what was asked, the plan, and what the steps cost.
    """
    costs = kept_costs(prepared.folder, prepared.identity) or prepared.costs(options.progress)
    plan = prepared.plan(costs, budget, options.minutes)
    options.say(plan.sentence(options.minutes, budget.spent, prepared.fitted.rounds))
    prepared = prepared.within(plan)
    if prepared.fitted.halves and not plan.halves:
        reason = _too_short(prepared, costs, plan, budget)
        prepared = prepared.without_sibling(reason)
        options.say(f"no held-out sibling: {reason}")
    prepared, costs = _with_answers(prepared, costs, plan, budget, options)
    return prepared, plan, costs


def _written(options: RecommendOptions, mixture: Mixture, data: str) -> WrittenData | None:
    """Write the recommended data for another tool, if one was asked for. No tool weighs the sets of
    a mix, so of a mix it is the sum with the same shares.
    """
    if options.tool is None:
        return None
    tool = tool_named(options.tool)
    calibration = CalibrationSet(data)
    if calibration.mixed:
        data = as_sum(calibration)
        options.say(f"{tool} can't weigh the sets of a mix; written is the sum {short(data)}")
    file_name = f"data{tool.endings[0]}"
    write_options = WriteDataOptions(
        options.model,
        options.tokenizer,
        data=data,
        out=Path(options.folder) / file_name,
        tool=options.tool,
        tokens=mixture.tokens,
        length=mixture.length,
        dtype=options.dtype,
        device=options.device,
        progress=options.progress,
    )
    return write_over(write_options)


def _with_name(options: RecommendOptions) -> RecommendOptions:
    """The same with a folder in the place of the model object, since runs of a race open it by
    name: the one that it was loaded from, if that has the same numbers, else one that it is saved
    to, once. Raises where the `tool` can't take that model.
    """
    opened = opened_of(options.model, options.tokenizer, options.dtype, options.device)
    name = str(opened.model.name_or_path)
    digest = digest_of(opened.model)
    if digest.startswith(OF_TENSORS):
        place = Path(options.folder) / MODELS / digest.removeprefix(OF_TENSORS)[:16]
        if not place.exists():
            save(opened, place, {})
            options.say(f"the model was written to {place}, where each run opens it")
        name = str(place)
    if options.tool is not None:
        tool_named(options.tool).check_model(name)
    return replace(
        options,
        model=name,
        dtype=type_name(opened.dtype),
        device=str(opened.model.device),
    )


def _with_answers(
    prepared: Prepared,
    costs: StepCosts,
    plan: TimePlan,
    budget: TimeBudget,
    options: RecommendOptions,
) -> tuple[Prepared, StepCosts]:
    """Have the model write its own answers, and return what is left of the candidates, with what
    writing costs.
    """
    if prepared.spare and not plan.written:
        seconds = to_a_tenth(plan.tokens * costs.write * len(prepared.spare))
        names = in_own_names(", ".join(prepared.spare), prepared.own_names())
        options.say(
            f"left out: {names}; to write a draw takes about {seconds}, and the time is too short "
            "(--budget)"
        )
        return prepared.without(prepared.spare), costs
    for data in filter(is_written, prepared.candidates):
        began = budget.spent
        try:
            prepared.write(data, plan.tokens, options.progress)
        except DataError as error:
            if data not in prepared.spare:
                raise
            options.say(f"left out: {in_own_names(str(error), prepared.own_names())}")
            prepared = prepared.without([data])
            continue
        # What an earlier call wrote takes no time now, and says nothing of what writing takes.
        written = 3 if prepared.fitted.halves else 1
        seconds_of_token = (budget.spent - began) / (plan.tokens * written)
        costs = replace(costs, write=max(costs.write, seconds_of_token))
    return prepared, costs


def _too_short(prepared: Prepared, costs: StepCosts, plan: TimePlan, budget: TimeBudget) -> str:
    """Why there is no sibling, and which budget is enough for one."""
    written = 0 if prepared.spare else prepared.written
    sources = len(prepared.candidates) - len(prepared.spare)
    least = least_with_sibling(costs, sources, len(prepared.needed), plan.tokens, written)
    # Seconds as minutes, rounded up to a tenth.
    minutes = math.ceil((least + budget.spent) / 6) / 10
    return f"the time is too short for one; --budget {minutes:g} is enough"


def _sibling_facts(halves: Halves) -> dict[str, Any]:
    return {
        "source": str(halves.source),
        "folders": halves.folders,
        "inside": halves.inside,
        "across": halves.across,
    }


def _raced(predicted: Mapping[str, Prediction], prepared: Prepared, count: int) -> list[str]:
    """The `count` sets to race: the best by prediction first, and the baseline last.

    Of those that hold the goal's file, which cost three runs, there are two at most.
    """
    halves = prepared.fitted.halves
    others = [data for data in predicted if data != prepared.baseline]
    ranked = _by_prediction(others, predicted)
    if not halves:
        return [*ranked[: count - 1], prepared.baseline]
    # Those that hold the goal's file.
    holding = [data for data in ranked if swapped(data, halves, 0) != data]
    # The file itself is what its owner wants to know about.
    own_holding = [data for data in prepared.own_sets if data in holding]
    own_set = own_holding[:1]
    others_holding = [data for data in holding if data not in own_set]
    # A race of few sets has room for the file alone.
    beside_own = 1 if count > LEAST else 0
    left_out = others_holding[beside_own:]
    contenders = [data for data in ranked if data not in left_out]
    raced = contenders[: count - 1]
    # Where its prediction is too bad for the race, it takes the last place.
    if own_set and own_set[0] not in raced:
        raced = [*raced[: count - 2], *own_set]
    return [*raced, prepared.baseline]


def _by_prediction(names: Sequence[str], predicted: Mapping[str, Prediction]) -> list[str]:
    def order(data: str) -> float:
        return predicted[data].value

    return sorted(names, key=order)


def _candidates(
    race: RaceResult, predicted: Mapping[str, Prediction], names: Mapping[str, str]
) -> tuple[Candidate, ...]:
    """What is known of every candidate: those of the race first, the best before the others, then
    the rest by what was predicted.
    """
    candidates: list[Candidate] = []
    for place, standing in enumerate(race.standings):
        if place == 0:
            status = "best"
        elif standing.dropped is not None:
            status = "behind"
        else:
            status = "not significant"
        prediction = predicted.get(standing.data, Prediction(None))
        candidate = Candidate(
            standing.data,
            in_own_names(short(standing.data), names),
            prediction.own,
            status,
            increase=plain(standing.increase),
            against_baseline=plain(standing.against_baseline, comparisons=race.comparisons),
            against_best=plain(standing.against_leader, comparisons=race.comparisons * ROUNDS),
            draws=standing.draws,
            dropped=standing.dropped,
            predicted_sibling=prediction.sibling,
            sibling=plain(standing.sibling),
            divergence=plain(standing.divergence),
            by_role=standing.by_role,
        )
        candidates.append(candidate)
    raced = {standing.data for standing in race.standings}
    unraced = [data for data in predicted if data not in raced]
    for data in _by_prediction(unraced, predicted):
        prediction = predicted[data]
        candidate = Candidate(
            data,
            in_own_names(short(data), names),
            prediction.own,
            "not raced",
            predicted_sibling=prediction.sibling,
        )
        candidates.append(candidate)
    return tuple(candidates)
