"""What came out of a run, and the durable folder that keeps it.

A store is a folder. A compression is `runs/<id>/record.json`, what was measured on it `runs/<id>/measures/<id>/` with `score.json` and one
row an item in `items.parquet`. Both ids are hashes of what was asked, so asking again finds what is there, and the stores of two machines
merge by copying one into the other. Times, versions and devices are provenance: kept beside, in `provenance.json`, outside every hash.

Every folder appears by one rename, complete or not at all. It is written in `.unfinished/<writer>/`, where each writer holds a lock for as
long as it lives; what a dead writer left there is removed when the store is next opened for writing. No torch here.
"""

import errno
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

from calibrant.durable import UNFINISHED, flush, read_json, take, text_of_json, write_bytes
from calibrant.errors import OutputError
from calibrant.outcomes import Journal, Measurement, Outcome, Score, read_items, write_items
from calibrant.spec import Call, canonical, identity, text_of

__all__ = ["Cell", "Measurement", "Outcome", "Record", "Run", "Score", "Store", "measurement_id"]

MARKER: Final = "calibrant-store.json"
JOURNALS: Final = ".journals"
INDEX: Final = "index.json"
FORMAT: Final = 1


@dataclass(frozen=True)
class Run:
    """What was asked, resolved; plain JSON data only.

    `data`, `tokens` and `propagate` are empty where the method observes nothing. `model_name`, `data` and `seed` are labels: the model's
    digest and the tokens' fingerprint already cover what they name.
    """

    model: str
    model_name: str
    data: str
    tokens: str
    method: Mapping[str, Any]
    target: str
    allocation: Mapping[str, Any]
    propagate: str
    dtype: str
    seed: int = 0

    @property
    def id(self) -> str:
        """The identity of what decides the outcome: the same on every machine."""
        return identity(
            {
                "model": self.model,
                "tokens": self.tokens,
                "method": self.method,
                "target": self.target,
                "allocation": self.allocation,
                "propagate": self.propagate,
                "dtype": self.dtype,
            }
        )


@dataclass(frozen=True)
class Record:
    """What came out of a run.

    `sparsity` is achieved over the compressed matrices. `weights` has a name, shape, sparsity and notes each; `dense` the matrices left
    alone, with the reason. `provenance` (seconds per phase, peak memory in bytes, versions, device, threads, a note such as "dequantized
    from Q4_1") is no part of the result and isn't compared.
    """

    run: Run
    sparsity: float
    weights: tuple[Mapping[str, Any], ...] = ()
    dense: tuple[Mapping[str, Any], ...] = ()
    data_facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)


@dataclass(frozen=True)
class Cell:
    """One cell of the grid that a study asked for, and where its answers are.

    The labels are as asked: two cells may share a run (a source that gives the same tokens for every seed, a method that looks at no data).
    `run` is empty where the run's identity could not be told because something failed; `measures` maps the evaluator's text to its id.
    """

    model: str
    data: str
    method: str
    target: str
    seed: int
    run: str
    measures: Mapping[str, str] = field(default_factory=dict[str, str])


def measurement_id(run_id: str, evaluator: Mapping[str, Any], data: str = "") -> str:
    """The identity of one evaluator (its canonical form) on one run; `data` is the fingerprint of what it measures on, if it has one."""
    return identity([run_id, evaluator, data] if data else [run_id, evaluator])


class Store:
    """The folder of results. Opening it for writing makes it, and clears what dead writers left; `create=False` only reads.

    Raises `OutputError` for a folder that isn't ours, that can't be written to, or on a full disk; nothing half-written stays behind.
    Raises `DataError` for a file in it that can't be read.
    """

    def __init__(self, folder: str | Path, create: bool = True) -> None:
        self.folder = Path(folder)
        self._staging: Path | None = None
        self._check_ours(create)
        if create:
            with self._writing("make the store"):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._clear_leftovers()
            if not (self.folder / MARKER).exists():
                self.write_text(MARKER, text_of_json({"format": FORMAT, "what": "results of calibrant; safe to copy, and to merge by copying"}))

    def _check_ours(self, create: bool) -> None:
        where = str(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{where!r} is a file; results need a folder of their own, name another", subject=where)
        names = {p.name for p in self.folder.iterdir()} if self.folder.exists() else set()
        ours = MARKER in names or {"study.yaml", "runs"} <= names
        if not ours and not create:
            raise OutputError(
                f"{where!r} holds no results of calibrant (no {MARKER} in it); name the folder that a study or demo wrote", subject=where
            )
        if not ours and not names <= {UNFINISHED}:
            raise OutputError(f"{where!r} exists, isn't empty and isn't ours (no {MARKER} in it); name a new or empty folder", subject=where)
        if MARKER in names and (found := read_json(self.folder / MARKER).get("format", FORMAT)) != FORMAT:
            raise OutputError(f"{where!r} was written in format {found}, this calibrant reads {FORMAT}; use the version that wrote it", subject=where)

    def record(self, run_id: str) -> Record | None:
        """What the run gave, or None if the store lacks it."""
        folder = self._run(run_id)
        if not folder.exists():
            return None
        kept = read_json(folder / "record.json")
        provenance = read_json(folder / "provenance.json") if (folder / "provenance.json").exists() else {}
        run = Run(**kept["run"])
        return Record(run, kept["sparsity"], tuple(kept["weights"]), tuple(kept["dense"]), kept["data_facts"], provenance)

    def records(self) -> list[Record]:
        """Every record, in the order of their ids."""
        ids = sorted(p.parent.name for p in (self.folder / "runs").glob("*/record.json"))
        return [found for found in map(self.record, ids) if found is not None]

    def add_record(self, record: Record, files: Mapping[str, bytes] = MappingProxyType({})) -> str:
        """Keep `record` and return its run's id. One that is there already stays as it is: the same question has the same answer.

        `files` are kept beside it under their names, for example the mask.
        """
        kept = {"id": record.run.id, **{k: v for k, v in asdict(record).items() if k != "provenance"}}
        with self._appearing(self._run(record.run.id)) as folder:
            write_bytes(folder / "record.json", text_of_json(kept).encode())
            write_bytes(folder / "provenance.json", text_of_json(record.provenance).encode())
            for name, content in files.items():
                write_bytes(folder / name, content)
            (folder / "measures").mkdir()
        self.clear_failure(record.run.id)
        return record.run.id

    def file(self, run_id: str, name: str) -> bytes | None:
        """A file that was kept beside a record, or None if there is none."""
        path = self._run(run_id) / name
        return path.read_bytes() if path.exists() else None

    def measurement(self, run_id: str, measure_id: str) -> Measurement | None:
        """What was measured, with its items, or None if the store lacks it."""
        folder = self._run(run_id) / "measures" / _bare(measure_id)
        return _read_measurement(folder) if folder.exists() else None

    def measurements(self, run_id: str) -> dict[str, Measurement]:
        """Everything measured on a run, by measurement id."""
        folder = self._run(run_id) / "measures"
        return {f"sha256:{p.name}": _read_measurement(p) for p in sorted(folder.iterdir())} if folder.exists() else {}

    def evaluators(self, run_id: str) -> dict[str, Mapping[str, Any]]:
        """The canonical evaluator behind each measurement of a run, by measurement id."""
        folder = self._run(run_id) / "measures"
        return {f"sha256:{p.name}": read_json(p / "score.json")["evaluator"] for p in sorted(folder.iterdir())} if folder.exists() else {}

    def add_measurement(self, run_id: str, evaluator: Mapping[str, Any], measurement: Measurement, data: str = "") -> str:
        """Keep what `evaluator` (its canonical form) measured on a recorded run and return its id; one that is there already stays."""
        if not self._run(run_id).exists():
            raise OutputError(
                f"there is no record of run {run_id} in {str(self.folder)!r}; add the record before what was measured on it", subject=run_id
            )
        measure_id = measurement_id(run_id, evaluator, data)
        kept = {"id": measure_id, "run": run_id, "evaluator": canonical(evaluator), "data": data, "score": asdict(measurement.score)}
        kept |= {"beside": [asdict(score) for score in measurement.beside]} if measurement.beside else {}
        with self._appearing(self._run(run_id) / "measures" / _bare(measure_id)) as folder:
            write_bytes(folder / "score.json", text_of_json(kept).encode())
            write_bytes(folder / "provenance.json", text_of_json(measurement.provenance).encode())
            write_items(folder / "items.parquet", measurement.outcomes)
        self.clear_failure(measure_id)
        return measure_id

    def journal(self, run_id: str, evaluator: Mapping[str, Any]) -> Journal:
        """Where a measurement that isn't finished keeps its items, so that a killed one goes on."""
        measure_id = measurement_id(run_id, evaluator)
        return Journal(self.folder / JOURNALS / f"{_bare(measure_id)}.jsonl", measure_id)

    def cells(self) -> list[Cell]:
        """The grid that was last asked of this store; without one (a merged store), every record is a cell of its own."""
        if (self.folder / INDEX).exists():
            return [Cell(**cell) for cell in read_json(self.folder / INDEX)["cells"]]
        found: list[Cell] = []
        for run_id, run in ((r.run.id, r.run) for r in self.records()):
            measures = {
                text_of(Call(str(e.get("spec")), {k: v for k, v in e.items() if k not in ("spec", "revision")})): i
                for i, e in self.evaluators(run_id).items()
            }
            found.append(Cell(run.model_name, run.data, str(run.method.get("spec")), run.target, run.seed, run_id, measures))
        return found

    def write_cells(self, cells: Sequence[Cell]) -> None:
        """Say which grid this store answers."""
        self.write_text(INDEX, text_of_json({"cells": [asdict(c) for c in cells]}, ordered=True))

    def failures(self) -> dict[str, Mapping[str, Any]]:
        """What went wrong, by the id of the run or measurement that isn't there because of it."""
        folder = self.folder / "failures"
        return {f"sha256:{p.stem}": read_json(p) for p in sorted(folder.glob("*.json"))} if folder.exists() else {}

    def add_failure(self, failed_id: str, what: Mapping[str, Any]) -> None:
        """Record why a run or measurement isn't there; a later failure of the same replaces it, a success clears it."""
        self.write_text(f"failures/{_bare(failed_id)}.json", text_of_json({"id": failed_id, **what}))

    def clear_failure(self, failed_id: str) -> None:
        """Forget a failure: it was tried again and went well."""
        with self._writing("clear a failure"):
            (self.folder / "failures" / f"{_bare(failed_id)}.json").unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> Path:
        """Write one file of the store (`study.yaml`, `report.html`), whole or not at all; an older one is replaced."""
        path = self.folder / name
        with self._writing(f"write {name}"):
            path.parent.mkdir(exist_ok=True)
            half = self._stage() / path.name
            write_bytes(half, text.encode())
            os.replace(half, path)
            flush(path.parent)
        return path

    def _run(self, run_id: str) -> Path:
        return self.folder / "runs" / _bare(run_id)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full; free some space and ask again" if full else f"{error.strerror or error}; is it yours to write to?"
            raise OutputError(f"can't {what} in {str(self.folder)!r}: {reason}", subject=str(self.folder)) from error

    @contextmanager
    def _appearing(self, path: Path) -> Iterator[Path]:
        """A folder to fill, which becomes `path` by one rename; if `path` is there by then, it stays."""
        with self._writing(f"write {path.relative_to(self.folder)}"):
            folder = _new_folder(self._stage())
            try:
                yield folder
                flush(folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.rename(folder, path)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES) or not path.exists():
                        raise
                flush(path.parent)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _stage(self) -> Path:
        """This writer's own corner of `.unfinished`, locked for as long as it lives."""
        if self._staging is None:
            (self.folder / UNFINISHED).mkdir(exist_ok=True)
            with (self.folder / UNFINISHED / "lock").open("a") as door:
                take(door, wait=True)
                corner = _new_folder(self.folder / UNFINISHED)
                lock = (corner / "lock").open("a")
                take(lock)
            self._staging, self._give_back = corner, weakref.finalize(self, _leave, corner, lock)
        return self._staging

    def _clear_leftovers(self) -> None:
        unfinished = self.folder / UNFINISHED
        if not unfinished.exists():
            return
        with (unfinished / "lock").open("a") as door:
            take(door, wait=True)
            for corner in unfinished.iterdir():
                if corner.is_dir() and _is_left(corner):
                    shutil.rmtree(corner, ignore_errors=True)

    def close(self) -> None:
        """Give back this writer's corner; done at the latest when the process ends, or by the next one that opens the store."""
        if self._staging is not None:
            self._give_back()
            self._staging = None

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bare(tagged: str) -> str:
    return tagged.rpartition(":")[2]


def _new_folder(parent: Path) -> Path:
    """Like `mkdtemp`, but readable by whom the user lets read: it becomes part of a store that others may want to copy."""
    folder = parent / secrets.token_hex(8)
    folder.mkdir()
    return folder


def _leave(corner: Path, lock: IO[str]) -> None:
    lock.close()
    shutil.rmtree(corner, ignore_errors=True)


def _is_left(corner: Path) -> bool:
    with suppress(FileNotFoundError), (corner / "lock").open("r") as lock:
        return take(lock)
    return True


def _read_measurement(folder: Path) -> Measurement:
    kept = read_json(folder / "score.json")
    provenance = read_json(folder / "provenance.json") if (folder / "provenance.json").exists() else {}
    beside = tuple(Score(**score) for score in kept.get("beside", ()))
    return Measurement(Score(**kept["score"]), read_items(folder / "items.parquet"), provenance, beside)
