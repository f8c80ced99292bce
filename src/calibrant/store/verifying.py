"""Verifying a store: every hash is derived again from its files."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibrant.durable import unreadable
from calibrant.errors import DataError
from calibrant.outcomes import Measurement
from calibrant.progress import Progress, silent
from calibrant.seals import NoSealError
from calibrant.spec import identity
from calibrant.store.folder import FAILURES, INDEX, JOURNALS, RUNS, STATISTICS, Store, statistics_purpose
from calibrant.store.packed import MOVING
from calibrant.store.reading import EDITS, ITEMS, MASK, RECORD, SCORE, SUMS, LooseFiles, ResultFiles, read_failure, understood
from calibrant.store.records import Run, measurement_id
from calibrant.store.shapes import check
from calibrant.store.staging import MEASURES, leftovers, sums

AGAIN: Final = "restore it from a copy, or delete the folder and ask for the study again to have it computed"
LEFTOVER: Final = "harmless; asked again, the study clears it"
STRANGE: Final = "delete it if it isn't calibrant's"
STATISTIC: Final = "harmless; the study makes it again"
TWICE: Final = "harmless; `calibrant store pack`, asked again, removes it"


@dataclass(frozen=True)
class StoreProblem:
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
    problems: tuple[StoreProblem, ...]

    @property
    def whole(self) -> bool:
        """Whether every hash agrees and nothing is missing."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {**asdict(self), "whole": self.whole}


def verify(folder: str | Path) -> list[StoreProblem]:
    """Return what is wrong in a store; empty if it is whole. Nothing is changed. Raises `OutputError` for a folder that is no store."""
    return list(audit(folder).problems)


def audit(folder: str | Path, progress: Progress = silent) -> Audit:
    """Check a store, and count. Reads everything in it. Raises `OutputError` for a folder that is no store."""
    store = Store(folder, create=False)
    changed = [StoreProblem(name, what, "restore it from a copy") for name, what in (store.packed.changed() if store.packed else ())]
    if changed:  # what is in such tables says nothing
        manifest = store.packed.manifest if store.packed else {}
        return Audit(str(store.folder), manifest["runs"], manifest["measurements"], 0, tuple(changed))
    problems, measurements, without_sums = list[StoreProblem](), 0, 0
    folders, strange = _inside(store.folder / RUNS)
    runs = sorted({f"sha256:{folder.name}" for folder in folders} | set(store.packed.runs if store.packed else ()))
    for number, run_id in enumerate(runs):
        progress("verifying", number, len(runs))
        loose, others = _inside(store.run_folder(run_id) / MEASURES)
        strange += others
        measures = sorted({f"sha256:{folder.name}" for folder in loose} | set(store.packed.measures.get(run_id, ()) if store.packed else ()))
        measurements += len(measures)
        parts = {"": store.files(run_id)} | {measure_id: store.files(run_id, measure_id) for measure_id in measures}
        without_sums += sum(not files.has(SUMS) for files in parts.values())
        for measure_id, files in parts.items():
            problems += problems_of_measurement(files, run_id, measure_id) if measure_id else problems_of_run(files, run_id, bool(measures))
            problems += _twice(store, files, run_id, measure_id)
    progress("verifying", len(runs), len(runs))
    problems += [StoreProblem(str(path), "is no result, and lies among results", STRANGE) for path in strange]
    problems += [*_of_the_index(store), *_of_failures(store), *_of_statistics(store), *_leftovers(store)]
    relative = tuple(replace(problem, where=str(Path(problem.where).relative_to(store.folder))) for problem in problems)
    return Audit(str(store.folder), len(runs), measurements, without_sums, relative)


def problems_of_run(files: ResultFiles, run_id: str, measured: bool = False) -> Iterator[StoreProblem]:
    """Yield what is wrong with a run, what was `measured` on it left aside; `where` begins with the store's folder."""
    path = files.where(RECORD)
    if not files.has(RECORD):
        what = "measurements without a record" if measured else "a run without a record"
        yield StoreProblem(str(path.parent), what, "restore record.json from a copy, or delete the folder")
        return
    try:
        yield from (changed := _changed(files))
        if changed:
            return
        record = files.record()
        with understood(path):
            yield from _of_ids(path, run_id, record["id"], Run.read(record["run"]).id)
        files.provenance()
    except DataError as error:
        yield _damaged(error)


def problems_of_measurement(files: ResultFiles, run_id: str, measure_id: str) -> Iterator[StoreProblem]:
    """Yield what is wrong with a measurement; `where` begins with the store's folder."""
    path = files.where(SCORE)
    try:
        yield from (changed := _changed(files))
        if changed:
            return
        score = files.score_file()
        with understood(path):
            yield from _of_ids(path, measure_id, score["id"], measurement_id(run_id, score["evaluator"], score["data"]))
            if score["run"] != run_id:
                yield StoreProblem(str(path), f"measured on {score['run']}, and kept with another run", AGAIN)
        yield from _of_items(files.where(ITEMS), files.measurement())
    except DataError as error:
        yield _damaged(error)


def _twice(store: Store, files: ResultFiles, run_id: str, measure_id: str) -> Iterator[StoreProblem]:
    """Yield what a pack that was killed hasn't removed of what it has packed."""
    loose = LooseFiles(store.measure_folder(run_id, measure_id) if measure_id else store.run_folder(run_id))
    if not isinstance(files, LooseFiles) and loose.names():
        yield StoreProblem(str(loose.folder), "is in the packed tables too", TWICE)


def _of_ids(path: Path, place: str, stated: str, derived: str) -> Iterator[StoreProblem]:
    if not (stated == derived == place):
        yield StoreProblem(str(path), f"doesn't answer what it says: its id is {stated}, and what was asked has {derived}", AGAIN)


def _changed(files: ResultFiles) -> list[StoreProblem]:
    """What is no file, or differs from the sums that were written with it; a folder from before there were sums has none."""
    listed = sorted(files.folder.iterdir()) if isinstance(files, LooseFiles) else []
    odd = [StoreProblem(str(p), "is neither a file nor a folder", AGAIN) for p in listed if not (p.is_file() or p.is_dir())]
    if isinstance(files, LooseFiles) and files.lacks_sums():
        odd.append(StoreProblem(str(files.where(SUMS)), "is missing, and was written", AGAIN))
    if odd or not files.has(SUMS):
        return odd
    with understood(files.where(SUMS)):
        expected = check(files.json(SUMS), Mapping[str, str])
    try:
        digests, problems = sums(files), list[StoreProblem]()
    except OSError as error:
        raise unreadable(Path(error.filename or files.where(SUMS)), error) from error
    for name in sorted(expected.keys() | digests.keys()):
        if name not in digests and name in (MASK, EDITS):
            continue  # deleted to save room
        if name not in digests:
            problems.append(StoreProblem(str(files.where(name)), "is missing, and was written", AGAIN))
        elif name not in expected and not name.startswith("."):  # file managers leave hidden files everywhere
            problems.append(StoreProblem(str(files.where(name)), "isn't among the sums", STRANGE))
        elif digests[name] != expected.get(name, digests[name]):
            what = f"has changed: its SHA-256 is {digests[name][:12]}…, and {expected[name][:12]}… was written"
            problems.append(StoreProblem(str(files.where(name)), what, AGAIN))
    return problems


def _of_items(path: Path, measured: Measurement) -> Iterator[StoreProblem]:
    """A score against its items; a measurement may come without any."""
    score, items = measured.score, measured.outcomes
    if not items:
        return
    if score.n != len(items):
        yield StoreProblem(str(path), f"has {len(items)} items, and the score is over {score.n}", AGAIN)
    total = math.fsum(o.weight for o in items)
    value = math.fsum(o.value for o in items) / total if total else math.nan
    # What wrote the score may have added in another order.
    if not math.isclose(value, score.value, rel_tol=1e-6, abs_tol=1e-9) and not (math.isnan(value) and math.isnan(score.value)):
        yield StoreProblem(str(path), f"its items give {value!r}, and the score is {score.value!r}", AGAIN)
    digest = score.facts.get("items")
    if digest is not None and digest not in (identity([[o.item, o.weight] for o in items]), identity([o.item for o in items])):
        yield StoreProblem(str(path), f"holds other items than the score is over: {digest}", AGAIN)


def _of_the_index(store: Store) -> Iterator[StoreProblem]:
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
        expected = {cell.run: "run"} | {i: text for text, i in cell.measures.items() if store.has_record(cell.run) and i not in failed}
        present_ids = {cell.run, *store.measured(cell.run)} if store.has_record(cell.run) else set[str]()
        for lacking in (name for name in expected if name not in present_ids):
            data = f" on {cell.data}, draw {cell.seed}" if cell.data else ""
            what = f"the cell {cell.method} {cell.target}{data} of {cell.model} points to {expected[lacking]} {lacking}, which isn't there"
            yield StoreProblem(str(path), what, "ask for the study again to have it computed")


def _of_failures(store: Store) -> Iterator[StoreProblem]:
    ids = present(store)
    for path in sorted((store.folder / FAILURES).glob("*.json")):
        try:
            failure = read_failure(path)
            with understood(path):
                subject = failure["id"]
            if subject != f"sha256:{path.stem}":
                yield StoreProblem(str(path), f"tells of {subject}, and is named after another", "delete it")
        except DataError as error:
            yield replace(_damaged(error), remedy="delete it")
        if f"sha256:{path.stem}" in ids:
            yield StoreProblem(str(path), "a failure of something that is there", "delete it")


def _of_statistics(store: Store) -> Iterator[StoreProblem]:
    """Yield the files of what an untouched model's matrices saw that aren't what was written."""
    from calibrant import sealed_tensors  # which needs torch, as reading results doesn't

    for path in sorted((store.folder / STATISTICS).glob("*/*/*.safetensors")):
        name, folder, block = path.parts[-3], path.parts[-2], path.stem.rpartition("-")[2]
        try:
            sealed_tensors.read(path, statistics_purpose(name, folder, int(block)))
        except (FileNotFoundError, NoSealError):
            continue  # a study that is at work deletes what it no longer needs; what is older is made again
        except ValueError:
            yield StoreProblem(str(path), "isn't what was written there", STATISTIC)
        except OSError as error:
            yield StoreProblem(str(path), f"can't be read ({error.strerror})", STATISTIC)


def _leftovers(store: Store) -> Iterator[StoreProblem]:
    with leftovers(store.folder) as folders:
        yield from [StoreProblem(str(folder), "left by a writer that was killed", LEFTOVER) for folder in folders]
    if (store.folder / MOVING).exists():
        yield StoreProblem(str(store.folder / MOVING), "left by a pack that was killed", TWICE)
    ids = present(store)
    for path in sorted((store.folder / JOURNALS).glob("*.jsonl")):
        if f"sha256:{path.stem}" in ids:
            yield StoreProblem(str(path), "the journal of something that is finished", LEFTOVER)


def present(store: Store) -> set[str]:
    """Return the ids of all runs and measurements in the store."""
    runs = store.ids()
    return {*runs, *(measure_id for run_id in runs for measure_id in store.measured(run_id))}


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders of results in a folder, and what else lies there, hidden files aside."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []
    results = [p for p in entries if re.fullmatch("[0-9a-f]{64}", p.name) and p.is_dir()]
    return results, [p for p in entries if p not in results]


def _damaged(error: DataError) -> StoreProblem:
    return StoreProblem(error.subject, str(error).partition("; restore it")[0], AGAIN)
