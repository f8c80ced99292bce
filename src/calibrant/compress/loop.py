"""The loop that compresses a model: transforms, the target of each matrix, and a method's edits
one by one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calibrant.activations import Seen, Statistic
from calibrant.compress.checkpoint import Checkpoint, FinishedStep
from calibrant.compress.recipe import Recipe
from calibrant.data import TokenBatch
from calibrant.edits import Edit, Fold, Replace, StoredEdit, read_edit
from calibrant.errors import SpecError, TargetError
from calibrant.job import Job
from calibrant.methods import Compressed, MatrixMethod, Method
from calibrant.models import ModelView, Opened, Weight
from calibrant.numerics import check_report
from calibrant.results import Record, Run
from calibrant.results.outcomes import Journal
from calibrant.system.clock import spent_on
from calibrant.system.process import freed_memory_kept, give_back
from calibrant.system.progress import Progress, silent
from calibrant.targets import Target
from calibrant.transforms import Transform
from calibrant.walk import Propagation
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.starving import AS_SEEN, starving
from calibrant.walk.statistics import SeenByMatrix, untouched

MEAN_WITHIN = 1e-3
"""How far, as a share of what was asked, the mean of an allocation may lie from it."""


def compress(
    opened: Opened,
    seen_by: ModelView,
    batch: TokenBatch | None,
    recipe: Recipe,
    *,
    data: str = "",
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
    statistics: Path | None = None,
    kinds: tuple[type[Statistic], ...] = (),
    keep: Callable[[Edit], None] | None = None,
    ranks: Ranks = ALONE,
    journal: Journal | None = None,
) -> Record:
    """Compress the model behind `seen_by` in place, and say what was done to it, edit by edit.

    In `dense`, what the matrices saw is kept in the folder `statistics`, if one is given: what is
    there is read, what is lacking is gathered in one pass, and with it the `kinds` that others will
    want. The result is the same to the bit. The model must be untouched.

    `keep` is told every edit in the end, those of before an interruption too. What the method finds
    out by trying is kept in `journal`, or else in the `checkpoint`, and isn't tried again.

    With other `ranks`, each calibrates on a part of the batch and all make every edit; the first
    one alone keeps finished ones.

    Raises `TargetError` before anything is touched if the model doesn't fit the target, and
    `NumericsError` or `WalkError` naming the matrix.
    """
    if recipe.looks and batch is None:
        raise SpecError(
            f"{recipe.looking} looks at activations and needs calibration data; give --data",
            subject=recipe.looking,
        )
    on_disk = seen_by.residence.on_disk
    if on_disk and checkpoint is None:
        message = f"the blocks of {opened.name} are on disk, and what becomes of them has to be kept there too; give a checkpoint, or open it whole"
        raise SpecError(message, subject=opened.name)
    recipe.method.check_model(seen_by, recipe.target, dict.fromkeys(seen_by.named, recipe.target))
    untouched_model = UntouchedModel(
        opened, seen_by, batch, None if recipe.transforms else statistics, progress, ranks
    )
    whole, reports = seen_by.weights, list(transformed(untouched_model, recipe.transforms))
    tried = _same_journal(journal, checkpoint, ranks)
    notes = dict[str, Any]()
    targets = allocated(untouched_model, recipe, tried, notes)
    reports += (
        [{"edit": "allocation", "allocation": str(recipe.allocation), "notes": notes}]
        if notes
        else []
    )
    recipe.method.check_model(seen_by, recipe.target, targets)
    hungry = (
        starving(opened, seen_by, batch, ranks)
        if batch is not None and recipe.starved != AS_SEEN
        else {}
    )
    finished = checkpoint.load(numbers=not seen_by.residence.on_disk) if checkpoint else []
    ranks.agree("what the folder of finished blocks holds", [step.reports for step in finished])
    if on_disk:
        done, late = absent(seen_by, finished), list[Edit]()
    else:
        done, late = put_back(
            seen_by, (stored for step in finished for stored in step.edits), recipe.propagate
        )
    if checkpoint and on_disk and recipe.propagate != "dense":
        change_when_read(seen_by, checkpoint, range(len(finished)))
    edits, reports = (
        list(done),
        [*reports, *(report for step in finished for report in step.reports)],
    )
    job = Job(
        opened,
        seen_by,
        batch,
        recipe.target,
        targets,
        recipe.propagate,
        done,
        statistics=untouched_model.statistics,
        kinds=kinds,
        progress=progress,
        ranks=ranks,
        journal=tried,
        applied_kinds=[edit.kind for edit in done],
        starved=recipe.starved,
        starving=hungry,
    )
    # On disk the model is too large, so what is free is given back at once.
    with torch.no_grad(), nullcontext() if on_disk else freed_memory_kept():
        for index, step in enumerate(_steps(job, recipe.method), len(finished)):
            _settle(job, recipe, index, step, checkpoint)
            reports += step.reports
            edits += step.edits if keep else ()
            del step  # and with it the numbers of a block on disk, before the next one is worked on
    for (
        edit
    ) in late:  # matrices of before an interruption, in `dense`: its walk needed them as they were
        edit.apply(seen_by)
    if checkpoint and on_disk and recipe.propagate == "dense":
        change_when_read(seen_by, checkpoint, range(len(finished)))
    if keep:
        for edit in edits:
            keep(edit.applied())
    return _record(
        recipe, recipe.run(opened, batch, data, seed), seen_by, whole, batch, reports, hungry
    )


def _same_journal(given: Journal | None, checkpoint: Checkpoint | None, ranks: Ranks) -> Journal:
    """The journal that is given, else the checkpoint's; the first rank alone writes, and the
    others know what it knows.
    """
    journal = given
    if journal is None or not ranks.first:
        journal = checkpoint.journal() if checkpoint and ranks.first else Journal()
    for known in ranks.gathered([journal.known] if ranks.first else []):
        if not ranks.first:
            journal.add(known)
    return journal


@dataclass
class _Step:
    """The edits of one block, or one that is no block's, with what the record says of each."""

    edits: list[Edit]
    reports: list[dict[str, Any]]


def _steps(job: Job, method: Method) -> Iterator[_Step]:
    """Make the method's edits, each before the next is asked for, and hand them on step by step."""
    step = _Step([], [])
    for edit in method.edits(job):
        if step.edits and (edit.block is None or edit.block != step.edits[-1].block):
            yield step
            step = _Step([], [])
        with spent_on("record"):
            report = edit.report(job.view)
            subject = report.get("name", method.spec_name())
            check_report(report, subject)
            step.reports.append(report)
            edit.apply(job.view)
        job.applied_kinds.append(edit.kind)
        step.edits.append(edit.applied())
        del edit  # and with it what it was judged by, before the next one is looked for
    if step.edits:
        yield step


def _settle(
    job: Job, recipe: Recipe, index: int, step: _Step, checkpoint: Checkpoint | None
) -> None:
    """See that all ranks did the same, keep it on disk, and tell of it."""
    job.ranks.agree(f"what became of step {index}", repr(step.reports))
    if checkpoint and job.ranks.first:
        with spent_on("keeping finished blocks"):
            checkpoint.add(index, [edit.stored() for edit in step.edits], step.reports)
            change_when_read(job.view, checkpoint, (index,))
    give_back(always=job.view.residence.on_disk)
    if (block := step.edits[-1].block) is not None:
        job.progress(
            f"{recipe.method.spec_name()} {recipe.target}", block + 1, len(job.view.blocks)
        )


@dataclass(frozen=True)
class UntouchedModel:
    """The untouched model, and what its matrices see of the batch, for those parts of a recipe
    that look before the method does.
    """

    opened: Opened
    view: ModelView
    batch: TokenBatch | None
    statistics: Path | None = None
    progress: Progress = silent
    ranks: Ranks = ALONE

    def job(self, target: Target, journal: Journal, notes: dict[str, Any]) -> Job:
        """Return a job in which the untouched model can be tried; what is to be said of it goes
        into `notes`.
        """
        also = {
            "statistics": self.statistics,
            "progress": self.progress,
            "ranks": self.ranks,
            "journal": journal,
            "notes": notes,
        }
        return Job(
            self.opened,
            self.view,
            self.batch,
            target,
            dict.fromkeys(self.view.named, target),
            "dense",
            **also,
        )

    def seen(self, observes: tuple[type[Statistic], ...]) -> SeenByMatrix:
        """Return what each matrix sees; nothing of one that no token reached."""

        def through() -> Iterable[tuple[Weight, Seen]]:
            if not observes or self.batch is None:
                return ()
            return untouched(
                self.opened,
                self.view,
                self.batch,
                observes,
                root=self.statistics,
                progress=self.progress,
                ranks=self.ranks,
            )

        return SeenByMatrix(self.view.weights, through)


def transformed(
    untouched_model: UntouchedModel, before: Sequence[Transform]
) -> Iterator[dict[str, Any]]:
    """Apply transforms, each to what the one before it made, and yield what the record says of
    each.
    """
    for transform in before:
        seen = {
            weight.name: there
            for weight, there in untouched_model.seen(transform.observes).items()
            if there
        }
        with torch.no_grad(), spent_on("transforms"):
            notes = transform.apply(untouched_model.view, seen)
        check_report(notes, str(transform))
        yield {"edit": "transform", "transform": str(transform), "notes": dict(notes)}


def allocated(
    untouched_model: UntouchedModel,
    recipe: Recipe,
    journal: Journal,
    notes: dict[str, Any] | None = None,
) -> Mapping[str, Target]:
    """Return the target of each matrix, by name; what the allocation says of how it came to them is
    put into `notes`.

    `TargetError` for an allocation that leaves one out or whose mean isn't what was asked.
    """
    allocation, target, weights = recipe.allocation, recipe.target, untouched_model.view.weights
    with torch.no_grad():
        job = untouched_model.job(target, journal, {} if notes is None else notes)
        targets = allocation.targets(untouched_model.seen(allocation.observes), job, recipe.method)
    check_report(job.notes, str(allocation))
    if missing := {weight.name for weight in weights} - set(targets):
        raise TargetError(
            f"{allocation} asks nothing of {min(missing)}; it must give every matrix a target",
            subject=str(allocation),
        )
    if all(targets[weight.name] == target for weight in weights):
        return targets
    sizes, amounts = (
        [weight.shape[0] * weight.shape[1] for weight in weights],
        [targets[weight.name].amount for weight in weights],
    )
    mean = sum(
        size * amount for size, amount in zip(sizes, amounts, strict=True) if amount is not None
    ) / sum(sizes)
    if (
        target.amount is None
        or None in amounts
        or abs(mean - target.amount) > MEAN_WITHIN * abs(target.amount)
    ):
        result = (
            f"the mean over all weights is {mean:.6g}"
            if target.amount is not None
            else "it asks for something else"
        )
        raise TargetError(
            f"{allocation} shares {target} so that {result}; it must be what was asked",
            subject=str(allocation),
        )
    return targets


def put_back(
    view: ModelView, stored: Iterable[StoredEdit], propagate: Propagation
) -> tuple[list[Edit], list[Edit]]:
    """Make again the edits of before an interruption, and give them all, and those of them that
    wait for the end.

    Those are matrices, and scales that moved, in `dense`: its walk is through the untouched model.
    """
    done, late = list[Edit](), list[Edit]()
    for edit in (read_edit(one, view) for one in stored):
        done.append(edit)
        if propagate == "dense" and isinstance(edit, Replace | Fold):
            late.append(edit)
        else:
            edit.apply(view)
    return done, late


def absent(view: ModelView, finished: Iterable[FinishedStep]) -> list[Edit]:
    """Give the edits of before an interruption, matrices without their numbers, which are read
    when their block is.
    """
    names = (stored.facts["name"] for step in finished for stored in step.edits)
    return [
        Replace(weight, Compressed(weight.get())) for weight in map(view.named.__getitem__, names)
    ]


def change_when_read(view: ModelView, checkpoint: Checkpoint, steps: Iterable[int]) -> None:
    """Have the edits of these finished steps made again whenever the numbers of their block are
    read from disk.
    """

    def again(step: int) -> None:
        for stored in checkpoint.edits(step):
            read_edit(stored, view).apply(view)

    for step in steps if view.residence.on_disk else ():
        block = view.named[checkpoint.names(step)[0]].block
        view.residence.changed(block, partial(again, step))


def _record(
    recipe: Recipe,
    run: Run,
    seen_by: ModelView,
    whole: Sequence[Weight],
    batch: TokenBatch | None,
    reports: Sequence[Mapping[str, Any]],
    hungry: Mapping[str, float],
) -> Record:
    """What is kept of it. Of a structural edit, `sparsity` is its share of all matrices that the
    untouched model had (`whole`).
    """
    matrices = tuple(report for report in reports if "edit" not in report)
    others = tuple(report for report in reports if "edit" in report)
    reached, removed = (
        {report["name"] for report in matrices},
        sum(report.get("removed", 0) for report in others),
    )
    dense = [{"name": d.name, "shape": list(d.shape), "reason": d.reason} for d in seen_by.dense]
    left = [weight for weight in seen_by.weights if weight.name not in reached]
    whys = _why_dense(recipe.method, seen_by, left, run, hungry)
    dense += [
        {"name": weight.name, "shape": list(weight.shape), "reason": why}
        for weight, why in zip(left, whys, strict=True)
    ]
    structural = any("removed" in report for report in others)
    total = (
        _size(weight.shape for weight in whole)
        if structural
        else _size(m["shape"] for m in matrices)
    )
    achieved = (sum(m["zeros"] for m in matrices) + removed) / total if total else 0.0
    facts = dict(batch.facts) if batch is not None and run.tokens else {}
    return Record(run, achieved, matrices, tuple(dense), facts, edits=others)


def _size(shapes: Any) -> int:
    return sum(shape[0] * shape[1] for shape in shapes)


def _why_dense(
    method: Method,
    view: ModelView,
    weights: Sequence[Weight],
    run: Run,
    hungry: Mapping[str, float],
) -> list[str]:
    """Why each of these matrices was left as it is."""
    if not isinstance(method, MatrixMethod):
        return [f"{method.spec_name()} left it as it is"] * len(weights)
    left = rehearse(view).left(run.propagate) if weights and run.tokens else {}
    routed = "no calibration token was routed to this expert"
    few = {
        name: "fewer calibration tokens were routed to this expert than it has inputs"
        for name, tokens in hungry.items()
        if tokens > 0
    }
    return [
        left.get(w.name)
        or (
            "no product with it was seen in the forward"
            if w.expert is None
            else few.get(w.name, routed)
        )
        for w in weights
    ]
