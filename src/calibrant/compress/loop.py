"""The loop that compresses a model: transforms, the target of each matrix, and a method's edits
one by one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibrant.activations import Propagation, Seen, Statistic
from calibrant.compress.cache import quantized_cache
from calibrant.compress.checkpoint import Checkpoint, FinishedStep, StepWriter
from calibrant.compress.inputs import inputs_left, quantized_inputs
from calibrant.compress.matrices import check_model, edits_of
from calibrant.compress.recipe import Recipe
from calibrant.data import TokenBatch, counted_sequences
from calibrant.edits import (
    Edit,
    QuantizeCache,
    QuantizeInputs,
    Replace,
    ReplaceParameters,
    StoredEdit,
    read_edit,
)
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods import Compressed, MatrixMethod, Method
from calibrant.models import Block, ModelView, Opened, Weight, is_finite
from calibrant.models.rounded_cache import attention_names
from calibrant.models.rounded_inputs import check_inputs_may_change, rounding_modules
from calibrant.numerics import check_report
from calibrant.results import Record, Run
from calibrant.results.outcomes import Journal
from calibrant.system.clock import spent_on
from calibrant.system.process import freed_memory_kept, give_back
from calibrant.system.progress import Progress, silent
from calibrant.targets import Target
from calibrant.transforms import Transform
from calibrant.walk.ranks import ALONE, Ranks
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.starving import AS_SEEN, Starved, starving
from calibrant.walk.statistics import SeenByMatrix, untouched

MEAN_TOLERANCE = 1e-3
"""How far the mean of an allocation may lie from what was asked, as a share of it."""


def compress(
    opened: Opened,
    view: ModelView,
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
    """Compress the model behind `view` in place, and return a record of what was done to it, edit
    by edit. The model must be untouched.

    In `dense`, statistics are kept in the folder `statistics`, if one is given: those that are
    there are read, and those that are lacking are gathered in one pass, with those of the `kinds`
    that other jobs will want. The result is the same to the bit.

    `keep` is called with every edit at the end, those of before an interruption too. What the
    method finds out by trying is kept in `journal`, or else in the `checkpoint`, and isn't tried
    again.

    With several `ranks`, each calibrates on a part of the batch, and all make every edit; the first
    one alone writes to the checkpoint.

    Raises `TargetError` before anything is touched if the model doesn't fit the target, and
    `NumericsError` or `WalkError` naming the matrix.
    """
    _check_possible(opened, view, batch, recipe, checkpoint)
    # Before anything is changed: the run is about the untouched numbers, and all of the tokens.
    run = recipe.run(opened, batch, data, seed)
    if batch is not None:
        batch = counted_sequences(batch)
    if recipe.transforms:
        # What is stored there is of the model before any transform.
        statistics = None
    untouched_model = UntouchedModel(opened, view, batch, statistics, progress, ranks)
    matrices = view.weights
    reports = list(transformed(untouched_model, recipe.transforms))
    journal = _same_journal(journal, checkpoint, ranks)
    few_tokens: Mapping[str, float] = {}
    if batch is not None and recipe.starved != AS_SEEN:
        few_tokens = starving(opened, view, batch, ranks)
    # What an allocation tries treats starved experts as the job will.
    untouched_model = replace(untouched_model, starved=recipe.starved, starving=few_tokens)
    targets, allocation_reports = _checked_targets(untouched_model, recipe, journal)
    reports += allocation_reports
    on_disk = view.residence.on_disk
    finished = checkpoint.load(numbers=not on_disk) if checkpoint else []
    # All ranks must go on from the same block.
    ranks.agree("what the folder of finished blocks holds", [step.reports for step in finished])
    for step in finished:
        reports += step.reports
    done, postponed = _put_back_finished(view, checkpoint, finished, recipe.propagate)
    rereading: Callable[[Block], Sequence[Edit]] | None = None
    if on_disk and checkpoint:
        rereading = partial(reread, view, checkpoint, len(finished))
    job = Job(
        opened,
        view,
        batch,
        recipe.target.weights,
        targets,
        recipe.propagate,
        done,
        statistics=statistics,
        kinds=kinds,
        progress=progress,
        ranks=ranks,
        journal=journal,
        applied_kinds=[edit.kind for edit in done],
        starved=recipe.starved,
        starving=few_tokens,
        reread=rereading,
    )
    edits = list(done)
    # On disk the model is too large, so what is free is given back at once.
    with (
        torch.no_grad(),
        nullcontext() if on_disk else freed_memory_kept(),
        StepWriter() as writer,
    ):
        # No name for the generator: what a traceback keeps alive would end in another thread.
        for index, step in enumerate(_all_steps(job, recipe, postponed), len(finished)):
            _settle(job, recipe, index, step, checkpoint, writer)
            reports += step.reports
            if keep:
                edits += _in_memory(view, step.edits)
            # A block on disk is freed with it, before the next one is worked on.
            del step
    if keep:
        for edit in edits:
            keep(edit.applied())
    reports += _report_of_inputs(view, recipe, reports)
    return _record(job, recipe, run, matrices, reports)


def _check_possible(
    opened: Opened,
    view: ModelView,
    batch: TokenBatch | None,
    recipe: Recipe,
    checkpoint: Checkpoint | None,
) -> None:
    """Raise an `InputError` for what can be known to fail before anything is touched."""
    if recipe.looks and batch is None:
        problem = f"{recipe.looking} looks at activations and needs calibration data"
        raise SpecError(f"{problem}; give --data (in Python data=)", subject=recipe.looking)
    if view.residence.on_disk and checkpoint is None:
        problem = f"the blocks of {opened.name} are on disk"
        message = (
            f"{problem}, and what becomes of them has to be kept there too; "
            "give a checkpoint, or open it whole"
        )
        raise SpecError(message, subject=opened.name)
    target = recipe.target.weights
    check_model(recipe.method, view, target, dict.fromkeys(view.named, target))
    for transform in recipe.transforms:
        check_inputs_may_change(view.model, str(transform))
    if recipe.inputs is not None:
        if rounding_modules(opened.model):
            message = (
                f"{opened.name} rounds its inputs already, and {recipe.target} would round them "
                "once more; quantize the model that it was made from"
            )
            raise SpecError(message, subject=str(recipe.target))
        # Raises for a model that can't be followed, which wouldn't show which inputs are whose.
        rehearse(view)
    if recipe.cache is not None:
        # Raises for a model whose keys and values can't be rounded.
        attention_names(view)


def _same_journal(given: Journal | None, checkpoint: Checkpoint | None, ranks: Ranks) -> Journal:
    """The journal that is given, else the checkpoint's, else a new one. The first rank alone writes
    to a file; the others have journals in memory that begin with what the first one knows.
    """
    journal = Journal()
    if ranks.first and given is not None:
        journal = given
    elif ranks.first and checkpoint is not None:
        journal = checkpoint.journal()
    known_to_first = [journal.known] if ranks.first else []
    for known in ranks.gathered(known_to_first):
        if not ranks.first:
            journal.add(known)
    return journal


def _checked_targets(
    model: "UntouchedModel", recipe: Recipe, journal: Journal
) -> tuple[Mapping[str, Target], list[dict[str, Any]]]:
    """The target of each matrix, and what the record says of how they were found.

    Raises `TargetError` where a matrix doesn't fit its target.
    """
    notes: dict[str, Any] = {}
    targets = allocated(model, recipe, journal, notes)
    # Checked once more, since by now each matrix has a target of its own.
    check_model(recipe.method, model.view, recipe.target.weights, targets)
    if not notes:
        return targets, []
    allocation = str(recipe.allocation)
    return targets, [{"edit": "allocation", "allocation": allocation, "notes": notes}]


def _put_back_finished(
    view: ModelView,
    checkpoint: Checkpoint | None,
    finished: Sequence[FinishedStep],
    propagate: Propagation,
) -> tuple[list[Edit], list[Callable[[], None]]]:
    """Apply the edits of finished steps; of a model on disk, whenever their block is read. Return
    all of them, and what is postponed: in `dense` the walk needs the matrices of before an
    interruption untouched.
    """
    postponed: list[Callable[[], None]] = []
    if view.residence.on_disk and checkpoint is not None:
        done = replaced_on_disk(view, finished)
        change = partial(change_when_read, view, checkpoint, range(len(finished)))
        if propagate == "dense":
            postponed.append(change)
        else:
            change()
    else:
        stored = chain.from_iterable(step.edits for step in finished)
        done, edits = put_back(view, stored, propagate)
        postponed += [partial(edit.apply, view) for edit in edits]
    return done, postponed


@dataclass
class _Step:
    """The edits of one block, or one edit that belongs to no block, with what the record says of
    each.
    """

    edits: list[Edit]
    reports: list[dict[str, Any]]

    def take_back(self, view: ModelView) -> None:
        """Let the edits hold the model's own numbers again, once their block is let go: until then
        they held its copies on the device.
        """
        if _beside_device(view):
            self.edits = [edit.applied() for edit in self.edits]


def _all_steps(
    job: Job, recipe: Recipe, postponed: Sequence[Callable[[], None]]
) -> Iterator[_Step]:
    """Yield the steps of the method, then those of inputs, then those of the cache; behind the
    method do what was `postponed`.
    """
    compressed = {edit.weight.name for edit in job.done if isinstance(edit, Replace)}
    kinds_done = {type(edit) for edit in job.done}
    # What comes later is begun only where all before it was done.
    method_done = bool(kinds_done & {QuantizeInputs, QuantizeCache})
    if not method_done and not recipe.leaves_weights:
        for step in _steps(job, recipe, edits_of(recipe.method, job)):
            compressed |= {edit.weight.name for edit in step.edits if isinstance(edit, Replace)}
            yield step
            # A block on disk is freed before the next one is worked on.
            del step
    for apply in postponed:
        apply()
    if recipe.inputs is not None and QuantizeCache not in kinds_done:
        inputs = quantized_inputs(job, recipe.inputs, recipe.propagate_inputs, compressed)
        yield from _steps(job, recipe, inputs)
    if recipe.cache is not None:
        cache = quantized_cache(job, recipe.cache, recipe.propagate_inputs)
        yield from _steps(job, recipe, cache)


def _steps(job: Job, recipe: Recipe, edits: Iterator[Edit]) -> Iterator[_Step]:
    """Apply the `edits`, each before the next one is asked for, and yield them by steps."""
    step = _Step([], [])
    for edit in edits:
        if step.edits and (edit.block is None or edit.block != step.edits[-1].block):
            step.take_back(job.view)
            yield step
            step = _Step([], [])
        with spent_on("record"):
            if isinstance(edit, Replace):
                # Before the report, which would find its errors infinite and not say why.
                _check_finite(recipe.method, edit.weight.name, edit.compressed.weight)
            # Before the edit is applied: a report compares the matrix as it is with what it
            # becomes.
            report = edit.report(job.view)
            check_report(report, report.get("name", recipe.method.spec_name()))
            step.reports.append(report)
            edit.apply(job.view)
            if not isinstance(edit, Replace | QuantizeInputs | QuantizeCache):
                for weight in job.view.weights:
                    if weight.block == edit.block:
                        _check_finite(recipe.method, weight.name, weight.stored)
        job.applied_kinds.append(edit.kind)
        step.edits.append(edit.applied())
        # Freed with what the matrix saw, before the next edit is made. `applied` left that out.
        del edit
    if step.edits:
        step.take_back(job.view)
        yield step


def _report_of_inputs(
    view: ModelView, recipe: Recipe, reports: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What the record says of inputs that were to be rounded and weren't."""
    if recipe.inputs is None:
        return []
    compressed = {report["name"] for report in reports if "edit" not in report}
    left = inputs_left(view, compressed, recipe.propagate_inputs)
    return [] if left is None else [left]


def _check_finite(method: Method, name: str, numbers: Tensor) -> None:
    """Raise `NumericsError` if what a method made of the matrix `name` holds NaN or infinity."""
    if not is_finite(numbers):
        problem = f"{method.spec_name()} made numbers of {name} NaN or infinite"
        message = f"{problem}; open the model in a wider dtype, or mend the method"
        raise NumericsError(message, subject=name)


def _beside_device(view: ModelView) -> bool:
    """Whether blocks that aren't held are in the machine's memory, beside the device."""
    return view.residence.elsewhere and not view.residence.on_disk


def _in_memory(view: ModelView, edits: list[Edit]) -> list[Edit]:
    """The same edits, with no numbers on a device that blocks stay beside: edits are kept to the
    end, and would fill it.
    """
    if not _beside_device(view):
        return edits
    # What is read is put where the matrix stays.
    return [read_edit(edit.stored(), view).applied() for edit in edits]


def _settle(
    job: Job,
    recipe: Recipe,
    index: int,
    step: _Step,
    checkpoint: Checkpoint | None,
    writer: StepWriter,
) -> None:
    """Check that all ranks made the same step, keep it in the checkpoint, and report progress."""
    on_disk = job.view.residence.on_disk
    job.ranks.agree(f"what became of step {index}", repr(step.reports))
    if checkpoint and job.ranks.first:
        with spent_on("keeping finished blocks"):
            writer.add(checkpoint, index, stored_edits(step.edits, recipe), step.reports)
            # A block on disk is freed next, and read again with what was kept of it.
            if on_disk:
                writer.wait()
                change_when_read(job.view, checkpoint, [index])
    give_back(always=on_disk)
    block = step.edits[-1].block
    if block is not None:
        doing = f"{recipe.method.spec_name()} {recipe.target}"
        job.progress(doing, block + 1, len(job.view.blocks))


def stored_edits(edits: Sequence[Edit], recipe: Recipe) -> list[StoredEdit]:
    """Return what is kept of edits: masks where a job that goes on finds the numbers that they are
    for.

    It transforms the model again, perhaps with other last bits. In `dense` it reads all edits
    before it applies them, so a matrix mustn't have had another edit before.
    """
    edited_once = isinstance(recipe.method, MatrixMethod)
    if recipe.transforms or (recipe.propagate == "dense" and not edited_once):
        return [edit.stored() for edit in edits]
    return [edit.stored_briefly() for edit in edits]


@dataclass(frozen=True)
class UntouchedModel:
    """The untouched model and its batch, for the parts of a recipe that look at them before the
    method does: transforms and the allocation.
    """

    opened: Opened
    view: ModelView
    batch: TokenBatch | None
    statistics: Path | None = None
    progress: Progress = silent
    ranks: Ranks = ALONE
    starved: Starved = AS_SEEN
    starving: Mapping[str, float] = field(default_factory=dict[str, float])

    def job(self, target: Target, journal: Journal, notes: dict[str, Any]) -> Job:
        """Return a job in which an allocation can try edits of the untouched model; what it puts
        into the `notes` goes into the record.
        """
        return Job(
            self.opened,
            self.view,
            self.batch,
            target,
            dict.fromkeys(self.view.named, target),
            "dense",
            statistics=self.statistics,
            progress=self.progress,
            ranks=self.ranks,
            journal=journal,
            notes=notes,
            starved=self.starved,
            starving=self.starving,
        )

    def seen(self, observes: tuple[type[Statistic], ...]) -> SeenByMatrix:
        """Return what each matrix sees; of a matrix that no token reached, an empty `Seen`.

        The walk happens when its items are gone through, and not before.
        """

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
    untouched_model: UntouchedModel, transforms: Sequence[Transform]
) -> Iterator[dict[str, Any]]:
    """Apply `transforms` one after the other, and yield what the record says of each."""
    for transform in transforms:
        seen: dict[str, Seen] = {}
        for weight, matrix_seen in untouched_model.seen(transform.observes).items():
            if matrix_seen:
                seen[weight.name] = matrix_seen
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
    """Return the target of each matrix, by name. What the record says of how the allocation came to
    them is put into `notes`.

    Raises `TargetError` for an allocation that leaves a matrix out, or whose mean isn't what was
    asked.
    """
    allocation = recipe.allocation
    target = recipe.target.weights
    weights = untouched_model.view.weights
    with torch.no_grad():
        job = untouched_model.job(target, journal, {} if notes is None else notes)
        targets = allocation.targets(untouched_model.seen(allocation.observes), job, recipe.method)
    check_report(job.notes, str(allocation))
    missing = {weight.name for weight in weights} - set(targets)
    if missing:
        problem = f"{allocation} asks nothing of {min(missing)}"
        message = f"{problem}; it must give every matrix a target"
        raise TargetError(message, subject=str(allocation))
    if all(targets[weight.name] == target for weight in weights):
        return targets
    # The mean over all weights: each matrix counts by its size.
    total = 0.0
    size = 0
    comparable = target.amount is not None
    for weight in weights:
        amount = targets[weight.name].amount
        count = weight.shape[0] * weight.shape[1]
        size += count
        if amount is None:
            comparable = False
        else:
            total += count * amount
    result = "it asks for something else"
    if target.amount is not None:
        mean = total / size
        if comparable and abs(mean - target.amount) <= MEAN_TOLERANCE * abs(target.amount):
            return targets
        result = f"the mean over all weights is {mean:.6g}"
    message = f"{allocation} shares {target} so that {result}; it must be what was asked"
    raise TargetError(message, subject=str(allocation))


def put_back(
    view: ModelView, stored: Iterable[StoredEdit], propagate: Propagation
) -> tuple[list[Edit], list[Edit]]:
    """Apply the `stored` edits of before an interruption. Return all of them, and those that are
    postponed to the end.

    In `dense` those of a block are postponed, since the walk there is through the untouched model.
    Others, such as blocks that go, decide what the walk goes through.
    """
    done: list[Edit] = []
    postponed: list[Edit] = []
    for kept in stored:
        edit = read_edit(kept, view)
        done.append(edit)
        if propagate == "dense" and edit.block is not None:
            postponed.append(edit)
        else:
            edit.apply(view)
    return done, postponed


def replaced_on_disk(view: ModelView, finished: Iterable[FinishedStep]) -> list[Edit]:
    """Return the edits of before an interruption, for a model on disk. They only say which matrices
    were replaced: the numbers are read when their block is. Edits of inputs and of the cache are
    applied.
    """
    edits: list[Edit] = []
    for step in finished:
        for stored in step.edits:
            if stored.kind in (QuantizeInputs.kind, QuantizeCache.kind):
                edit = read_edit(stored, view)
                edit.apply(view)
                edits.append(edit)
                continue
            weight = view.named[stored.facts["name"]]
            edits.append(Replace(weight, Compressed(weight.get())))
    return edits


def reread(view: ModelView, checkpoint: Checkpoint, finished: int, block: Block) -> list[Edit]:
    """Return the edits of a finished block, which must be held, with the numbers that the
    checkpoint has. It has so many `finished` steps.
    """
    edits: list[Edit] = []
    for step in range(finished):
        if view.named[checkpoint.names(step)[0]].block == block.index:
            edits += [read_edit(stored, view) for stored in checkpoint.edits(step)]
    return edits


def change_when_read(view: ModelView, checkpoint: Checkpoint, steps: Iterable[int]) -> None:
    """Have the edits of these finished steps applied again whenever their block is read from disk.
    Does nothing for a model in memory.
    """
    if not view.residence.on_disk:
        return

    def again(step: int) -> None:
        for stored in checkpoint.edits(step):
            read_edit(stored, view).apply(view)

    for step in steps:
        names = checkpoint.names(step)
        # Edits of inputs and of the cache change no numbers, and stay.
        if names:
            view.residence.changed(view.named[names[0]].block, partial(again, step))


def _record(
    job: Job,
    recipe: Recipe,
    run: Run,
    matrices: Sequence[Weight],
    reports: Sequence[Mapping[str, Any]],
) -> Record:
    """The record. `sparsity` is the share of zeros in the matrices that were replaced. Where parts
    were removed it is the share of zeros and removed weights in all `matrices` of the untouched
    model.
    """
    replaced = tuple(report for report in reports if "edit" not in report)
    others = tuple(report for report in reports if "edit" in report)
    packed: set[str] = set()
    for report in others:
        if report["edit"] == ReplaceParameters.kind:
            packed.update(report["parameters"])
    dense: list[Mapping[str, Any]] = []
    for matrix in job.view.dense:
        if matrix.name not in packed:
            reason = matrix.reason
            dense.append({"name": matrix.name, "shape": list(matrix.shape), "reason": reason})
    reached = {report["name"] for report in replaced}
    left = [weight for weight in job.view.weights if weight.name not in reached]
    reasons = _reasons_left(job, recipe, run, left)
    for weight, reason in zip(left, reasons, strict=True):
        dense.append({"name": weight.name, "shape": list(weight.shape), "reason": reason})
    shapes = [report["shape"] for report in replaced]
    if any("removed" in report for report in others):
        shapes = [weight.shape for weight in matrices]
    total = sum(shape[0] * shape[1] for shape in shapes)
    gone = sum(report["zeros"] for report in replaced)
    gone += sum(report.get("removed", 0) for report in others)
    sparsity = gone / total if total else 0.0
    facts = dict(job.batch.facts) if job.batch is not None and run.tokens else {}
    return Record(run, sparsity, replaced, tuple(dense), facts, edits=others)


def _reasons_left(job: Job, recipe: Recipe, run: Run, weights: Sequence[Weight]) -> list[str]:
    """Why each of these matrices was left as it is."""
    if recipe.leaves_weights:
        return [f"{recipe.target} leaves weights as they are"] * len(weights)
    if not isinstance(recipe.method, MatrixMethod):
        return [f"{recipe.method.spec_name()} left it as it is"] * len(weights)
    # A rehearsal takes a forward, so there is none without need.
    left_by_walk = rehearse(job.view).left(run.propagate) if weights and run.tokens else {}
    reasons: list[str] = []
    for weight in weights:
        if left_by_walk.get(weight.name):
            reason = left_by_walk[weight.name]
        elif weight.expert is None:
            reason = "no product with it was seen in the forward"
        elif job.starving.get(weight.name, 0) > 0:
            reason = "fewer calibration tokens were routed to this expert than it has inputs"
        else:
            reason = "no calibration token was routed to this expert"
        reasons.append(reason)
    return reasons
