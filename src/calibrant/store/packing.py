"""Packing a store: a few tables instead of a folder for each result, and back. Killed anywhere, it has lost nothing and can be run again.

New tables are made in the writer's staging folder and moved to `.packed` by one rename; from then on they are read there. They take their places
one by one, `packed.json` last. The folders of results are removed after that; what is in a table is never looked for in a folder.
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from calibrant.durable import UNFINISHED, appearing, flush, reason, remove_empty, sealed, text_of_json, write_bytes
from calibrant.errors import DataError, OutputError
from calibrant.outcomes import WAYS, leaf, write_table
from calibrant.progress import Progress, silent
from calibrant.store.card import CARD, card_of, is_ours
from calibrant.store.claims import CLAIMS
from calibrant.store.folder import RUNS, STATISTICS, Store
from calibrant.store.packed import (
    BYTES,
    ITEMS_TABLE,
    MARKER,
    MOVING,
    NUMBERS,
    PACKED,
    PACKED_FORMAT,
    PACKED_PURPOSE,
    RUNS_TABLE,
    SCORES_TABLE,
    TEXTS,
    ZIP,
    PackedStore,
    folder_of,
    libraries,
    marker,
    settle,
    zipped,
)
from calibrant.store.reading import ITEMS, PROFILE, PROVENANCE, RECORD, SCORE, SUMS, WEIGHTS, ResultFiles
from calibrant.store.staging import MEASURES, at_work
from calibrant.store.verifying import problems_of_measurement, problems_of_run

MOST_TEXT: Final = 2**25
"""Characters in a row group at most, but for a single row: to read one cell, its column is read in its group."""
MOST_ITEMS: Final = 100_000
"""Items in a row group at most, but for a single measurement."""
NOT_COPIED: Final = (UNFINISHED, CLAIMS, STATISTICS, RUNS, MOVING, MARKER)
"""The entries of a store that aren't copied to another folder as they are: who is at work, what can be made again, and what is packed."""

Key = tuple[str, str]
"""The ids of a run and of a measurement on it."""


@dataclass(frozen=True)
class Repacked:
    """What was packed or unpacked: how many runs and measurements, and how many files and bytes the store had before and has now."""

    folder: str
    runs: int
    measurements: int
    files_before: int
    bytes_before: int
    files: int
    bytes: int


def pack(folder: str | Path, out: str | Path | None = None, progress: Progress = silent) -> Repacked:
    """Put every result of the store in `folder` into a few tables, there or in a new folder `out`, and return the counts.

    Everything comes back to the byte, which is tried before anything is removed. Raises `DataError` for a damaged result, and `OutputError` for
    a folder that is no store or can't be written to, for one in which a study is at work, and for an `out` that isn't new.
    """
    before = _size(Path(folder))
    with _work(Path(folder), out, "pack") as (source, target, marked):
        tables = target.staging_folder() / "packing"
        tables.mkdir()
        _Writer(source, tables, progress).write(marked)
        for run, measures in (packed := PackedStore(tables)).measures.items():
            for measure in ("", *measures):
                _check_same(source.files(run, measure), packed.files(run, measure), run, measure)
        if (target.folder / CARD).exists() and not is_ours(target.folder / CARD):
            (tables / CARD).unlink()  # the user's own page stays
        flush(tables)
        tables.rename(target.folder / MOVING)
        settle(target.folder)
        target.write_text(MARKER, marker(PACKED_FORMAT))
        _remove_folders(target.folder, packed := PackedStore(target.folder))
        counts = packed.manifest["runs"], packed.manifest["measurements"]
    return Repacked(str(out or folder), *counts, *before, *_size(Path(out or folder)))


def unpack(folder: str | Path, out: str | Path | None = None, progress: Progress = silent) -> Repacked:
    """Give every result of a packed store a folder of its own again, there or in a new folder `out`, and return the counts.

    Raises as `pack` does.
    """
    before = _size(Path(folder))
    with _work(Path(folder), out, "unpack") as (source, target, marked):
        tables = [target.folder / name for name in (ITEMS_TABLE, RUNS_TABLE, SCORES_TABLE, ZIP)]
        if source.packed is None and not any(path.exists() for path in tables):  # they are there without `packed.json` where this was killed
            raise OutputError(f"{str(folder)!r} isn't packed; there is nothing to unpack", subject=str(folder))
        runs, measurements = source.ids(), 0
        for number, run in enumerate(runs):
            progress("unpacking", number, len(runs))
            measures = {measure: source.files(run, measure) for measure in source.measured(run)}
            measurements += len(measures)
            begun = target.run_folder(run).exists()  # there are newer measurements in it, or a part of what was packed
            for measure, files in measures.items() if begun else ():
                target.adopt_measurement(files, run, measure)
            target.adopt(source.files(run), run, {} if begun else measures)
        progress("unpacking", len(runs), len(runs))
        if source.packed is not None:
            target.write_text(MARKER, marked)
        # The store is packed until this is gone, and all folders are on the disk by now.
        (target.folder / PACKED).unlink(missing_ok=True)
        for path in [*filter(is_ours, [target.folder / CARD]), *(path for path in tables if path.exists())]:
            path.unlink()
        if not marked:
            (target.folder / MARKER).unlink()
    return Repacked(str(out or folder), len(runs), measurements, *before, *_size(Path(out or folder)))


@contextmanager
def _work(folder: Path, out: str | Path | None, verb: str) -> Iterator[tuple[Store, Store, str]]:
    """Yield the store to read, the one to write, and the marker of the store where it isn't packed.

    They are two of the same folder, or the latter is one that becomes `out` when all is done.
    """
    source = Store(folder, create=False)
    if source.packed:
        source.packed.check_unchanged()  # tables are removed at the end, so they must be ours and whole
    path = folder / MARKER
    marked = source.packed.manifest["marker"] if source.packed else path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        if out is not None:  # the store itself isn't empty, so it is refused as any folder that is there
            with _new_store(source, Path(out)) as target:
                yield source, target, marked
            return
        if at_work(folder):
            what = f"a study is at work in {str(folder)!r}; wait until it is done, or {verb} it into another folder"
            raise OutputError(what, subject=str(folder))
        with Store(folder) as target:
            yield Store(folder, create=False), target, marked
    except OSError as error:
        where = str(out or folder)
        raise OutputError(f"can't {verb} into {where!r}: {reason(error)}", subject=where) from error


@contextmanager
def _new_store(source: Store, path: Path) -> Iterator[Store]:
    """Yield a store with what lies beside the results of `source`; it becomes the folder at `path` when all is done."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{str(path)!r} exists already; name a folder that isn't there yet", subject=str(path))
    tables = (PACKED, *source.packed.manifest["files"]) if source.packed else ()
    beside = [file for file in sorted(source.folder.iterdir()) if file.name not in (*NOT_COPIED, *tables) and not is_ours(file)]
    with appearing(path, path.with_name(f"{UNFINISHED}-{path.name}")) as half:
        with Store(half) as target:
            for file in beside:
                (shutil.copytree if file.is_dir() else shutil.copyfile)(file, half / file.name)
            yield target
        shutil.rmtree(half / UNFINISHED, ignore_errors=True)


class _Writer:
    """Writes the tables of a store into a folder, row group by row group."""

    def __init__(self, source: Store, folder: Path, progress: Progress) -> None:
        self._source, self._folder, self._progress = source, folder, progress
        self._measures = {run: sorted(source.measured(run)) for run in source.ids()}
        self._columns: dict[tuple[str, str], str] = {}  # the name of a column in the table of items, by its own name and type
        self._types: dict[str, Any] = {}
        self._layouts: dict[Key, dict[str, Any]] = {}
        self._exact: dict[Key, bytes] = {}  # files that can't be written again
        self._models: dict[str, None] = {}
        self._items = 0

    def write(self, marked: str) -> None:
        """Write all of them, and `packed.json` last."""
        with zipfile.ZipFile(self._folder / ZIP, "w") as archive:
            self._write_items(self._grouped())
            self._write_texts(SCORES_TABLE, self._scores(archive))
            self._write_texts(RUNS_TABLE, self._runs(archive))
            empty = not archive.namelist()
        if empty:
            (self._folder / ZIP).unlink()
        runs, measurements = len(self._measures), sum(map(len, self._measures.values()))
        write_bytes(self._folder / CARD, card_of(runs, measurements, self._items, list(self._models)).encode())
        sums: dict[str, str] = {}
        for path in sorted(p for p in self._folder.iterdir() if p.name != CARD):
            flush(path)
            with path.open("rb") as file:
                sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = {"runs": runs, "measurements": measurements, "files": sums, "libraries": libraries(), "marker": marked}
        write_bytes(self._folder / PACKED, text_of_json(sealed(manifest, PACKED_PURPOSE)).encode())

    def _grouped(self) -> dict[str, list[Key]]:
        """The measurements that one evaluator made, one group after the other: the same items, so that they take the least room together.

        Checks everything on the way.
        """
        groups: dict[str, list[Key]] = {}
        for number, (run, measures) in enumerate(self._measures.items()):
            self._progress("packing", number, len(self._measures))
            _check_whole(problems_of_run(self._source.files(run), run))
            for measure in measures:
                files = self._source.files(run, measure)
                _check_whole(problems_of_measurement(files, run, measure))
                schema = files.table().schema
                for column in schema:
                    self._add_column(column)
                evaluator = json.dumps(files.score_file()["evaluator"], sort_keys=True, allow_nan=False)
                groups.setdefault(f"{evaluator} {schema.to_string()}", []).append((run, measure))
        self._progress("packing", len(self._measures), len(self._measures))
        return dict(sorted(groups.items()))

    def _add_column(self, column: Any) -> None:
        """Two evaluators may call things of different types by one name: then the type is part of the name."""
        key = (column.name, str(column.type))
        if key not in self._columns:
            free = column.name not in ("run", "measurement", *self._types)
            self._columns[key] = name = column.name if free else f"{column.name} ({column.type})"
            self._types[name] = column.type

    def _write_items(self, groups: Mapping[str, list[Key]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("run", pa.string()), ("measurement", pa.string()), *self._types.items()])
        leaves = [leaf(column) for column in schema]
        # Values hardly occur twice, and most were computed with fewer digits than they are kept with, so their bytes lie apart; all else repeats
        # from measurement to measurement.
        apart = {path: "BYTE_STREAM_SPLIT" for path, kind in leaves if pa.types.is_floating(kind) and path != "weight"}
        options: dict[str, Any] = {"use_dictionary": [path for path, _ in leaves if path not in apart], "column_encoding": apart or None}
        with pq.ParquetWriter(self._folder / ITEMS_TABLE, schema, **options, **_SMALL) as writer:
            for group, tables in enumerate(row_group for keys in groups.values() for row_group in self._row_groups(keys)):
                starts = [*accumulate(map(len, tables.values()), initial=0)]
                laid_out = [self._laid_out(key, table, schema, group, at) for (key, table), at in zip(tables.items(), starts, strict=False)]
                writer.write_table(pa.concat_tables(laid_out), row_group_size=max(starts[-1], 1))
                self._items += starts[-1]

    def _row_groups(self, keys: Iterable[Key]) -> Iterator[dict[Key, Any]]:
        """Yield the items of measurements in row groups, each of at most `MOST_ITEMS` unless a single measurement has more."""
        tables, rows = dict[Key, Any](), 0
        for key in keys:
            table = self._source.files(*key).table()
            if tables and rows + len(table) > MOST_ITEMS:
                yield tables
                tables, rows = {}, 0
            tables[key] = table
            rows += len(table)
        yield tables

    def _laid_out(self, key: Key, table: Any, schema: Any, group: int, start: int) -> Any:
        """A measurement's items with all columns of the whole table; `_layouts` says how to find them."""
        import pyarrow as pa

        arrays, columns = dict[str, Any](), list[list[str]]()
        for column in table.schema:
            name = self._columns[column.name, str(column.type)]
            if name not in NUMBERS and column.type == pa.float64() and _same_bits(table[column.name], table["value"]):
                name = "value"  # a loss has it once under each of its names
            columns.append([column.name, name])
            arrays[name] = table[column.name]
        layout: dict[str, Any] = {"group": group, "start": start, "rows": len(table), "columns": columns}
        content = self._source.files(*key).content(ITEMS)
        way = next((way for way in reversed(range(WAYS)) if _parquet(table, way) == content), None)
        self._layouts[key] = layout if way is None else {**layout, "way": way}
        if way is None and content is not None:
            self._exact[key] = content
        arrays |= {"run": pa.repeat(key[0], len(table)), "measurement": pa.repeat(key[1], len(table))}
        return pa.table([arrays.get(column.name, pa.nulls(len(table), column.type)) for column in schema], schema=schema)

    def _scores(self, archive: zipfile.ZipFile) -> Iterator[dict[str, Any]]:
        for run, measures in self._measures.items():
            for measure in measures:
                files = self._source.files(run, measure)
                content = files.score_file()
                score = content["score"]
                names = ("measured", "metric", "value", "stderr", "n", "unit", "better", "chance")
                facts = {"run": run, "measurement": measure, "evaluator": str(content["evaluator"].get("spec", ""))}
                facts |= {name: score.get(name) for name in names}
                texts = self._texts(files, (SCORE, PROVENANCE, SUMS), folder_of(run, measure), archive)
                layout = json.dumps(self._layouts[run, measure], ensure_ascii=False, allow_nan=False)
                yield {**facts, **texts, "layout": layout, BYTES: self._exact.pop((run, measure), None)}

    def _runs(self, archive: zipfile.ZipFile) -> Iterator[dict[str, Any]]:
        for run in self._measures:
            files = self._source.files(run)
            record = files.record_without_weights()
            of = record["run"]
            self._models[of["model_name"]] = None
            facts = {"run": run, "model": of["model_name"], "data": of["data"], "draw": of.get("seed", 0), "target": of["target"]}
            facts |= {name: str(of[name].get("spec", "")) for name in ("method", "allocation")}
            facts |= {"propagation": of["propagate"], "dtype": of["dtype"], "tokens": of["tokens"], "sparsity": record["sparsity"]}
            texts = self._texts(files, (RECORD, PROFILE, PROVENANCE, SUMS), folder_of(run), archive)
            weights, exact = files.content(WEIGHTS), None
            if weights is not None:
                text = text_of_json(files.json(WEIGHTS))
                exact = None if zipped(text) == weights else weights
                texts["weights"] = text
            yield {**facts, **texts, BYTES: exact}

    def _texts(self, files: ResultFiles, names: tuple[str, ...], folder: str, archive: zipfile.ZipFile) -> dict[str, str | None]:
        """The texts of these files by their columns; what else is there, or is no text, goes into the archive."""
        texts: dict[str, str | None] = {TEXTS[name]: None for name in names}
        for name in files.names():
            if name in (ITEMS, WEIGHTS) or name.startswith("."):
                continue
            content = files.content(name)
            assert content is not None
            with suppress(UnicodeDecodeError):
                if name in names:
                    texts[TEXTS[name]] = content.decode()
                    continue
            archive.writestr(zipfile.ZipInfo(f"{folder}/{name}"), content)
        return texts

    def _write_texts(self, table: str, rows: Iterator[dict[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, kind()) for name, kind in _schema(table).items()])
        texts = [name for name, kind in _schema(table).items() if kind in (pa.large_string, pa.large_binary)]
        options: dict[str, Any] = {"use_dictionary": [name for name in schema.names if name not in texts]}
        with pq.ParquetWriter(self._folder / table, schema, **options, **_SMALL) as writer:
            waiting, size = list[dict[str, Any]](), 0
            for row in rows:
                more = sum(len(text) for name in texts if (text := row.get(name)) is not None)
                if waiting and size + more > MOST_TEXT:
                    writer.write_table(pa.Table.from_pylist(waiting, schema))
                    waiting, size = [], 0
                waiting.append(row)
                size += more
            writer.write_table(pa.Table.from_pylist(waiting, schema))


_SMALL: Final[dict[str, Any]] = {"compression": "zstd", "compression_level": 19, "data_page_size": 2**26}
"""One page for each column of a row group, so that what repeats is found however far apart it is."""


def _schema(table: str) -> dict[str, Any]:
    """The columns of `runs.parquet` and `scores.parquet`: those for people first, then the texts of the files."""
    import pyarrow as pa

    if table == RUNS_TABLE:
        names = ("run", "model", "data", "method", "target", "allocation", "propagation", "dtype", "tokens")
        facts = {**dict.fromkeys(names, pa.string), "draw": pa.int64, "sparsity": pa.float64}
        files = ("record", "weights", "profile", "provenance", "sums")
    else:
        names = ("run", "measurement", "evaluator", "measured", "metric", "unit", "better")
        facts = {**dict.fromkeys(names, pa.string), "n": pa.int64, **dict.fromkeys(("value", "stderr", "chance"), pa.float64)}
        files = ("score", "provenance", "sums", "layout")
    return {**facts, **dict.fromkeys(files, pa.large_string), BYTES: pa.large_binary}


def _parquet(table: Any, way: int) -> bytes:
    file = io.BytesIO()
    write_table(table, file, way)
    return file.getvalue()


def _same_bits(one: Any, other: Any) -> bool:
    """Whether two columns of numbers are equal, NaN and the sign of zero included."""
    return not (one.null_count or other.null_count) and one.to_numpy().tobytes() == other.to_numpy().tobytes()


def _check_whole(problems: Iterator[Any]) -> None:
    if problem := next(problems, None):
        raise DataError(f"{problem}; only what is whole is packed", subject=problem.where)


def _check_same(files: ResultFiles, packed: ResultFiles | None, run: str, measure: str) -> None:
    """Raise `OutputError` unless every file would come back to the byte."""
    names = [name for name in files.names() if not name.startswith(".")]
    if packed is None or packed.names() != names or any(packed.content(name) != files.content(name) for name in names):
        where = folder_of(run, measure)
        raise OutputError(f"{where!r} would not come back as it is; nothing was changed, and this is a defect of calibrant", subject=where)


def _remove_folders(folder: Path, packed: PackedStore) -> None:
    """Remove what is packed, file by file, and nothing else; a folder that is empty then goes too."""
    for run, measures in packed.measures.items():
        for measure in (*measures, ""):
            path, files = folder / folder_of(run, measure), packed.files(run, measure)
            for name in files.names() if files and path.is_dir() else ():
                (path / name).unlink(missing_ok=True)
            remove_empty(path / MEASURES)  # of a run
            remove_empty(path)
    remove_empty(folder / RUNS)


def _size(folder: Path) -> tuple[int, int]:
    """How many files a store has, and of how many bytes, without what is at work in it or can be made again."""
    passing = {UNFINISHED, CLAIMS, STATISTICS}
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not passing & set(path.relative_to(folder).parts)]
    return len(sizes), sum(sizes)
