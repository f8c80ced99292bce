"""Whether a store is what it says: every hash is derived again from what is there."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibrant.durable import read_json, unreadable
from calibrant.errors import DataError
from calibrant.outcomes import Measurement
from calibrant.progress import Progress, silent
from calibrant.spec import identity
from calibrant.store.folder import FAILURES, INDEX, JOURNALS, RUNS, Store
from calibrant.store.reading import provenance_of, read_failure, read_measurement, read_record, score_file, understood
from calibrant.store.records import Run, measurement_id
from calibrant.store.shapes import check
from calibrant.store.staging import EDITS, MASK, MEASURES, SUMS, left, sums

AGAIN: Final = "restore it from a copy, or delete the folder and ask for the study again to have it computed"
LEFTOVER: Final = "harmless; asked again, the study clears it"
STRANGE: Final = "delete it if it isn't calibrant's"


@dataclass(frozen=True)
class Problem:
    """Something in a store that isn't as it should be: `where`, a path in the store; `what` is wrong; and the `remedy`."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass(frozen=True)
class Audit:
    """A store counted and checked. `without_sums` are folders from before there were sums: of these only ids and scores could be checked."""

    folder: str
    runs: int
    measurements: int
    without_sums: int
    problems: tuple[Problem, ...]

    @property
    def whole(self) -> bool:
        """Whether every hash agrees and nothing lacks."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {**asdict(self), "whole": self.whole}


def verify(folder: str | Path) -> list[Problem]:
    """What is wrong in a store; empty if it is whole. Nothing is changed. Raises `OutputError` for a folder that is no store."""
    return list(audit(folder).problems)


def audit(folder: str | Path, progress: Progress = silent) -> Audit:
    """Check a store, and count. Reads everything in it. Raises `OutputError` for a folder that is no store."""
    store = Store(folder, create=False)
    problems, measurements, without_sums = list[Problem](), 0, 0
    runs, strange = _inside(store.folder / RUNS)
    for number, run in enumerate(runs):
        progress("verifying", number, len(runs))
        measures, others = _inside(run / MEASURES)
        strange += others
        measurements += len(measures)
        without_sums += sum(not (kept / SUMS).exists() for kept in (run, *measures))
        problems += problems_of_run(run)
        for measure in measures:
            problems += problems_of_measurement(measure)
    progress("verifying", len(runs), len(runs))
    problems += [Problem(str(path), "is no result, and lies among results", STRANGE) for path in strange]
    problems += [*_of_the_index(store), *_of_failures(store), *_leftovers(store)]
    shown = tuple(replace(problem, where=str(Path(problem.where).relative_to(store.folder))) for problem in problems)
    return Audit(str(store.folder), len(runs), measurements, without_sums, shown)


def problems_of_run(folder: Path) -> Iterator[Problem]:
    """What is wrong in a run's folder, its measurements left aside; `where` begins with `folder`."""
    path = folder / "record.json"
    if not path.exists():
        what = "measurements without a record" if _inside(folder / MEASURES)[0] else "a run without a record"
        yield Problem(str(folder), what, "restore record.json from a copy, or delete the folder")
        return
    try:
        yield from (changed := _changed(folder))
        if not changed:
            kept = read_record(folder)
            with understood(path):
                yield from _of_ids(path, folder, kept["id"], Run(**kept["run"]).id)
            provenance_of(folder)
    except DataError as error:
        yield _damaged(error)


def problems_of_measurement(folder: Path) -> Iterator[Problem]:
    """What is wrong in a measurement's folder; `where` begins with `folder`."""
    path, run_id = folder / "score.json", f"sha256:{folder.parent.parent.name}"
    try:
        yield from (changed := _changed(folder))
        if not changed:
            kept = score_file(folder)
            with understood(path):
                asked = measurement_id(run_id, kept["evaluator"], kept["data"])
                yield from _of_ids(path, folder, kept["id"], asked)
                if kept["run"] != run_id:
                    yield Problem(str(path), f"measured on {kept['run']}, and kept with another run", AGAIN)
            yield from _of_items(folder / "items.parquet", read_measurement(folder))
    except DataError as error:
        yield _damaged(error)


def _of_ids(path: Path, folder: Path, told: str, derived: str) -> Iterator[Problem]:
    if not (told == derived == f"sha256:{folder.name}"):
        yield Problem(str(path), f"doesn't answer what it says: its id is {told}, and what was asked has {derived}", AGAIN)


def _changed(folder: Path) -> list[Problem]:
    """What is no file, or differs from the sums that were written with it; a folder from before there were sums has none."""
    odd = [Problem(str(p), "is neither a file nor a folder", AGAIN) for p in sorted(folder.iterdir()) if not (p.is_file() or p.is_dir())]
    if odd or not (folder / SUMS).exists():
        return odd
    with understood(folder / SUMS):
        wanted = check(read_json(folder / SUMS), Mapping[str, str])
    try:
        found, problems = sums(folder), list[Problem]()
    except OSError as error:
        raise unreadable(Path(error.filename or folder / SUMS), error) from error
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found and name in (MASK, EDITS):
            continue  # deleted to save room
        if name not in found:
            problems.append(Problem(str(folder / name), "lacks, and was written", AGAIN))
        elif name not in wanted and not name.startswith("."):  # file managers leave hidden files everywhere
            problems.append(Problem(str(folder / name), "isn't among the sums", STRANGE))
        elif found[name] != wanted.get(name, found[name]):
            told = f"has changed: its SHA-256 is {found[name][:12]}…, and {wanted[name][:12]}… was written"
            problems.append(Problem(str(folder / name), told, AGAIN))
    return problems


def _of_items(path: Path, measured: Measurement) -> Iterator[Problem]:
    """A score against its items; a measurement may come without any."""
    score, items = measured.score, measured.outcomes
    if not items:
        return
    if score.n != len(items):
        yield Problem(str(path), f"has {len(items)} items, and the score is over {score.n}", AGAIN)
    total = math.fsum(o.weight for o in items)
    value = math.fsum(o.value for o in items) / total if total else math.nan
    # What wrote the score may have added in another order.
    if not math.isclose(value, score.value, rel_tol=1e-6, abs_tol=1e-9) and not (math.isnan(value) and math.isnan(score.value)):
        yield Problem(str(path), f"its items give {value!r}, and the score is {score.value!r}", AGAIN)
    told = score.facts.get("items")
    if told is not None and told not in (identity([[o.item, o.weight] for o in items]), identity([o.item for o in items])):
        yield Problem(str(path), f"holds other items than the score is over: {told}", AGAIN)


def _of_the_index(store: Store) -> Iterator[Problem]:
    if not (path := store.folder / INDEX).exists():
        return
    try:
        cells = store.cells()
    except DataError as error:
        yield replace(_damaged(error), remedy="restore it from a copy, or delete it and ask for the study again")
        return
    failed = {f"sha256:{p.stem}" for p in (store.folder / FAILURES).glob("*.json")}
    for cell in cells:
        if not cell.run or cell.run in failed:
            continue
        wanted = {cell.run: "run"} | {i: text for text, i in cell.measures.items() if store.has_record(cell.run) and i not in failed}
        here = {cell.run, *store.measured(cell.run)} if store.has_record(cell.run) else set[str]()
        for lacking in (name for name in wanted if name not in here):
            data = f" on {cell.data}, draw {cell.seed}" if cell.data else ""
            what = f"the cell {cell.method} {cell.target}{data} of {cell.model} points to {wanted[lacking]} {lacking}, which isn't there"
            yield Problem(str(path), what, "ask for the study again to have it computed")


def _of_failures(store: Store) -> Iterator[Problem]:
    known = present(store)
    for path in sorted((store.folder / FAILURES).glob("*.json")):
        try:
            kept = read_failure(path)
            with understood(path):
                if kept["id"] != f"sha256:{path.stem}":
                    yield Problem(str(path), f"tells of {kept['id']}, and is named after another", "delete it")
        except DataError as error:
            yield replace(_damaged(error), remedy="delete it")
        if f"sha256:{path.stem}" in known:
            yield Problem(str(path), "a failure of something that is there", "delete it")


def _leftovers(store: Store) -> Iterator[Problem]:
    with left(store.folder) as corners:
        yield from [Problem(str(corner), "left by a writer that was killed", LEFTOVER) for corner in corners]
    known = present(store)
    for path in sorted((store.folder / JOURNALS).glob("*.jsonl")):
        if f"sha256:{path.stem}" in known:
            yield Problem(str(path), "the journal of a measurement that is finished", LEFTOVER)


def present(store: Store) -> set[str]:
    """The ids of all runs and measurements that are there."""
    runs = store.ids()
    return {*runs, *(measure_id for run_id in runs for measure_id in store.measured(run_id))}


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders of results in a folder, and what else lies there, hidden files aside."""
    found = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []
    results = [p for p in found if re.fullmatch("[0-9a-f]{64}", p.name) and p.is_dir()]
    return results, [p for p in found if p not in results]


def _damaged(error: DataError) -> Problem:
    return Problem(error.subject, str(error).partition("; restore it")[0], AGAIN)
