"""`evaluate`: a model, some evaluators, their measurements. None is made on what the model was
calibrated on, unless somebody asks for exactly that.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from transformers import PreTrainedModel

from calibrant.compress.on_device import device_of, room_on_device, why_beside, with_all_blocks
from calibrant.compress.planning import JobPlan, outline_of_options
from calibrant.compress.room import check_kept, in_bytes
from calibrant.data import CalibrationSet, Row, StoredSource
from calibrant.data.given import OwnData, own_behind
from calibrant.data.inspect.leaks import LeakCount, RowFingerprints, find_leaks, serious
from calibrant.data.user_file import UserFile
from calibrant.errors import CalibrantError, DataError, SpecError
from calibrant.evaluators._base import Evaluator, Subject
from calibrant.evaluators._dense import cached_predictions
from calibrant.evaluators._engines import check_engine, opened_by, runs_by
from calibrant.evaluators._measured_run import MeasuredRun, check_label
from calibrant.evaluators._planning import MeasuringPlanner, needs_of
from calibrant.models import (
    Model,
    ModelOutline,
    Opened,
    is_object,
    manifest_folder,
    name_of,
    only_looks,
    opened_of,
    origin_of,
    outline_of,
    read_manifest,
    read_when_run,
)
from calibrant.models.cache import cache_folder
from calibrant.models.hashing import OF_TENSORS
from calibrant.models.reading import reading_digest
from calibrant.numerics import gigabytes, type_name
from calibrant.options import EvaluateCommand, StoreOptions, declaration, with_fields_of
from calibrant.results.keeping import as_kept
from calibrant.results.outcomes import Journal, Measurement, Score
from calibrant.spec import canonical, identity, qualified, with_parameters
from calibrant.spec.registry import Registry
from calibrant.system.durable import takes_files
from calibrant.system.process import freed_memory_kept
from calibrant.system.progress import Progress, silent

evaluators = Registry("calibrant.evaluators", "task")

_LOGGER: Final = logging.getLogger("calibrant")


@final
@declaration
class EvaluateOptions(EvaluateCommand):
    """The options of `evaluate`."""

    tasks: Sequence[str | Evaluator] | str | Evaluator = ()


def _planned(options: EvaluateOptions) -> JobPlan:
    """What a measurement would take."""
    chosen = _chosen(options)
    if options.engine != "torch":
        message = (
            f"what {options.engine} takes isn't known beforehand; leave the plan or the engine out"
        )
        raise SpecError(message, subject=options.engine)
    outlines = [outline_of_options(options)]
    if any(task.compares for task in chosen):
        dense = options.reference
        if dense is None:
            name = name_of(options.model)
            dense = _known_dense_name(read_manifest(manifest_folder(name)), name)
        outlines.append(outline_of_options(replace(options, model=dense)))
    on_device = room_on_device(options.device_memory, outlines[0].device)
    return MeasuringPlanner(outlines, chosen, in_bytes(options.memory), on_device).plan()


def _chosen(options: EvaluateOptions) -> list[Evaluator]:
    """The tasks that are asked for, with their budgets."""
    tasks = options.tasks
    if isinstance(tasks, str | Evaluator):
        tasks = [tasks]
    if not tasks:
        message = "nothing is to be measured; give tasks, such as tasks=['loss(source=wikitext)']"
        raise SpecError(message, subject="tasks")
    chosen: list[Evaluator] = [evaluators.build(task) for task in tasks]
    for task in chosen:
        task.check()
    return within_budget(chosen, options.limit, options.tokens)


@with_fields_of(EvaluateOptions, _planned)
@only_looks
def evaluate(options: EvaluateOptions) -> list[Measurement]:
    """Measure `model` with each of `tasks`, for example `loss(source=wikitext, tokens=65536)`.

    `model` is a name, a path, or a model of transformers with its `tokenizer`, which is left as it
    was. `reference` is the untouched model for tasks that compare with it; of a model that
    Calibrant compressed it is known. For a quick look `limit` is the number of items of every task
    (questions, documents, windows), `tokens` the budget of those that have one. What is scored is
    kept in a journal in the user's cache until everything is done: the same call after a kill goes
    on. Raises an `InputError` for a model, a task or a source that isn't there, and for a model
    that was compressed on rows which a task measures, unless `allow_leak`; their number is then
    kept in the provenance as `leaked`.

    With `engine="llama_cpp"` a GGUF file is measured as llama.cpp runs it, which rounds activations
    too; `loss` and `agreement` can be. With `engine="vllm"` a folder is measured as vLLM runs it;
    `loss`, `perplexity` and `generation` can be. `memory` is how many GB the process may hold:
    where the model doesn't fit, its blocks stay on disk and are read whenever they run; the scores
    are the same. `device_memory` is how many GB may be held on a GPU, by default what is free
    there: the blocks of a larger model stay beside it, and each goes there whenever it runs.

    `store` is a folder of results into which each measurement goes as soon as it is done, and in
    which `report` and `compare` read it; what is there already isn't measured again. A model that
    `prune` or `quantize` wrote stands there as the run that it is, one that nothing was done to as
    the dense model. `label` says what any other is. What it was made from is `reference`, else the
    one dense model in the store.

    >>> from calibrant.testing import tiny_model, tiny_tokenizer
    >>> task = "loss(source=python_docs, tokens=256, length=64)"
    >>> evaluate(tiny_model("llama"), tiny_tokenizer(), tasks=task)[0].score.unit
    'nats/token'
    """
    check_label(options.label, options.store)
    chosen = _chosen(options)
    check_engine(options.engine, chosen)
    if options.engine == "vllm" and options.store is not None and not options.label:
        raise SpecError(
            "what vLLM measures of a folder isn't what torch measures of it, so it needs a name of "
            "its own in a store; give --label (in Python label=)",
            subject="label",
        )
    leak_counts, manifest = refuse_leaks(options.model, chosen, options.allow_leak)
    promised = in_bytes(options.memory)
    opened = _open(options, chosen, manifest)
    dense = None
    if any(task.compares for task in chosen):
        dense = reference_of(options.reference, manifest, opened, options.device)
    if promised is not None:
        check_kept(promised, opened)
    with run_in_store(options, options.reference, opened, manifest, dense) as run:
        return _measure_each(options, chosen, opened, dense, run, leak_counts)


def _measure_each(
    options: EvaluateOptions,
    tasks: Sequence[Evaluator],
    opened: Opened,
    dense: Opened | None,
    run: MeasuredRun | None,
    leak_counts: Sequence[LeakCount],
) -> list[Measurement]:
    """Return what each task measures, or what the store of `run` has of it."""
    reading = reading_digest(opened) if run is None else run.reading
    journals = [_journal(task, opened, reading, dense) for task in tasks]
    _tell_unkept()
    measured: list[Measurement] = []
    reference = None if dense is None else dense.model
    by_name = None
    if options.reference is None or not is_object(options.reference):
        by_name = dense
    # No journal goes before all tasks are done, so that a call that is killed goes on from there.
    with cached_predictions(by_name):
        for task, journal, leak_count in zip(tasks, journals, leak_counts, strict=True):
            measure = partial(
                timed, task, opened, options.progress, reference, journal, leak_count.count
            )
            if run is None:
                measured.append(measure())
            else:
                measured.append(run.once(task, measure))
    for journal in journals:
        journal.remove()
    return measured


@contextmanager
def run_in_store(
    options: StoreOptions,
    reference: Model | None,
    opened: Opened,
    manifest: Mapping[str, Any] | None,
    dense: Opened | None,
) -> Iterator[MeasuredRun | None]:
    """Give the run that made `opened`, in the store of the options; None where there is none.
    Where what is done within fails before anything is measured, a store that was made for it is
    removed.

    Raises the errors of `MeasuredRun.put`.
    """
    if options.store is None:
        yield None
        return
    dense_name = _dense_name(manifest) or ""
    if reference is not None:
        dense_name = name_of(reference)
    with MeasuredRun.put(options.store, options.label, opened, manifest, dense_name, dense) as run:
        yield run


def _open(
    options: EvaluateOptions, tasks: Sequence[Evaluator], manifest: Mapping[str, Any] | None
) -> Opened:
    """Return the model that is measured, so that a promise of memory is kept."""
    model = options.model
    engine = options.engine
    if is_object(model) or engine != "torch":
        _refuse_limits(options)
    if is_object(model):
        # What an object's name stands for may be another model by now.
        if engine != "torch" and not (isinstance(model, Opened) and runs_by(engine, model)):
            raise SpecError(
                f"{name_of(model)} is open already, and {engine} doesn't run it; leave the engine "
                "out, or give the model's name",
                subject=engine,
            )
        opened = _opened(
            model, options.tokenizer, options.dtype, options.device, on_disk=False, beside=False
        )
    elif engine != "torch":
        _check_ignored(options)
        return opened_by(engine, name_of(model), options.dtype, options.device)
    else:
        opened = _open_within(options, tasks, manifest)
    looking = [task for task in tasks if task.looks_inside]
    # One that was handed over may have its blocks elsewhere already.
    if looking and opened.residence.elsewhere:
        raise SpecError(
            f"{looking[0]} looks into the whole model, and the blocks of {opened.name} aren't "
            "where it computes; save it, and open it where there is room for all of it",
            subject=opened.name,
        )
    return opened


def _open_within(
    options: EvaluateOptions, tasks: Sequence[Evaluator], manifest: Mapping[str, Any] | None
) -> Opened:
    """Return a model that is named, with its blocks elsewhere where there is no room for it and for
    the one that it is compared with.
    """
    dtype = options.dtype
    device = options.device
    names = [name_of(options.model)]
    if any(task.compares for task in tasks):
        dense = options.reference or _dense_name(manifest)
        if dense is not None and not is_object(dense):
            names.append(name_of(dense))
    on_device = room_on_device(options.device_memory, device_of(options.model, device))
    beside = False
    if on_device is not None:
        beside = left_beside(names, tasks, dtype, device, on_device)
    promised = in_bytes(options.memory)
    on_disk = False
    if promised is not None:
        on_disk = left_on_disk(names, tasks, dtype, device, promised, beside)
    return _opened(options.model, options.tokenizer, dtype, device, on_disk, beside)


def _refuse_limits(options: EvaluateOptions) -> None:
    """Raise `SpecError` for room that is given to a model which isn't opened here."""
    limits = {"memory": options.memory, "device_memory": options.device_memory}
    for option, limit in limits.items():
        if limit is not None:
            raise SpecError(
                f"{option} is for a model that is opened here, by torch; "
                "leave it out, or give the model's name and no engine",
                subject=option,
            )


def _check_ignored(options: EvaluateOptions) -> None:
    """Raise `SpecError` for an option that the engine wouldn't heed."""
    ignored: list[str] = []
    if options.tokenizer is not None:
        ignored.append("tokenizer")
    if options.engine == "llama_cpp":
        if options.dtype != "auto":
            ignored.append("dtype")
        if options.device not in ("auto", "cpu"):
            ignored.append("device")
    if ignored:
        raise SpecError(
            f"{options.engine} runs a file as it is, and heeds no {ignored[0]}; leave it out, or "
            "leave the engine out",
            subject=ignored[0],
        )


def left_beside(
    models: Sequence[str], tasks: Sequence[Evaluator], dtype: str, device: str, allowed: int
) -> bool:
    """Return whether the blocks of `models` stay beside the device while `tasks` measure the first,
    so that no more than the `allowed` bytes are held there.

    Raises `SpecError` where there is no room even so, and for tasks that look into the whole model.
    """
    outlines: list[ModelOutline] = []
    for model in models:
        outline = outline_of(model, dtype, device)
        if outline is None:
            return False
        outlines.append(outline)
    needs = needs_of(outlines, tasks)
    taken = with_all_blocks(needs, "arrival")
    looking = [task for task in tasks if task.looks_inside]
    if taken > allowed and looking:
        raise SpecError(
            f"measuring {models[0]} takes about {gigabytes(taken)} on the device, since "
            f"{looking[0]} looks into the whole model there, and {gigabytes(allowed)} may be held "
            "there; allow so much (device_memory), or give device=cpu",
            subject=models[0],
        )
    job = f"{models[0]} and its measurement"
    return bool(why_beside(job, models[0], needs, "arrival", ["arrival"], allowed))


def left_on_disk(
    models: Sequence[str],
    tasks: Sequence[Evaluator],
    dtype: str,
    device: str,
    promised: int,
    beside: bool = False,
) -> bool:
    """Return whether the blocks of `models` stay on disk while `tasks` measure the first, so that a
    promise of so many bytes is kept. They would else be in memory, or `beside` a device.

    The others are what it is compared with. False where that can't be said beforehand, since one of
    them isn't a folder of plain safetensors. Raises `SpecError` where the promise can't be kept:
    for tasks that look into the whole model, and for less memory than is taken with blocks on disk.
    """
    outlines: list[ModelOutline] = []
    for model in models:
        outline = outline_of(model, dtype, device)
        if outline is None or not outline.divisible:
            return False
        outlines.append(outline)
    together = needs_of(outlines, tasks)
    if outlines[0].device.type != "cpu":
        together = together.beside_a_device(outlines, beside)
    taken = together.in_memory("arrival")
    if taken <= promised:
        return False
    demand = (
        f"measuring {models[0]} takes about {taken / 1e9:.1f} GB, "
        f"and memory is {promised / 1e9:.1f}"
    )
    for task in tasks:
        if task.looks_inside:
            raise SpecError(
                f"{demand}; blocks can't be left on disk, since {task} looks into the whole model; "
                f"allow more memory",
                subject=models[0],
            )
    least = together.on_disk("arrival")
    if least > promised:
        raise SpecError(
            f"{demand}; with its blocks on disk it takes about {least / 1e9:.1f} GB; allow so much",
            subject=models[0],
        )
    return True


def within_budget(
    tasks: Sequence[Evaluator], limit: int | None = None, tokens: int | None = None
) -> list[Evaluator]:
    """Return the tasks with `limit` items and with `tokens`, where they have such budgets. Raises
    `SpecError` where none has.
    """
    chosen = list(tasks)
    budgets = {"limit": limit, "tokens": tokens}
    for budget, value in budgets.items():
        if value is None:
            continue
        limited = [with_parameters(task, **{budget: value}) for task in chosen]
        if not any(limited):
            names = ", ".join(map(str, chosen))
            problem = f"{names} can't be given {budget}={value}"
            raise SpecError(f"{problem}; {_instead(chosen, budget)}", subject=budget)
        chosen = [small or task for small, task in zip(limited, chosen, strict=True)]
    return chosen


def _instead(tasks: Sequence[Evaluator], refused: str) -> str:
    """Return what to do about tasks that haven't the budget that was refused."""
    advice = {
        "limit": "use --limit for the number of items",
        "tokens": "use --tokens for a budget of tokens",
    }
    for budget, sentence in advice.items():
        if budget != refused and any(budget in _parameters(task) for task in tasks):
            return sentence
    return f"none of these has a parameter limit or tokens, so leave --{refused} out"


def _parameters(task: Any) -> set[str]:
    return {parameter.name for parameter in fields(task)}


def timed(
    task: Evaluator,
    opened: Opened,
    progress: Progress = silent,
    reference: PreTrainedModel | None = None,
    journal: Journal | None = None,
    leaked: int = 0,
) -> Measurement:
    """Measure once. The scores say how many rows of how many they are over, and the provenance
    the seconds it took, and on how many `leaked` rows the model was calibrated, if there are any.
    """
    if journal is None:
        journal = Journal()
    began = time.perf_counter()
    with freed_memory_kept():
        subject = Subject(opened.model, opened.tokenizer, reference, progress, journal)
        measured = _measured(task, subject)
    try:
        return completed(task, opened, measured, time.perf_counter() - began, leaked)
    except SpecError:
        # Of the same items a second try would make the same.
        journal.remove()
        raise


def _measured(task: Evaluator, subject: Subject) -> Measurement:
    """Return what a task measures. Raises `SpecError`, which names the task, for what is no
    measurement. An error that isn't one of ours stays as it is, and has a note of the task.
    """
    try:
        measured: object = task.measure(subject)
    except CalibrantError:
        raise
    except Exception as error:
        error.add_note(f"{task} failed")
        raise
    if not isinstance(measured, Measurement):
        raise _fault(task, f"gives no Measurement, but a {type(measured).__name__}")
    return measured


def _fault(task: Evaluator, what: str) -> SpecError:
    """Return the error for a task that doesn't do what an evaluator must."""
    remedy = f"mend {qualified(type(task))}, or leave it out"
    return SpecError(f"{task} {what}; {remedy}", subject=str(task))


def completed(
    task: Evaluator, opened: Opened, measured: Measurement, seconds: float, leaked: int = 0
) -> Measurement:
    """Return a measurement with what `timed` says of it. Raises `SpecError`, which names the task,
    for one that a store couldn't keep.
    """
    try:
        measured = as_kept(canonical(task), measured)
    except ValueError as error:
        raise _fault(task, f"gives a measurement that can't be kept: {error}") from error
    provenance: dict[str, Any] = {
        "seconds": seconds,
        "model": opened.name,
        "note": opened.note,
        "dtype": type_name(opened.dtype),
    }
    if opened.residence.on_disk:
        provenance["blocks"] = "on disk"
    elif opened.residence.elsewhere:
        provenance["blocks"] = "beside the device"
    if leaked:
        provenance["leaked"] = leaked
    return replace(
        measured,
        score=_counted(task, measured.score),
        beside=tuple(_counted(task, score) for score in measured.beside),
        provenance=provenance,
    )


def _counted(task: Evaluator, score: Score) -> Score:
    """Return the score with how many rows it is over and how many the source has in all its
    parts, unless the task itself says so.
    """
    row_facts: dict[str, Any] = {"rows": score.n}
    source = task.reads()
    if isinstance(source, StoredSource):
        row_facts["rows_of"] = source.size()
    return replace(score, facts={**row_facts, **score.facts})


def refuse_leaks(
    model: Model, tasks: Sequence[Evaluator], allow_leak: bool
) -> tuple[list[LeakCount], Mapping[str, Any] | None]:
    """Return which of the rows that each task measures the model was calibrated on, and its
    manifest. `DataError` for any, unless `allow_leak`.
    """
    place = str(manifest_folder(name_of(model)))
    origin = origin_of(model)
    if origin is not None and origin.manifest is not None:
        manifest = origin.manifest
        rows = origin.rows
    else:
        manifest = read_manifest(place)
        rows = RowFingerprints.read(manifest, place)
    if manifest is None:
        return [LeakCount()] * len(tasks), None
    leak_counts = [calibrated_on(rows, task) for task in tasks]
    if not allow_leak:
        for task, leak_count in zip(tasks, leak_counts, strict=True):
            if leak_count:
                raise _leak_error(place, str(task), leak_count.count, f" ({leak_count})")
    return leak_counts, manifest


def reference_of(
    reference: Model | None,
    manifest: Mapping[str, Any] | None,
    opened: Opened,
    device: str,
    option: str = "--reference",
) -> Opened:
    """Return the model to compare with: the one given, or the one that `opened` was made from.
    `SpecError` where none is known.
    """
    if reference is None:
        reference = _known_dense_name(manifest, opened.name, option)
    if not is_object(reference):
        on_disk = opened.residence.on_disk
        beside = opened.residence.elsewhere and not on_disk
        return _opened(reference, None, type_name(opened.dtype), device, on_disk, beside)
    # An object has its own type and device; both models are shown the same tokens.
    tokenizer = None if isinstance(reference, Opened) else opened.tokenizer
    dense = opened_of(reference, tokenizer)
    if dense.model is opened.model:
        raise SpecError(
            f"{opened.name} is to be compared with itself; give the name of the untouched model to "
            f"{option}, or compress with copy=True",
            subject=opened.name,
        )
    return dense


def _known_dense_name(
    manifest: Mapping[str, Any] | None, model: str, option: str = "--reference"
) -> str:
    """The name of the model that `model` was made from. Raises `SpecError` where it isn't known."""
    dense_name = _dense_name(manifest)
    if dense_name is None:
        raise SpecError(
            f"{model!r} is to be compared with the untouched model, "
            f"and which one that is isn't known; give {option}",
            subject=model,
        )
    return dense_name


def _dense_name(manifest: Mapping[str, Any] | None) -> str | None:
    """Return the name of the model that a compressed one was made from; None where its numbers were
    in no file.
    """
    if manifest is None:
        return None
    run = manifest.get("record", {}).get("run", {})
    digest = str(run.get("model", ""))
    if digest.startswith(OF_TENSORS):
        return None
    return run.get("model_name")


def _opened(
    model: Model, tokenizer: Any, dtype: str, device: str, on_disk: bool, beside: bool
) -> Opened:
    """Return the model, whose blocks bring their numbers in whenever they run, if these aren't
    where it computes.
    """
    opened = opened_of(model, tokenizer, dtype, device, on_disk=on_disk, beside=beside)
    if opened.residence.on_disk:
        read_when_run(opened.model, opened.residence)
    return opened


def _journal(task: Evaluator, opened: Opened, reading: str, reference: Opened | None) -> Journal:
    """Return where this measurement keeps its items until all is done: in the user's cache, under
    the hash of what is measured; nowhere for a user without a cache that they may write.
    """
    # A journal belongs to all that its scores depend on.
    compared = reference.digest if reference and task.compares else ""
    parts = [opened.digest, canonical(task), str(opened.dtype), compared, reading]
    digest = task.digest()
    if digest:
        parts.append(digest)
    folder = cache_folder()
    if not takes_files(folder):
        return Journal()
    return Journal(folder / "journals.sqlite", identity(parts))


def _tell_unkept() -> None:
    """Say in one line where the cache can't be written, unless its user wants none."""
    folder = cache_folder()
    if folder != Path(os.devnull) and not takes_files(folder):
        _LOGGER.warning(
            "%r can't be written, so an evaluation that is interrupted begins again; set "
            "CALIBRANT_CACHE to a folder that can be written",
            str(folder),
        )


def leaks(
    sets: Iterable[CalibrationSet], evaluators: Sequence[Evaluator]
) -> dict[str, dict[str, int]]:
    """Return how many rows of the users' own files in each set are also measured, by set and
    evaluator; what has none is left out.

    The sources that Calibrant knows take such rows out of themselves. A file's whole calibrate part
    is looked at, whatever the draw.
    """
    files: dict[str, set[OwnData]] = {}
    for data in sets:
        own_files = files.setdefault(str(data), set())
        for part in data.parts:
            own_files.update(own_behind(part.source))
    all_files = set[OwnData]().union(*files.values())
    by_name = {str(evaluator): evaluator for evaluator in evaluators}
    counts: dict[str, dict[OwnData, int]] = {}
    # What is measured is read only where there is a file to look for.
    if all_files:
        for name, evaluator in by_name.items():
            measured = list(evaluator.rows())
            counts[name] = {file: _count_leaked(file, measured) for file in all_files}
    leaked: dict[str, dict[str, int]] = {}
    for data, own_files in files.items():
        for name, by_file in counts.items():
            count = sum(by_file[file] for file in own_files)
            if count:
                leaked.setdefault(data, {})[name] = count
    return leaked


def _count_leaked(file: OwnData, measured: Sequence[Row]) -> int:
    """Return how many rows of a user's file are measured too."""
    leaked = find_leaks(file.part("calibrate").rows, measured)
    # A row may be leaked in several ways, and counts once.
    leaked_rows = {leak.row for leak in leaked if serious(leak)}
    return len(leaked_rows)


def refuse(leaked_rows: Mapping[str, Mapping[str, int]]) -> None:
    """Raise `DataError` for the first calibration set that has leaks, as `leaks` counts them."""
    for data, counts in leaked_rows.items():
        for evaluator, count in counts.items():
            raise _leak_error(data, evaluator, count)


def _leak_error(data: str, evaluator: str, count: int, kinds: str = "") -> DataError:
    return DataError(
        f"{count} rows of {data} are also measured by {evaluator}{kinds}; take them out or measure "
        f"something else, or allow it with --allow-leak (in Python allow_leak=True), "
        f"which the record keeps",
        subject=data,
    )


def calibrated_on(rows: RowFingerprints, evaluator: Evaluator) -> LeakCount:
    """Return which of the rows that `evaluator` measures are those that a model was calibrated
    on.
    """
    return rows.leaks(evaluator.rows(), isinstance(evaluator.reads(), UserFile))
