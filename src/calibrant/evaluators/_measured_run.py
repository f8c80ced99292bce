"""Where `evaluate(…, store=…)` puts what it measures: into a store, on the run that made the model,
so that it is compared as what a study measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibrant.allocations import allocations
from calibrant.allocations.uniform import Uniform
from calibrant.compress import Recipe
from calibrant.compress.costs import provenance
from calibrant.errors import DataError, SpecError
from calibrant.evaluators._base import Evaluator
from calibrant.methods import methods
from calibrant.methods.pruning.none import Untouched
from calibrant.models import Opened, manifest_folder, origin_of
from calibrant.models.hashing import OF_TENSORS
from calibrant.models.origin import is_as_remembered
from calibrant.results import Cell, Record, Run, Store, measurement_id
from calibrant.results.outcomes import Measurement
from calibrant.results.records import MEASURED, UNTOUCHED
from calibrant.spec import canonical, written_form
from calibrant.spec.foreign import brief
from calibrant.system.clock import Clock
from calibrant.targets import Sparsity

LONGEST_LABEL: Final = 100
"""Letters of a label: it is the name of a row."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run in the store of a folder, by the cell that shows it."""

    folder: str | Path
    cell: Cell

    @classmethod
    def of(
        cls,
        folder: str | Path,
        label: str,
        opened: Opened,
        manifest: Mapping[str, Any] | None,
        dense_name: str,
        dense: Opened | None,
    ) -> "MeasuredRun":
        """Put the run that made `opened` into the store in `folder`.

        That is the run in its `manifest`. With a `label`, or where something else made the model
        from `dense_name`, it is one that is known by its name alone. Else it is the dense model's
        own.

        Raises `OutputError` for a folder that can't be one of results, and for a label that another
        model has; `SpecError` for a model that isn't opened in the type that it was compressed in,
        that was changed since it was compressed, or that is compared with another one than the
        `dense` model that it was made from.
        """
        record = _record(label, opened, manifest, dense_name)
        if dense is not None and record.run.model not in (dense.digest, opened.digest):
            raise SpecError(
                f"{opened.name!r} wasn't made from {dense.name!r}, which it is compared with; "
                "leave the reference out, or give a label",
                subject=dense.name,
            )
        cell = _cell(record.run)
        with Store(folder) as store:
            cell = replace(cell, model=_name_in(store, record.run))
            # The cell comes first: a record without one would be taken for a study's.
            store.add_cell(cell)
            store.add_record(record)
        return cls(folder, cell)

    def once(self, task: Evaluator, measure: Callable[[], Measurement]) -> Measurement:
        """Return what the store has of `task` on this run, else what `measure` returns, which is
        stored at once.
        """
        form = canonical(task)
        digest = task.digest()
        run_id = self.cell.run
        measure_id = measurement_id(run_id, form, digest)
        # Another process may be at work on the same run.
        with Store(self.folder) as store, store.claim(run_id, wait=True):
            measurement = store.measurement(run_id, measure_id)
            if measurement is None:
                measurement = measure()
                if task.digest() != digest:
                    raise DataError(
                        f"what {task} measures has changed meanwhile; run it again",
                        subject=str(task),
                    )
                store.add_measurement(run_id, form, measurement, digest)
            store.add_cell(replace(self.cell, measures={str(task): measure_id}))
        return measurement


def type_name(opened: Opened) -> str:
    """Return the name of a model's type of numbers, such as bfloat16."""
    return str(opened.dtype).removeprefix("torch.")


def _name_in(store: Store, run: Run) -> str:
    """Return what a store calls the model that a run was made from: the same folder has several
    names, and rows are compared by it.
    """
    index = store.index()
    untouched = [cell for cell in store.grid(index) if cell.method == UNTOUCHED]
    for cell in (*untouched, *index.measured):
        if cell.method == MEASURED or not store.has_record(cell.run):
            continue
        if store.run(cell.run).model == run.model:
            return cell.model
    return run.model_name


def check_label(label: str, store: str | Path | None) -> None:
    """Raise `SpecError` for a label that can't be the name of a row, or has no store to be in."""
    if label and store is None:
        raise SpecError(
            f"label {brief(label)} is the name of a model in a store, and there is none; "
            "give --store (in Python store=)",
            subject=label,
        )
    if len(label) > LONGEST_LABEL or not label.isprintable() or label != label.strip():
        raise SpecError(
            f"{brief(label)} can't be a label; give up to {LONGEST_LABEL} letters in one line, "
            "without blanks at its ends",
            subject=label,
        )


def _record(
    label: str, opened: Opened, manifest: Mapping[str, Any] | None, dense_name: str
) -> Record:
    """Return the record of the run that made a model."""
    if not label and _was_changed(opened):
        raise SpecError(
            f"{opened.name!r} was changed after it was compressed, so its record is of another "
            "model; give a label",
            subject=opened.name,
        )
    if manifest is not None and _is_about(manifest, opened) and not label:
        return _own_record(opened, manifest)
    if dense_name not in ("", opened.name) and not label:
        label = opened.name
    if not label and opened.digest.startswith(OF_TENSORS) and opened.model.name_or_path:
        raise SpecError(
            f"{opened.name!r} isn't as it was loaded any more, and nothing says what was done to "
            "it; give a label",
            subject=opened.name,
        )
    run = _finished(opened, label, dense_name) if label else _untouched(opened)
    return Record(run, 0.0, provenance=provenance(opened, Clock()))


def _was_changed(opened: Opened) -> bool:
    """Return whether a model that was compressed in memory has other numbers by now. On disk they
    are what was written.
    """
    origin = origin_of(opened)
    if origin is None or origin.manifest is None or opened.residence.on_disk:
        return False
    return not is_as_remembered(opened.model)


def _is_about(manifest: Mapping[str, Any], opened: Opened) -> bool:
    """Return whether a manifest is that of these very numbers."""
    origin = origin_of(opened)
    if origin is not None and origin.manifest is manifest:
        return True
    # An export in a folder of ours has its manifest too, and may have other numbers.
    return manifest_folder(opened.name) == Path(opened.name)


def _untouched(opened: Opened) -> Run:
    """Return the run of a model as it came: the one that every study has of it."""
    return Recipe(Untouched(), Sparsity(0.0), Uniform(), "dense").run(opened, None)


def _finished(opened: Opened, label: str, dense_name: str) -> Run:
    """Return the run of a finished model, which its numbers and its label stand for."""
    return Run(
        model=opened.digest,
        model_name=dense_name,
        data=label,
        tokens="",
        method={"spec": MEASURED, "label": label},
        target="",
        allocation={},
        propagate="",
        dtype=type_name(opened),
    )


def _own_record(opened: Opened, manifest: Mapping[str, Any]) -> Record:
    """Return the record that Calibrant wrote beside a model."""
    try:
        record = Record.read(manifest["record"])
    except (KeyError, ValueError) as error:
        raise SpecError(
            f"{opened.name!r} has a record that this version can't read; give a label",
            subject=opened.name,
        ) from error
    if record.run.dtype != type_name(opened):
        raise SpecError(
            f"{opened.name!r} was compressed in {record.run.dtype} and would be measured in "
            f"{type_name(opened)}; measure it in {record.run.dtype}, or give a label",
            subject=opened.name,
        )
    return record


def _cell(run: Run) -> Cell:
    """Return the cell that shows a run, with the labels that a study gives it."""
    method = MEASURED
    if run.method["spec"] != MEASURED:
        # As a study writes it: without the defaults that a form has.
        method = str(methods.build(written_form(run.method)))
        if run.allocation != canonical(Uniform()):
            method = f"{method} + {allocations.build(written_form(run.allocation))}"
    return Cell(
        model=run.model_name,
        data=run.data,
        method=method,
        target=run.target,
        seed=run.seed,
        run=run.id,
        propagate=run.propagate,
    )
