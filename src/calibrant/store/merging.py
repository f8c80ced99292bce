"""Uniting stores, such as those of two machines that shared a study. What is already there stays; what is merged from is only read."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibrant.durable import text_of_json
from calibrant.errors import DataError, OutputError
from calibrant.progress import Progress, silent
from calibrant.store.folder import INDEX, Store
from calibrant.store.reading import ITEMS, PROVENANCE, RECORD, SCORE, SUMS, WEIGHTS, ResultFiles
from calibrant.store.records import Cell
from calibrant.store.verifying import AGAIN, StoreProblem, present, problems_of_measurement, problems_of_run

RESULTS: Final = ("sparsity", "weights", "dense")
"""The fields of a record that are its result; the rest is the request, in words that may differ from machine to machine."""
UNCHANGED: Final = "what this store holds was kept; to take the other, delete it here and merge again"
UNUSABLE: Final = "it was not copied; restore it from a copy, or have it computed again"


@dataclass(frozen=True)
class Merged:
    """What was copied into a store, how much of it was there already (`kept`), and what could not be united."""

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

    Where two hold the same run or measurement with other results, the one that is there stays, and a problem says so; what is damaged isn't
    copied, and a problem says so too. The grids are united; the study is that of `into`, or else of the first source that knows one. Failures
    of what is there by then are dropped. Interrupted, it can be run again.

    Raises `DataError` for a store whose index or failures can't be read, and `OutputError` for a folder that is no store, that can't be written
    to, or that is to be merged into itself, and for a full disk.
    """
    stores = [Store(source, create=False) for source in sources]
    for store in stores:
        if Path(into).exists() and store.folder.samefile(into):
            raise OutputError(f"{str(into)!r} can't be merged into itself; name another store", subject=str(into))
        # A store whose own files can't be read is refused before one is made to take it.
        store.cells()
        store.study()
        store.failures()
    with Store(into) as target:
        # The index comes first: what an interrupted merge has copied by then isn't mistaken for a grid of this store's own.
        _unite_grids(target, stores)
        work = _Merging(target)
        for store in stores:
            work.take(store, progress)
        _unite_failures(target, stores)
        return Merged(str(target.folder), work.runs, work.measurements, work.kept, tuple(work.problems))


class _Merging:
    """Copies what a store lacks, and counts."""

    def __init__(self, target: Store) -> None:
        self._target = target
        self.runs = self.measurements = self.kept = 0
        self.problems: list[StoreProblem] = []

    def take(self, source: Store, progress: Progress) -> None:
        """Copy everything that one store has and the target lacks."""
        ids = source.ids()
        for number, run_id in enumerate(ids):
            progress(f"merging {source.folder}", number, len(ids))
            self._take_run(source, run_id)
        progress(f"merging {source.folder}", len(ids), len(ids))

    def _take_run(self, source: Store, run_id: str) -> None:
        run = source.files(run_id)
        if not self._is_whole(problems_of_run(run, run_id)):
            return
        measures = {i: source.files(run_id, i) for i in sorted(source.measured(run_id))}
        usable = {i: files for i, files in measures.items() if self._is_whole(problems_of_measurement(files, run_id, i))}
        if not self._target.has_record(run_id):
            self._target.adopt(run, run_id, usable)
            self.runs += 1
            self.measurements += len(usable)
            return
        self._keep(self._target.files(run_id), run)
        present = self._target.measured(run_id)
        for measure_id, files in usable.items():
            if measure_id in present:
                self._keep(self._target.files(run_id, measure_id), files)
            else:
                self._target.adopt_measurement(files, run_id, measure_id)
                self.measurements += 1

    def _keep(self, ours: ResultFiles, theirs: ResultFiles) -> None:
        self.kept += 1
        try:
            both = set(ours.names()) & set(theirs.names()) - {SUMS, PROVENANCE}
            # The file that says most comes first.
            ordered = sorted(both, key=lambda name: (not name.endswith(".json"), name))
            what = next(filter(None, (_difference(ours, theirs, name) for name in ordered)), None)
        except DataError as error:
            self.problems.append(StoreProblem(error.subject, str(error).partition("; restore it")[0], AGAIN))
        else:
            self.problems += [StoreProblem(str(theirs.where(RECORD if theirs.has(RECORD) else SCORE).parent), what, UNCHANGED)] if what else []

    def _is_whole(self, problems: Iterable[StoreProblem]) -> bool:
        unusable = [replace(problem, remedy=UNUSABLE) for problem in problems]
        self.problems += unusable
        return not unusable


def _difference(ours: ResultFiles, theirs: ResultFiles, name: str) -> str | None:
    """Return how the results in two files differ; None if they don't."""
    if ours.content(name) == theirs.content(name):
        return None
    if name == ITEMS:  # written by another version, the same items are other bytes
        return None if repr(ours.outcomes()) == repr(theirs.outcomes()) else "the same measurement with other items"
    if name == SCORE:
        mine, other = ours.json(SCORE)["score"], theirs.json(SCORE)["score"]
        same = text_of_json(mine) == text_of_json(other)
        return None if same else f"the same measurement with another score: {other['value']!r} there, {mine['value']!r} here"
    if name == RECORD:
        mine, other = ours.record(), theirs.record()
        differing = [part for part in RESULTS if text_of_json(mine[part]) != text_of_json(other[part])]
        return f"the same run with other results: {', '.join(differing)}" if differing else None
    if name == WEIGHTS:  # another zlib packs the same in other bytes
        return None if text_of_json(ours.json(WEIGHTS)) == text_of_json(theirs.json(WEIGHTS)) else "the same run with other results: weights"
    return f"the same run with another {name}"


def _unite_grids(target: Store, sources: Sequence[Store]) -> None:
    stores = [target, *sources]
    if not any((store.folder / INDEX).exists() for store in stores):
        return
    study = next((parts for parts in (store.study() for store in stores) if parts), None)
    revisions: dict[str, int] = {}
    for name, revision in (item for store in stores for item in store.revisions().items()):
        revisions[name] = max(revision, revisions.get(name, revision))
    sets = {text: of for store in reversed(stores) for text, of in store.sets().items()}
    target.write_cells(united([store.cells() for store in stores]), study, revisions or None, sets.values())


def united(grids: Iterable[Iterable[Cell]]) -> list[Cell]:
    """Return the cells of all grids in the order of their labels' first appearance: one for each labels and run.

    A cell without a run is left out where another with its labels has one.
    """
    cells_by_run: dict[tuple[Any, ...], Cell] = {}
    order: dict[tuple[Any, ...], int] = {}
    for cell in (cell for cells in grids for cell in cells):
        order.setdefault(cell.labels, len(order))
        first = cells_by_run.get(same := (*cell.labels[:-1], cell.run or cell.propagate), cell)
        measures = {**first.measures, **cell.measures, **first.measures}
        cells_by_run[same] = replace(first, measures=measures, propagate=first.propagate or cell.propagate)
    answered = {labels for cell in cells_by_run.values() if cell.run for labels in (cell.labels, (*cell.labels[:-1], ""))}
    return sorted((cell for cell in cells_by_run.values() if cell.run or cell.labels not in answered), key=lambda cell: order[cell.labels])


def _unite_failures(target: Store, sources: Sequence[Store]) -> None:
    finished, cells = present(target), target.cells()
    named = {name for cell in cells for name in (cell.run, *cell.measures.values())}
    answered = {cell.labels[:-1] for cell in cells if cell.run in finished}
    failures = target.failures()
    for failed_id, what in ((i, what) for store in (target, *sources) for i, what in store.failures().items()):
        # What failed before its run was known has an id of its own, and is known by its labels.
        if failed_id in finished or (failed_id not in named and tuple(what.get("cell", ()))[:5] in answered):
            target.clear_failure(failed_id)
        elif failed_id not in failures:
            target.add_failure(failed_id, what)
