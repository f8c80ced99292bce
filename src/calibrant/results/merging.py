"""Uniting stores, such as those of two machines that shared a study. What is already there stays;
what is merged from is only read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from calibrant.errors import DataError, OutputError
from calibrant.results.database import without_advice
from calibrant.results.items import same_items
from calibrant.results.records import Cell, differences
from calibrant.results.store import Store, TakenLabelError
from calibrant.results.stored import StoredResults
from calibrant.results.verifying import (
    AGAIN,
    StoreProblem,
    cell_in_words,
    ids_of_results,
    problems_of_measurement,
    problems_of_run,
)
from calibrant.spec.grammar import SetLabel
from calibrant.system.progress import Progress, silent

PARTS: Final = ("sparsity", "dense", "edits", "weights")
"""The parts of a run that are its result. The others are the request, which the id stands for, and
what may differ from machine to machine."""
UNCHANGED: Final = "what this store holds was kept; to take the other, merge the other way round"
BOTH: Final = "both stay, reports count the first; to count the other, merge the other way round"
UNUSABLE: Final = "it was not copied; restore it from a copy, or have it computed again"


@dataclass(frozen=True)
class Merged:
    """What was copied into a store, how much of it was there already (`kept`), and what could not
    be united."""

    folder: str
    runs: int
    measurements: int
    kept: int
    problems: tuple[StoreProblem, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)


def merge(into: str | Path, sources: Sequence[str | Path], progress: Progress = silent) -> Merged:
    """Copy into a store, which is made if it isn't there, what it lacks of the others.

    Where two hold the same run or measurement with other results, the one that is there stays, and
    a problem says so; what is damaged isn't copied, and a problem says so too. Where two hold runs
    of one cell that differ, such as in their type, both are kept, and a problem says which cell.
    The grids are united; the study is that of `into`, or else of the first source that knows one.
    Failures of what is there by then are dropped. Interrupted, it can be run again.

    Raises `DataError` for a store whose index can't be read, and `OutputError` for a folder that is
    no store, that can't be written to, at which a study is at work, or that is to be merged into
    itself, and for a full disk.
    """
    with ExitStack() as opened:
        stores = [opened.enter_context(Store(source, create=False)) for source in sources]
        return _merged(Path(into), stores, progress)


def _merged(into: Path, stores: Sequence[Store], progress: Progress) -> Merged:
    for store in stores:
        if into.exists() and store.folder.samefile(into):
            message = f"{str(into)!r} can't be merged into itself; name another store"
            raise OutputError(message, subject=str(into))
        # A store whose own documents can't be read is refused before one is made to take it.
        store.index()
        store.failures()
    with Store(into) as target:
        if target.at_work():
            # It writes the grid that it knows when it ends, and that of the others would be lost.
            raise OutputError(
                f"a study is at work in {str(into)!r}; wait until it is done, or merge it and the "
                "others into a new folder",
                subject=str(into),
            )
        # The grid comes first: what an interrupted merge has copied by then isn't mistaken for one
        # of this store's own.
        _unite_grids(target, stores)
        work = _Merging(target)
        work.problems += _unite_measured(target, stores)
        for store in stores:
            work.take(store, progress)
        work.problems += _cells_of_two_runs(target)
        _unite_failures(target, stores)
    return Merged(str(into), work.runs, work.measurements, work.kept, tuple(work.problems))


class _Merging:
    """Copies what a store lacks, and counts."""

    def __init__(self, target: Store) -> None:
        self._target = target
        self.runs = self.measurements = self.kept = 0
        self.problems: list[StoreProblem] = []

    def take(self, source: Store, progress: Progress) -> None:
        """Copy everything that one store has and the target lacks."""
        ids = source.ids()
        for number, run in enumerate(ids):
            progress(f"merging {source.folder}", number, len(ids))
            self._take_run(source, run)
        progress(f"merging {source.folder}", len(ids), len(ids))

    def _take_run(self, source: Store, run: str) -> None:
        results = source.results(run)
        whole = self._is_whole(problems_of_run(results, run))
        if self._target.has_record(run):
            if whole:
                self._keep(results, run, "")
        elif whole:
            self._target.adopt(results.run_row(run))
            self.runs += 1
        else:
            return  # what was measured on it would have no run
        there = self._target.measured(run)
        for measurement in sorted(source.measured(run)):
            results = source.results(run, measurement)
            if not self._is_whole(problems_of_measurement(results, run, measurement)):
                continue
            if measurement in there:
                self._keep(results, run, measurement)
            else:
                self._target.adopt_measurement(results.measurement_row(run, measurement))
                self.measurements += 1

    def _keep(self, theirs: StoredResults, run: str, measurement: str) -> None:
        self.kept += 1
        ours = self._target.results(run, measurement)
        try:
            # Ours may be damaged, of which only reading tells.
            difference = _difference(ours, theirs, run, measurement)
        except DataError as error:
            damage = without_advice(error)
            self.problems.append(StoreProblem(error.subject, damage, AGAIN, run, measurement))
            return
        if difference:
            where = theirs.where(run, measurement)
            self.problems.append(StoreProblem(where, difference, UNCHANGED))

    def _is_whole(self, problems: Iterable[StoreProblem]) -> bool:
        unusable = [replace(problem, remedy=UNUSABLE) for problem in problems]
        self.problems += unusable
        return not unusable


def _difference(ours: StoredResults, theirs: StoredResults, run: str, measurement: str) -> str:
    """How the same result differs in two stores; empty if it doesn't."""
    here = ours.parts(run, measurement)
    there = theirs.parts(run, measurement)
    if measurement:
        if here["score"] != there["score"]:
            value = ours.score(run, measurement)["score"]["value"]
            other = theirs.score(run, measurement)["score"]["value"]
            return f"the same measurement with another score: {other!r} there, {value!r} here"
        if here.get("beside") != there.get("beside"):
            return "the same measurement with other scores beside it"
        if not same_items(ours.items(run, measurement), theirs.items(run, measurement)):
            return "the same measurement with other items"
        return ""
    if _is_bare(here) or _is_bare(there):
        return ""
    differing = [part for part in PARTS if here.get(part) != there.get(part)]
    if differing:
        return f"the same run with other results: {', '.join(differing)}"
    files = ours.digests(run).keys() & theirs.digests(run).keys()
    for name in sorted(files):
        if here[name] != there[name]:
            return f"the same run with another {name}"
    return ""


def _is_bare(parts: Mapping[str, str]) -> bool:
    """Return whether a record says no more than its request, as that of a model that was only
    measured.
    """
    empty = parts["weights"] == "[]" and parts.get("dense") == "[]"
    return empty and "edits" not in parts


def _unite_grids(target: Store, sources: Sequence[Store]) -> None:
    stores = [target, *sources]
    indices = [store.index() for store in stores]
    if not any(index.cells for index in indices):
        return
    study = next((index.study for index in indices if index.study), None)
    revisions = dict[str, int]()
    for index in indices:
        for name, revision in index.revisions.items():
            revisions[name] = max(revision, revisions.get(name, revision))
    sets: dict[str, SetLabel] = {}
    for index in reversed(indices):  # so that the first that knows a set says what it is called
        sets |= index.labels()
    cells = united([store.grid() for store in stores])
    target.write_cells(cells, study, revisions, sets.values())


def _unite_measured(target: Store, sources: Sequence[Store]) -> list[StoreProblem]:
    """Take over what was measured without a study, and return what has a name that is taken."""
    problems: list[StoreProblem] = []
    for store in sources:
        for cell in store.index().measured:
            try:
                target.add_cell(cell)
            except TakenLabelError as error:
                problems.append(StoreProblem(str(store.folder), str(error), UNCHANGED))
    return problems


def _cells_of_two_runs(target: Store) -> Iterator[StoreProblem]:
    """Yield which cells have another run beside the one that came first, as far as both are there:
    they are no two draws.
    """
    index = target.index()
    first_runs: dict[tuple[Any, ...], str] = {}
    for cell in (*index.cells, *index.measured):
        if not cell.run or not target.has_record(cell.run):
            continue
        first = first_runs.setdefault(cell.labels, cell.run)
        if first == cell.run:
            continue
        what = f"{cell_in_words(cell)} has another run, {cell.run}"
        with suppress(DataError):  # a damaged run, which was named
            differs = ", ".join(differences(target.run(first), target.run(cell.run)))
            what += f", which differs from {first} in its {differs}"
        yield StoreProblem("the grid", what, BOTH)


def united(grids: Iterable[Iterable[Cell]]) -> list[Cell]:
    """Return the cells of all grids in the order of their labels' first appearance: one for each
    labels and run.

    A cell without a run is left out where another with its labels has one.
    """
    by_run: dict[tuple[Any, ...], Cell] = {}
    order: dict[tuple[Any, ...], int] = {}
    for cell in chain.from_iterable(grids):
        order.setdefault(cell.labels, len(order))
        # A run's id covers its propagation, which cells of older stores don't say.
        key = *cell.labels[:-1], cell.run or cell.propagate
        first = by_run.setdefault(key, cell)
        # The first grid's ids count, and they come first; the second time they replace later ones.
        measures = {**first.measures, **cell.measures, **first.measures}
        propagate = first.propagate or cell.propagate
        by_run[key] = replace(first, measures=measures, propagate=propagate)
    answered: set[tuple[Any, ...]] = set()
    for cell in by_run.values():
        if cell.run:
            # In older stores a cell didn't say its propagation.
            answered |= {cell.labels, (*cell.labels[:-1], "")}
    kept: list[tuple[int, Cell]] = []
    for cell in by_run.values():
        if cell.run or cell.labels not in answered:
            kept.append((order[cell.labels], cell))
    kept.sort(key=itemgetter(0))
    return [cell for _, cell in kept]


def _unite_failures(target: Store, sources: Sequence[Store]) -> None:
    finished = ids_of_results(target)
    named: set[str] = set()
    answered: set[tuple[Any, ...]] = set()
    for cell in target.cells():
        named |= {cell.run, *cell.measures.values()}
        if cell.run in finished:
            # Older failures name their cell without the propagation.
            answered |= {cell.labels, cell.labels[:-1]}
    failures = target.failures()
    for store in (target, *sources):
        for failed_id, what in store.failures().items():
            # What failed before its run was known has an id of its own, and is known by its labels.
            cell_answered = tuple(what.get("cell", ())) in answered
            if failed_id in finished or (failed_id not in named and cell_answered):
                target.clear_failure(failed_id)
            elif failed_id not in failures:
                target.add_failure(failed_id, what)
