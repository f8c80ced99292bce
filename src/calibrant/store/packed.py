"""Runs and measurements as rows of a few tables, instead of a folder each. What a packed store looks like, and how it is read.

`runs.parquet` has a row a run, `scores.parquet` a row a measurement, `items.parquet` a row an item of each measurement. Their first columns are
for people and other programs; the last ones hold each file's text to the byte, and say in which rows the items are. What isn't text (masks,
edits) is in `files.zip`. `packed.json` has the sums of all of these.

Every file comes back to the byte. Of two kinds that takes the library that wrote them: Parquet and gzip files are written again from what they
hold, which was tried when they were packed. By another version of such a library they may come out as other bytes of the same content; their
sums are then made anew.
"""

import gzip
import hashlib
import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from calibrant.durable import LARGEST, flush, from_json, opened, read_json, short, text_of_json, unreadable, write_bytes
from calibrant.errors import DataError
from calibrant.outcomes import WAYS, write_table
from calibrant.seals import Purpose
from calibrant.store.reading import ITEMS, PROFILE, PROVENANCE, RECORD, SCORE, SUMS, WEIGHTS, ResultFiles, missing, understood
from calibrant.store.shapes import Count, check

MARKER: Final = "calibrant-store.json"
"""What makes a folder a store."""
FORMAT: Final = 2
"""The format that is written. Format 1, which is read, had the weights of a record in `record.json`."""
PACKED_FORMAT: Final = 3
"""Of a store that is packed, or a part of it: a version that doesn't know of that must not take it for an empty one."""

PACKED: Final = "packed.json"
"""What makes a folder a packed store: it is written last."""
RUNS_TABLE: Final = "runs.parquet"
SCORES_TABLE: Final = "scores.parquet"
ITEMS_TABLE: Final = "items.parquet"
ZIP: Final = "files.zip"
MOVING: Final = ".packed"
"""New tables on their way into the store. What is in this folder goes before what is beside it, and `packed.json` leaves it last."""
TEXTS: Final = {RECORD: "record", SCORE: "score", PROVENANCE: "provenance", PROFILE: "profile", SUMS: "sums", WEIGHTS: "weights"}
"""The files whose text is in a column, of `runs.parquet` or `scores.parquet`."""
BYTES: Final = "bytes"
"""The column with the bytes of a file that this version can't write again from its content."""

_OF_RUNS: Final = (RECORD, PROVENANCE, PROFILE, SUMS, WEIGHTS)
_OF_MEASUREMENTS: Final = (SCORE, PROVENANCE, SUMS)
PACKED_PURPOSE: Final[Purpose] = {"kind": "packed store"}
"""What `packed.json` is sealed for."""
NUMBERS: Final = ("item", "value", "weight")
"""The columns that every measurement's items have."""


def libraries() -> dict[str, str]:
    """Return the versions on which the bytes of written files depend."""
    import pyarrow as pa

    return {"pyarrow": pa.__version__, "zlib": zlib.ZLIB_RUNTIME_VERSION}


def zipped(text: str) -> bytes:
    """Return what `durable.packed` makes of the value whose text this is."""
    return gzip.compress(text.encode(), mtime=0)


@dataclass(frozen=True)
class Place:
    """Where something is in a table: the row group, and the row in it."""

    group: int
    row: int


class PackedStore:
    """The packed part of a store. Tables are read when they are needed, and only the columns that are.

    Each is compared with its sum before anything in it is believed. `DataError` for what can't be read, or isn't what was packed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = self.path(PACKED)
        with understood(path):
            self.manifest: Mapping[str, Any] = check(read_json(path, PACKED_PURPOSE), Mapping[str, Any])
            check(self.manifest["files"], Mapping[str, str])
            check(self.manifest["libraries"], Mapping[str, str])
            check([self.manifest["runs"], self.manifest["measurements"]], list[Count])
        self._compared = set[str]()
        self._texts = lru_cache(16)(self._read_texts)
        self._items = lru_cache(64)(self._read_items)

    @classmethod
    def of(cls, folder: Path) -> "PackedStore | None":
        """Return the packed part of the store in `folder`, or None if it has none."""
        return cls(folder) if any((place / PACKED).exists() for place in (folder / MOVING, folder)) else None

    def path(self, name: str) -> Path:
        """Return where a table is: a pack that was killed may have left it on its way."""
        moving = self.folder / MOVING
        return moving / name if (moving / PACKED).exists() and (moving / name).exists() else self.folder / name

    def checked_path(self, name: str) -> Path:
        """Return where a table is. Raises `DataError` unless it is what was packed."""
        path = self.path(name)
        if name in self._compared:
            return path
        problem = self._problem(name)
        if problem:
            message = f"{short(path)!r} {problem}; it is of another store, or damaged: restore it from a copy"
            raise DataError(message, subject=str(path))
        self._compared.add(name)
        return path

    def check_unchanged(self) -> None:
        """Raise `DataError` unless everything is what was packed."""
        for name in self.manifest["files"]:
            self.checked_path(name)

    @property
    def other_libraries(self) -> bool:
        """Whether it was packed with other versions of the libraries than these: what is written again may be other bytes."""
        return self.manifest["libraries"] != libraries()

    @cached_property
    def runs(self) -> Mapping[str, Place]:
        """Where each run is, by its id, in order."""
        return {run: place for place, (run,) in self._keys(RUNS_TABLE, "run")}

    @cached_property
    def measures(self) -> Mapping[str, Mapping[str, Place]]:
        """Where each measurement is, by the ids of its run and its own, in order."""
        places: dict[str, dict[str, Place]] = {run: {} for run in self.runs}
        for place, (run, measure) in self._keys(SCORES_TABLE, "run", "measurement"):
            places[run][measure] = place
        return places

    def files(self, run: str, measure: str = "") -> "PackedFiles | None":
        """Return the files of a run or a measurement, or None if it isn't there."""
        place = self.measures.get(run, {}).get(measure) if measure else self.runs.get(run)
        return None if place is None else PackedFiles(self, run, measure, place)

    def text(self, table: str, place: Place, column: str) -> Any:
        """Return one cell of a table."""
        return self._texts(table, place.group, column)[place.row]

    def numbers(self, run: str, measure: str) -> tuple[Any, Any, Any]:
        """Return the names, values and weights of a measurement's items as Arrow arrays."""
        layout = self.layout(self.measures[run][measure])
        where = dict(layout["columns"])
        columns = [where[name] for name in NUMBERS]  # older tables have weights that equal all values only once, as values
        rows = self._items(layout["group"], tuple(dict.fromkeys(columns))).slice(layout["start"], layout["rows"])
        return tuple(rows[column].combine_chunks() for column in columns)

    def layout(self, place: Place) -> Mapping[str, Any]:
        """Return in which rows a measurement's items are, and in which columns."""
        return from_json(self.text(SCORES_TABLE, place, "layout"))

    def table(self, place: Place) -> Any:
        """Return a measurement's items as they were written, all columns."""
        import pyarrow as pa

        with _readable(self.path(ITEMS_TABLE)):
            layout = self.layout(place)
            rows = self._items(layout["group"], None).slice(layout["start"], layout["rows"])
            return pa.table({name: rows[column].combine_chunks() for name, column in layout["columns"]})

    @cached_property
    def archive(self) -> Mapping[str, zipfile.ZipInfo]:
        """What is in `files.zip`, by path in the store."""
        if ZIP not in self.manifest["files"]:
            return {}
        path = self.checked_path(ZIP)
        try:
            with zipfile.ZipFile(path) as archive:
                return {info.filename: info for info in archive.infolist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise unreadable(path, error) from error

    def archived(self, name: str) -> bytes:
        """Return a file of `files.zip`."""
        path = self.checked_path(ZIP)
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)
        except (OSError, zipfile.BadZipFile) as error:
            raise unreadable(path, error) from error

    def changed(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each table that isn't as it was written, and what is wrong with it."""
        for name in self.manifest["files"]:
            problem = self._problem(name)
            if problem:
                yield name, problem

    def _problem(self, name: str) -> str:
        """What is wrong with a table; empty if it is what was packed."""
        path, expected = self.path(name), self.manifest["files"].get(name, "")
        if not path.is_file():
            return "is missing, and was written"
        with understood(path), opened(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == expected:
            return ""
        return f"has changed: its SHA-256 is {digest[:12]}…, and {expected[:12]}… was written"

    def _keys(self, table: str, *columns: str) -> Iterator[tuple[Place, tuple[str, ...]]]:
        import pyarrow.parquet as pq

        with _readable(self.path(table)), opened(self.checked_path(table)) as raw, pq.ParquetFile(raw) as file:
            for group in range(file.num_row_groups):
                read = file.read_row_group(group, columns=list(columns))
                for row, names in enumerate(zip(*(read[name].to_pylist() for name in columns), strict=True)):
                    yield Place(group, row), names

    def _read_texts(self, table: str, group: int, column: str) -> list[Any]:
        import pyarrow.parquet as pq

        with _readable(self.path(table)), opened(self.checked_path(table)) as raw, pq.ParquetFile(raw) as file:
            return file.read_row_group(group, columns=[column])[column].to_pylist()

    def _read_items(self, group: int, columns: tuple[str, ...] | None) -> Any:
        import pyarrow.parquet as pq

        with _readable(self.path(ITEMS_TABLE)), opened(self.checked_path(ITEMS_TABLE)) as raw, pq.ParquetFile(raw) as file:
            return file.read_row_group(group, columns=None if columns is None else list(columns))


@dataclass(frozen=True)
class PackedFiles(ResultFiles):
    """The files of one run or one measurement in a packed store."""

    packed: PackedStore
    run: str
    measure: str
    place: Place

    @property
    def bare_id(self) -> str:
        """The id without its tag."""
        return (self.measure or self.run).rpartition(":")[2]

    def where(self, name: str) -> Path:
        """Return the table that has the file, and in it the id: not a path that exists, but what a message names."""
        table = ITEMS_TABLE if name == ITEMS else self._table if self._in_tables(name) else ZIP
        return self.packed.path(table) / self.bare_id / name

    def names(self) -> list[str]:
        """List the files as in a folder."""
        archived = [name.rpartition("/")[2] for name in self.packed.archive if name.rpartition("/")[0] == self._folder]
        return sorted([*archived, *filter(self._in_tables, (*TEXTS, ITEMS))])

    def has(self, name: str) -> bool:
        """Return whether a file is there."""
        return self._in_tables(name) or f"{self._folder}/{name}" in self.packed.archive

    def content(self, name: str) -> bytes | None:
        """Return a file's bytes: texts and what is zipped as they are, items and compressed texts as they are written again."""
        if not self._in_tables(name):
            path = f"{self._folder}/{name}"
            return self.packed.archived(path) if path in self.packed.archive else None
        if name in (ITEMS, WEIGHTS) and (exact := self._cell(BYTES)) is not None:
            return exact
        if name == ITEMS:
            file = io.BytesIO()
            write_table(self.table(), file, self.packed.layout(self.place).get("way", WAYS - 1))
            return file.getvalue()
        text = self._cell(TEXTS[name])
        return zipped(text) if name == WEIGHTS else text.encode()

    def json(self, name: str) -> Any:
        """Return what a text holds."""
        path = self.where(name)
        try:
            if not self._in_tables(name):
                raise missing(path)
            text = self._cell(TEXTS[name])
            if len(text) > LARGEST:
                raise ValueError(f"it holds more than {LARGEST // 2**20} MiB")
            return from_json(text)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error

    def beginning(self, name: str, end: bytes) -> bytes:
        """Return all of a text."""
        return self._cell(TEXTS[name]).encode()

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file. Of what other versions of a library may write differently it is the one that was written with it.

        The sum of the table says that the content is the same.
        """
        if name in (ITEMS, WEIGHTS) and self.packed.other_libraries and self.has(SUMS) and name in (sums := self.json(SUMS)):
            return sums[name]
        content = self.content(name)
        if content is None:
            raise missing(self.where(name))
        return hashlib.sha256(content).hexdigest()

    def table(self) -> Any:
        """Return the items as they were written."""
        return self.packed.table(self.place)

    def copy(self, folder: Path, without: Collection[str] = ()) -> None:
        """Write the files, and the measurements of a run; where a file had to come out as other bytes of the same content, with its new sum."""
        for name in self.names():
            if name not in without and (content := self.content(name)) is not None:
                write_bytes(folder / name, content)
        if self.has(SUMS) and self.packed.other_libraries:
            sums = self.json(SUMS)
            new = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (ITEMS, WEIGHTS) if (folder / name).exists()}
            if sums != {**sums, **new}:
                write_bytes(folder / SUMS, text_of_json({**sums, **new}).encode())

    @property
    def _table(self) -> str:
        return SCORES_TABLE if self.measure else RUNS_TABLE

    @property
    def _folder(self) -> str:
        return folder_of(self.run, self.measure)

    def _cell(self, column: str) -> Any:
        return self.packed.text(self._table, self.place, column)

    def _in_tables(self, name: str) -> bool:
        """Whether it is a file of such a folder whose content is in a table."""
        if name == ITEMS:
            return bool(self.measure)
        columns = _OF_MEASUREMENTS if self.measure else _OF_RUNS
        return name in columns and self._cell(TEXTS[name]) is not None


def marker(format: int) -> str:
    """Return the text of a store's marker."""
    return text_of_json({"format": format, "what": "results of calibrant; safe to copy, and to merge by copying"})


def settle(folder: Path) -> None:
    """Finish what a pack began that was killed when its tables were whole: they take the place of older ones, and what says so comes last."""
    moving = folder / MOVING
    if (moving / PACKED).exists():
        for path in sorted(moving.iterdir(), key=lambda path: path.name == PACKED):
            with suppress(FileNotFoundError):  # another process does the same
                os.replace(path, folder / path.name)
        flush(folder)
    shutil.rmtree(moving, ignore_errors=True)


def folder_of(run: str, measure: str = "") -> str:
    """Return where the files of a run or a measurement are in a store that isn't packed."""
    folder = f"runs/{run.rpartition(':')[2]}"
    return f"{folder}/measures/{measure.rpartition(':')[2]}" if measure else folder


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of a table that can't be read that it is damaged."""
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except (OSError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
