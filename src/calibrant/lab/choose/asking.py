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
from calibrant.lab.choose.budget import Purse, StepCosts, TimePlan, continued, kept_plan, planned
from calibrant.lab.choose.fitting import Fitted, fit, own_files
from calibrant.lab.choose.goal import Goal, default_sources, parse_goal
from calibrant.lab.choose.halves import Halves, halves_of
from calibrant.lab.choose.predicting import Prediction, of_mixture, with_siblings
from calibrant.lab.choose.timing import measured_costs
from calibrant.lab.mixtures import Mixture, aim_of, expression, mix, stand_in_of, uniform
from calibrant.lab.mixtures.algebra import effort_of
from calibrant.lab.mixtures.mixture import BEST, UNIFORM
from calibrant.lab.study import Study
from calibrant.methods import Method, StandIn
from calibrant.models import Opened, open_model, view
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
    """What was asked, as it can be had: `names` are the candidates, `needed` those that stay
    however short the time, `own` those of the target.

    `standing` predicts the method; `export` is the form in which the result is deployed, where that
    isn't the folder. `template` is the study that the race is, without its rounds; `fixed` says
    that the tokens were given. `identity` is the same for a later call that asks the same,
    `no_sibling` says why the target has none, and `opening` is how many seconds it took to open the
    model.
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
        effort = effort_of(self.standing.method)
        return measured_costs(
            self.opened,
            self.template,
            self.standing,
            effort,
            len(self.names),
            self.opening,
            progress,
        )

    def plan(self, costs: StepCosts, purse: Purse, minutes: float) -> TimePlan:
        """Return what the time will buy: the plan of an earlier call, gone on with, or a new
        one.
        """
        if earlier := kept_plan(self.folder, self.identity, minutes):
            return continued(earlier, costs, purse.left, self.fitted.rounds)
        size = len(self.names), len(self.needed), self.fitted.tokens, bool(self.fitted.halves)
        return planned(costs, purse.left, *size, fixed=self.fixed, rounds=self.fitted.rounds)

    def within(self, plan: TimePlan) -> "Prepared":
        """Return the same with the budgets of a plan."""
        goal = self.fitted.goal.limited(lambda measure: _part(measure, plan.share))
        evaluate = _evaluated(goal, self.target, self.opened)
        length = min(self.fitted.length, plan.tokens)
        fitted = replace(
            self.fitted,
            goal=goal,
            judge_tokens=min(plan.tokens, self.fitted.judge_tokens),
            length=length,
        )
        return replace(
            self,
            fitted=fitted,
            template=replace(self.template, evaluate=evaluate, tokens=plan.tokens, length=length),
        )

    def without_sibling(self, reason: str) -> "Prepared":
        """Return the same without a held-out sibling of the target."""
        return replace(self, fitted=replace(self.fitted, halves=()), no_sibling=reason)

    def predicted(
        self, plan: TimePlan, progress: Progress = silent
    ) -> tuple[Mixture, dict[str, Prediction]]:
        """Return the best mixture of as many candidates as are planned, and what is predicted of
        every candidate and every mixture.
        """
        chosen = list(dict.fromkeys([*self.needed, *sorted(self.names, key=_place)]))[
            : max(plan.sources, 2)
        ]
        goal, halves = self.fitted.goal, self.fitted.halves
        mixture = mix(
            self.opened,
            chosen,
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
        if not halves:
            names = {
                UNIFORM: expression(list(mixture.weights), uniform(len(mixture.weights))),
                BEST: mixture.expr,
            }
            return mixture, of_mixture(mixture, str(CalibrationSet(goal.judge)), names)
        settings = (
            self.opened,
            effort_of(self.standing.method),
            self.place,
            self.fitted.judge_tokens,
            progress,
        )
        return mixture, with_siblings(mixture, self.standing, goal.judge, halves, *settings)


def asked(
    model: str,
    targets: Sequence[str],
    sources: Sequence[str],
    method: str | None,
    sparsity: float | str | Target | None,
    tokens: int | None,
    length: int,
    baseline: str,
    folder: Path,
    dtype: str,
    device: str,
    sibling: bool,
    purse: Purse,
) -> Prepared:
    """Read what is asked, open the model, divide the target's files and fit the budgets. An
    `InputError` for what can't be used.
    """
    built, aimed = aim_of(method, sparsity)
    standing = stand_in_of(built, aimed)
    goal = parse_goal(targets, TOKENS, ITEMS, length)
    names = list(
        dict.fromkeys(str(CalibrationSet(text)) for text in (sources or default_sources(goal)))
    )
    base = (
        str(CalibrationSet(baseline)) if baseline else BASELINE if BASELINE in names else names[0]
    )
    names, own = (
        list(dict.fromkeys([*names, base])),
        [str(CalibrationSet(text)) for text in goal.sources],
    )
    began = purse.spent
    opened = open_model(model, dtype, device)
    opening = purse.spent - began
    seen_by = view(opened.model)
    check_model(built, seen_by, aimed, dict.fromkeys(seen_by.named, aimed))
    export = _deployed(built, aimed, opened)
    halves, why_not = _halves(goal, folder / "halves") if sibling else ((), "it was not asked for")
    fitted = fit(names, goal, halves, tokens or TOKENS, length, opened.tokenizer)
    template = Study(
        models=(model,),
        data=(base,),
        evaluate=_evaluated(fitted.goal, aimed, opened),
        methods=(str(built),),
        sparsities=(str(aimed),),
        tokens=fitted.tokens,
        length=fitted.length,
        dtype=dtype,
        device=device,
        allow_leak=True,  # rows of the target's file that are alike are what the sibling is for; records keep their number
    )
    needed = tuple(names if sources else dict.fromkeys([*own, base]))
    same = identity(
        [
            opened.digest,
            str(built),
            str(aimed),
            goal.text,
            names,
            fitted.tokens,
            length,
            base,
            str(opened.dtype),
            device,
            sibling,
        ]
    )
    why_not = "" if fitted.halves else why_not or "its halves hold too little to be calibrated on"
    read = (
        opened,
        built,
        aimed,
        standing,
        export,
        tuple(names),
        needed,
        tuple(own),
        base,
        fitted,
        template,
        folder,
    )
    return Prepared(*read, same, tokens is not None, why_not, opening)


def _evaluated(goal: Goal, target: Target, opened: Opened) -> tuple[str, ...]:
    """Return what is measured on each run: the goal's measures and, of a model that is rounded, its
    divergence from the dense one on like text.

    The divergence decides nothing. It is left out where no loss is measured, or a copy of the dense
    model would be large for this machine.
    """
    texts = [str(evaluator) for _, evaluator in goal.measures]
    size = sum(
        parameter.numel() * parameter.element_size() for parameter in opened.model.parameters()
    )
    losses = [(weight, measure) for weight, measure in goal.measures if isinstance(measure, Loss)]
    if (
        losses
        and isinstance(target, TARGETS_OF["quantize"])
        and size <= COPY * psutil.virtual_memory().total
    ):
        _, measure = max(losses, key=lambda loss: loss[0])
        tokens = min(measure.tokens, max(LEAST_DIVERGENCE, measure.tokens // DIVERGENCE))
        texts.append(
            str(
                Agreement(
                    source=measure.source,
                    format=measure.format,
                    tokens=tokens,
                    length=measure.length,
                )
            )
        )
    return tuple(texts)


def _deployed(method: Method, target: Target, opened: Opened) -> str:
    """Return the export in which llama.cpp's blocks are kept, nothing for other targets; an
    `InputError` where a whole file can't be made.
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
    """Divide each of the user's files that the goal names; or return why that can't be done: of
    all, or of none.
    """
    divided = [
        halves_of(file, place / str(number))
        for number, file in enumerate(own_files(goal.sources), 1)
    ]
    reasons = [each for each in divided if isinstance(each, str)]
    if reasons or not divided:
        return (
            (),
            "; ".join(reasons)
            or "the target is no file of your own: what it measures on was published apart from what it calibrates on",
        )
    return tuple(each for each in divided if not isinstance(each, str)), ""


def _part(measure: Evaluator, share: float) -> int:
    """Return how many tokens or items are measured where the time allows for a share of them."""
    budget = (
        measure.tokens
        if isinstance(measure, Loss)
        else measure.limit
        if isinstance(measure, Task)
        else None
    )
    least = LEAST_ITEMS if isinstance(measure, Task) else LEAST_TOKENS
    return (
        budget or 1
        if share == 1 or budget is None or budget <= least
        else max(least, int(budget * share))
    )


def _place(data: str) -> int:
    """Where a default source stands among those that stay when the time is short: first such as
    differ most.
    """
    return FIRST.index(data) if data in FIRST else len(FIRST)
