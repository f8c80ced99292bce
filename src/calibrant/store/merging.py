"""Uniting stores, such as those of two machines that shared a study. What is already there stays; what is merged from is only read."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibrant.durable import read_json, read_packed, text_of_json
from calibrant.errors import DataError, OutputError
from calibrant.outcomes import read_items
from calibrant.progress import Progress, silent
from calibrant.store.folder import INDEX, Store
from calibrant.store.reading import read_record
from calibrant.store.records import Cell
from calibrant.store.staging import PROVENANCE, SUMS, WEIGHTS
from calibrant.store.verifying import AGAIN, Problem, present, problems_of_measurement, problems_of_run

RESULTS: Final = ("sparsity", "weights", "dense")
"""What of a record came out; the rest is what was asked, in words that may differ from machine to machine."""
KEPT: Final = "what this store holds was kept; to take the other, delete it here and merge again"
UNUSABLE: Final = "it was not copied; restore it from a copy, or have it computed again"


@dataclass(frozen=True)
class Merged:
    """What was copied into a store, how much of it was there already (`kept`), and what could not be united."""

    folder: str
    runs: int
    measurements: int
    kept: int
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


def merge(into: str | Path, sources: Sequence[str | Path], progress: Progress = silent) -> Merged:
    """Copy into a store, which is made if it isn't there, what it lacks of the others.

    Where two hold the same run or measurement with other results, the one that is there stays, and a problem says so; what is damaged isn't
    copied, and a problem says so too. The grids are united; the study is that of `into`, or else of the first source that knows one. Failures
    of what is there by then are dropped. Interrupted, it can be asked again.

    Raises `DataError` for a store whose index or failures can't be read, and `OutputError` for a folder that is no store, that can't be written
    to, or that is to be merged into itself, and for a full disk.
    """
    given = [Store(source, create=False) for source in sources]
    for store in given:
        if Path(into).exists() and store.folder.samefile(into):
            raise OutputError(f"{str(into)!r} can't be merged into itself; name another store", subject=str(into))
        # A store whose own files can't be read is refused before one is made to take it.
        store.cells()
        store.study()
        store.failures()
    with Store(into) as target:
        # The index comes first: what an interrupted merge has copied by then isn't mistaken for a grid of this store's own.
        _unite_grids(target, given)
        work = _Merging(target)
        for store in given:
            work.take(store, progress)
        _unite_failures(target, given)
        return Merged(str(target.folder), work.runs, work.measurements, work.kept, tuple(work.problems))


class _Merging:
    """Copies what a store lacks, and counts."""

    def __init__(self, target: Store) -> None:
        self._target = target
        self.runs = self.measurements = self.kept = 0
        self.problems: list[Problem] = []

    def take(self, source: Store, progress: Progress) -> None:
        """Everything of one store."""
        ids = source.ids()
        for number, run_id in enumerate(ids):
            progress(f"merging {source.folder}", number, len(ids))
            self._take_run(source, run_id)
        progress(f"merging {source.folder}", len(ids), len(ids))

    def _take_run(self, source: Store, run_id: str) -> None:
        found = source.run_folder(run_id)
        if not self._is_whole(problems_of_run(found)):
            return
        measures = {i: source.measure_folder(run_id, i) for i in sorted(source.measured(run_id))}
        usable = {i: folder for i, folder in measures.items() if self._is_whole(problems_of_measurement(folder))}
        if not self._target.has_record(run_id):
            self._target.adopt(found, run_id, without=[folder.name for i, folder in measures.items() if i not in usable])
            self.runs += 1
            self.measurements += len(usable)
            return
        self._keep(self._target.run_folder(run_id), found)
        here = self._target.measured(run_id)
        for measure_id, folder in usable.items():
            if measure_id in here:
                self._keep(self._target.measure_folder(run_id, measure_id), folder)
            else:
                self._target.adopt(folder, run_id, measure_id)
                self.measurements += 1

    def _keep(self, ours: Path, theirs: Path) -> None:
        self.kept += 1
        try:
            told = next(filter(None, (_difference(ours / name, theirs / name) for name in _files(ours, theirs))), None)
        except DataError as error:
            self.problems.append(Problem(error.subject, str(error).partition("; restore it")[0], AGAIN))
        else:
            self.problems += [Problem(str(theirs), told, KEPT)] if told else []

    def _is_whole(self, problems: Iterable[Problem]) -> bool:
        found = [replace(problem, remedy=UNUSABLE) for problem in problems]
        self.problems += found
        return not found


def _files(ours: Path, theirs: Path) -> list[str]:
    """The files that both folders have, the one that says most first."""
    here, there = ({p.name for p in folder.iterdir() if p.is_file() and p.name not in (SUMS, PROVENANCE)} for folder in (ours, theirs))
    return sorted(here & there, key=lambda name: (not name.endswith(".json"), name))


def _difference(ours: Path, theirs: Path) -> str | None:
    """How the results in two files differ; None if they don't."""
    if ours.read_bytes() == theirs.read_bytes():
        return None
    if ours.name == "items.parquet":  # written by another version, the same items are other bytes
        return None if repr(read_items(ours)) == repr(read_items(theirs)) else "the same measurement with other items"
    if ours.name == "score.json":
        here, there = read_json(ours)["score"], read_json(theirs)["score"]
        same = text_of_json(here) == text_of_json(there)
        return None if same else f"the same measurement with another score: {there['value']!r} there, {here['value']!r} here"
    if ours.name == "record.json":
        here, there = read_record(ours.parent), read_record(theirs.parent)
        other = [name for name in RESULTS if text_of_json(here[name]) != text_of_json(there[name])]
        return f"the same run with other results: {', '.join(other)}" if other else None
    if ours.name == WEIGHTS:  # another zlib packs the same in other bytes
        return None if text_of_json(read_packed(ours)) == text_of_json(read_packed(theirs)) else "the same run with other results: weights"
    return f"the same run with another {ours.name}"


def _unite_grids(target: Store, given: Sequence[Store]) -> None:
    stores = [target, *given]
    if not any((store.folder / INDEX).exists() for store in stores):
        return
    study = next((found for found in (store.study() for store in stores) if found), None)
    revisions: dict[str, int] = {}
    for name, revision in (item for store in stores for item in store.revisions().items()):
        revisions[name] = max(revision, revisions.get(name, revision))
    sets = {text: of for store in reversed(stores) for text, of in store.sets().items()}
    target.write_cells(united([store.cells() for store in stores]), study, revisions or None, sets.values())


def united(grids: Iterable[Iterable[Cell]]) -> list[Cell]:
    """The cells of all grids in the order of their labels' first appearance: one for each labels and run, and none without a run that has one."""
    found: dict[tuple[Any, ...], Cell] = {}
    order: dict[tuple[Any, ...], int] = {}
    for cell in (cell for cells in grids for cell in cells):
        order.setdefault(cell.labels, len(order))
        kept = found.get(same := (*cell.labels[:-1], cell.run or cell.propagate), cell)
        measures = {**kept.measures, **cell.measures, **kept.measures}
        found[same] = replace(kept, measures=measures, propagate=kept.propagate or cell.propagate)
    answered = {labels for cell in found.values() if cell.run for labels in (cell.labels, (*cell.labels[:-1], ""))}
    return sorted((cell for cell in found.values() if cell.run or cell.labels not in answered), key=lambda cell: order[cell.labels])


def _unite_failures(target: Store, given: Sequence[Store]) -> None:
    here, cells = present(target), target.cells()
    named = {name for cell in cells for name in (cell.run, *cell.measures.values())}
    answered = {cell.labels[:-1] for cell in cells if cell.run in here}
    kept = target.failures()
    for failed_id, what in ((i, what) for store in (target, *given) for i, what in store.failures().items()):
        # What failed before its run could be told has an id of its own, and is known by its labels.
        if failed_id in here or (failed_id not in named and tuple(what.get("cell", ()))[:5] in answered):
            target.clear_failure(failed_id)
        elif failed_id not in kept:
            target.add_failure(failed_id, what)
