"""Where `evaluate(…, store=…)` puts what it measures: into a store, on the run that made the model,
so that it is compared as what a study measured.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibrant.allocations import allocations
from calibrant.allocations.uniform import Uniform
from calibrant.compress import Recipe
from calibrant.compress.costs import provenance
from calibrant.errors import DataError, InputError, OutputError, SpecError
from calibrant.evaluators._base import Evaluator
from calibrant.methods import methods
from calibrant.methods.pruning.none import Untouched
from calibrant.models import Opened, is_as_remembered, manifest_folder, origin_of
from calibrant.models.hashing import OF_TENSORS
from calibrant.models.reading import reading_digest
from calibrant.numerics import type_name
from calibrant.results import Cell, Record, Run, Store, is_store, measurement_id
from calibrant.results.outcomes import Measurement
from calibrant.results.records import DENSE, MEASURED, UNTOUCHED
from calibrant.spec import canonical, written_form
from calibrant.spec.foreign import brief
from calibrant.spec.registry import Registry
from calibrant.system.clock import Clock
from calibrant.system.durable import undoing
from calibrant.targets import Sparsity

LONGEST_LABEL: Final = 100
"""Letters of a label: it is the name of a row."""
REFERENCE: Final = "reference"
"""Where a measurement's provenance has the digest of the model that it was compared with."""
READING: Final = "reading"
"""Where it has the digest of how the model reads and ends text."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run in the store of a folder, by its record and the cell that shows it; `reading` is the
    digest of how its model reads and ends text, `dense` that of the model that it is compared with,
    if it is.
    """

    folder: str | Path
    cell: Cell
    record: Record
    reading: str
    dense: str = ""

    @classmethod
    @contextmanager
    def put(
        cls,
        folder: str | Path,
        label: str,
        opened: Opened,
        manifest: Mapping[str, Any] | None,
        dense_name: str,
        dense: Opened | None,
    ) -> Iterator["MeasuredRun"]:
        """Put the run that made `opened` into the store in `folder`. Where what is done within
        fails before anything is measured, a store that was made for it is removed.

        That is the run in its `manifest`. With a `label`, or where something else made the model
        from `dense_name`, it is one that is known by its name alone. Else it is the dense model's
        own. `dense` is the model that it is compared with.

        Raises `OutputError` for a folder that can't be one of results, and for a label that another
        model has; `SpecError` for a model that isn't opened in the type that it was compressed in,
        that was changed since, or that was made from another model than `dense`.
        """
        record = _record(label, opened, manifest, dense_name)
        if dense is not None and record.run.model not in (dense.digest, opened.digest):
            raise SpecError(
                f"{opened.name!r} wasn't made from {dense.name!r}, which it is compared with; "
                "leave the reference out, or give a label",
                subject=dense.name,
            )
        dense_digest = "" if dense is None else dense.digest
        known_as = record.run.model
        if record.run.method["spec"] == MEASURED:
            # The digest is the finished model's own. In tables it stands by what it was made from.
            known_as = dense_digest
        # Once, since it takes a second for a large vocabulary.
        reading = reading_digest(opened)
        cell = _cell(record.run)
        with _unmeasured_removed(Path(folder), cell.run):
            with Store(folder) as store:
                cell = replace(cell, model=_name_in(store, record.run.model_name, known_as))
                _check_origin(store, cell)
                # The cell comes first: a record without one would be taken for a study's.
                store.add_cell(cell)
                store.add_record(record)
            yield cls(folder, cell, record, reading, dense_digest)

    def once(self, task: Evaluator, measure: Callable[[], Measurement]) -> Measurement:
        """Return what the store has of `task` on this run, else what `measure` returns, which is
        stored at once.

        Raises `SpecError` where the store has a comparison with another dense model, or a
        measurement with another tokenizer.
        """
        form = canonical(task)
        digest = task.digest()
        run_id = self.cell.run
        measure_id = measurement_id(run_id, form, digest)
        # Another process may be at work on the same run.
        with Store(self.folder) as store, store.claim(run_id, wait=True):
            # Another process that failed may have removed a store with nothing measured in it.
            if not store.has_record(run_id):
                store.add_cell(self.cell)
                store.add_record(self.record)
            measurement = store.measurement(run_id, measure_id)
            if measurement is None:
                measurement = self._with_digests(task, measure())
                if task.digest() != digest:
                    raise DataError(
                        f"what {task} measures has changed meanwhile; run it again",
                        subject=str(task),
                    )
                store.add_measurement(run_id, form, measurement, digest)
            else:
                self._check_same(task, measurement)
            store.add_cell(replace(self.cell, measures={str(task): measure_id}))
        return measurement

    def _with_digests(self, task: Evaluator, measurement: Measurement) -> Measurement:
        """Return a measurement with what it depends on beside the run and the task."""
        digests = {READING: self.reading}
        if task.compares:
            digests[REFERENCE] = self.dense
        return replace(measurement, provenance={**measurement.provenance, **digests})

    def _check_same(self, task: Evaluator, measurement: Measurement) -> None:
        """Raise `SpecError` for a measurement of the store that depends on something else. What it
        doesn't say isn't looked at.
        """
        known = measurement.provenance
        if known.get(REFERENCE, self.dense) != self.dense:
            raise SpecError(
                f"{str(self.folder)!r} has {task} of this model, compared with another one; "
                "give the reference that was given then, or another label",
                subject=str(task),
            )
        if known.get(READING, self.reading) != self.reading:
            raise SpecError(
                f"{str(self.folder)!r} has {task} of this model, measured with another tokenizer, "
                "chat template or end of answers; give another label",
                subject=str(task),
            )


@contextmanager
def _unmeasured_removed(folder: Path, run_id: str) -> Iterator[None]:
    """Where what is done within fails, remove a store that wasn't there before and has this run
    alone, unmeasured, and the folders that were made for it.
    """
    is_new = not is_store(folder)
    with undoing(folder):
        try:
            yield
        except BaseException:
            if is_new:
                # What failed first is what is told.
                with suppress(DataError, OutputError), Store(folder) as store:
                    store.remove_unmeasured(run_id)
            raise


def _name_in(store: Store, name: str, digest: str) -> str:
    """Return what a store calls the dense model with this name and digest: the same folder has
    several names, and rows are compared by it. `digest` is empty where it isn't known.
    """
    index = store.index()
    untouched = [cell for cell in store.grid(index) if cell.method == UNTOUCHED]
    for cell in (*untouched, *index.measured):
        known = ""
        if cell.method != MEASURED and store.has_record(cell.run):
            known = store.run(cell.run).model
        if _is_one_folder(cell.model, name) or (known and known == digest):
            return cell.model
    return name


def _check_origin(store: Store, cell: Cell) -> None:
    """Raise `SpecError` for a run that the store knows as made from another model."""
    for known in store.index().measured:
        if known.run == cell.run and cell.model and known.model not in ("", cell.model):
            raise SpecError(
                f"{str(store.folder)!r} has this model as one made from {known.model!r}, and "
                f"{cell.model!r} was given; leave the reference out, or give another label",
                subject=cell.model,
            )


def _is_one_folder(name: str, other: str) -> bool:
    """Return whether two names are those of one folder, or file, that is there."""
    if not (name and other and Path(name).exists() and Path(other).exists()):
        return False
    return Path(name).samefile(other)


def check_label(label: str, store: str | Path | None) -> None:
    """Raise `SpecError` for a label that can't be the name of a row, or has no store to be in."""
    if label and store is None:
        raise SpecError(
            f"label {brief(label)} is the name of a model in a store, and there is none; "
            "give --store (in Python store=)",
            subject=label,
        )
    if label == DENSE:
        raise SpecError(
            f"reports call the untouched model {label!r}; give another label, or none to measure "
            "that model",
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
    if not label:
        if manifest is not None and _is_about(manifest, opened):
            return _own_record(opened, manifest)
        _check_as_loaded(opened)
        is_itself = dense_name == opened.name or _is_one_folder(dense_name, opened.name)
        if dense_name and not is_itself:
            label = opened.name
            check_label(label, "")
    if label:
        run = _finished(opened, label, dense_name)
    else:
        run = _untouched(opened)
    return Record(run, 0.0, provenance=provenance(opened, Clock()))


def _is_about(manifest: Mapping[str, Any], opened: Opened) -> bool:
    """Return whether a manifest is that of these very numbers."""
    origin = origin_of(opened)
    if origin is not None and origin.manifest is manifest:
        # Blocks on disk are as they were written.
        return opened.residence.on_disk or is_as_remembered(opened.model)
    # A model that was changed since it was loaded from a folder of ours has its manifest too.
    if opened.digest.startswith(OF_TENSORS):
        return False
    # So has an export in that folder, and may have other numbers.
    return manifest_folder(opened.name) == Path(opened.name)


def _check_as_loaded(opened: Opened) -> None:
    """Raise `SpecError` for a model that was changed since it was loaded or compressed."""
    origin = origin_of(opened)
    compressed = origin is not None and origin.manifest is not None
    if compressed or (opened.digest.startswith(OF_TENSORS) and opened.model.name_or_path):
        raise SpecError(
            f"{opened.name!r} isn't as it was loaded or compressed any more, and nothing says what "
            "was done to it; give a label",
            subject=opened.name,
        )


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
        dtype=type_name(opened.dtype),
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
    if record.run.dtype != type_name(opened.dtype):
        raise SpecError(
            f"{opened.name!r} was compressed in {record.run.dtype} and would be measured in "
            f"{type_name(opened.dtype)}; measure it in {record.run.dtype}, or give a label",
            subject=opened.name,
        )
    return record


def _cell(run: Run) -> Cell:
    """Return the cell that shows a run, with the labels that a study gives it."""
    method = MEASURED
    if run.method["spec"] != MEASURED:
        method = _text_of(run.method, methods)
        if run.allocation != canonical(Uniform()):
            method = f"{method} + {_text_of(run.allocation, allocations)}"
    return Cell(
        model=run.model_name,
        data=run.data,
        method=method,
        target=run.target,
        seed=run.seed,
        run=run.id,
        propagate=run.propagate,
    )


def _text_of(form: Mapping[str, Any], registry: Registry) -> str:
    """Return a form as a study writes it, without defaults; with all parameters where its class
    isn't here, or refuses today what it took when the model was made.
    """
    whole = written_form(form)
    try:
        return str(registry.build(whole))
    except InputError:
        return whole
