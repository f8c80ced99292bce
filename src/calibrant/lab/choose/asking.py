"""What is asked: model, target and candidates as they are read, with budgets that fit the files,
and then the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

import psutil

from calibrant.compress import check_model
from calibrant.compress.prune_quantize import TARGETS_OF
from calibrant.data import CalibrationSet
from calibrant.errors import InputError
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
from calibrant.lab.choose.halves import Halves, halves_of
from calibrant.lab.choose.predicting import Prediction, of_mixture, with_siblings
from calibrant.lab.choose.timing import measured_costs
from calibrant.lab.mixtures import Mixture, aim_of, expression, mix, stand_in_of, uniform
from calibrant.lab.mixtures.algebra import effort_of
from calibrant.lab.mixtures.mixture import BEST, UNIFORM
from calibrant.lab.study import Study
from calibrant.methods import Method, StandIn
from calibrant.models import Opened, open_model, view
from calibrant.options import RecommendCommand
from calibrant.spec import identity
from calibrant.system.progress import Progress, silent
from calibrant.targets import GgmlKind, GgufRecipe, Target

BASELINE: Final = "c4"
"""What most people use."""
TOKENS: Final = 8192
"""Tokens of a set, and held-out tokens that a loss is measured on."""
ITEMS: Final = 200
"""Questions of a task."""
LEAST_TOKENS: Final = 1024
LEAST_ITEMS: Final = 50
"""What is measured on at least, however short the time."""
DIVERGENCE: Final = 8
"""The divergence from the dense model is measured on this part of a loss's tokens: it tells two
models apart on less text than a loss does.
"""
LEAST_DIVERGENCE: Final = 512
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
"""The order in which default sources are kept when the time is short: such as differ most first."""


@final
@dataclass(frozen=True)
class Prepared:
    """What was asked, as it can be had.

    `names` are the candidates, `needed` those that stay however short the time, `own` those of the
    target, and `base` is what others are compared with. `standing` predicts the method. `export` is
    the form in which the result is deployed, where that isn't the folder. `template` is the study
    that the race is, without its rounds. `fixed` says that the tokens were given. `identity` is the
    same for a later call that asks the same. `no_sibling` says why the target has none. `opening`
    is how many seconds it took to open the model.
    """

    opened: Opened
    method: Method
    target: Target
    standing: StandIn
    export: str
    names: tuple[str, ...]
    needed: tuple[str, ...]
    own: tuple[str, ...]
    base: str
    fitted: Fitted
    template: Study
    folder: Path
    identity: str
    fixed: bool
    no_sibling: str
    opening: float

    @property
    def place(self) -> Path:
        """Where the race's store is, and the statistics that predictions are made of."""
        return self.folder / "race"

    def costs(self, progress: Progress = silent) -> StepCosts:
        """Measure what the pieces cost."""
        return measured_costs(
            self.opened,
            self.template,
            self.standing,
            effort_of(self.standing.method),
            len(self.names),
            self.opening,
            progress,
        )

    def plan(self, costs: StepCosts, budget: TimeBudget, minutes: float) -> TimePlan:
        """Return what the time will buy: the plan of an earlier call, gone on with, or a new
        one.
        """
        earlier = kept_plan(self.folder, self.identity, minutes)
        if earlier is not None:
            return continued(earlier, costs, budget.left, self.fitted.rounds)
        return planned(
            costs,
            budget.left,
            sources=len(self.names),
            least=len(self.needed),
            tokens=self.fitted.tokens,
            halves=bool(self.fitted.halves),
            fixed=self.fixed,
            rounds=self.fitted.rounds,
        )

    def within(self, plan: TimePlan) -> "Prepared":
        """Return the same with the budgets of a plan."""
        goal = self.fitted.goal.limited(lambda measure: _part(measure, plan.share))
        length = min(self.fitted.length, plan.tokens)
        judge_tokens = min(plan.tokens, self.fitted.judge_tokens)
        fitted = replace(self.fitted, goal=goal, judge_tokens=judge_tokens, length=length)
        evaluate = _measures(goal, self.target, self.opened)
        template = replace(self.template, evaluate=evaluate, tokens=plan.tokens, length=length)
        return replace(self, fitted=fitted, template=template)

    def without_sibling(self, reason: str) -> "Prepared":
        """Return the same without a held-out sibling of the target."""
        return replace(self, fitted=replace(self.fitted, halves=()), no_sibling=reason)

    def predicted(
        self, plan: TimePlan, progress: Progress = silent
    ) -> tuple[Mixture, dict[str, Prediction]]:
        """Return the best mixture of as many candidates as are planned, and what is predicted of
        every candidate and every mixture.
        """
        goal = self.fitted.goal
        wanted = list(dict.fromkeys([*self.needed, *sorted(self.names, key=_place)]))
        mixture = mix(
            self.opened,
            wanted[: max(plan.sources, 2)],
            method=self.method,
            target=self.target,
            objective=f"target={goal.judge}",
            tokens=plan.tokens,
            length=self.fitted.length,
            judge_tokens=self.fitted.judge_tokens,
            folder=self.place,  # the race finds the statistics here again
            alone=True,
            progress=progress,
        )
        if not self.fitted.halves:
            evenly = uniform(len(mixture.weights))
            names = {UNIFORM: expression(list(mixture.weights), evenly), BEST: mixture.expr}
            return mixture, of_mixture(mixture, str(CalibrationSet(goal.judge)), names)
        return mixture, with_siblings(
            mixture,
            self.standing,
            goal.judge,
            self.fitted.halves,
            self.opened,
            effort_of(self.standing.method),
            self.place,
            self.fitted.judge_tokens,
            progress,
        )


def asked(options: RecommendCommand, budget: TimeBudget) -> Prepared:
    """Read what is asked, open the model, divide the target's files and fit the budgets.

    Raises an `InputError` for what can't be used.
    """
    method, target = aim_of(options.method, options.sparsity)
    standing = stand_in_of(method, target)
    wanted = [options.target] if isinstance(options.target, str) else options.target
    goal = parse_goal(wanted, TOKENS, ITEMS, options.length)
    own = _canonical(goal.sources)
    names = _canonical(options.sources or default_sources(goal))
    if options.baseline:
        base = str(CalibrationSet(options.baseline))
    elif BASELINE in names:
        base = BASELINE
    else:
        base = names[0]
    names = list(dict.fromkeys([*names, base]))
    began = budget.spent
    opened = open_model(options.model, options.dtype, options.device)
    opening = budget.spent - began
    model_view = view(opened.model)
    check_model(method, model_view, target, dict.fromkeys(model_view.named, target))
    export = _deployed(method, target, opened)
    folder = Path(options.folder)
    if options.sibling:
        halves, no_sibling = _halves(goal, folder / "halves")
    else:
        halves, no_sibling = (), "it was not asked for"
    tokens = options.tokens or TOKENS
    fitted = fit(names, goal, halves, tokens, options.length, opened.tokenizer)
    if fitted.halves:
        no_sibling = ""
    elif not no_sibling:
        no_sibling = "its halves hold too little to be calibrated on"
    template = Study(
        models=(options.model,),
        data=(base,),
        evaluate=_measures(fitted.goal, target, opened),
        methods=(method,),
        sparsities=(target,),
        tokens=fitted.tokens,
        length=fitted.length,
        dtype=options.dtype,
        device=options.device,
        # Rows of the target's file that are alike are what the sibling is for; records keep their
        # number.
        allow_leak=True,
    )
    needed = names if options.sources else list(dict.fromkeys([*own, base]))
    question = [
        opened.digest,
        str(method),
        str(target),
        goal.text,
        names,
        fitted.tokens,
        options.length,
        base,
        str(opened.dtype),
        options.device,
        options.sibling,
    ]
    return Prepared(
        opened=opened,
        method=method,
        target=target,
        standing=standing,
        export=export,
        names=tuple(names),
        needed=tuple(needed),
        own=tuple(own),
        base=base,
        fitted=fitted,
        template=template,
        folder=folder,
        identity=identity(question),
        fixed=options.tokens is not None,
        no_sibling=no_sibling,
        opening=opening,
    )


def _canonical(texts: Sequence[str]) -> list[str]:
    """Calibration sets as they are written, each once."""
    return list(dict.fromkeys(str(CalibrationSet(text)) for text in texts))


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
    if heaviest is None or not isinstance(target, TARGETS_OF["quantize"]):
        return tuple(measures)
    copy = sum(
        parameter.numel() * parameter.element_size() for parameter in opened.model.parameters()
    )
    if copy > COPY * psutil.virtual_memory().total:
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
    if not isinstance(target, GgmlKind | GgufRecipe):
        return ""
    like = getattr(method, "like", "")
    export = exports.build(f"gguf(like={like!r})" if like else "gguf")
    try:
        export.check(method, target, opened, view(opened.model))
    except InputError:
        if isinstance(target, GgufRecipe):
            raise
        return ""
    return str(export)


def _halves(goal: Goal, place: Path) -> tuple[tuple[Halves, ...], str]:
    """The halves of each of the user's files that the goal names.

    Where one can't be divided, there are none, and the reason is said.
    """
    divided: list[Halves] = []
    reasons: list[str] = []
    for number, file in enumerate(own_files(goal.sources), 1):
        halves = halves_of(file, place / str(number))
        if isinstance(halves, str):
            reasons.append(halves)
        else:
            divided.append(halves)
    if reasons:
        return (), "; ".join(reasons)
    if not divided:
        apart = "what it measures on was published apart from what it calibrates on"
        return (), f"the target is no file of your own: {apart}"
    return tuple(divided), ""


def _part(measure: Evaluator, share: float) -> int:
    """How many tokens or items are measured where the time allows for a share of them."""
    budget = budget_of(measure)
    least = LEAST_ITEMS if isinstance(measure, Task) else LEAST_TOKENS
    if budget is None:
        return 1
    if share == 1 or budget <= least:
        return budget or 1
    return max(least, int(budget * share))


def _place(data: str) -> int:
    """Where a default source stands among those that stay when the time is short: first such as
    differ most.
    """
    return FIRST.index(data) if data in FIRST else len(FIRST)
