"""`evaluate`: a model, some evaluators, their measurements; none on what the model was
calibrated on, unless somebody asks for exactly that.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, final

from transformers import PreTrainedModel

from calibrant.compress.room import check_kept, in_bytes
from calibrant.data import CalibrationSet, Row, StoredSource
from calibrant.data.inspect.leaks import LeakCount, RowFingerprints, find_leaks, serious
from calibrant.data.user_file import UserFile, files_behind
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import Evaluator, Subject
from calibrant.evaluators._engines import check_engine, opened_by_llama_cpp
from calibrant.evaluators._room import left_on_disk
from calibrant.models import Opened, manifest_folder, open_model, read_manifest, read_when_run
from calibrant.models.cache import cache_folder
from calibrant.options import EvaluateCommand, declaration, with_fields_of
from calibrant.results.outcomes import Journal, Measurement, Score
from calibrant.spec import canonical, identity, with_parameters
from calibrant.spec.registry import Registry
from calibrant.system.process import freed_memory_kept
from calibrant.system.progress import Progress, silent

evaluators = Registry("calibrant.evaluators", "task")


@final
@declaration
class EvaluateOptions(EvaluateCommand):
    """The options of `evaluate`."""

    tasks: Sequence[str | Evaluator] | str | Evaluator


@with_fields_of(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> list[Measurement]:
    """Measure `model` with each of `tasks`, for example `loss(source=wikitext, tokens=65536)`.

    `reference` is the untouched model for tasks that compare with it; of a model that Calibrant
    compressed it is known. For a quick look `limit` is the number of items of every task
    (questions, documents, windows), `tokens` the budget of those that have one. What is scored is
    kept in a journal in the user's cache until everything is done: the same call after a kill goes
    on. Raises an `InputError` for a model, a task or a source that isn't there, and for a model
    that was compressed on rows which a task measures, unless `allow_leak`; their number is then
    kept in the provenance as `leaked`.

    With `engine="llama_cpp"` a GGUF file is measured as llama.cpp runs it, which rounds activations
    too; `loss` and `agreement` can be. `memory` is how many GB the process may hold: where the
    model doesn't fit, its blocks stay on disk and are read whenever they run; the scores are the
    same.
    """
    model = options.model
    engine = options.engine
    reference = options.reference
    where = options.dtype, options.device
    tasks = options.tasks
    if isinstance(tasks, str | Evaluator):
        tasks = [tasks]
    chosen: list[Evaluator] = [evaluators.build(task) for task in tasks]
    chosen = within_budget(chosen, options.limit, options.tokens)
    check_engine(engine, chosen)
    leaked, manifest = refuse_leaks(model, chosen, options.allow_leak)
    promised = in_bytes(options.memory)
    if promised is not None and (isinstance(model, Opened) or engine == "llama_cpp"):
        message = "memory is for a model that is opened here, by torch"
        advice = "leave it out, or give the model's name and no engine"
        raise SpecError(f"{message}; {advice}", subject="memory")
    compares = any(task.compares for task in chosen)
    if isinstance(model, Opened):
        opened = model
    elif engine == "llama_cpp":
        opened = opened_by_llama_cpp(model)
    else:
        on_disk = False
        if promised is not None:
            names = [model]
            dense_name = reference or _origin(manifest)
            if compares and isinstance(dense_name, str):
                names.append(dense_name)
            on_disk = left_on_disk(names, chosen, *where, promised)
        opened = _opened(model, *where, on_disk)
    dense = None
    if compares:
        dense = reference_of(reference, manifest, opened, options.device)
    if promised is not None:
        check_kept(promised, opened)
    journals = [_journal(task, opened, dense) for task in chosen]
    measured: list[Measurement] = []
    for task, journal, rows in zip(chosen, journals, leaked, strict=True):
        dense_model = None if dense is None else dense.model
        measurement = timed(task, opened, options.progress, dense_model, journal)
        if rows:
            told = {**measurement.provenance, "leaked": rows.count}
            measurement = replace(measurement, provenance=told)
        measured.append(measurement)
    for journal in journals:
        journal.remove()
    return measured


def within_budget(
    tasks: Sequence[Evaluator], limit: int | None = None, tokens: int | None = None
) -> list[Evaluator]:
    """Return the tasks with `limit` items, and with `tokens` where they have such a budget.
    Raises `SpecError` where none has.
    """
    chosen = list(tasks)
    if limit is not None:
        chosen = [with_parameters(task, limit=limit) or task.limited(limit) for task in chosen]
    if tokens is not None:
        if not any(with_parameters(task, tokens=tokens) for task in chosen):
            raise SpecError(
                f"no budget of {tokens} tokens fits {', '.join(map(str, chosen))}; use --limit for the number of items",
                subject="tokens",
            )
        chosen = [with_parameters(task, tokens=tokens) or task for task in chosen]
    return chosen


def timed(
    task: Evaluator,
    opened: Opened,
    progress: Progress = silent,
    reference: PreTrainedModel | None = None,
    journal: Journal | None = None,
) -> Measurement:
    """Measure once: the scores say how many rows of how many they are over, and the provenance
    the seconds it took.
    """
    began = time.perf_counter()
    with freed_memory_kept():
        measured = task.measure(
            Subject(
                opened.model,
                opened.tokenizer,
                reference,
                progress,
                Journal() if journal is None else journal,
            )
        )
    about = {
        "model": opened.name,
        "note": opened.note,
        "dtype": str(opened.dtype).removeprefix("torch."),
    }
    about |= {"blocks": "on disk"} if opened.residence.on_disk else {}
    score, *beside = (_counted(task, score) for score in (measured.score, *measured.beside))
    return replace(
        measured,
        score=score,
        beside=tuple(beside),
        provenance={"seconds": time.perf_counter() - began, **about},
    )


def _counted(task: Evaluator, score: Score) -> Score:
    """The score with how many rows it is over and how many the source has in all its parts,
    unless the task itself says so.
    """
    source = task.reads()
    known = {
        "rows": score.n,
        **({"rows_of": source.size()} if isinstance(source, StoredSource) else {}),
    }
    return replace(score, facts={**known, **score.facts})


def refuse_leaks(
    model: str | Opened, tasks: Sequence[Evaluator], allow_leak: bool
) -> tuple[list[LeakCount], Mapping[str, Any] | None]:
    """Return which of the rows that each task measures the model was calibrated on, and its
    manifest. `DataError` for any, unless `allow_leak`.
    """
    folder = str(manifest_folder(model.name if isinstance(model, Opened) else model))
    manifest = read_manifest(folder)
    leaked = [calibrated_on(manifest, folder, task) for task in tasks]
    if any(leaked) and not allow_leak:
        refuse(
            {folder: {str(task): rows for task, rows in zip(tasks, leaked, strict=True) if rows}}
        )
    return leaked, manifest


def reference_of(
    reference: str | Opened | None,
    manifest: Mapping[str, Any] | None,
    opened: Opened,
    device: str,
    option: str = "--reference",
) -> Opened:
    """Return the model to compare with: the one given, or the one that `opened` was made from.
    `SpecError` where none is known.
    """
    if isinstance(reference, Opened):
        return reference
    name = reference or _origin(manifest)
    if name is None:
        raise SpecError(
            f"{opened.name!r} is to be compared with the untouched model, and which one that is isn't known; give {option}",
            subject=opened.name,
        )
    return _opened(name, str(opened.dtype).removeprefix("torch."), device, opened.residence.on_disk)


def _origin(manifest: Mapping[str, Any] | None) -> str | None:
    """The name of the model that a compressed one was made from."""
    return (manifest or {}).get("record", {}).get("run", {}).get("model_name")


def _opened(ref: str, dtype: str, device: str, on_disk: bool) -> Opened:
    """The model, with its blocks in memory or read from disk whenever they run."""
    opened = open_model(ref, dtype, device, on_disk=on_disk)
    if on_disk:
        read_when_run(opened.model, opened.residence)
    return opened


def _journal(task: Evaluator, opened: Opened, reference: Opened | None) -> Journal:
    """Where this measurement keeps its items until all is done: in the user's cache, under the
    hash of what is measured.
    """
    about = [
        opened.digest,
        canonical(task),
        str(opened.dtype),
        reference.digest if reference and task.compares else "",
    ]
    question = identity([*about, *filter(None, [task.digest()])])
    return Journal(cache_folder() / "journals.sqlite", question)


def leaks(
    sets: Iterable[CalibrationSet], evaluators: Sequence[Evaluator]
) -> dict[str, dict[str, int]]:
    """Return how many rows of the users' own files in each set are also measured, by set and
    evaluator; what has none is left out.

    The sources that Calibrant knows take such rows out of themselves. A file's whole calibrate part
    is looked at, whatever the draw.
    """
    by_name = {str(evaluator): evaluator for evaluator in evaluators}

    @cache
    def measured(evaluator: str) -> list[Row]:
        return list(by_name[evaluator].rows())

    @cache
    def leaking(file: UserFile, evaluator: str) -> int:
        return len(
            {
                leak.row
                for leak in find_leaks(file.part("calibrate").rows, measured(evaluator))
                if serious(leak)
            }
        )

    files = {
        str(chosen): {file for part in chosen.parts for file in files_behind(part.source)}
        for chosen in sets
    }
    counts = {
        name: {evaluator: sum(leaking(file, evaluator) for file in behind) for evaluator in by_name}
        for name, behind in files.items()
    }
    leaked = {
        name: {evaluator: rows for evaluator, rows in of.items() if rows}
        for name, of in counts.items()
    }
    return {name: of for name, of in leaked.items() if of}


def refuse(leaked_rows: Mapping[str, Mapping[str, int | LeakCount]]) -> None:
    """`DataError` for the first calibration set, or compressed model, that has leaks."""
    for data, counts in leaked_rows.items():
        evaluator, leaked = next(iter(counts.items()))
        count, kinds = (
            (leaked.count, f" ({leaked})") if isinstance(leaked, LeakCount) else (leaked, "")
        )
        raise DataError(
            f"{count} rows of {data} are also measured by {evaluator}{kinds}; take them out or measure something else, "
            f"or allow it with --allow-leak (in Python allow_leak=True), which the record keeps",
            subject=data,
        )


def calibrated_on(
    manifest: Mapping[str, Any] | None, folder: str | Path, evaluator: Evaluator
) -> LeakCount:
    """Which of the rows that `evaluator` measures the compressed model in `folder` was
    calibrated on, by its manifest and the array beside it.
    """
    if manifest is None:
        return LeakCount()
    return RowFingerprints.read(manifest, folder).leaks(
        evaluator.rows(), isinstance(evaluator.reads(), UserFile)
    )
