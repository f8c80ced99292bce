"""The store: a folder with the results of runs, and the index of the study's grid."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, overload

import msgspec

from calibrant.errors import DataError, OutputError
from calibrant.results.database import Claim, any_claim_lives, take_claim
from calibrant.results.items import ItemNumbers, outcomes_of, table_of
from calibrant.results.live import DATABASE, VERSION, LiveResults
from calibrant.results.outcomes import Journal, Measurement, Outcome
from calibrant.results.published import MOVING, PACKED, PublishedResults, settle
from calibrant.results.records import (
    MEASURED,
    UNTOUCHED,
    Cell,
    Failure,
    Record,
    Run,
    ScoreEntry,
    StudyIndex,
    failure_for_others,
    identity_without_revisions,
    measurement_id,
    read_provenance,
    revision_order,
)
from calibrant.results.stored import (
    EDITS,
    MASK,
    Blobs,
    StoredMeasurement,
    StoredResults,
    StoredRun,
    digest_of,
    understood,
    write_whole,
)
from calibrant.spec import Call, canonical, parameters, text_of
from calibrant.spec.foreign import brief
from calibrant.spec.grammar import SetLabel
from calibrant.system.durable import LARGEST, content, reason, short
from calibrant.system.seals import Purpose, tell_made_again

STUDY: Final = "study.yaml"
"""The store's last study, as a file that runs it again."""
STATISTICS: Final = "statistics"
"""The folder of the dense model's statistics; it may be there before anything else is."""
OLD_MARKER: Final = "calibrant-store.json"
"""What made a folder a store before format 4."""
_CLUSTERS: Final = {"afs", "beegfs", "ceph", "glusterfs", "fuse.glusterfs", "gpfs", "lustre"}
NETWORKS: Final = frozenset({*_CLUSTERS, "cifs", "fuse.sshfs", "nfs", "nfs4", "smb3", "smbfs"})
"""File systems of other machines, on which SQLite's locks don't hold."""

_NAMED: Final = re.compile(r"[0-9a-f]{64}(-piece-\d+)?")
"""The names in a folder of statistics that is ours."""
_INDEX: Final = "index"
_FAILURE: Final = "failure"
_CELL: Final = "cell"
_FORMS: Final[Mapping[str, Any]] = {_FAILURE: Failure, _CELL: Cell}
"""What the documents are that lie beside the index, by their kind."""
UNKNOWN_ORIGIN: Final = "unknown origin"
"""Stands for the model that finished ones were made from, where nothing says which it was."""


class TakenLabelError(OutputError):
    """A store has another model by the labels of a cell."""


class Store:
    """The folder of results. Opening it for writing makes it; `create=False` only reads.

    Where the store is published, or was when a study went on in it, results are in its tables, and
    newer ones in a database beside them.

    Raises `OutputError` for a folder that isn't ours, that can't be written to, or on a full disk;
    nothing half-written stays behind. Raises `DataError` for a file in it that can't be read.
    """

    shares_folder: Final = True
    """Whether all who claim something here write their statistics into the same folder."""

    def __init__(self, folder: str | Path, create: bool = True) -> None:
        self.folder = Path(folder)
        self.blobs = Blobs(self.folder)
        self._writes = create
        self._told_damaged: set[str] = set()
        with self._writing("open the store"):
            self._check_ours(create)
            if create:
                self._check_local()
                # What a killed `pack` began is finished before anything is read.
                settle(self.folder)
            self._published = PublishedResults.of(self.folder)
        self._live = self._opened(create)

    def _opened(self, create: bool) -> LiveResults | None:
        """The database, made if it is to be written; None where there is nothing in it."""
        if not create and not (self.folder / DATABASE).exists():
            return None
        live = LiveResults(self.folder, create)
        version = live.database.version()
        if version == VERSION:
            return live
        live.database.close()
        if version == 0:  # its writer was killed before there was anything
            return None
        raise self._error(
            f"{str(self.folder)!r} was written in format {brief(version)}, this calibrant reads "
            f"{VERSION}; use the version that wrote it"
        )

    def _check_ours(self, create: bool) -> None:
        where = repr(str(self.folder))
        if create and self.folder.is_symlink() and not self.folder.exists():
            raise self._error(
                f"{where} is a link to what isn't there; name another folder, or remove the link"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise self._error(
                f"{where} is a file; results need a folder of their own, name another"
            )
        names: set[str] = set()
        if self.folder.exists():
            names = {path.name for path in self.folder.iterdir()}
        if _is_old(names):
            raise self._error(
                f"{where} holds results of an older format; "
                "convert them with tools/convert_store.py of calibrant's repository"
            )
        if is_store(self.folder):
            return
        if not create:
            raise self._error(
                f"{where} holds no results of calibrant (no {DATABASE} in it); "
                "name the folder that a study or demo wrote"
            )
        if not names <= self._allowed_before_results(names):
            raise self._error(
                f"{where} exists, isn't empty and isn't ours (no {DATABASE} in it); "
                "name a new or empty folder"
            )

    def _allowed_before_results(self, names: set[str]) -> set[str]:
        """What a store may hold before there is a result in it."""
        allowed = {name for name in names if name.startswith(DATABASE)}
        statistics = self.folder / STATISTICS
        if statistics.is_dir() and all(map(_NAMED.fullmatch, os.listdir(statistics))):
            allowed.add(STATISTICS)
        return allowed

    def _check_local(self) -> None:
        """Raise `OutputError` for a folder on a file system of another machine."""
        import psutil  # here, since only writers need it

        path = self.folder.resolve()
        mounted = Path("/")
        system = ""
        for disk in psutil.disk_partitions(all=True):
            place = Path(disk.mountpoint)
            # The innermost place where something is mounted is the folder's own disk.
            if path.is_relative_to(place) and place.is_relative_to(mounted):
                mounted = place
                system = disk.fstype
        if system in NETWORKS:
            raise self._error(
                f"{str(self.folder)!r} is on a network file system ({system}), where two machines "
                "can spoil a database; give a folder of this machine, and unite several with store "
                "merge"
            )

    def _error(self, message: str) -> OutputError:
        return OutputError(message, subject=str(self.folder))

    # Runs

    def results(self, run_id: str, measure_id: str = "") -> StoredResults:
        """Return where a run, or a measurement on it, lies. Raises `DataError` if it is nowhere."""
        results = self._found(run_id, measure_id)
        if results is not None:
            return results
        where = str(self.folder / (measure_id or run_id).rpartition(":")[2])
        raise DataError(f"{short(Path(where))!r} can't be read (it isn't there)", subject=where)

    def ids(self) -> list[str]:
        """Return the id of every run, in order."""
        runs: set[str] = set()
        for results in self._places():
            runs.update(results.runs())
        return sorted(runs)

    def has_record(self, run_id: str) -> bool:
        """Return whether the run is in the store."""
        return self._found(run_id) is not None

    def record(self, run_id: str, whole: bool = True) -> Record | None:
        """Return a run's record, or None if the store lacks it. Not `whole`, it comes without
        `weights` and provenance, and many times sooner."""
        results = self._found(run_id)
        if results is None:
            return None
        with results.understood(run_id):
            fields = dict(results.record(run_id))
            if whole:
                fields["weights"] = results.weights(run_id)
                fields["provenance"] = results.provenance(run_id)
            return Record.read(fields)

    def records(self, whole: bool = True) -> list[Record]:
        """Return every record, in the order of their ids; `whole` as in `record`."""
        found = [self.record(run_id, whole) for run_id in self.ids()]
        return [record for record in found if record is not None]

    def run(self, run_id: str) -> Run:
        """Return what was requested of a run that is there."""
        results = self.results(run_id)
        with results.understood(run_id):
            return Run.read(results.record(run_id)["run"])

    def add_record(self, record: Record, files: Mapping[str, bytes] = MappingProxyType({})) -> str:
        """Store `record` and return its run's id. One that is there already stays as it is: the
        same request has the same result.

        `files` are kept with it under their names, for example the mask.
        """
        run_id = record.run.id
        fields = {"id": run_id, **record.plain()}
        provenance = fields.pop("provenance")
        weights = fields.pop("weights")
        self.adopt(StoredRun(run_id, fields, weights, provenance, files))
        return run_id

    def adopt(self, row: StoredRun) -> None:
        """Store a run as another store has it. One that is in this store already stays."""
        # What is published already isn't written a second time.
        if self._published is None or not self._published.has(row.id):
            with self._writing("write a run"):
                self.live.add_run(row)
        self.clear_failure(row.id)

    def file(self, run_id: str, name: str) -> bytes | None:
        """Return a file that was kept with a record, or None if there is none."""
        results = self._found(run_id)
        return None if results is None else results.file(run_id, name)

    def state(self, run_id: str) -> bytes | None:
        """Return what the compressed model of a recorded run can be made from again: its mask or
        its edits.

        None where nothing was kept, and where it isn't what was written, which a line then says:
        the run is to be compressed again.
        """
        for name in (MASK, EDITS):
            try:
                kept = self.file(run_id, name)
            except DataError as error:
                tell_made_again("the mask or the edits of a run", error.subject)
                continue
            if kept is not None:
                return kept
        return None

    def put_back(self, run_id: str, contents: Mapping[str, bytes]) -> None:
        """Write a run's mask or edits anew where they are damaged and `contents` are what was
        written once; what was deleted stays deleted."""
        digests = self.results(run_id).digests(run_id)
        for name in (MASK, EDITS):
            digest = digests.get(name)
            if digest is None or name not in contents or not self.blobs.path(digest).exists():
                continue
            if digest_of(contents[name]) == digest:
                with self._writing("write a mask"):
                    self.blobs.put(contents[name])

    def bytes_of(self, name: str) -> int:
        """Return how much room the files of this name take beside all records together."""
        digests: set[str] = set()
        for run_id in self.ids():
            with suppress(DataError):  # whoever asks for the run itself is told
                digests.add(self.results(run_id).digests(run_id).get(name, ""))
        paths = [self.blobs.path(digest) for digest in digests if digest]
        return sum(path.stat().st_size for path in paths if path.is_file())

    # Measurements

    def measured(self, run_id: str) -> set[str]:
        """Return the ids of everything measured on a run."""
        measured: set[str] = set()
        for results in self._places():
            measured.update(results.measurements(run_id))
        return measured

    def measurement(self, run_id: str, measure_id: str) -> Measurement | None:
        """Return what was measured, with its items, or None if the store lacks it."""
        if self._found(run_id, measure_id) is None:
            return None
        entry = self.entry(run_id, measure_id)
        outcomes = self.items(run_id, measure_id)
        provenance = self.provenance(run_id, measure_id)
        return Measurement(entry.score, outcomes, provenance, entry.beside)

    def measurements(self, run_id: str) -> dict[str, Measurement]:
        """Return everything measured on a run, by measurement id."""
        measurements: dict[str, Measurement] = {}
        for measure_id in sorted(self.measured(run_id)):
            measured = self.measurement(run_id, measure_id)
            if measured is not None:
                measurements[measure_id] = measured
        return measurements

    def scores(self, run_id: str) -> dict[str, Measurement]:
        """Return everything measured on a run without its items and provenance, by measurement
        id."""
        scores: dict[str, Measurement] = {}
        for measure_id, entry in self._entries(run_id).items():
            scores[measure_id] = Measurement(entry.score, beside=entry.beside)
        return scores

    def _entries(self, run_id: str) -> dict[str, ScoreEntry]:
        """What is stored of everything measured on a run beside its items, by measurement id."""
        entries: dict[str, ScoreEntry] = {}
        # The database comes last here, so that what was written last replaces what is published.
        for results in reversed(self._places()):
            for measure_id, fields in results.scores(run_id).items():
                with results.understood(run_id, measure_id):
                    entries[measure_id] = ScoreEntry.read(fields)
        return dict(sorted(entries.items()))

    def entry(self, run_id: str, measure_id: str) -> ScoreEntry:
        """Return what is stored of a measurement beside its items; `DataError` if it isn't
        there."""
        results = self.results(run_id, measure_id)
        with results.understood(run_id, measure_id):
            return ScoreEntry.read(results.score(run_id, measure_id))

    def items(self, run_id: str, measure_id: str) -> tuple[Outcome, ...]:
        """Return the outcome of every item of a measurement; `DataError` if the store lacks it."""
        results = self.results(run_id, measure_id)
        table = results.items(run_id, measure_id)
        with results.understood(run_id, measure_id):
            return outcomes_of(table)

    def numbers(self, measurements: Sequence[tuple[str, str]]) -> Iterator[ItemNumbers]:
        """Yield the items' names, values and weights of each of these measurements, ids of a run
        and its own. Raises `DataError` for one that can't be read.
        """
        for key in measurements:
            yield self.results(*key).numbers(*key)

    def provenance(self, run_id: str, measure_id: str = "") -> Mapping[str, Any]:
        """Return what is known beside a record or a measurement: seconds, versions, machine. It is
        no part of the result."""
        results = self.results(run_id, measure_id)
        with results.understood(run_id, measure_id):
            return read_provenance(results.provenance(run_id, measure_id))

    def evaluators(self, run_id: str) -> dict[str, Mapping[str, Any]]:
        """Return the canonical evaluator behind each measurement of a run, by measurement id."""
        entries = self._entries(run_id)
        return {measure_id: entry.evaluator for measure_id, entry in entries.items()}

    def add_measurement(
        self,
        run_id: str,
        evaluator: Mapping[str, Any],
        measurement: Measurement,
        data: str = "",
    ) -> str:
        """Store what `evaluator` (its canonical form) measured on a recorded run and return its id;
        one that is there already stays.

        `data` is the digest of what it measured on, if it has one.
        """
        measure_id = measurement_id(run_id, evaluator, data)
        entry = ScoreEntry(
            id=measure_id,
            run=run_id,
            evaluator=canonical(evaluator),
            score=measurement.score,
            data=data,
            beside=measurement.beside,
        )
        row = StoredMeasurement(
            run=run_id,
            id=measure_id,
            score=entry.plain(),
            items=table_of(measurement.outcomes),
            provenance=measurement.provenance,
        )
        self.adopt_measurement(row)
        return measure_id

    def adopt_measurement(self, row: StoredMeasurement) -> None:
        """Store a measurement as another store has it, on a run that is in this one. One that is in
        this store already stays."""
        if not self.has_record(row.run):
            raise OutputError(
                f"there is no record of run {row.run} in {str(self.folder)!r}; "
                "add the record before what was measured on it",
                subject=row.run,
            )
        if self._published is None or not self._published.has(row.run, row.id):
            self.live.add_measurement(row)
        self.clear_failure(row.id)

    def remove(self, run_id: str, measure_id: str = "") -> bool:
        """Forget a measurement, or a run with all that was measured on it, so that it is computed
        again. Return whether it was in the database: what is published stays."""
        there = self._live is not None and self._live.has(run_id, measure_id)
        if there:
            self.live.remove(run_id, measure_id)
        return there

    def journal(self, run_id: str, evaluator: Mapping[str, Any], data: str = "") -> Journal:
        """Return the journal of a measurement that isn't finished: its items, so that a killed one
        goes on."""
        return Journal.within(self.live.database, measurement_id(run_id, evaluator, data))

    def trials(self, run_id: str) -> Journal:
        """Return the journal of a run that isn't finished: what its method tried, so that a killed
        search goes on."""
        return Journal.within(self.live.database, run_id)

    def begun(self) -> bool:
        """Return whether a run or measurement is begun that has neither ended nor failed: what was
        found of it so far is in its journal alone.
        """
        rows = self.live.database.rows("SELECT DISTINCT question FROM journal")
        return not {question for (question,) in rows} <= self.failures().keys()

    # The grid

    def index(self) -> StudyIndex:
        """Return the grid of the store's last study, empty where none is known, and the cells of
        models that were measured without one.
        """
        index = self._index_of_study()
        if self._live is None:
            return index
        measured = {cell.run: cell for cell in self._published_cells()}
        added, damaged = self._live.documents(_CELL, Cell)
        if damaged:
            raise damaged[0].error
        for run_id, fields in added.items():
            measured[run_id] = msgspec.convert(fields, Cell)
        return replace(index, measured=tuple(measured.values()))

    def _index_of_study(self) -> StudyIndex:
        if self._live is not None:
            written = self._live.document(_INDEX, "")
            if written is not None:
                with understood(self._live.path):
                    return StudyIndex.read(written)
        if self._published is not None:
            with understood(self._published.path(PACKED)):
                return StudyIndex.read(self._published.index())
        return StudyIndex()

    def _published_cells(self) -> list[Cell]:
        """What was measured without a study before the store was published."""
        if self._published is None:
            return []
        with understood(self._published.path(PACKED)):
            return msgspec.convert(self._published.measured_cells(), list[Cell])

    def grid(self, index: StudyIndex | None = None) -> list[Cell]:
        """Return the grid of the store's last study; without one (a copied store), every record
        that `evaluate` didn't add is a cell of its own.

        Of records and measurements with the same labels that differ in a revision, such cells hold
        the newest. An `index` that was read already isn't read again.
        """
        index = index or self.index()
        if index.cells:
            return list(index.cells)
        added = {cell.run for cell in index.measured}
        return [cell for cell in self._cells_of_records() if cell.run not in added]

    def _cells_of_records(self) -> list[Cell]:
        newest: dict[Any, tuple[tuple[int, ...], Cell]] = {}
        for record in self.records(whole=False):
            run = record.run
            if run.method.get("spec") == MEASURED:
                continue
            cell = Cell(
                model=run.model_name,
                data=run.data,
                method=str(run.method.get("spec")),
                target=run.target,
                seed=run.seed,
                run=run.id,
                measures=self._measurements_by_text(run.id),
                propagate=run.propagate,
            )
            order = revision_order([run.method, run.allocation, *run.transforms])
            revision = (*order, run.revised)
            # Of what differs in revisions alone, the newest stands for all.
            same = identity_without_revisions(run)
            if same not in newest or revision >= newest[same][0]:
                newest[same] = revision, cell
        return [cell for _, cell in newest.values()]

    def cells(self, index: StudyIndex | None = None) -> list[Cell]:
        """Return the grid, and behind it the models that were measured without a study.

        A run that stands in the grid shows what the study asks. The dense model, which everything
        is compared with, shows all that was measured on it. An `index` that was read already isn't
        read again.
        """
        index = index or self.index()
        cells = self.grid(index)
        places = {cell.labels: place for place, cell in enumerate(cells)}
        for cell in sorted(index.measured, key=_measured_last):
            place = places.get(cell.labels)
            if place is None:
                cells.append(cell)
            elif cell.run == cells[place].run and cell.method == UNTOUCHED:
                measures = {**cell.measures, **cells[place].measures}
                cells[place] = replace(cells[place], measures=measures)
        untouched = {cell.model for cell in cells if cell.method == UNTOUCHED}
        origin = UNKNOWN_ORIGIN
        if len(untouched) == 1:
            (origin,) = untouched
        named: list[Cell] = []
        for cell in cells:
            if not cell.model:
                cell = replace(cell, model=origin)
            named.append(cell)
        return named

    def add_cell(self, cell: Cell) -> None:
        """Have a run that no study asked for shown beside the grid, with what it `measures` beside
        what is known of it.

        Its `model` is empty where it isn't known what the model was made from: in a store with one
        dense model that is taken. Raises `OutputError` where another run has its labels.
        """
        with self.claim(_CELL, wait=True):
            index = self.index()
            self._check_label(cell, index)
            for known in index.measured:
                if known.run == cell.run:
                    measures = {**known.measures, **cell.measures}
                    cell = replace(cell, model=known.model or cell.model, measures=measures)
            self.live.put_document(_CELL, cell.run, asdict(cell))

    def _check_label(self, cell: Cell, index: StudyIndex) -> None:
        """Raise `OutputError` for a cell that couldn't be told from another run's."""
        for other in (*index.cells, *index.measured):
            same_model = other.model == cell.model or not other.model or not cell.model
            if other.run in ("", cell.run) or not same_model:
                continue
            if other.labels[1:] == cell.labels[1:]:
                labels = ", ".join(str(label) for label in cell.labels if label)
                raise TakenLabelError(
                    f"{str(self.folder)!r} has another model with these labels ({labels}), of "
                    "other numbers or in another type; give this one a label of its own",
                    subject=str(self.folder),
                )

    def write_cells(
        self,
        cells: Sequence[Cell],
        study: Mapping[str, Any] | None = None,
        revisions: Mapping[str, int] | None = None,
        sets: Iterable[SetLabel] = (),
    ) -> None:
        """Write the grid whose results this store has, and what is known of its calibration `sets`.

        `study` is what else a reader of it needs: `baseline`, `pools`, `primary`. `revisions` are
        those of everything that it names, as the function `revisions` returns them: what was
        computed with a lower one is stale.
        """
        labels: dict[str, dict[str, Any]] = {}
        for label in sets:
            parts = asdict(label)
            labels[parts.pop("text")] = parts
        # Sorted, so that the same study writes the same index.
        known = dict(sorted((revisions or {}).items()))
        index = StudyIndex(tuple(cells), labels, study or {}, known)
        self.live.put_document(_INDEX, "", index.plain())

    def study_text(self) -> str:
        """Return the store's last study, as a file that runs it again; empty if it isn't known."""
        path = self.folder / STUDY
        with understood(path):
            return content(path, LARGEST).decode() if path.exists() else ""

    # Failures

    def failures(self) -> dict[str, Mapping[str, Any]]:
        """Return what went wrong, by the id of the run or measurement that isn't there because of
        it. One that can't be read counts as none."""
        failures: dict[str, Mapping[str, Any]] = {}
        if self._published is not None:
            failures |= self._published.failures()
        with understood(self.folder):
            msgspec.convert(list(failures.values()), list[Failure])
        if self._live is not None:
            written, damaged = self._live.documents(_FAILURE, Failure)
            failures |= written
            for document in damaged:
                failures.pop(document.name, None)
        return {name: what for name, what in failures.items() if what}

    def failure(self, failed_id: str) -> Mapping[str, Any] | None:
        """Return why a run or measurement isn't there, or None if nothing is known to have
        failed.

        None as well for a failure that isn't what was written, which a line then says: the same is
        tried again.
        """
        if self._live is not None:
            written, damaged = self._live.documents(_FAILURE, Failure, failed_id)
            if damaged:
                self._tell_damaged(damaged[0].error)
                return None
            if failed_id in written:
                return written[failed_id] or None
        if self._published is None:
            return None
        return self._published.failures().get(failed_id) or None

    def _tell_damaged(self, error: DataError) -> None:
        """Say once that a failure can't be read: workers ask for one again and again."""
        if error.subject not in self._told_damaged:
            self._told_damaged.add(error.subject)
            tell_made_again("what is known of a failure", error.subject)

    def add_failure(self, failed_id: str, what: Mapping[str, Any]) -> None:
        """Record why a run or measurement isn't there; a later failure of the same replaces it, a
        success clears it."""
        self.live.put_document(_FAILURE, failed_id, {"id": failed_id, **what})

    def clear_failure(self, failed_id: str) -> None:
        """Forget a failure: it was tried again and went well."""
        if self._published is not None and failed_id in self._published.failures():
            # The published one can't be deleted; an empty one in the database goes before it.
            self.live.put_document(_FAILURE, failed_id, {})
        else:
            self.live.remove_document(_FAILURE, failed_id)

    # The folder

    @overload
    def claim(self, name: str, wait: Literal[True]) -> Claim: ...
    @overload
    def claim(self, name: str, wait: bool = False) -> Claim | None: ...
    def claim(self, name: str, wait: bool = False) -> Claim | None:
        """Return the right to work on `name`, any text, alone: None while another holds it (also
        within this process), unless this is to `wait`.

        It is freed by `with`, by `free()`, or by the end of the process, however it ends.
        """
        return take_claim(self.live.database, name, wait)

    def at_work(self) -> bool:
        """Return whether a process is at work on something in the store."""
        return self._live is not None and any_claim_lives(self._live.database)

    def write_text(self, name: str, text: str) -> Path:
        """Write one file of the store (`study.yaml`, `report.html`), whole or not at all; an older
        one is replaced."""
        path = self.folder / name
        with self._writing(f"write {name}"):
            write_whole(path, text.encode())
        return path

    def damaged_files(self) -> Iterator[tuple[Path, str]]:
        """Yield each table that isn't as it was published, and a database in which SQLite finds
        something wrong: the path, and what is wrong."""
        if self._published is not None:
            yield from self._published.changed()
        if self._live is not None:
            problem = self._live.database.problem()
            if problem:
                yield self._live.path, problem

    def damaged_documents(self) -> list[tuple[str, DataError]]:
        """Return what is wrong with each failure and each cell beside the grid that can't be read:
        `failure` or `cell`, and what."""
        found: list[tuple[str, DataError]] = []
        if self._live is not None:
            for kind, form in _FORMS.items():
                _, damaged = self._live.documents(kind, form)
                found += [(kind, document.error) for document in damaged]
        return found

    def remove_damaged_documents(self) -> int:
        """Forget the failures and the cells beside the grid that can't be read, and return how many
        these were."""
        return sum(self.live.remove_damaged(kind, form) for kind, form in _FORMS.items())

    def measurements_without_run(self) -> list[tuple[str, str]]:
        """Return the ids of measurements in the database whose run isn't there, with its id."""
        if self._live is None:
            return []
        return [key for key in self._live.measured() if not self.has_record(key[0])]

    def remove_database(self, runs: int, measurements: int) -> None:
        """Delete the database: what it holds is published, at most so many runs and measurements.

        Raises `OutputError`, and deletes nothing, where it holds something else or more by now, and
        where somebody else has it open.
        """
        published = PublishedResults.of(self.folder)
        live = self._live
        # The tables are there already, whatever becomes of the database.
        self._published = published
        if live is not None and published is not None:
            check = partial(self._check_published, live, published, runs, measurements)
            # The check runs while nobody else can write, so nothing new is lost.
            live.database.remove(check)
            self._live = None

    def remove_unmeasured(self, run_id: str) -> None:
        """Delete the database where it has this run alone and nothing was measured; it stays where
        somebody else has it open.
        """
        live = self.live

        def check() -> None:
            alone = set(live.runs()) <= {run_id} and not live.measured()
            if not alone or self.begun() or self.index().cells or self.failures():
                raise self._error(f"{str(self.folder)!r} has other results; it stays")

        with suppress(OutputError):
            live.database.remove(check)
            self._live = None

    def _check_published(
        self, live: LiveResults, published: PublishedResults, runs: int, measurements: int
    ) -> None:
        kept = live.runs()
        # What was measured on a run that is nowhere is never published.
        keys = [key for key in live.measured() if published.has(key[0])]
        whole = all(map(published.has, kept)) and all(published.has(*key) for key in keys)
        more = len(kept) > runs or len(keys) > measurements
        written = StudyIndex.read(published.index())
        failures = {name: failure_for_others(what) for name, what in self.failures().items()}
        changed = self.index() != written or failures != published.failures()
        if not whole or more or self.begun() or changed:
            raise self._error(
                f"something came into {str(self.folder)!r} while it was packed; "
                "nothing is lost, pack it again"
            )

    @property
    def live(self) -> LiveResults:
        """The database. Raises `OutputError` where there is none, since the store was opened to be
        read."""
        if self._live is None or not self._writes:
            raise self._error(f"{str(self.folder)!r} was opened to be read; open it to write")
        return self._live

    def close(self) -> None:
        """Close the database; done at the latest when the process ends."""
        if self._live is not None:
            self._live.database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, run_id: str, measure_id: str = "") -> StoredResults | None:
        """Where a run, or a measurement on it, lies, if it is anywhere."""
        for results in self._places():
            if results.has(run_id, measure_id):
                return results
        return None

    def _places(self) -> list[StoredResults]:
        """Where results lie: what was written last comes first."""
        places: list[StoredResults | None] = [self._live, self._published]
        return [place for place in places if place is not None]

    def _measurements_by_text(self, run_id: str) -> dict[str, str]:
        """The measurements of a run by their evaluator's text; of two with the same text the newer
        revision."""
        by_revision: list[tuple[tuple[int, ...], str, str]] = []
        for measure_id, form in self.evaluators(run_id).items():
            text = text_of(Call(str(form.get("spec")), parameters(form)))
            by_revision.append((revision_order(form), measure_id, text))
        # Newer revisions come later, and replace older ones of their text.
        return {text: measure_id for _, measure_id, text in sorted(by_revision)}

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Raise `OutputError`, naming what was being done, for any error of the disk."""
        try:
            yield
        except OSError as error:
            message = f"can't {what} in {str(self.folder)!r}: {reason(error)}"
            raise self._error(message) from error


def _measured_last(cell: Cell) -> tuple[bool, tuple[Any, ...]]:
    """Return what cells are sorted by: those that are known by their label alone come last."""
    return cell.method == MEASURED, cell.labels


def is_store(folder: Path) -> bool:
    """Return whether a folder holds results."""
    return any((folder / name).exists() for name in (DATABASE, PACKED, MOVING))


def _is_old(names: set[str]) -> bool:
    """Return whether a folder with these `names` in it holds results of a format before 4."""
    if OLD_MARKER in names:
        return True
    # Without its marker it is known by these, which beside results of today are somebody's own.
    return {STUDY, "runs"} <= names and not names & {DATABASE, PACKED}


def statistics_purpose(name: str, folder: str, block: int) -> Purpose:
    """Return what a file of statistics is sealed for: those of this name, of one kind, which has
    its `folder`, and of one block.
    """
    digits = name.rpartition(":")[2]
    return {"kind": "statistics", "statistics": digits, "folder": folder, "block": block}
