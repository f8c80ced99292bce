"""Results as tables, which anybody can read: how a published store looks, and how it is read.

`runs.parquet` has a row a run, `matrices.parquet` a row for each matrix of each run,
`scores.parquet` a row a measurement, and the same row of `items.parquet` has lists with what each
of its items gave. `cells.parquet` is the grid of the study. `record` is a run's record in JSON
without its matrices, `score` a measurement in JSON without its value and standard error; other
columns of these two tables repeat parts of them for people. `packed.json` has the sums of all
tables, and what is no table. Masks and edits lie in `blobs`.
"""

import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from calibrant.errors import DataError
from calibrant.numerics import six_digits
from calibrant.results.items import COLUMNS, check_count, check_items, restored_columns
from calibrant.results.stored import (
    PROFILE,
    Blobs,
    StoredResults,
    damaged,
    digest_of,
    digest_of_file,
    understood,
)
from calibrant.system.durable import compact_json, flush, from_json, opened, read_json, short
from calibrant.system.seals import Purpose

PACKED: Final = "packed.json"
"""What makes a folder a published store: it is written last."""
PACKED_PURPOSE: Final[Purpose] = {"kind": "published store"}
"""What `packed.json` is sealed for."""
RUNS: Final = "runs.parquet"
MATRICES: Final = "matrices.parquet"
SCORES: Final = "scores.parquet"
ITEMS: Final = "items.parquet"
CELLS: Final = "cells.parquet"
TABLES: Final = (RUNS, MATRICES, SCORES, ITEMS, CELLS)
MOVING: Final = ".packed"
"""New tables on their way into the store. A table in this folder is read before the one beside it,
and `packed.json` leaves it last."""

MATRIX_COLUMNS: Final[Mapping[str, type[Any]]] = {
    "name": str,
    "zeros": int,
    "sparsity": float,
    "error_from": str,
    "bits_a_weight": float,
    "bytes": int,
    "tokens": int,
    "reason": str,
}
"""The facts of a matrix that have a column of plain values."""
ERROR: Final = "error"
"""The fact of a matrix that has six digits, which a number of half the size holds too."""
HEXADECIMAL: Final[Mapping[str, int]] = {"bits": 32, "inputs": 64}
"""The facts of a matrix that are bytes in hexadecimal digits, and how many bytes they are."""

MATRIX_FIELDS: Final = (*MATRIX_COLUMNS, ERROR, *HEXADECIMAL, "rows", "columns", "notes", "more")
"""All columns of `matrices.parquet`."""


class PublishedResults(StoredResults):
    """The published results of the store in `folder`. Tables are read when they are needed, and
    only the columns that are. Each is compared with its sum before anything in it is
    believed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = Blobs(folder)
        path = self.path(PACKED)
        with understood(path):
            self.manifest: Mapping[str, Any] = read_json(path, PACKED_PURPOSE, required=True)
            _check_manifest(self.manifest)
        self._compared = set[str]()
        self._first_rows = cache(self._read_first_rows)
        # Readers ask for rows beside each other, so what was unpacked last is kept.
        self._column_chunk = lru_cache(256)(self._read_column_chunk)

    @classmethod
    def of(cls, folder: Path) -> "PublishedResults | None":
        """Return the published part of the store in `folder`, or None if it has none."""
        # In this order: another process may move it into the folder meanwhile.
        for place in (folder / MOVING, folder):
            if (place / PACKED).exists():
                return cls(folder)
        return None

    def path(self, name: str) -> Path:
        """Return where a table is: a publishing that was killed may have left it on its way."""
        moving = self.folder / MOVING
        on_its_way = (moving / PACKED).exists() and (moving / name).exists()
        return moving / name if on_its_way else self.folder / name

    def changed(self) -> Iterator[tuple[Path, str]]:
        """Yield the path of each table that isn't as it was written, and what is wrong with it."""
        for name in self.manifest["files"]:
            problem = self._problem(name)
            if problem:
                yield self.path(name), problem

    def index(self) -> Mapping[str, Any]:
        """Return the `StudyIndex` as plain data."""
        # Mappings and not lists: of a made-up file a row of -1 is damaged, and not the last one.
        runs = dict(enumerate(self._runs))
        measurements = {row: measurement for row, (_, measurement) in enumerate(self._keys)}
        with self._file(CELLS) as file:
            cells: list[dict[str, Any]] = file.read().to_pylist()
        with understood(self.path(CELLS)):
            for cell in cells:
                row = cell.pop("run_row")
                if row is not None:
                    cell["run"] = runs[row]
                measures: dict[str, str] = {}
                for measure in cell["measures"]:
                    # A measurement that the store lacks has no row, and its id stands here.
                    measurement = measure["id"]
                    if measure["row"] is not None:
                        measurement = measurements[measure["row"]]
                    measures[measure["evaluator"]] = measurement
                cell["measures"] = measures
        return {"cells": cells, **self.manifest["index"]}

    def measured_cells(self) -> Sequence[Mapping[str, Any]]:
        """Return the cells that no study asked for, as plain data."""
        return self.manifest["index"].get("measured", [])

    def failures(self) -> Mapping[str, Any]:
        """Return what went wrong, by the id of what isn't there because of it."""
        return self.manifest["failures"]

    def runs(self) -> Collection[str]:
        return sorted(self._runs)

    def measurements(self, run: str) -> Collection[str]:
        return sorted(self._measurements.get(run, {}))

    def has(self, run: str, measurement: str = "") -> bool:
        if measurement:
            return measurement in self._measurements.get(run, {})
        return run in self._runs

    def record(self, run: str) -> Mapping[str, Any]:
        with self.understood(run):
            return {"id": run, **from_json(self._cell(run, "", "record"))}

    def weights(self, run: str) -> Sequence[Mapping[str, Any]]:
        matrices: list[dict[str, Any]] = []
        with self.understood(run):
            first, count = self._matrices[self._runs[run]]
            columns = [self._cells_below(first, count, name) for name in MATRIX_FIELDS]
            for values in zip(*columns, strict=True):
                row = dict(zip(MATRIX_FIELDS, values, strict=True))
                matrices.append(matrix_of(row))
        return matrices

    def provenance(self, run: str, measurement: str = "") -> Mapping[str, Any]:
        with self.understood(run, measurement):
            return from_json(self._cell(run, measurement, "provenance"))

    def score(self, run: str, measurement: str) -> Mapping[str, Any]:
        with self.understood(run, measurement):
            fields = from_json(self._cell(run, measurement, "score"))
            for name in ("value", "stderr"):
                fields["score"][name] = self._cell(run, measurement, name)
        return {"id": measurement, "run": run, **fields}

    def items(self, run: str, measurement: str, columns: Sequence[str] | None = None) -> Any:
        import pyarrow as pa

        with self.understood(run, measurement):
            row = self._measurements[run][measurement]

            def stored(column: str) -> Any:
                return self._value(ITEMS, row, column).values

            layout = from_json(self._value(ITEMS, row, "layout").as_py())
            table = pa.table(restored_columns(layout, stored, columns))
            check_count(table)
            if columns is None or set(COLUMNS) <= set(columns):
                check_items(table.schema)
            return table

    def digests(self, run: str) -> Mapping[str, str]:
        with self.understood(run):
            digests = dict(from_json(self._cell(run, "", "files")))
        profile = self._profile(run)
        if profile is not None:
            digests[PROFILE] = digest_of(profile)
        return digests

    def file(self, run: str, name: str) -> bytes | None:
        if name == PROFILE:
            return self._profile(run)
        digest = self.digests(run).get(name)
        return None if digest is None else self.blobs.get(digest)

    def _profile(self, run: str) -> bytes | None:
        with self.understood(run):
            profile = self._cell(run, "", "profile")
            return None if profile is None else profile.encode()

    def where(self, run: str, measurement: str = "") -> str:
        table = SCORES if measurement else RUNS
        _, _, digits = (measurement or run).rpartition(":")
        return str(self.path(table) / digits)

    @cached_property
    def _runs(self) -> Mapping[str, int]:
        """The row of each run."""
        return {run: row for row, run in enumerate(self._texts(RUNS, "run"))}

    @cached_property
    def _keys(self) -> Sequence[tuple[str, str]]:
        """The ids of the run and the measurement of each row of scores."""
        runs = self._texts(SCORES, "run")
        return list(zip(runs, self._texts(SCORES, "measurement"), strict=True))

    @cached_property
    def _measurements(self) -> Mapping[str, Mapping[str, int]]:
        """The row of each measurement, by the ids of its run and its own."""
        places = dict[str, dict[str, int]]()
        for row, (run, measurement) in enumerate(self._keys):
            places.setdefault(run, {})[measurement] = row
        return places

    @cached_property
    def _matrices(self) -> Mapping[int, tuple[int, int]]:
        """The first row of each run's matrices, and how many they are, by the run's own row."""
        counts = self._column(RUNS, "matrices")
        if min(counts, default=0) < 0:
            raise ValueError("a run can't have fewer matrices than none")
        # One more first row than there are runs: where the next one would begin.
        firsts = accumulate(counts, initial=0)
        return dict(enumerate(zip(firsts, counts, strict=False)))

    def _cell(self, run: str, measurement: str, column: str) -> Any:
        """One value of the row of a run or a measurement."""
        if measurement:
            return self._value(SCORES, self._measurements[run][measurement], column).as_py()
        return self._value(RUNS, self._runs[run], column).as_py()

    def _value(self, table: str, row: int, column: str) -> Any:
        """One value of a table, as Arrow has it."""
        group, place = self._group_and_place(table, row)
        return self._column_chunk(table, group, column)[place]

    def _cells_below(self, first: int, count: int, column: str) -> list[Any]:
        """Some values of the table of matrices that stand below each other."""
        values: list[Any] = []
        while len(values) < count:
            group, place = self._group_and_place(MATRICES, first + len(values))
            chunk = self._column_chunk(MATRICES, group, column)
            part = chunk.slice(place, count - len(values))
            if not len(part):
                raise ValueError(f"{MATRICES} ends before its rows do")
            values += part.to_pylist()
        return values

    def _group_and_place(self, table: str, row: int) -> tuple[int, int]:
        """In which row group a row is, and where in it."""
        firsts = self._first_rows(table)
        group = bisect_right(firsts, row) - 1
        return group, row - firsts[group]

    def _read_first_rows(self, table: str) -> Sequence[int]:
        """The first row of each row group."""
        with self._file(table) as file:
            groups = range(file.num_row_groups)
            counts = [file.metadata.row_group(group).num_rows for group in groups]
        return list(accumulate(counts, initial=0))[:-1]

    def _read_column_chunk(self, table: str, group: int, column: str) -> Any:
        with self._file(table) as file:
            return file.read_row_group(group, columns=[column])[column].combine_chunks()

    def _texts(self, table: str, column: str) -> list[str]:
        """A column of ids, whole."""
        with understood(self.path(table)):
            values = self._column(table, column)
            for value in values:
                # A row without an id would stand for no run.
                if not isinstance(value, str):
                    raise ValueError(f"its column {column} has rows without an id")
            return values

    def _column(self, table: str, column: str) -> list[Any]:
        """A column of a table, whole."""
        with self._file(table) as file:
            return file.read(columns=[column])[column].to_pylist()

    @contextmanager
    def _file(self, table: str) -> Iterator[Any]:
        """Open a table. What can't be read in it, or isn't what was published, is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(table)
        # Only once for each table, since it reads all of it.
        if table not in self._compared:
            problem = self._problem(table)
            if problem:
                raise DataError(
                    f"{short(path)!r} {problem}; "
                    "it is of another store, or damaged: restore it from a copy",
                    subject=str(path),
                )
            self._compared.add(table)
        try:
            with opened(path) as raw, pq.ParquetFile(raw) as file:
                yield file
        except (OSError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
            raise damaged(path, error) from error

    def _problem(self, name: str) -> str:
        """What is wrong with a table; empty if it is what was published."""
        path = self.path(name)
        expected = self.manifest["files"][name]
        if not path.is_file():
            return "is missing, and was written"
        with understood(path):
            digest = digest_of_file(path)
        if digest == expected:
            return ""
        return f"has changed: its SHA-256 is {digest[:12]}…, and {expected[:12]}… was written"


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise `ValueError` or `TypeError` for what can't be the content of `packed.json`."""
    files = msgspec.convert(manifest["files"], dict[str, str])
    if files.keys() != set(TABLES):
        raise ValueError(f"its tables aren't {', '.join(TABLES)}")
    msgspec.convert(manifest["failures"], dict[str, dict[str, Any]])
    msgspec.convert(manifest["index"], dict[str, Any])


def matrix_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a matrix of its row in `matrices.parquet`."""
    facts = dict[str, Any]()
    for name in MATRIX_COLUMNS:
        if row[name] is not None:
            facts[name] = row[name]
    if row[ERROR] is not None:
        facts[ERROR] = six_digits(float(row[ERROR]))
    for name in HEXADECIMAL:
        if row[name] is not None:
            facts[name] = row[name].hex()
    if row["rows"] is not None:
        facts["shape"] = [row["rows"], row["columns"]]
        # It was left out, since it is what zeros and shape give.
        if row["zeros"] is not None and row["sparsity"] is None:
            size = row["rows"] * row["columns"]
            facts["sparsity"] = row["zeros"] / size
    if row["notes"] is not None:
        facts["notes"] = from_json(row["notes"])
    if row["more"] is not None:
        facts |= from_json(row["more"])
    return facts


def row_of_matrix(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a matrix: what `matrix_of` gives back as it was."""
    row = dict[str, Any]()
    more = dict[str, Any]()
    for name, value in facts.items():
        if _has_column(name, value):
            row[name] = value
        elif name in HEXADECIMAL and len(value) == 2 * HEXADECIMAL[name]:
            row[name] = bytes.fromhex(value)
        elif name == "shape" and len(value) == 2:
            row["rows"], row["columns"] = value
        elif name == "notes":
            row["notes"] = compact_json(value)
        else:
            more[name] = value
    if _is_share_of_zeros(row):
        del row["sparsity"]
    elif "sparsity" not in row and "zeros" in row:
        # In its own column it would give a matrix without a sparsity one when it is read.
        more["zeros"] = row.pop("zeros")
    row["more"] = compact_json(more) if more else None
    return row


def _has_column(name: str, value: Any) -> bool:
    """Whether a fact of a matrix has a column, in which it comes back to the bit."""
    if name == ERROR:
        if type(value) is not float:
            return False
        read_back = six_digits(float(np.float32(value)))
        return read_back == value
    return name in MATRIX_COLUMNS and type(value) is MATRIX_COLUMNS[name]


def _is_share_of_zeros(row: Mapping[str, Any]) -> bool:
    """Whether the sparsity of a matrix says what its zeros and its shape say."""
    if not {"zeros", "rows", "columns", "sparsity"} <= row.keys():
        return False
    size = row["rows"] * row["columns"]
    return size > 0 and row["zeros"] / size == row["sparsity"]


def settle(folder: Path) -> None:
    """Finish a publishing that was killed when its tables were whole.

    The tables take the place of older ones, `packed.json` last. Other processes may do the same
    meanwhile, so nothing is deleted.
    """
    moving = folder / MOVING
    if (moving / PACKED).exists():
        paths = list[Path]()
        with suppress(FileNotFoundError):
            paths = sorted(moving.iterdir(), key=_is_manifest)
        for path in paths:
            with suppress(FileNotFoundError):
                os.replace(path, folder / path.name)
        flush(folder)
    with suppress(OSError):
        moving.rmdir()


def _is_manifest(path: Path) -> bool:
    return path.name == PACKED
