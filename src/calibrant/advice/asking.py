"""What is asked: model, target and candidates as they are read, with budgets that fit the files, and then the time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from calibrant.advice.budget import Purse, StepCosts, TimePlan, continued, kept_plan, planned
from calibrant.advice.fitting import Fitted, fit, own_files
from calibrant.advice.goal import Goal, default_sources, parse_goal
from calibrant.advice.halves import Halves, halves_of
from calibrant.advice.predicting import Prediction, of_mixture, with_siblings
from calibrant.advice.timing import measured_costs
from calibrant.data import CalibrationSet
from calibrant.evaluators import Evaluator
from calibrant.evaluators.loss import Loss
from calibrant.evaluators.task import Task
from calibrant.methods import MatrixMethod, Method, methods
from calibrant.mixtures import Mixture, expression, mix, uniform
from calibrant.mixtures.algebra import effort_of
from calibrant.mixtures.mixture import BEST, UNIFORM
from calibrant.models import Opened, open_model
from calibrant.progress import Progress, silent
from calibrant.spec import identity
from calibrant.study import Study
from calibrant.targets import parse_target

BASELINE: Final = "c4"
"""What most people use."""
TOKENS: Final = 8192
"""Tokens of a set, and held-out tokens that a loss is measured on."""
ITEMS: Final = 200
"""Questions of a task."""
LEAST_TOKENS: Final = 1024
LEAST_ITEMS: Final = 50
"""What is measured on at least, however short the time."""
FIRST: Final = ("c4", "gsm8k:cot", "wikipedia", "commonsense_qa:icl", "python_docs", "pile", "esnli:cot", "arithmetic:cot", "redpajama")
"""The order in which default sources are kept when the time is short: such as differ most first."""


@final
@dataclass(frozen=True)
class Prepared:
    """What was asked, as it can be had: `names` are the candidates, `needed` those that stay however short the time, `own` those of the target.

    `template` is the study that the race is, without its rounds; `fixed` says that the tokens were given. `identity` is the same for a later call
    that asks the same, `no_sibling` says why the target has none, and `opening` is how many
    seconds it took to open the model.
    """

    opened: Opened
    method: Method
    target: str
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
        return measured_costs(self.opened, self.template, self.method, self.opening, progress)

    def plan(self, costs: StepCosts, purse: Purse, minutes: float) -> TimePlan:
        """Return what the time will buy: the plan of an earlier call, gone on with, or a new one."""
        if earlier := kept_plan(self.folder, self.identity, minutes):
            return continued(earlier, costs, purse.left, self.fitted.rounds)
        size = len(self.names), len(self.needed), self.fitted.tokens, bool(self.fitted.halves)
        return planned(costs, purse.left, *size, fixed=self.fixed, rounds=self.fitted.rounds)

    def within(self, plan: TimePlan) -> "Prepared":
        """Return the same with the budgets of a plan."""
        goal = self.fitted.goal.limited(lambda measure: _part(measure, plan.share))
        evaluate = tuple(str(evaluator) for _, evaluator in goal.measures)
        length = min(self.fitted.length, plan.tokens)
        fitted = replace(self.fitted, goal=goal, judge_tokens=min(plan.tokens, self.fitted.judge_tokens), length=length)
        return replace(self, fitted=fitted, template=replace(self.template, evaluate=evaluate, tokens=plan.tokens, length=length))

    def without_sibling(self, reason: str) -> "Prepared":
        """Return the same without a held-out sibling of the target."""
        return replace(self, fitted=replace(self.fitted, halves=()), no_sibling=reason)

    def predicted(self, plan: TimePlan, progress: Progress = silent) -> tuple[Mixture, dict[str, Prediction]]:
        """Return the best mixture of as many candidates as are planned, and what is predicted of every candidate and every mixture."""
        chosen = list(dict.fromkeys([*self.needed, *sorted(self.names, key=_place)]))[: max(plan.sources, 2)]
        goal, halves = self.fitted.goal, self.fitted.halves
        mixture = mix(
            self.opened,
            chosen,
            method=self.method,
            sparsity=self.target,
            objective=f"target={goal.judge}",
            tokens=plan.tokens,
            length=self.fitted.length,
            judge_tokens=self.fitted.judge_tokens,
            folder=self.place,  # the race finds the statistics here again
            alone=True,
            progress=progress,
        )
        if not halves:
            names = {UNIFORM: expression(list(mixture.weights), uniform(len(mixture.weights))), BEST: mixture.expr}
            return mixture, of_mixture(mixture, str(CalibrationSet(goal.judge)), names)
        assert isinstance(self.method, MatrixMethod)
        effort = effort_of(self.method)
        return mixture, with_siblings(mixture, goal.judge, halves, self.opened, effort, self.place, self.fitted.judge_tokens, progress)


def asked(
    model: str,
    targets: Sequence[str],
    sources: Sequence[str],
    method: str,
    sparsity: float | str,
    tokens: int | None,
    length: int,
    baseline: str,
    folder: Path,
    dtype: str,
    device: str,
    sibling: bool,
    purse: Purse,
) -> Prepared:
    """Read what is asked, open the model, divide the target's files and fit the budgets. An `InputError` for what can't be used."""
    goal = parse_goal(targets, TOKENS, ITEMS, length)
    names = list(dict.fromkeys(str(CalibrationSet(text)) for text in (sources or default_sources(goal))))
    base = str(CalibrationSet(baseline)) if baseline else BASELINE if BASELINE in names else names[0]
    names, own = list(dict.fromkeys([*names, base])), [str(CalibrationSet(text)) for text in goal.sources]
    built, wanted = methods.build(method), str(parse_target(sparsity))
    began = purse.spent
    opened = open_model(model, dtype, device)
    opening = purse.spent - began
    halves, why_not = _halves(goal, folder / "halves") if sibling else ((), "it was not asked for")
    fitted = fit(names, goal, halves, tokens or TOKENS, length, opened.tokenizer)
    template = Study(
        models=(model,),
        data=(base,),
        evaluate=tuple(str(evaluator) for _, evaluator in fitted.goal.measures),
        methods=(str(built),),
        sparsities=(wanted,),
        tokens=fitted.tokens,
        length=fitted.length,
        dtype=dtype,
        device=device,
        allow_leak=True,  # rows of the target's file that are alike are what the sibling is for; records keep their number
    )
    needed = tuple(names if sources else dict.fromkeys([*own, base]))
    same = identity([opened.digest, str(built), wanted, goal.text, names, fitted.tokens, length, base, str(opened.dtype), device, sibling])
    why_not = "" if fitted.halves else why_not or "its halves hold too little to be calibrated on"
    read = (opened, built, wanted, tuple(names), needed, tuple(own), base, fitted, template, folder)
    return Prepared(*read, same, tokens is not None, why_not, opening)


def _halves(goal: Goal, place: Path) -> tuple[tuple[Halves, ...], str]:
    """Divide each of the user's files that the goal names; or return why that can't be done: of all, or of none."""
    divided = [halves_of(file, place / str(number)) for number, file in enumerate(own_files(goal.sources), 1)]
    reasons = [each for each in divided if isinstance(each, str)]
    if reasons or not divided:
        return (), "; ".join(reasons) or "the target is no file of your own: what it measures on was published apart from what it calibrates on"
    return tuple(each for each in divided if not isinstance(each, str)), ""


def _part(measure: Evaluator, share: float) -> int:
    """Return how many tokens or items are measured where the time allows for a share of them."""
    budget = measure.tokens if isinstance(measure, Loss) else measure.limit if isinstance(measure, Task) else None
    least = LEAST_ITEMS if isinstance(measure, Task) else LEAST_TOKENS
    return budget or 1 if share == 1 or budget is None or budget <= least else max(least, int(budget * share))


def _place(data: str) -> int:
    """Where a default source stands among those that stay when the time is short: first such as differ most."""
    return FIRST.index(data) if data in FIRST else len(FIRST)
