"""Verifying a store: every hash is derived again from what is stored."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibrant.errors import DataError
from calibrant.results.database import HALF_SUFFIX, without_advice
from calibrant.results.items import outcomes_of
from calibrant.results.keeping import contradictions
from calibrant.results.live import DATABASE
from calibrant.results.published import MOVING, PublishedResults
from calibrant.results.records import Cell, Record, ScoreEntry, measurement_id, read_provenance
from calibrant.results.store import STATISTICS, Store, statistics_purpose
from calibrant.results.stored import StoredResults, understood
from calibrant.system.durable import UNFINISHED
from calibrant.system.progress import Progress, silent
from calibrant.system.seals import NoSealError

AGAIN: Final = "restore it from a copy, or remove it with --drop and ask for the study again"
LEFTOVER: Final = "harmless; delete it, or leave it to the study"
DAMAGED: Final = {
    "failure": "it counts as none; remove it with --drop, or leave it to the study",
    "cell": "restore it from a copy, or remove it with --drop and measure the model again",
}
"""What to do about what can't be read beside the grid, by its kind."""
STATISTIC: Final = "harmless; the study makes it again"
FILE: Final = "delete it; the run is compressed again where its model is needed"
"""What to do about a damaged file of a published run, of which `--drop` removes nothing."""


@dataclass(frozen=True)
class StoreProblem:
    """Something in a store that isn't as it should be: `where` in the store; `what` is wrong; and
    the `remedy`. `run` and `measurement` are the ids of a result that is damaged."""

    where: str
    what: str
    remedy: str
    run: str = ""
    measurement: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass(frozen=True)
class Audit:
    """A store counted and checked. `dropped` counts what was damaged and is removed."""

    folder: str
    runs: int
    measurements: int
    problems: tuple[StoreProblem, ...]
    dropped: int = 0

    @property
    def whole(self) -> bool:
        """Whether every hash agrees and nothing is missing."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {**asdict(self), "whole": self.whole}


def verify(folder: str | Path) -> list[StoreProblem]:
    """Return what is wrong in a store; empty if it is whole. Nothing is changed. Raises
    `OutputError` for a folder that is no store."""
    return list(audit(folder).problems)


def audit(folder: str | Path, progress: Progress = silent, drop: bool = False) -> Audit:
    """Check a store, and count. Reads everything in it.

    With `drop`, damaged results are removed from its database, so that the same study computes them
    again, and so are damaged failures and damaged cells of what was measured without a study.
    Raises `OutputError` for a folder that is no store, and `DataError` for a database that can't be
    read at all.
    """
    with Store(folder, create=False) as store:
        runs: list[str] = []
        problems: list[StoreProblem] = []
        documents: list[StoreProblem] = []
        for path, what in store.damaged_files():
            problems.append(StoreProblem(str(path), what, "restore it from a copy"))
        if not problems:  # what is in damaged tables says nothing
            runs = store.ids()
            problems += _of_results(store, progress)
            documents = list(_of_documents(store))
            problems += documents
            problems += _of_the_index(store)
            problems += _of_failures(store)
            problems += _leftovers(store)
        problems += _of_statistics(store)
        problems += _unfinished(store)
        found: list[StoreProblem] = []
        for problem in problems:
            where = Path(problem.where)
            if where.is_relative_to(store.folder):
                where = where.relative_to(store.folder)
            found.append(replace(problem, where=str(where)))
        measurements = sum(len(store.measured(run)) for run in runs)
    dropped = 0
    if drop:
        dropped = _dropped(folder, found, documents)
    return Audit(str(folder), len(runs), measurements, tuple(found), dropped)


def _dropped(
    folder: str | Path, problems: Sequence[StoreProblem], documents: Sequence[StoreProblem]
) -> int:
    """Remove the results and the documents that are damaged, and return how many."""
    damaged = {(problem.run, problem.measurement) for problem in problems if problem.run}
    nothing = not damaged and not documents
    if nothing or not (Path(folder) / DATABASE).exists():
        return 0  # what is published stays
    with Store(folder) as store:
        removed = sum(store.remove(*result) for result in sorted(damaged))
        return removed + store.remove_damaged_documents()


def _of_results(store: Store, progress: Progress) -> Iterator[StoreProblem]:
    runs = store.ids()
    for number, run in enumerate(runs):
        progress("verifying", number, len(runs))
        # A damaged run doesn't hide what is wrong with its measurements.
        yield from problems_of_run(store.results(run), run)
        for measurement in sorted(store.measured(run)):
            results = store.results(run, measurement)
            yield from problems_of_measurement(results, run, measurement)
    for run, measurement in store.measurements_without_run():
        where = str(store.folder / measurement.rpartition(":")[2])
        yield StoreProblem(where, "a measurement without a record", AGAIN, run, measurement)
    progress("verifying", len(runs), len(runs))


def problems_of_run(results: StoredResults, run: str) -> Iterator[StoreProblem]:
    """Yield what is wrong with a run, what was measured on it left aside."""
    where = results.where(run)
    try:
        with understood(where):
            fields = {**results.record(run), "weights": results.weights(run)}
            record = Record.read({**fields, "provenance": results.provenance(run)})
            stated = str(fields["id"])
        if not stated == record.run.id == run:
            yield StoreProblem(where, _other_id(run, stated, record.run.id), AGAIN, run)
    except DataError as error:
        yield _damaged(error, run)
    try:
        for name in results.digests(run):
            results.file(run, name)
    except DataError as error:
        problem = _damaged(error, run)
        if isinstance(results, PublishedResults):
            problem = replace(problem, remedy=FILE)
        yield problem


def problems_of_measurement(
    results: StoredResults, run: str, measurement: str
) -> Iterator[StoreProblem]:
    """Yield what is wrong with a measurement."""
    where = results.where(run, measurement)
    try:
        with understood(where):
            entry = ScoreEntry.read(results.score(run, measurement))
            derived = measurement_id(run, entry.evaluator, entry.data)
        found: list[str] = []
        if not entry.id == derived == measurement:
            found.append(_other_id(measurement, entry.id, derived))
        if entry.run != run:
            found.append(f"measured on {entry.run}, and kept with another run")
        items = results.items(run, measurement)
        with understood(where):
            read_provenance(results.provenance(run, measurement))
            found += contradictions(entry.score, outcomes_of(items))
        for what in found:
            yield StoreProblem(where, what, AGAIN, run, measurement)
    except DataError as error:
        yield _damaged(error, run, measurement)


def _other_id(place: str, stated: str, derived: str) -> str:
    return f"is kept as {place}, says that it is {stated}, and what was asked has {derived}"


def _of_documents(store: Store) -> Iterator[StoreProblem]:
    """Yield the failures and the cells beside the grid that can't be read."""
    for kind, error in store.damaged_documents():
        yield replace(_damaged(error), remedy=DAMAGED[kind])


def _of_the_index(store: Store) -> Iterator[StoreProblem]:
    again = "ask for the study or the measurement again to have it computed"
    try:
        index = store.index()
    except DataError as error:
        # A damaged cell, which `_of_documents` names, keeps the index from being read too.
        if error.subject not in {damage.subject for _, damage in store.damaged_documents()}:
            remedy = "restore it from a copy, or ask for the study again"
            yield replace(_damaged(error), remedy=remedy)
        return
    try:
        failed = store.failures().keys()
    except DataError:
        return  # `_of_failures` names it
    for cell in (*index.cells, *index.measured):
        if not cell.run or cell.run in failed:
            continue
        missing: list[str] = []
        if store.has_record(cell.run):
            there = store.measured(cell.run) | failed
            for evaluator, measurement in cell.measures.items():
                if measurement not in there:
                    missing.append(f"{evaluator} {measurement}")
        else:
            missing.append(f"run {cell.run}")
        for name in missing:
            what = f"{cell_in_words(cell)} points to {name}, which isn't there"
            yield StoreProblem("the grid", what, again)


def cell_in_words(cell: Cell) -> str:
    """Return what a message calls a cell of the grid."""
    words = " ".join(filter(None, (cell.method, cell.target, cell.propagate)))
    data = f" on {cell.data}, draw {cell.seed}" if cell.data else ""
    return f"the cell {words}{data} of {cell.model}"


def _of_failures(store: Store) -> Iterator[StoreProblem]:
    try:
        failures = store.failures()
    except DataError as error:  # those that are published
        yield replace(_damaged(error), remedy="restore it from a copy")
        return
    there = ids_of_results(store) if failures else set[str]()
    for failed_id in failures:
        if failed_id in there:
            where = f"failure {failed_id}"
            yield StoreProblem(where, "a failure of something that is there", LEFTOVER)


def _of_statistics(store: Store) -> Iterator[StoreProblem]:
    """Yield the files of statistics of the dense model that aren't what was written."""
    folder_of_all = store.folder / STATISTICS
    # A writer that is alive may be at one of them, which does no harm either.
    for path in sorted(folder_of_all.glob(f"*/*/{UNFINISHED}*")):
        yield StoreProblem(str(path), "is half written", LEFTOVER)
    paths = sorted(folder_of_all.glob("*/*/[!.]*.safetensors"))
    if not paths:
        return
    from calibrant.system import sealed_tensors  # which needs torch, as reading results doesn't

    for path in paths:
        name, folder, _ = path.parts[-3:]
        try:
            block = int(path.stem.rpartition("-")[2])
            sealed_tensors.read(path, statistics_purpose(name, folder, block))
        except (FileNotFoundError, NoSealError):
            continue  # a study that is at work deletes what it no longer needs
        except ValueError:
            yield StoreProblem(str(path), "isn't what was written there", STATISTIC)
        except OSError as error:
            yield StoreProblem(str(path), f"can't be read ({error.strerror})", STATISTIC)


def _leftovers(store: Store) -> Iterator[StoreProblem]:
    """Yield what killed writers left, which nothing points to."""
    needed = set[str]()
    for run in store.ids():
        try:
            needed.update(store.results(run).digests(run).values())
        except DataError:
            return  # a damaged run, which was named, may need any of them
    for name in store.blobs.listed():
        if name not in needed:
            path = store.blobs.folder / name
            yield StoreProblem(str(path), "belongs to no run", LEFTOVER)


def _unfinished(store: Store) -> Iterator[StoreProblem]:
    """Yield what killed writers had begun."""
    for path in sorted(store.folder.glob(f"{DATABASE}{HALF_SUFFIX}*")):
        yield StoreProblem(str(path), "left by a process that was killed", LEFTOVER)
    for name in (MOVING, f"{UNFINISHED}-tables"):
        if (store.folder / name).exists():
            what = "left by a pack that was killed"
            yield StoreProblem(str(store.folder / name), what, "harmless; pack it again")


def ids_of_results(store: Store) -> set[str]:
    """Return the ids of all runs and measurements in the store."""
    ids = set(store.ids())
    for run in list(ids):
        ids |= store.measured(run)
    return ids


def _damaged(error: DataError, run: str = "", measurement: str = "") -> StoreProblem:
    return StoreProblem(error.subject, without_advice(error), AGAIN, run, measurement)
