"""Convert a store of an older format (folders of files, or the tables of format 3) to today's.

    python -m tools.convert_store results new-results          # a database, as a study writes
    python -m tools.convert_store results new-results --pack   # tables, as `store pack` writes

Ids, values and what is known beside them stay as they are, to the bit. Every result is read back
from the new store and compared. The old store is only read.
"""

import argparse
import gzip
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.results import STUDY, Store, pack
from calibrant.results.items import same_items
from calibrant.results.records import StudyIndex
from calibrant.results.stored import EDITS, MASK, PROFILE, StoredMeasurement, StoredRun
from calibrant.system.durable import compact_json, from_json

SEAL: Final = "seal"
FILES: Final = (PROFILE, MASK, EDITS)


class OldStore:
    """An older store: results in folders of their own, and those in tables beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._packed = (folder / "packed.json").exists()
        self._archive = dict[str, bytes]()
        if (folder / "files.zip").exists():
            with zipfile.ZipFile(folder / "files.zip") as archive:
                self._archive = {name: archive.read(name) for name in archive.namelist()}

    def index(self) -> dict[str, Any]:
        """Return the index of the grid, empty where there is none."""
        path = self.folder / "index.json"
        return _unsealed(from_json(path.read_text())) if path.exists() else {}

    def failures(self) -> Iterator[Mapping[str, Any]]:
        """Yield every failure."""
        for path in sorted((self.folder / "failures").glob("*.json")):
            yield _unsealed(from_json(path.read_text()))

    def runs(self) -> Iterator[StoredRun]:
        """Yield every run."""
        if self._packed:
            for row in _rows(self.folder / "runs.parquet"):
                yield self._packed_run(row)
        for folder in sorted((self.folder / "runs").glob("*")):
            if (folder / "record.json").exists():
                yield _loose_run(folder)

    def measurements(self) -> Iterator[StoredMeasurement]:
        """Yield every measurement."""
        if self._packed:
            yield from self._packed_measurements()
        for folder in sorted((self.folder / "runs").glob("*/measures/*")):
            if (folder / "score.json").exists():
                yield _loose_measurement(folder)

    def _packed_run(self, row: Mapping[str, Any]) -> StoredRun:
        record = from_json(row["record"])
        weights = record.pop("weights") if row["weights"] is None else from_json(row["weights"])
        place = f"runs/{row['run'].rpartition(':')[2]}"
        files = {
            name: self._archive[f"{place}/{name}"]
            for name in FILES
            if f"{place}/{name}" in self._archive
        }
        if row["profile"] is not None:
            files[PROFILE] = row["profile"].encode()
        provenance = _unsealed(from_json(row["provenance"] or "{}"))
        return StoredRun(row["run"], {"id": row["run"], **record}, weights, provenance, files)

    def _packed_measurements(self) -> Iterator[StoredMeasurement]:
        with pq.ParquetFile(self.folder / "items.parquet") as file:
            groups = dict[int, Any]()
            rows = list(_rows(self.folder / "scores.parquet"))
            for row in sorted(rows, key=_row_group):
                layout = from_json(row["layout"])
                number = layout["group"]
                if number not in groups:
                    groups = {number: file.read_row_group(number)}
                place = groups[number].slice(layout["start"], layout["rows"])
                items = pa.table(
                    {name: place[column].combine_chunks() for name, column in layout["columns"]}
                )
                names = {"id": row["measurement"], "run": row["run"]}
                score = {"data": "", **from_json(row["score"]), **names}
                provenance = _unsealed(from_json(row["provenance"] or "{}"))
                yield StoredMeasurement(row["run"], row["measurement"], score, items, provenance)


def _row_group(row: Mapping[str, Any]) -> int:
    return int(from_json(row["layout"])["group"])


def _loose_run(folder: Path) -> StoredRun:
    run = f"sha256:{folder.name}"
    record = from_json((folder / "record.json").read_text())
    weights = record.pop("weights", None)  # which in format 1 stood in the record
    if weights is None:
        weights = from_json(gzip.decompress((folder / "weights.json.gz").read_bytes()).decode())
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    return StoredRun(run, {"id": run, **record}, weights, _provenance(folder), files)


def _loose_measurement(folder: Path) -> StoredMeasurement:
    run, measurement = f"sha256:{folder.parts[-3]}", f"sha256:{folder.name}"
    fields = from_json((folder / "score.json").read_text())
    score = {"data": "", **fields, "id": measurement, "run": run}
    items = pq.read_table(folder / "items.parquet")
    return StoredMeasurement(run, measurement, score, items, _provenance(folder))


def _provenance(folder: Path) -> dict[str, Any]:
    path = folder / "provenance.json"
    return _unsealed(from_json(path.read_text())) if path.exists() else {}


def _unsealed(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != SEAL}


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(table) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


def convert(source: Path, target: Path) -> tuple[int, int]:
    """Write the results of an older store into a new one, and return how many runs and measurements
    they are. Raises `ValueError` for one that doesn't come back as it was."""
    old = OldStore(source)
    counts = [0, 0]
    with Store(target) as store:
        for run in old.runs():
            store.adopt(run)
            counts[0] += 1
        for measurement in old.measurements():
            store.adopt_measurement(measurement)
            counts[1] += 1
        index = old.index()
        if index:
            read = StudyIndex.read(index)
            store.write_cells(read.cells, read.study, read.revisions, read.labels().values())
        for failure in old.failures():
            store.add_failure(str(failure["id"]), failure)
        if (source / STUDY).exists():
            store.write_text(STUDY, (source / STUDY).read_text(encoding="utf-8"))
    compare(old, target)
    return counts[0], counts[1]


def compare(old: OldStore, target: Path) -> None:
    """Raise `ValueError` unless every result of an older store is in the new one, to the bit."""
    with Store(target, create=False) as store:
        for run in old.runs():
            row = store.results(run.id).run_row(run.id)
            _same(
                run.id,
                [row.record, row.weights, row.provenance],
                [run.record, run.weights, run.provenance],
            )
            if row.files != run.files:
                raise ValueError(f"{run.id} has other files")
        for measurement in old.measurements():
            key = measurement.run, measurement.id
            row = store.results(*key).measurement_row(*key)
            _same(row.id, [row.score, row.provenance], [measurement.score, measurement.provenance])
            if not same_items(row.items, measurement.items):
                raise ValueError(f"{row.id} has other items")
        index = old.index()
        if index:
            _same("the grid", store.index().plain(), StudyIndex.read(index).plain())


def _same(name: str, here: Any, there: Any) -> None:
    if compact_json(here) != compact_json(there):
        raise ValueError(f"{name} isn't what it was")


def main() -> None:
    """Convert one store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--pack", action="store_true", help="write tables")
    chosen = parser.parse_args()
    place = (
        chosen.target.with_name(f"{chosen.target.name}.converting")
        if chosen.pack
        else chosen.target
    )
    runs, measurements = convert(chosen.source, place)
    if chosen.pack:
        pack(place, chosen.target)
        compare(OldStore(chosen.source), chosen.target)
        shutil.rmtree(place)
    print(f"{runs} runs and {measurements} measurements of {chosen.source} are in {chosen.target}")


if __name__ == "__main__":
    main()
