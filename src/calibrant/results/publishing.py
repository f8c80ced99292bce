"""Publishing a store: its results as a few tables, with a card that makes the folder a data set of
the Hugging Face hub. Killed anywhere, it has lost nothing and can be run again.

New tables are made in a folder of their own and moved to `.packed` by one rename; from then on they
are read there. They take their places one by one, `packed.json` last. The database goes after that,
and last the files that no run needs any more.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

from calibrant.errors import DataError, OutputError
from calibrant.results.database import Claim
from calibrant.results.items import AS_IT_IS, PLACED, laid_out, same_items
from calibrant.results.live import DATABASE
from calibrant.results.published import (
    CELLS,
    ERROR,
    HEXADECIMAL,
    ITEMS,
    MATRICES,
    MATRIX_COLUMNS,
    MOVING,
    PACKED,
    PACKED_PURPOSE,
    RUNS,
    SCORES,
    PublishedResults,
    row_of_matrix,
    settle,
)
from calibrant.results.records import failure_for_others
from calibrant.results.store import STATISTICS, STUDY, Store
from calibrant.results.stored import PROFILE, Blobs, digest_of_file
from calibrant.results.verifying import StoreProblem, problems_of_measurement, problems_of_run
from calibrant.system.durable import (
    UNFINISHED,
    appearing,
    compact_json,
    flush,
    reason,
    sealed,
    text_of_json,
    write_bytes,
)
from calibrant.system.progress import Progress, silent

MOST_ROWS: Final = 100_000
"""Items in a row group at most, but for those of a single measurement."""
MOST_TEXT: Final = 2**24
"""Characters in a row group at most, but for a single row: to read one, all are unpacked."""
LEAST_TEXT: Final = 168
"""Characters that a row counts for beside its texts, so that a group has 100,000 rows at most."""

PACKING: Final = "pack"
"""The name of the claim of who packs a store."""

Row = TypeVar("Row")
Key = tuple[str, str]
"""The ids of a run and of a measurement on it."""

RUN_COLUMNS: Final = {
    "run": "string",
    "model": "string",
    "data": "string",
    "method": "string",
    "target": "string",
    "allocation": "string",
    "propagation": "string",
    "dtype": "string",
    "tokens": "string",
    "draw": "int64",
    "sparsity": "double",
    "matrices": "int64",
    "record": "large_string",
    "provenance": "large_string",
    "profile": "large_string",
    "files": "large_string",
}
"""The columns of `runs.parquet` and their types; those of large texts are documents."""
SCORE_COLUMNS: Final = {
    "run": "string",
    "measurement": "string",
    "evaluator": "string",
    "measured": "string",
    "metric": "string",
    "unit": "string",
    "better": "string",
    "n": "int64",
    "value": "double",
    "stderr": "double",
    "chance": "double",
    "score": "large_string",
    "provenance": "large_string",
}

CARD: Final = "README.md"
"""The page of a published store."""
_SIGNATURE: Final = "<!-- written by calibrant store pack -->"

_CARD: Final = """---
pretty_name: Results of calibrant
tags:
- calibrant
- model-compression
configs:
- config_name: scores
  data_files: scores.parquet
  default: true
- config_name: runs
  data_files: runs.parquet
- config_name: matrices
  data_files: matrices.parquet
- config_name: items
  data_files: items.parquet
- config_name: cells
  data_files: cells.parquet
---
<!-- written by calibrant store pack -->

# Results of calibrant

{runs:,} runs with {measurements:,} measurements of {items:,} items, packed by `calibrant store
pack`. `calibrant report FOLDER` shows what they say. `calibrant store verify FOLDER` derives
every hash again.

- `runs.parquet` has a row for each run: which model was compressed, with which calibration set,
  method and target. `record` is its record in JSON without the matrices, of which other columns
  repeat parts; `matrices` is how many rows it has in `matrices.parquet`, `profile` what the
  calibration set says, `provenance` on what machine and in what time.
- `matrices.parquet` has a row for each matrix of each run, in the order of the runs.
- `scores.parquet` has a row for each measurement of a run: what was measured, and the score with
  its standard error. `score` is the measurement in JSON without these two, of which other columns
  repeat parts.
- `items.parquet` has, in the same row, lists with what each item of that measurement gave: its
  name, value and weight (value / weight is its own score, Σvalue / Σweight the measurement's),
  and what else is known of it. No number is there twice: `layout` says for each column where it
  comes from.
- `cells.parquet` has a row for each cell of the study's grid. It names runs and scores by their
  rows.

```python
from datasets import load_dataset

scores = load_dataset("FOLDER", "scores", split="train")
```

The models: {models}.
"""


@dataclass(frozen=True)
class PackedStore:
    """What was packed: how many runs and measurements, and how many files and bytes the store had
    before and has now."""

    folder: str
    runs: int
    measurements: int
    files_before: int
    bytes_before: int
    files: int
    bytes: int


def pack(
    folder: str | Path, out: str | Path | None = None, progress: Progress = silent
) -> PackedStore:
    """Put every result of the store in `folder` into a few tables, there or in a new folder `out`,
    and return the counts.

    Every result is read back and compared before anything is removed. Raises `DataError` for a
    damaged result, and `OutputError` for a folder that is no store or can't be written to, for one
    in which a study is at work or isn't finished, and for an `out` that isn't new.
    """
    source = Path(folder)
    target = source if out is None else Path(out)
    with Store(source, create=False):  # refuses a folder that is no store
        before = _size(source)
    try:
        counts = (
            _pack_in_place(source, progress)
            if out is None
            else _pack_elsewhere(source, target, progress)
        )
    except OSError as error:
        message = f"can't pack into {str(target)!r}: {reason(error)}"
        raise OutputError(message, subject=str(target)) from error
    return PackedStore(str(target), *counts, *before, *_size(target))


def _pack_in_place(folder: Path, progress: Progress) -> tuple[int, int]:
    where = str(folder)
    only_published = not (folder / DATABASE).exists()
    with Store(folder) as store:
        if store.at_work():
            raise OutputError(
                f"a study is at work in {where!r}; "
                "wait until it is done, or pack it into another folder",
                subject=where,
            )
        # A study that begins from now on writes beside, and nothing of it is removed.
        claim = store.claim(PACKING)
        if claim is None:
            message = f"{where!r} is being packed already; wait until that is done"
            raise OutputError(message, subject=where)
        with ExitStack() as failing:
            failing.callback(_give_up, store, claim, only_published)
            # No table has a place for a journal.
            if store.begun():
                raise OutputError(
                    f"a study isn't finished in {where!r}, and what it found so far would be lost; "
                    "finish it, or pack it into another folder",
                    subject=where,
                )
            counts = _move_in_tables(store, progress)
            store.remove_database(*counts)
            failing.pop_all()  # the claim went with the database
    with suppress(OutputError):  # a study has begun, or somebody reads: the next `pack` does it
        _remove_unneeded_files(folder)
    return counts


def _remove_unneeded_files(folder: Path) -> None:
    """Delete the files that no run of a published store needs, such as profiles: they are in its
    tables. Raises `OutputError` where somebody else has the store open, or has put something in.

    A study that begins relies on the files that it finds. So they go while nobody can open a
    database, which is empty. Before, while the old one is still there, a kill would leave runs in
    it without their profiles.
    """
    with Store(folder) as store:
        # Nobody can publish anything else meanwhile, since the database is open here.
        lasting = _lasting(store)
        unneeded = [name for name in store.blobs.listed() if name not in lasting]

        def remove_files() -> None:
            _check_empty(store)
            for name in unneeded:
                (store.blobs.folder / name).unlink(missing_ok=True)

        store.live.database.remove(remove_files)


def _give_up(store: Store, claim: Claim, only_published: bool) -> None:
    """Free the claim, and remove the database if it was made for the claim alone."""
    claim.free()
    if only_published:
        with suppress(OutputError):  # somebody has it open, or put something into it
            store.live.database.remove(partial(_check_empty, store))


def _check_empty(store: Store) -> None:
    """Raise `OutputError` for a store with anything in its database."""
    for table in ("runs", "measurements", "documents", "journal", "claims"):
        if store.live.database.rows(f"SELECT 1 FROM {table} LIMIT 1"):
            raise OutputError(f"there are {table} in {str(store.folder)!r}")


def _move_in_tables(store: Store, progress: Progress) -> tuple[int, int]:
    """Write the tables, let them take their places, and see that they are there."""
    folder = store.folder
    half = folder / f"{UNFINISHED}-tables"
    with appearing(folder / MOVING, half):
        counts = _write_tables(store, half, progress)
        page = folder / CARD
        if page.exists() and not (page.is_file() and _SIGNATURE.encode() in page.read_bytes()):
            (half / CARD).unlink()  # the user's own page stays
        flush(half)
    # From here on a kill loses nothing: whoever opens the store next does the rest.
    settle(folder)
    published = PublishedResults.of(folder)
    if published is None or any(published.changed()):
        raise OutputError(
            f"the tables in {str(folder)!r} aren't those that were just written; "
            "the database stays, pack it again",
            subject=str(folder),
        )
    return counts


def _pack_elsewhere(source: Path, target: Path, progress: Progress) -> tuple[int, int]:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        message = f"{str(target)!r} exists already; name a folder that isn't there yet"
        raise OutputError(message, subject=str(target))
    # The same name each time, so the next try clears what a killed one left.
    half = target.with_name(f"{UNFINISHED}-{target.name}")
    with Store(source, create=False) as store, appearing(target, half):
        counts = _write_tables(store, half, progress)
        with suppress(FileNotFoundError):
            shutil.copyfile(store.folder / STUDY, half / STUDY)
        kept = Blobs(half)
        for digest in _lasting(store):
            content = store.blobs.get(digest)
            if content is not None:
                kept.put(content)
    return counts


def _lasting(store: Store) -> set[str]:
    """The digests of the files that a published store keeps: profiles are in its tables."""
    lasting: set[str] = set()
    for run in store.ids():
        for name, digest in store.results(run).digests(run).items():
            if name != PROFILE:
                lasting.add(digest)
    return lasting


def _write_tables(store: Store, folder: Path, progress: Progress) -> tuple[int, int]:
    """Write the tables of a store into a folder, `packed.json` last, and compare them."""
    tables = _Tables(store, folder, progress)
    tables.write()
    _check_same(store, PublishedResults(folder), tables.runs, tables.keys)
    return len(tables.runs), len(tables.keys)


class _Tables:
    """Writes the tables of a store, row group by row group.

    `runs` are the ids of the runs in the order of their rows, `keys` those of the measurements.
    """

    def __init__(self, store: Store, folder: Path, progress: Progress) -> None:
        self._store = store
        self._folder = folder
        self._progress = progress
        self.runs = sorted(store.ids(), key=self._place_of_run)
        self.keys: list[Key] = []
        self._columns: dict[tuple[str, str], str] = {}
        """The columns of the table of items, by a name and a type of Arrow."""
        self._kinds: dict[str, Any] = {}
        """The types of these columns."""
        self._models: dict[str, None] = {}
        self._sizes: dict[Key, int] = {}
        """How many items each measurement has."""

    def write(self) -> None:
        """Write all of them."""
        groups = self._grouped()
        self.keys = list(chain.from_iterable(groups))
        self._write_items(groups)
        self._write_scores()
        self._write_runs()
        self._write_matrices()
        self._write_cells()
        self._write_manifest()

    def _place_of_run(self, run: str) -> tuple[Any, ...]:
        """Runs of one set and draw stand together: their matrices see the same inputs."""
        asked = self._store.run(run)
        method = compact_json(asked.method)
        return asked.model_name, asked.data, asked.seed, asked.propagate, method, asked.target, run

    def _grouped(self) -> list[list[Key]]:
        """The measurements that one evaluator made, group by group: the same items, so that they
        take the least room together. Checks everything on the way."""
        groups: dict[str, list[Key]] = {}
        for number, run in enumerate(self.runs):
            self._progress("packing", number, len(self.runs))
            results = self._store.results(run)
            _check_whole(next(problems_of_run(results, run), None))
            for measurement in sorted(self._store.measured(run)):
                # A measurement may lie in the tables and its run in the database, or the other way.
                results = self._store.results(run, measurement)
                _check_whole(next(problems_of_measurement(results, run, measurement), None))
                table = results.items(run, measurement)
                self._sizes[run, measurement] = len(table)
                layout, arrays = laid_out(table)
                for name, array in arrays.items():
                    self._add_column(name, array.type)
                evaluator = compact_json(results.score(run, measurement)["evaluator"])
                groups.setdefault(f"{evaluator} {layout}", []).append((run, measurement))
        self._progress("packing", len(self.runs), len(self.runs))
        return [groups[name] for name in sorted(groups)]

    def _add_column(self, name: str, kind: Any) -> None:
        """Two evaluators may call things of different types by one name: then the type is part of
        the column's name."""
        key = name, str(kind)
        if key in self._columns:
            return
        # The first type that a name has keeps the plain name.
        taken = name in self._kinds or name == "layout"
        column = f"{name} ({kind})" if taken else name
        self._columns[key] = column
        self._kinds[column] = kind

    def _write_items(self, groups: Sequence[Sequence[Key]]) -> None:
        import pyarrow as pa

        columns: list[tuple[str, Any]] = [("layout", pa.string())]
        for name, kind in self._kinds.items():
            columns.append((name, pa.list_(kind)))
        schema = pa.schema(columns)
        with self._writer(ITEMS, schema) as writer:
            for group in groups:
                for keys in _row_groups(group, self._sizes.__getitem__, MOST_ROWS):
                    writer.write_table(self._table_of_items(keys, schema))

    def _table_of_items(self, keys: Sequence[Key], schema: Any) -> Any:
        """A row for each measurement, with a list of all its items gave in each column."""
        import pyarrow as pa

        rows = [self._items_of(key) for key in keys]
        arrays = [pa.array([row["layout"] for row in rows], pa.string())]
        for name, kind in self._kinds.items():
            arrays.append(_list_array([row.get(name) for row in rows], kind))
        return pa.table(arrays, schema=schema)

    def _items_of(self, key: Key) -> dict[str, Any]:
        """The row of a measurement: its layout, and its arrays by the columns of the table."""
        layout, arrays = laid_out(self._store.results(*key).items(*key))
        columns: dict[str, str] = {}
        for name, array in arrays.items():
            columns[name] = self._columns[name, str(array.type)]
        placed: list[list[str]] = []
        for name, rule, *sources in layout:
            if rule in (AS_IT_IS, PLACED):
                sources = [columns[source] for source in sources]
            placed.append([name, rule, *sources])
        row = {columns[name]: array for name, array in arrays.items()}
        return {**row, "layout": compact_json(placed)}

    def _write_scores(self) -> None:
        self._write_rows(SCORES, _schema(SCORE_COLUMNS), map(self._row_of_score, self.keys))

    def _row_of_score(self, key: Key) -> dict[str, Any]:
        results = self._store.results(*key)
        entry = dict(results.score(*key))
        score = dict(entry["score"])
        row: dict[str, Any] = {"run": entry.pop("run"), "measurement": entry.pop("id")}
        row["evaluator"] = str(entry["evaluator"].get("spec", ""))
        for name in ("measured", "metric", "unit", "better", "n", "chance"):
            row[name] = score.get(name)
        for name in ("value", "stderr"):  # they stand in their columns alone
            row[name] = score.pop(name)
        row["score"] = compact_json({**entry, "score": score})
        row["provenance"] = compact_json(results.provenance(*key))
        return row

    def _write_runs(self) -> None:
        self._write_rows(RUNS, _schema(RUN_COLUMNS), map(self._row_of_run, self.runs))

    def _write_matrices(self) -> None:
        import pyarrow as pa

        kinds = {str: "string", int: "int64", float: "double"}
        columns = {name: kinds[kind] for name, kind in MATRIX_COLUMNS.items()}
        schema = _schema({**columns, ERROR: "float"})
        for name, width in HEXADECIMAL.items():
            schema = schema.append(pa.field(name, pa.binary(width)))
        rest = {
            "rows": "int64",
            "columns": "int64",
            "notes": "large_string",
            "more": "large_string",
        }
        for column in _schema(rest):
            schema = schema.append(column)
        self._write_rows(MATRICES, schema, self._rows_of_matrices())

    def _row_of_run(self, run: str) -> dict[str, Any]:
        results = self._store.results(run)
        record = dict(results.record(run))
        del record["id"]
        asked = record["run"]
        self._models[asked["model_name"]] = None
        digests = dict(results.digests(run))
        profile = results.file(run, PROFILE)
        profile_text: str | None = None
        if profile is not None:
            profile_text = profile.decode()
            del digests[PROFILE]  # which is made again of the profile itself
        return {
            "run": run,
            "model": asked["model_name"],
            "data": asked["data"],
            "method": str(asked["method"].get("spec", "")),
            "target": asked["target"],
            "allocation": str(asked["allocation"].get("spec", "")),
            "propagation": asked["propagate"],
            "dtype": asked["dtype"],
            "tokens": asked["tokens"],
            "draw": asked.get("seed", 0),
            "sparsity": record["sparsity"],
            "matrices": len(results.weights(run)),
            "record": compact_json(record),
            "provenance": compact_json(results.provenance(run)),
            "profile": profile_text,
            "files": compact_json(digests),
        }

    def _rows_of_matrices(self) -> Iterator[dict[str, Any]]:
        for run in self.runs:
            for facts in self._store.results(run).weights(run):
                yield row_of_matrix(facts)

    def _write_cells(self) -> None:
        import pyarrow as pa

        texts = ("model", "data", "method", "target", "run", "propagate")
        schema = _schema({**dict.fromkeys(texts, "string"), "seed": "int64", "run_row": "int32"})
        measure = pa.struct({"evaluator": pa.string(), "row": pa.int32(), "id": pa.string()})
        schema = schema.append(pa.field("measures", pa.list_(measure)))
        self._write_rows(CELLS, schema, self._rows_of_cells())

    def _rows_of_cells(self) -> Iterator[dict[str, Any]]:
        """Yield the cells of the grid; results that are there are named by their rows."""
        runs = {run: row for row, run in enumerate(self.runs)}
        scores = {key: row for row, key in enumerate(self.keys)}
        for cell in self._store.index().cells:
            measures: list[dict[str, Any]] = []
            for evaluator, measurement in cell.measures.items():
                measure: dict[str, Any] = {"evaluator": evaluator}
                if (cell.run, measurement) in scores:
                    measure["row"] = scores[cell.run, measurement]
                else:
                    measure["id"] = measurement
                measures.append(measure)
            row = {**asdict(cell), "measures": measures}
            if cell.run in runs:
                row["run_row"] = runs[cell.run]
                del row["run"]
            yield row

    def _write_manifest(self) -> None:
        items = sum(self._sizes.values())
        counts = {"runs": len(self.runs), "measurements": len(self.keys), "items": items}
        models = ", ".join(f"`{name}`" for name in self._models) or "none"
        write_bytes(self._folder / CARD, _CARD.format(**counts, models=models).encode())
        sums: dict[str, str] = {}
        for path in sorted(self._folder.glob("*.parquet")):
            flush(path)
            sums[path.name] = digest_of_file(path)
        # The cells have a table, and what is left is small.
        index = self._store.index().plain()
        del index["cells"]
        failures: dict[str, dict[str, Any]] = {}
        for name, failure in self._store.failures().items():
            failures[name] = failure_for_others(failure)
        manifest = {**counts, "files": sums, "index": index, "failures": failures}
        text = text_of_json(sealed(manifest, PACKED_PURPOSE), ordered=True)
        # Last: this file makes the folder a published store.
        write_bytes(self._folder / PACKED, text.encode())

    def _write_rows(self, table: str, schema: Any, rows: Iterator[Mapping[str, Any]]) -> None:
        """Write rows into a table, as many into a row group as may be read for one."""
        import pyarrow as pa

        texts = [column.name for column in schema if column.type == pa.large_string()]

        def size(row: Mapping[str, Any]) -> int:
            return LEAST_TEXT + sum(len(row.get(name) or "") for name in texts)

        with self._writer(table, schema) as writer:
            for group in _row_groups(rows, size, MOST_TEXT):
                writer.write_table(pa.Table.from_pylist(group, schema))

    @contextmanager
    def _writer(self, table: str, schema: Any) -> Iterator[Any]:
        """Open a table for writing. What repeats has a dictionary; the bytes of what doesn't lie
        apart, since those of the same place are alike."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        apart: dict[str, str] = {}
        repeated: Any = []  # names of columns, which the types of pyarrow don't know of
        for column in schema:
            path = column.name
            kind = column.type
            while pa.types.is_list(kind):
                path = f"{path}.list.element"  # what Parquet calls the values in a list
                kind = kind.value_type
            # Weights are whole numbers, which repeat.
            number = pa.types.is_floating(kind) and path != "weight.list.element"
            if number or column.name == "inputs":
                apart[path] = "BYTE_STREAM_SPLIT"
            elif kind not in (pa.large_string(), pa.binary(32)):
                repeated.append(path)
        with pq.ParquetWriter(
            self._folder / table,
            schema,
            compression="zstd",
            compression_level=19,
            data_page_size=2**26,  # what repeats is found however far apart it is
            # Nobody searches these tables by value.
            write_statistics=False,
            use_dictionary=repeated,
            column_encoding=apart,
        ) as writer:
            yield writer


def _row_groups(rows: Iterable[Row], size: Callable[[Row], int], most: int) -> Iterator[list[Row]]:
    """Yield rows in groups whose sizes add up to `most` at most.

    A row that is larger is a group of its own. Without rows there is one empty group.
    """
    group: list[Row] = []
    filled = 0
    for row in rows:
        more = size(row)
        if group and filled + more > most:
            yield group
            group = []
            filled = 0
        group.append(row)
        filled += more
    yield group


def _check_whole(problem: StoreProblem | None) -> None:
    if problem is not None:
        raise DataError(f"{problem}; only what is whole is packed", subject=problem.where)


def _check_same(
    store: Store, tables: PublishedResults, runs: Sequence[str], keys: Sequence[Key]
) -> None:
    """Raise `OutputError` unless every result comes back as it is."""
    run_keys: list[Key] = [(run, "") for run in runs]
    for key in [*run_keys, *keys]:
        results = store.results(*key)
        same = results.parts(*key) == tables.parts(*key)
        _, measurement = key
        if same and measurement:
            same = same_items(results.items(*key), tables.items(*key))
        if not same:
            where = tables.where(*key)
            raise OutputError(
                f"{where!r} would not come back as it is; nothing was changed, "
                "and this is a defect of calibrant",
                subject=where,
            )


def _schema(columns: Mapping[str, str]) -> Any:
    """The schema of a table with these columns, each with its type in Arrow's words."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])


def _list_array(parts: Sequence[Any], kind: Any) -> Any:
    """One list for each part, null where there is none."""
    import pyarrow as pa

    offsets = [0]
    present: list[Any] = []
    for part in parts:
        end = offsets[-1]
        if part is not None:
            present.append(part)
            end += len(part)
        offsets.append(end)
    values = pa.concat_arrays(present) if present else pa.array([], kind)
    missing = pa.array([part is None for part in parts], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=missing)


def _size(folder: Path) -> tuple[int, int]:
    """How many files a store has, and of how many bytes, without what can be made again."""
    files = 0
    size = 0
    for path in folder.rglob("*"):
        if STATISTICS in path.relative_to(folder).parts:
            continue
        with suppress(FileNotFoundError):  # SQLite's may go at any time
            if path.is_file():
                files += 1
                size += path.stat().st_size
    return files, size
