"""Records out of Parquet and Arrow files, a batch at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from calibrant.data._limits import FAULTS, MOST_ROWS, check_columns, check_unpacked, no_utf8, reason_of, repeated, short
from calibrant.errors import DataError

BATCH: Final = 1_000
"""Rows that are made at a time."""


def read_columns(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    """Give the rows as dictionaries. `DataError` for a damaged file, with the row and column of a value that Python has nothing for."""
    import pyarrow

    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    done = 0
    try:
        for batch in _parquet(path, shown) if kind == "Parquet" else _arrow(path):
            _check(batch.schema.names, done + batch.num_rows, shown)
            for begin in range(0, batch.num_rows, BATCH):
                yield from _records_of(batch.slice(begin, BATCH), shown, done + begin)
            done += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{shown!r} can't be read as {kind}: {reason_of(error)}", subject=shown) from error


def _check(names: list[str], rows: int, shown: str) -> None:
    check_columns(len(names), repr(shown))
    twice = repeated(names)
    if twice is not None:
        raise DataError(f"{shown!r} has two columns called {short(twice)!r}; rename one", subject=shown)
    if rows > MOST_ROWS:
        raise DataError(f"{shown!r} has {rows:,} rows, and at most {MOST_ROWS:,} are read; take a part of it", subject=shown)


def _records_of(batch: Any, shown: str, before: int) -> Iterator[dict[str, Any]]:
    """A batch as records; row by row if a value in it can't be made, so that the row can be named."""
    try:
        records = batch.to_pylist()
    except FAULTS:
        for at in range(batch.num_rows):
            row = batch.slice(at, 1)
            try:
                records = row.to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(f"{shown!r}, row {before + at + 1}: {no_utf8(error)}", subject=shown) from error
            except FAULTS as error:
                raise DataError(
                    f"{shown!r}, row {before + at + 1}: {_culprit(row)} can't be read ({reason_of(error)}); leave it out, or write it as text",
                    subject=shown,
                ) from error
            yield from records
    else:
        yield from records


def _culprit(row: Any) -> str:
    """The first column of a row whose value can't be made, with its type."""
    for field, column in zip(row.schema, row.columns, strict=True):
        try:
            column.to_pylist()
        except FAULTS:
            return f"the column {short(field.name)!r} of the type {short(str(field.type))}"
    return "this row"


def _parquet(path: Path, shown: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        about = file.metadata
        _check(file.schema_arrow.names, about.num_rows, shown)
        check_unpacked(sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups)), path.stat().st_size, shown)
        yield from file.iter_batches(batch_size=BATCH)


def _arrow(path: Path) -> Iterator[Any]:
    """The batches of an Arrow file, or of a stream, which is what `datasets` writes."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(source)
            yield from (_sound(file.get_batch(number)) for number in range(file.num_record_batches))
        else:
            source.seek(0)
            yield from map(_sound, pyarrow.ipc.open_stream(source))


def _sound(batch: Any) -> Any:
    """The batch, once it is sure that none of its offsets points out of its memory: a damaged one could end the process. `ArrowInvalid` if so."""
    import pyarrow

    batch.validate()
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            # Offsets are looked at before letters are, and of what is no UTF-8 the row is to be named.
            text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
            if not (text and "UTF8" in str(error)):
                raise
    return batch
