"""What is asked: model, goal and candidates as they are read, with budgets that fit the files,
and then the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast, final

import psutil

from calibrant.compress import check_model
from calibrant.data import CalibrationSet, Data, PerDraw, Source
from calibrant.data._folders import files_of
from calibrant.data.objects import as_expression
from calibrant.data.select import resolved
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError, InputError
from calibrant.evaluators import Evaluator
from calibrant.evaluators.agreement import Agreement
from calibrant.evaluators.loss import Loss
from calibrant.evaluators.task import Task
from calibrant.exports import exports
from calibrant.lab.choose.budget import (
    StepCosts,
    TimeBudget,
    TimePlan,
    continued,
    kept_plan,
    planned,
)
from calibrant.lab.choose.fitting import Fitted, fit, own_files
from calibrant.lab.choose.goal import Goal, budget_of, default_sources, parse_goal
from calibrant.lab.choose.halves import Halves, halves_of, swapped
from calibrant.lab.choose.instruct import (
    GENERAL_CHAT,
    instruct_candidates,
    is_written,
    measured_in_template,
    own_answers,
    plain_forms,
)
from calibrant.lab.choose.predicting import Prediction, of_mixture, with_siblings
from calibrant.lab.choose.timing import measured_costs
from calibrant.lab.mixtures import (
    NO_METER,
    Effort,
    Mixture,
    aim_of,
    expression,
    mix,
    stand_in_of,
    uniform,
)
from calibrant.lab.mixtures.aims import fitted_to
from calibrant.lab.mixtures.algebra import effort_of
from calibrant.lab.mixtures.mixture import BEST, UNIFORM
from calibrant.lab.study import Study
from calibrant.methods import Method, StandIn
from calibrant.models import Opened, opened_of, view
from calibrant.models.digests import known_digest
from calibrant.options import RecommendCommand
from calibrant.spec import identity
from calibrant.system.progress import Progress, silent
from calibrant.targets import GgmlKind, GgufBudget, GgufRecipe, Target

BASELINE: Final = "c4"
"""What most people use."""
TOKENS: Final = 8192
"""Tokens of a set, and held-out tokens that a loss is measured on."""
ITEMS: Final = 200
"""Questions of a task."""
LEAST_TOKENS: Final = 1024
"""Tokens that a loss is measured on at least, however short the time."""
LEAST_ITEMS: Final = 50
"""Questions of a task at least, however short the time."""
DIVERGENCE: Final = 8
"""The divergence from the dense model is measured on this part of a loss's tokens: it tells two
models apart on less text than a loss does.
"""
LEAST_DIVERGENCE: Final = 512
GIVEN: Final = "given"
"""The folder, in that of a recommendation, of data that came as objects."""
COPY: Final = 0.1
"""The share of the machine's memory that a second copy of the model may take, which the
divergence needs.
"""
FIRST: Final = (
    "c4",
    "gsm8k:cot",
    "wikipedia",
    "commonsense_qa:icl",
    "python_docs",
    "pile",
    "esnli:cot",
    "arithmetic:cot",
    "redpajama",
)
"""The order in which default sources are kept when the time is short: first those that differ most
from one another.
"""
_FIRST_OF_ALL: Final = (GENERAL_CHAT, *FIRST)


@final
@dataclass(frozen=True)
class Prepared:
    """What was asked, as it can be had.

    Of the `candidates`, `needed` are those that stay however short the time, and `own_sets` those
    of the goal. `spare` are answers of the model itself, which go where there is no time to write
    them. `baseline` is what others are compared with. `stand_in` predicts the method.
    `export` is the form in which the result is deployed, empty where that is the folder.
    `base_study` is the study of the race without its rounds. `fixed` says that the user gave the
    tokens. `identity` is the same for a later call that asks the same. `no_sibling` says why the
    goal has no held-out sibling, `no_template` why it isn't measured in the model's chat template,
    empty where it is or there is none. `opening_seconds` is how long it took to open the model.
    """

    opened: Opened
    method: Method
    target: Target
    stand_in: StandIn
    export: str
    candidates: tuple[str, ...]
    needed: tuple[str, ...]
    own_sets: tuple[str, ...]
    baseline: str
    fitted: Fitted
    base_study: Study
    folder: Path
    identity: str
    fixed: bool
    no_sibling: str
    opening_seconds: float
    spare: tuple[str, ...] = ()
    no_template: str = ""

    def own_names(self) -> dict[str, str]:
        """Return what sentences call data that came as objects, by the texts of the files that they
        were written to.
        """
        names: dict[str, str] = {}
        sets = [*self.fitted.goal.sources, *self.candidates]
        sources: list[Source] = []
        for data in sets:
            sources += [term.source for term in CalibrationSet(data).parts]
        count = 0
        for source in dict.fromkeys(sources):
            if isinstance(source, UserFile) and Path(source.path).parent == self.folder / GIVEN:
                count += 1
                name = "your data"
                if count > 1:
                    name = f"your data {count}"
                names[str(source)] = name
        return names

    @property
    def written(self) -> int:
        """How many of the candidates the model writes itself."""
        return sum(map(is_written, self.candidates))

    @property
    def effort(self) -> Effort:
        """What predictions may look at; nobody asks here whether the tokens are enough."""
        return replace(effort_of(self.stand_in.method), meter=NO_METER)

    @property
    def race_folder(self) -> Path:
        """Where the race's store is, and the statistics that predictions are made of."""
        return self.folder / "race"

    def costs(self, progress: Progress = silent) -> StepCosts:
        """Measure what the pieces cost."""
        return measured_costs(
            self.opened,
            self.base_study,
            self.stand_in,
            self.effort,
            len(self.candidates),
            self.opening_seconds,
            any(map(is_written, self.candidates)),
            progress,
        )

    def plan(self, costs: StepCosts, budget: TimeBudget, minutes: float) -> TimePlan:
        """Return what the time will buy: the plan of an earlier call, gone on with, or a new
        one.

        It is a new one too where there is more time than before, and enough for what was left out
        then.
        """
        new_plan = self._new_plan(costs, budget, minutes)
        earlier = kept_plan(self.folder, self.identity, minutes)
        if earlier is None:
            return new_plan
        if minutes > earlier.minutes and new_plan.includes_what_lacked(earlier):
            return new_plan
        plan = continued(earlier, costs, budget.left, self.fitted.rounds)
        return replace(plan, minutes=max(minutes, earlier.minutes))

    def _new_plan(self, costs: StepCosts, budget: TimeBudget, minutes: float) -> TimePlan:
        plan = planned(
            costs,
            budget.left,
            sources=len(self.candidates),
            least=len(self.needed),
            tokens=self.fitted.tokens,
            halves=bool(self.fitted.halves),
            fixed=self.fixed,
            rounds=self.fitted.rounds,
            written=self.written,
            spare=bool(self.spare),
        )
        return replace(plan, minutes=minutes)

    def within(self, plan: TimePlan) -> "Prepared":
        """Return the same with the budgets of a plan."""

        def smaller(measure: Evaluator) -> int:
            return _smaller_budget(measure, plan.share)

        goal = self.fitted.goal.limited(smaller)
        length = min(self.fitted.length, plan.tokens)
        judge_tokens = min(plan.tokens, self.fitted.judge_tokens)
        fitted = replace(self.fitted, goal=goal, judge_tokens=judge_tokens, length=length)
        evaluate = _measures(goal, self.target, self.opened)
        base_study = replace(self.base_study, evaluate=evaluate, tokens=plan.tokens, length=length)
        return replace(self, fitted=fitted, base_study=base_study)

    def without(self, sets: Sequence[str]) -> "Prepared":
        """Return the same without these of the spare candidates."""
        candidates = [data for data in self.candidates if data not in sets]
        spare = [data for data in self.spare if data not in sets]
        return replace(self, candidates=tuple(candidates), spare=tuple(spare))

    def write(self, data: str, tokens: int, progress: Progress = silent) -> None:
        """Have the model write a set's rows, which predictions and the race find again.

        Raises `DataError` where it doesn't write enough that can be used.
        """
        halves = self.fitted.halves
        versions = [data]
        if halves:
            versions += [swapped(data, halves, 0), swapped(data, halves, 1)]
        for version in dict.fromkeys(versions):
            calibration = CalibrationSet(version, length=self.fitted.length, tokens=tokens)
            resolved(calibration, self.opened, progress).tokens(self.opened.tokenizer)

    def without_sibling(self, reason: str) -> "Prepared":
        """Return the same without a held-out sibling of the goal."""
        return replace(self, fitted=replace(self.fitted, halves=()), no_sibling=reason)

    def predicted(
        self, plan: TimePlan, progress: Progress = silent
    ) -> tuple[Mixture, dict[str, Prediction]]:
        """Return the best mixture of as many candidates as are planned, and what is predicted of
        every candidate and every mixture.
        """
        goal = self.fitted.goal
        by_difference = sorted(self.candidates, key=_by_difference)
        wanted = _each_once([*self.needed, *self.spare, *by_difference])
        mixture = mix(
            self.opened,
            # A mixture has two sources at least.
            sources=wanted[: max(plan.sources, 2)],
            method=self.method,
            target=self.target,
            objective=f"target={goal.judge}",
            tokens=plan.tokens,
            length=self.fitted.length,
            judge_tokens=self.fitted.judge_tokens,
            effort=self.effort,
            folder=self.race_folder,  # the race finds the statistics here again
            alone=True,
            progress=progress,
        )
        if not self.fitted.halves:
            # The mixture's table calls these two rows by words.
            evenly = uniform(len(mixture.weights))
            row_names = {UNIFORM: expression(list(mixture.weights), evenly), BEST: mixture.expr}
            judge = str(CalibrationSet(goal.judge))
            return mixture, of_mixture(mixture, judge, row_names)
        return mixture, with_siblings(
            mixture,
            self.stand_in,
            goal.judge,
            self.fitted.halves,
            self.opened,
            self.effort,
            self.race_folder,
            self.fitted.judge_tokens,
            progress,
        )


def asked(options: RecommendCommand, budget: TimeBudget) -> Prepared:
    """Read what is asked, open the model, divide the goal's files and fit the budgets.

    Raises an `InputError` for what can't be used.
    """
    method, target = aim_of(options.method, options.target)
    stand_in = stand_in_of(method, target)
    folder = Path(options.folder)
    goals = _goals(options.goal, folder)
    goal = parse_goal(goals, TOKENS, ITEMS, options.length)
    named = _canonical(options.sources, folder)
    began = budget.spent
    opened = opened_of(options.model, options.tokenizer, options.dtype, options.device)
    opening_seconds = budget.spent - began
    no_template = ""
    if opened.tokenizer.chat_template:
        goal, no_template = _in_template(goals, goal, opened, options.length)
    sets = _sets(named, options.baseline, goal, folder)
    model_view = view(opened.model)
    check_model(method, model_view, target, dict.fromkeys(model_view.named, target))
    stand_in = fitted_to(stand_in, opened.model.num_parameters())
    export = _deployed(method, target, opened)
    halves: tuple[Halves, ...] = ()
    no_sibling = "it was not asked for"
    if options.sibling:
        halves, no_sibling = _halves(goal, folder / "halves")
    tokens = options.tokens or TOKENS
    fitted = fit(sets.candidates, goal, halves, tokens, options.length, opened.tokenizer)
    if halves and not fitted.halves:
        no_sibling = "its halves hold too little to be calibrated on"
    base_study = Study(
        models=(opened.name,),
        data=(sets.baseline,),
        evaluate=_measures(fitted.goal, target, opened),
        methods=(method,),
        targets=(target,),
        tokens=fitted.tokens,
        length=fitted.length,
        dtype=options.dtype,
        device=options.device,
        # Rows of the goal's file that are alike are what the sibling is for; records keep their
        # number.
        allow_leak=True,
    )
    return Prepared(
        opened=opened,
        method=method,
        target=target,
        stand_in=stand_in,
        export=export,
        candidates=tuple(sets.candidates),
        needed=tuple(sets.needed),
        own_sets=tuple(sets.own_sets),
        baseline=sets.baseline,
        fitted=fitted,
        base_study=base_study,
        folder=folder,
        identity=_identity(opened, method, target, goal, sets, fitted.tokens, options),
        fixed=options.tokens is not None,
        no_sibling=no_sibling,
        opening_seconds=opening_seconds,
        spare=tuple(sets.spare),
        no_template=no_template,
    )


@dataclass(frozen=True)
class _Sets:
    """The calibration sets of a question; each field is as in `Prepared`."""

    candidates: list[str]
    needed: list[str]
    own_sets: list[str]
    spare: list[str]
    baseline: str


def _sets(named: list[str], given_baseline: str, goal: Goal, folder: Path) -> _Sets:
    """The sets to compare: those that the user named, or the usual ones."""
    as_text = plain_forms(goal.conversations).values()
    own_sets = _canonical([*goal.sources, *as_text], folder)
    candidates = named or _default_candidates(goal, folder)
    baseline = _baseline(given_baseline, candidates)
    candidates = _each_once([*candidates, baseline])
    if named:
        # What the user named is never left out, a baseline neither.
        return _Sets(candidates, candidates, own_sets, [], baseline)
    needed = _each_once([*own_sets, baseline])
    spare = [data for data in own_answers(goal.conversations) if data != baseline]
    return _Sets(candidates, needed, own_sets, spare, baseline)


def _identity(
    opened: Opened,
    method: Method,
    target: Target,
    goal: Goal,
    sets: _Sets,
    tokens: int,
    options: RecommendCommand,
) -> str:
    """The identity of the question, the same for a later call that asks the same."""
    parts: list[Any] = [
        opened.digest,
        str(method),
        str(target),
        goal.text,
        sets.candidates,
        tokens,
        options.length,
        sets.baseline,
        str(opened.dtype),
        options.device,
        options.sibling,
    ]
    parts += _identity_of_data(goal, sets.candidates)
    return identity(parts)


def _goals(goal: str | Sequence[str] | Data, folder: Path) -> list[str]:
    """The goals as texts; data that came as an object are one."""
    if isinstance(goal, str):
        return [goal]
    if isinstance(goal, list | tuple) and all(isinstance(text, str) for text in goal):
        return list(cast("Sequence[str]", goal))
    return [as_expression(cast("Data", goal), folder / GIVEN)]


def _in_template(goals: Sequence[str], goal: Goal, opened: Opened, length: int) -> tuple[Goal, str]:
    """Return the goal as an instruct model is measured on it; or as it was, and the reason why."""
    in_template = parse_goal(goals, TOKENS, ITEMS, length, template=True)
    try:
        return measured_in_template(in_template, opened.tokenizer), ""
    except DataError as error:
        return goal, str(error)


def _default_candidates(goal: Goal, folder: Path) -> list[str]:
    """The sets to try where the user names none."""
    sets = [*goal.sources, *instruct_candidates(goal.conversations), *default_sources(goal)]
    return _canonical(sets, folder)


def _baseline(given: str, candidates: Sequence[str]) -> str:
    """The set that the candidates are compared with."""
    if given:
        return str(CalibrationSet(given))
    return BASELINE if BASELINE in candidates else candidates[0]


def _each_once(sets: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(sets))


def _canonical(sets: Sequence[Data], folder: Path) -> list[str]:
    """Calibration sets as they are written, each once."""
    expressions = [as_expression(data, folder / GIVEN) for data in sets]
    return _each_once(expressions)


def _identity_of_data(goal: Goal, candidates: Sequence[str]) -> list[Any]:
    """The part of a question's identity that its data make: conversations that are measured in the
    template, and what is in the user's files, of which a path says nothing.
    """
    parts: list[Any] = []
    if goal.conversations:
        parts.append(goal.conversations)
    contents = _contents([*goal.sources, *candidates])
    if contents:
        parts.append(contents)
    return parts


def _contents(sets: Sequence[str]) -> dict[str, list[str]]:
    """The digests of the user's files that sets name, those that a selector chooses from too."""
    sources: list[Source] = []
    for data in sets:
        for term in CalibrationSet(data).parts:
            sources.append(term.source)
            if isinstance(term.source, PerDraw):
                sources += term.source.origins
    contents: dict[str, list[str]] = {}
    for source in sources:
        if isinstance(source, UserFile):
            files = files_of(source.path).all
            contents[str(source)] = [known_digest(path) for path, _ in files]
    return contents


def _measures(goal: Goal, target: Target, opened: Opened) -> tuple[Evaluator, ...]:
    """What is measured on each run: the goal's measures and, of a model that is rounded, its
    divergence from the dense one on like text.

    The divergence decides nothing. It is left out where no loss is measured, or a copy of the dense
    model would be large for this machine.
    """
    measures = [measure for _, measure in goal.measures]
    heaviest: Loss | None = None
    most = -1.0
    for weight, measure in goal.measures:
        if isinstance(measure, Loss) and weight > most:
            heaviest = measure
            most = weight
    if heaviest is None or target.verb != "quantize":
        return tuple(measures)
    size = 0
    for parameter in opened.model.parameters():
        size += parameter.numel() * parameter.element_size()
    if size > COPY * psutil.virtual_memory().total:
        return tuple(measures)
    tokens = min(heaviest.tokens, max(LEAST_DIVERGENCE, heaviest.tokens // DIVERGENCE))
    divergence = Agreement(
        source=heaviest.source, format=heaviest.format, tokens=tokens, length=heaviest.length
    )
    return (*measures, divergence)


def _deployed(method: Method, target: Target, opened: Opened) -> str:
    """The export in which llama.cpp's blocks are kept, nothing for other targets.

    Raises an `InputError` where a whole file can't be made.
    """
    if not isinstance(target, GgmlKind | GgufRecipe | GgufBudget):
        return ""
    like = getattr(method, "like", "")
    spec = "gguf"
    if like:
        spec = f"gguf(like={like!r})"
    export = exports.build(spec)
    try:
        export.check(method, target, opened, view(opened.model))
    except InputError:
        if isinstance(target, GgufRecipe | GgufBudget):
            raise
        return ""
    return str(export)


def _halves(goal: Goal, folder: Path) -> tuple[tuple[Halves, ...], str]:
    """The halves of each of the user's files that the goal names.

    Where one can't be divided, there are none, and the reason is said.
    """
    divided: list[Halves] = []
    reasons: list[str] = []
    for number, file in enumerate(own_files(goal.sources), 1):
        halves = halves_of(file, folder / str(number))
        if isinstance(halves, str):
            reasons.append(halves)
        else:
            divided.append(halves)
    if reasons:
        return (), "; ".join(reasons)
    if not divided:
        apart = "what it measures on was published apart from what it calibrates on"
        return (), f"the goal is no file of your own: {apart}"
    return tuple(divided), ""


def _smaller_budget(measure: Evaluator, share: float) -> int:
    """How many tokens or items are measured where there is time for a share of them."""
    budget = budget_of(measure)
    least = LEAST_ITEMS if isinstance(measure, Task) else LEAST_TOKENS
    if budget is None:
        # A measure without a budget is never limited.
        return 1
    if share == 1 or budget <= least:
        return budget or 1
    return max(least, int(budget * share))


def _by_difference(data: str) -> int:
    """The place of a source in the order of default ones; others come behind."""
    if data in _FIRST_OF_ALL:
        return _FIRST_OF_ALL.index(data)
    return len(_FIRST_OF_ALL)
