"""The store: a folder of records, measurements and failures, and the index of the study's grid."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, overload

from calibrant.durable import LARGEST, UNFINISHED, content, packed, read_json, sealed, short, text_of_json, undoing, write_bytes
from calibrant.errors import DataError, OutputError
from calibrant.families import known_family
from calibrant.foreign import brief
from calibrant.grammar import SetLabel
from calibrant.outcomes import Journal, Measurement, Outcome, write_items
from calibrant.seals import Purpose, tell_made_again
from calibrant.spec import Call, canonical, parameters, text_of
from calibrant.store.claims import Claim, claimed
from calibrant.store.columns import ItemNumbers, numbers
from calibrant.store.packed import FORMAT, MARKER, MOVING, PACKED_FORMAT, PackedStore, marker, settle
from calibrant.store.reading import (
    EDITS,
    ITEMS,
    MASK,
    PROVENANCE,
    RECORD,
    SCORE,
    SUMS,
    WEIGHTS,
    LooseFiles,
    ResultFiles,
    failure_purpose,
    provenance_purpose,
    read_failure,
    understood,
)
from calibrant.store.records import Cell, Record, age, is_older, measurement_id, revisions, revisions_of, unrevised
from calibrant.store.shapes import IndexFile, check
from calibrant.store.staging import MEASURES, Staging, leftovers

JOURNALS: Final = ".journals"
INDEX: Final = "index.json"
STUDY: Final = "study.yaml"
"""The store's last study, as a file that runs it again."""
FAILURES: Final = "failures"
RUNS: Final = "runs"
STATISTICS: Final = "statistics"
"""The folder of the dense model's statistics; it may be there before anything else is."""
_INDEX_PURPOSE: Final[Purpose] = {"kind": "index"}
_NAMED: Final = re.compile(r"[0-9a-f]{64}(-piece-\d+)?")
"""How the entries of a folder of statistics that is ours are called."""


class Store:
    """The folder of results. Opening it for writing makes it, and clears what dead writers left; `create=False` only reads.

    Where the store is packed, or was when a study went on in it, results are in its tables, and newer ones in folders of their own beside them.

    Raises `OutputError` for a folder that isn't ours, that can't be written to, or on a full disk; nothing half-written stays behind.
    Raises `DataError` for a file in it that can't be read.
    """

    def __init__(self, folder: str | Path, create: bool = True) -> None:
        self.folder = Path(folder)
        self._staging = Staging(self.folder)
        format = self._check_ours(create)
        if create:
            unfinished = self.folder / UNFINISHED
            with undoing(unfinished, unfinished / "lock"):
                self._make(format)
        self.packed = PackedStore.of(self.folder)

    def _make(self, format: int) -> None:
        with self._staging.writing("make the store"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with leftovers(self.folder) as unfinished:
                for folder in unfinished:
                    shutil.rmtree(folder, ignore_errors=True)
            if (self.folder / MOVING).exists():
                settle(self.folder)
        if format >= FORMAT and (self.folder / MARKER).exists():
            return
        with ExitStack() as failed:
            failed.callback(self._staging.close)
            self.write_text(MARKER, marker(FORMAT))
            failed.pop_all()

    def _check_ours(self, create: bool) -> int:
        """Return the format of the store in the folder."""
        where = str(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{where!r} is a file; results need a folder of their own, name another", subject=where)
        names = {p.name for p in self.folder.iterdir()} if self.folder.exists() else set()
        ours = MARKER in names or {STUDY, RUNS} <= names
        if not ours and not create:
            raise OutputError(
                f"{where!r} holds no results of calibrant (no {MARKER} in it); name the folder that a study or demo wrote", subject=where
            )
        statistics = self.folder / STATISTICS
        listed = os.listdir(statistics) if statistics.is_dir() else ()
        gathered = names & {STATISTICS} if all(map(_NAMED.fullmatch, listed)) else set[str]()
        if not ours and not names <= {UNFINISHED, *gathered}:
            raise OutputError(f"{where!r} exists, isn't empty and isn't ours (no {MARKER} in it); name a new or empty folder", subject=where)
        with understood(self.folder / MARKER):
            format = read_json(self.folder / MARKER).get("format", FORMAT) if MARKER in names else FORMAT
        if format not in range(1, PACKED_FORMAT + 1):
            raise OutputError(
                f"{where!r} was written in format {brief(format)}, this calibrant reads 1 to {PACKED_FORMAT}; use the version that wrote it",
                subject=where,
            )
        return format

    # Runs

    def files(self, run_id: str, measure_id: str = "") -> ResultFiles:
        """Return the files of a run or of a measurement on it, whether they exist or not; of what is packed those in the tables."""
        packed = self.packed.files(run_id, measure_id) if self.packed else None
        return packed or LooseFiles(self.measure_folder(run_id, measure_id) if measure_id else self.run_folder(run_id))

    def ids(self) -> list[str]:
        """Return the id of every run that has a record, in order."""
        loose = {f"sha256:{p.parent.name}" for p in (self.folder / RUNS).glob(f"*/{RECORD}")}
        return sorted(loose | set(self.packed.runs if self.packed else ()))

    def has_record(self, run_id: str) -> bool:
        """Return whether the run is in the store."""
        return self.files(run_id).has(RECORD)

    def record(self, run_id: str, whole: bool = True) -> Record | None:
        """Return a run's record, or None if the store lacks it. Not `whole`, it comes without `weights` and provenance, and many times sooner."""
        files = self.files(run_id)
        if isinstance(files, LooseFiles) and not files.folder.exists():
            return None
        with understood(files.where(RECORD)):
            fields = files.record() if whole else files.record_without_weights()
            return Record.read({**fields, "provenance": files.provenance() if whole else {}})

    def records(self, whole: bool = True) -> list[Record]:
        """Return every record, in the order of their ids; `whole` as in `record`."""
        return [record for record in (self.record(run_id, whole) for run_id in self.ids()) if record is not None]

    def add_record(self, record: Record, files: Mapping[str, bytes] = MappingProxyType({})) -> str:
        """Store `record` and return its run's id. One that is there already stays as it is: the same request has the same result.

        `files` are written beside it under their names, for example the mask.
        """
        if self.packed and record.run.id in self.packed.runs:
            return record.run.id
        fields = {"id": record.run.id, **{k: v for k, v in record.plain().items() if k not in ("provenance", "weights")}}
        with self._staging.appearing(self.run_folder(record.run.id)) as folder:
            write_bytes(folder / RECORD, text_of_json(fields).encode())
            write_bytes(folder / WEIGHTS, packed(record.weights))
            write_bytes(folder / PROVENANCE, _provenance_text(record.provenance, record.run.id))
            for name, content in files.items():
                write_bytes(folder / name, content)
            (folder / MEASURES).mkdir()
        self.clear_failure(record.run.id)
        return record.run.id

    def file(self, run_id: str, name: str) -> bytes | None:
        """Return a file that was written beside a record, or None if there is none."""
        return self.files(run_id).content(name)

    def state(self, run_id: str) -> bytes | None:
        """Return what the compressed model of a recorded run can be made from again: its mask or its edits.

        None where nothing was kept, and where it isn't what was written, which a line then says: the run is to be compressed again.
        """
        files = self.files(run_id)
        for name in (MASK, EDITS):
            try:
                content = files.content(name)
            except DataError:
                tell_made_again("the mask or the edits of a run", short(files.where(name)))
                continue
            if content is not None:
                return content
        return None

    def put_back(self, run_id: str, contents: Mapping[str, bytes]) -> None:
        """Write a run's mask or edits anew where they are damaged and `contents` are what was written once; what was deleted stays deleted."""
        files = self.files(run_id)
        if not isinstance(files, LooseFiles) or not files.has(SUMS):
            return
        try:
            sums = files.json(SUMS)
        except DataError:
            return  # what was written once isn't known any more; `verify` names the file
        for name in (MASK, EDITS):
            content = contents.get(name)
            if content is None or not files.has(name) or files.digest(name) == sums.get(name):
                continue
            if hashlib.sha256(content).hexdigest() == sums.get(name):
                self._staging.replace(files.folder / name, content)

    def bytes_of(self, name: str) -> int:
        """Return how much room the files of this name take beside all records together."""
        loose = sum(path.stat().st_size for path in self.folder.glob(f"{RUNS}/*/{name}"))
        return loose + sum(info.file_size for path, info in (self.packed.archive if self.packed else {}).items() if path.endswith(f"/{name}"))

    def adopt(self, source: ResultFiles, run_id: str, measures: Mapping[str, ResultFiles] = MappingProxyType({})) -> None:
        """Copy a run of another store, with these measurements. One that is in this store already stays."""
        with self._staging.appearing(self.run_folder(run_id), summed=False) as folder:
            source.copy(folder, without=[MEASURES])
            (folder / MEASURES).mkdir()
            for measure_id, files in measures.items():
                (folder / MEASURES / bare(measure_id)).mkdir()
                files.copy(folder / MEASURES / bare(measure_id))

    def adopt_measurement(self, source: ResultFiles, run_id: str, measure_id: str) -> None:
        """Copy a measurement of another store, on a run that is in this one. One that is in this store already stays."""
        with self._staging.appearing(self.measure_folder(run_id, measure_id), summed=False) as folder:
            source.copy(folder)

    # Measurements

    def measured(self, run_id: str) -> set[str]:
        """Return the ids of everything measured on a run; of folders no file is opened."""
        return set(self._measures(run_id))

    def measurement(self, run_id: str, measure_id: str) -> Measurement | None:
        """Return what was measured, with its items, or None if the store lacks it."""
        files = self.files(run_id, measure_id)
        return files.measurement() if not isinstance(files, LooseFiles) or files.folder.exists() else None

    def measurements(self, run_id: str) -> dict[str, Measurement]:
        """Return everything measured on a run, by measurement id."""
        return {measure_id: self.files(run_id, measure_id).measurement() for measure_id in self._measures(run_id)}

    def scores(self, run_id: str) -> dict[str, Measurement]:
        """Return everything measured on a run without its items and provenance, by measurement id: one small file read for each."""
        return {measure_id: self.files(run_id, measure_id).measurement(whole=False) for measure_id in self._measures(run_id)}

    def items(self, run_id: str, measure_id: str) -> tuple[Outcome, ...]:
        """Return the outcome of every item of a measurement; `DataError` if the store lacks it."""
        return self.files(run_id, measure_id).outcomes()

    def numbers(self, measurements: Sequence[tuple[str, str]]) -> Iterator[ItemNumbers]:
        """Yield the items' names, values and weights of each of these measurements, ids of a run and its own, read together and so sooner.

        Raises `DataError` for one that can't be read.
        """
        return numbers(self.packed, [(key, self.measure_folder(*key) / ITEMS) for key in measurements])

    def provenance(self, run_id: str, measure_id: str = "") -> Mapping[str, Any]:
        """Return what is known beside a record or a measurement: seconds, versions, machine. It is no part of the result."""
        return self.files(run_id, measure_id).provenance()

    def evaluators(self, run_id: str) -> dict[str, Mapping[str, Any]]:
        """Return the canonical evaluator behind each measurement of a run, by measurement id."""
        forms: dict[str, Mapping[str, Any]] = {}
        for measure_id in self._measures(run_id):
            files = self.files(run_id, measure_id)
            with understood(files.where(SCORE)):
                forms[measure_id] = files.score_file()["evaluator"]
        return forms

    def add_measurement(self, run_id: str, evaluator: Mapping[str, Any], measurement: Measurement, data: str = "") -> str:
        """Store what `evaluator` (its canonical form) measured on a recorded run and return its id; one that is there already stays.

        `data` is the digest of what it measured on, if it has one.
        """
        if not self.has_record(run_id):
            raise OutputError(
                f"there is no record of run {run_id} in {str(self.folder)!r}; add the record before what was measured on it", subject=run_id
            )
        measure_id = measurement_id(run_id, evaluator, data)
        if self.packed and measure_id in self.packed.measures.get(run_id, ()):
            return measure_id
        fields = {"id": measure_id, "run": run_id, "evaluator": canonical(evaluator), "data": data, "score": asdict(measurement.score)}
        fields |= {"beside": [asdict(score) for score in measurement.beside]} if measurement.beside else {}
        with self._staging.appearing(self.measure_folder(run_id, measure_id)) as folder:
            write_bytes(folder / SCORE, text_of_json(fields).encode())
            write_bytes(folder / PROVENANCE, _provenance_text(measurement.provenance, measure_id))
            write_items(folder / ITEMS, measurement.outcomes)
        self.clear_failure(measure_id)
        return measure_id

    def journal(self, run_id: str, evaluator: Mapping[str, Any], data: str = "") -> Journal:
        """Return the journal of a measurement that isn't finished: its items, so that a killed one goes on."""
        measure_id = measurement_id(run_id, evaluator, data)
        return Journal(self.folder / JOURNALS / f"{bare(measure_id)}.jsonl", measure_id)

    def trials(self, run_id: str) -> Journal:
        """Return the journal of a run that isn't finished: what its method tried, so that a killed search goes on."""
        return Journal(self.folder / JOURNALS / f"{bare(run_id)}.jsonl", run_id)

    # The grid

    def cells(self) -> list[Cell]:
        """Return the grid of the store's last study; without one (a copied store), every record is a cell of its own.

        Of records and measurements with the same labels that differ in a revision, such cells hold the newest.
        """
        if (self.folder / INDEX).exists():
            with understood(self.folder / INDEX):
                return [Cell(**cell) for cell in self._index()["cells"]]
        newest: dict[Any, tuple[tuple[int, ...], Cell]] = {}
        for record in self.records(whole=False):
            run = record.run
            cell = Cell(run.model_name, run.data, str(run.method.get("spec")), run.target, run.seed, run.id, self._texts(run.id), run.propagate)
            revision = age(run.method) + age(run.allocation) + age(run.transforms)
            if revision >= newest.get(same := unrevised(run), (revision, cell))[0]:
                newest[same] = revision, cell
        return [cell for _, cell in newest.values()]

    def write_cells(
        self,
        cells: Sequence[Cell],
        study: Mapping[str, Any] | None = None,
        revisions: Mapping[str, int] | None = None,
        sets: Iterable[SetLabel] = (),
    ) -> None:
        """Write the grid whose results this store has, and what is known of its calibration `sets`.

        `study` is what else a reader of it needs: `baseline`, `pools`, `primary`. `revisions` are those of everything that it names, as the
        function `revisions` returns them: what was computed with a lower one is stale.
        """
        index: dict[str, Any] = {"cells": [{**vars(cell), "measures": dict(cell.measures)} for cell in cells]}
        index |= {"sets": labels} if (labels := {of.text: {k: v for k, v in vars(of).items() if k != "text"} for of in sets}) else {}
        index |= {} if study is None else {"study": study}
        index |= {} if revisions is None else {"revisions": dict(sorted(revisions.items()))}
        self.write_text(INDEX, text_of_json(sealed(index, _INDEX_PURPOSE), ordered=True))

    def sets(self) -> dict[str, SetLabel]:
        """Return the calibration sets of the grid by their texts, as the study read them; a store of an older version has none."""
        labels: dict[str, SetLabel] = {}
        for text, of in self._index().get("sets", {}).items():
            parts = {name: of[name] for name in ("source", "name", "format", "packing", "rest")}
            labels[text] = SetLabel(text, **parts, family=known_family(of["family"]))
        return labels

    def study_text(self) -> str:
        """Return the store's last study, as a file that runs it again; empty if it isn't known."""
        path = self.folder / STUDY
        with understood(path):
            return content(path, LARGEST).decode() if path.exists() else ""

    def study(self) -> Mapping[str, Any]:
        """Return the parts of the study that reading needs: `baseline` (a set or None), `pools` (sets by name), `primary`; empty if unknown."""
        return self._index().get("study", {})

    def revisions(self) -> Mapping[str, int]:
        """Return the revisions with which the study was last run, by kind and name; empty if they aren't known."""
        return self._index().get("revisions", {})

    def stale(self, records: Iterable[Record] | None = None) -> set[str]:
        """Return the ids of runs, and of measurements, that something of a lower revision than the study's had a part in.

        They stay, and no measurement is stale because its run is. `records` are those that were read already; else all are.
        """
        current = self.revisions()
        stale: set[str] = set()
        if not current:
            return stale
        for record in self.records(whole=False) if records is None else records:
            used = revisions_of(record.run)
            stale |= {record.run.id} if is_older(used, current) else set()
            stale |= {i for i, form in self.evaluators(record.run.id).items() if is_older(revisions("evaluator", form), current)}
        return stale

    # Failures

    def failures(self) -> dict[str, Mapping[str, Any]]:
        """Return what went wrong, by the id of the run or measurement that isn't there because of it."""
        folder = self.folder / FAILURES
        return {f"sha256:{p.stem}": read_failure(p) for p in sorted(folder.glob("*.json"))} if folder.exists() else {}

    def failure(self, failed_id: str) -> Mapping[str, Any] | None:
        """Return why a run or measurement isn't there, or None if nothing is known to have failed."""
        path = self.folder / FAILURES / f"{bare(failed_id)}.json"
        return read_failure(path) if path.exists() else None

    def add_failure(self, failed_id: str, what: Mapping[str, Any]) -> None:
        """Record why a run or measurement isn't there; a later failure of the same replaces it, a success clears it."""
        digits = bare(failed_id)
        failure = sealed({"id": failed_id, **what}, failure_purpose(digits))
        self.write_text(f"{FAILURES}/{digits}.json", text_of_json(failure))

    def clear_failure(self, failed_id: str) -> None:
        """Forget a failure: it was tried again and went well."""
        with self._staging.writing("clear a failure"):
            (self.folder / FAILURES / f"{bare(failed_id)}.json").unlink(missing_ok=True)

    # The folder

    @overload
    def claim(self, name: str, wait: Literal[True]) -> Claim: ...
    @overload
    def claim(self, name: str, wait: bool = False) -> Claim | None: ...
    def claim(self, name: str, wait: bool = False) -> Claim | None:
        """Return the right to work on `name`, any text, alone: None while another holds it (also within this process), unless this is to `wait`.

        It is freed by `with`, by `free()`, or by the end of the process, however it ends.
        """
        with self._staging.writing(f"claim {name}"):
            return claimed(self.folder, name, wait)

    def write_text(self, name: str, text: str) -> Path:
        """Write one file of the store (`study.yaml`, `report.html`), whole or not at all; an older one is replaced."""
        path = self.folder / name
        self._staging.replace(path, text.encode())
        return path

    def staging_folder(self) -> Path:
        """Return a folder for this process alone, for what others shall read while it is at work; gone when the store is closed or next opened."""
        with self._staging.writing("make a staging folder"):
            return self._staging.folder()

    def run_folder(self, run_id: str) -> Path:
        """Return where a run's record is if it isn't packed, or would be."""
        return self.folder / RUNS / bare(run_id)

    def measure_folder(self, run_id: str, measure_id: str) -> Path:
        """Return where a measurement is if it isn't packed, or would be: `score.json` and `items.parquet`."""
        return self.run_folder(run_id) / MEASURES / bare(measure_id)

    def close(self) -> None:
        """Give back this writer's staging folder; done at the latest when the process ends, or by the next one that opens the store."""
        self._staging.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _measures(self, run_id: str) -> list[str]:
        folder = self.run_folder(run_id) / MEASURES
        names = os.listdir(folder) if folder.exists() else ()
        loose = {f"sha256:{name}" for name in names if not name.startswith(".")}  # what a file manager or a network drive leaves
        return sorted(loose | set(self.packed.measures.get(run_id, ()) if self.packed else ()))

    def _texts(self, run_id: str) -> dict[str, str]:
        """Return the measurements of a run by their evaluator's text; of two with the same text the newer revision."""
        forms = sorted(self.evaluators(run_id).items(), key=lambda item: (age(item[1]), item[0]))
        return {text_of(Call(str(f.get("spec")), parameters(f))): i for i, f in forms}

    def _index(self) -> Mapping[str, Any]:
        path = self.folder / INDEX
        with understood(path):
            return dict[str, Any](check(read_json(path, _INDEX_PURPOSE), IndexFile)) if path.exists() else {}


def statistics_purpose(name: str, folder: str, block: int) -> Purpose:
    """Return what a file of statistics is sealed for: those of this name, of one kind, which has its `folder`, and of one block."""
    return {"kind": "statistics", "statistics": bare(name), "folder": folder, "block": block}


def _provenance_text(provenance: Mapping[str, Any], result_id: str) -> bytes:
    document = sealed(provenance, provenance_purpose(bare(result_id)))
    return text_of_json(document).encode()


def bare(tagged: str) -> str:
    """Return an id without its tag: how its folder is called."""
    return tagged.rpartition(":")[2]
