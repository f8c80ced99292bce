"""Records out of files: JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text, each problem
with its place in the file.

Texts are taken as they are: control characters, NULs, any script, lines of any length. Only what is
no UTF-8 is refused, with its line. JSON and CSV are read by Python's own parsers and not by pyarrow
or polars, which guess types (an answer `007` would be the number 7) and don't say in which line a
file is damaged; Parquet and Arrow by pyarrow. No more of a file is read than memory can hold: what
it unpacks to is counted.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Hashable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from io import BufferedIOBase, BufferedReader, StringIO
from pathlib import Path
from reprlib import Repr
from typing import Any, Final, TypeVar, cast

from calibrant.errors import DataError
from calibrant.spec.foreign import visible

SUFFIXES: Final = (
    ".jsonl",
    ".jsonl.gz",
    ".jsonl.zst",
    ".json",
    ".csv",
    ".csv.gz",
    ".tsv",
    ".parquet",
    ".arrow",
    ".txt",
)
PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib")

H = TypeVar("H", bound=Hashable)

MOST_COLUMNS: Final = 10_000
"""Columns of a table, or keys of a JSON object, at most."""
MOST_ROWS: Final = 50_000_000
"""Rows of a file at most: they are held in memory."""
LONGEST_LINE: Final = 1 << 26
"""Bytes of a line at most, which is a row: 64 MiB."""
SHORTEST_LINE: Final = 32
"""Bytes that a line of a compressed file counts for at least: millions of empty ones take time,
not room.
"""
LONGEST_WHOLE: Final = 1 << 30
"""Bytes of a file that can't be read line by line (JSON, plain text) at most: 1 GiB."""
TIMES: Final = 200
"""How many times its own size a compressed file unpacks to at most: text comes to ten or twenty
times, a bomb to a thousand and more.
"""
ALLOWED: Final = 1 << 25
"""Bytes that any compressed file may unpack to, however small it is: 32 MiB."""

FAULTS: Final = (
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    OSError,
    EOFError,
    MemoryError,
    csv.Error,
    zlib.error,
)
"""What the readers of file formats raise for a file that is not what it should be. None of them
is promised by anybody.
"""

BATCH: Final = 1_000
"""Rows of a Parquet or Arrow file that are made at a time."""

_SHORT: Final = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 40


def suffix_of(path: Path, label: str) -> str:
    """Return the file's kind by its ending; `DataError` for one that can't be read, with the
    reason where it is a pickle.
    """
    suffix = known_suffix(path)
    if suffix:
        return suffix
    allowed = f"a data file ends in {', '.join(SUFFIXES)}"
    if path.suffix.lower() in PICKLES:
        raise DataError(
            f"{label!r} may hold a pickle, which can run any program when it is read, and is refused; {allowed}",
            subject=label,
        )
    raise DataError(
        f"{label!r} can't be read as data: {path.suffix or 'no ending'!r} is no known ending; {allowed}",
        subject=label,
    )


def known_suffix(path: Path) -> str:
    """Return the ending of a file that can be read; empty for one that can't."""
    return next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")


def read_records(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a file as dictionaries; `label` is its name in messages. A text file
    gives records with the one field `text`.

    Whatever is wrong with the file is a `DataError` that names it, and the row where that is known.
    """
    label = visible(label)
    match suffix_of(path, label):
        case ".json":
            records = _read_json(path, label)
        case ".csv" | ".csv.gz":
            records = _read_table(path, label, ",")
        case ".tsv":
            records = _read_table(path, label, "\t")
        case ".parquet" | ".arrow":
            records = read_columns(path, label)
        case ".txt":
            records = _read_text(path, label)
        case _:
            records = _read_jsonl(path, label)
    return _faultless(records, label)


def _faultless(records: Iterator[dict[str, Any]], label: str) -> Iterator[dict[str, Any]]:
    """The records, and a sentence in place of whatever the reader of a format raises. This is
    the boundary: readers needn't foresee everything.
    """
    count = 0
    try:
        for record in records:
            count += 1
            if count > MOST_ROWS:
                raise DataError(
                    f"{label!r} has more than {MOST_ROWS:,} rows, the most that are read; take a part of it",
                    subject=label,
                )
            yield record
    except FAULTS as error:
        where = f"{label!r}, row {count + 1}" if count else f"{label!r}"
        raise DataError(
            f"{where}: this can't be read ({reason_of(error)}); look at the file, or write it anew",
            subject=label,
        ) from error


def _read_jsonl(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """One JSON object a line; empty lines are passed over. `DataError` with `file:line` for a
    line that is none.
    """
    for number, line in enumerate(_lines(path, label), 1):
        if line.strip():
            yield _object(
                _parsed(line, f"{label}:{number}", "; every line must be one JSON object"),
                f"{label}:{number}",
            )


def _read_json(path: Path, label: str) -> Iterator[dict[str, Any]]:
    text = _whole(path, label)
    records = _parsed(text, label) if text.strip() else []
    if not isinstance(records, list):
        raise DataError(
            f"{label!r} holds a JSON {type(records).__name__}; it must hold a list of objects",
            subject=label,
        )
    for number, record in enumerate(cast("list[Any]", records), 1):
        yield _object(record, f"{label}, record {number}")


def _parsed(text: str, where: str, rule: str = "") -> Any:
    """Return what a JSON text says. A `NaN`, which pandas writes where nothing is, counts as
    null.
    """
    try:
        return json.loads(
            text,
            parse_constant=lambda name: None if name == "NaN" else float(name),
            object_pairs_hook=_unrepeated,
        )
    except json.JSONDecodeError as error:
        # A line of JSON Lines is named by its caller, a line of a JSON text by the parser.
        where, line = (
            (where, text)
            if rule
            else (f"{where}:{error.lineno}", text.split("\n")[error.lineno - 1])
        )
        raise DataError(
            f"{where}: {short(line.strip())!r} is no JSON ({error.msg}){rule}", subject=where
        ) from error
    except RecursionError as error:
        raise DataError(
            f"{where}: {short(text.strip())!r} is nested too deep to be read; flatten it",
            subject=where,
        ) from error
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise DataError(
            f"{where}: {short(text.strip())!r} can't be read ({reason}){rule}", subject=where
        ) from error


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(
            f"the key {short(repeated(name for name, _ in pairs))!r} comes twice in one object"
        )
    return record


def _read_table(path: Path, label: str, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_bare_returns(_lines(path, label)), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            if not "".join(cells).strip() and len(cells) != len(columns):
                continue
            if not columns:
                columns = _header(cells, label)
            elif len(cells) != len(columns):
                message = f"this line has not the {len(columns)} columns of the first line but {len(cells)}"
                raise DataError(f"{label}:{reader.line_num}: {message}", subject=label)
            else:
                yield dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        kind = "CSV" if delimiter == "," else "TSV"
        raise DataError(
            f"{label}:{reader.line_num}: this line is no {kind} ({error})", subject=label
        ) from error


def _header(cells: list[str], label: str) -> list[str]:
    check_columns(len(cells), f"{label}:1")
    if (twice := repeated(cells)) is not None:
        raise DataError(
            f"{label}:1: the first line names the column {short(twice)!r} twice; rename one",
            subject=label,
        )
    return cells


def _bare_returns(lines: Iterable[str]) -> Iterator[str]:
    """Lines of a table that may end in a carriage return alone, which only CSV still knows."""
    for line in lines:
        if "\r" in line[:-2]:
            yield from StringIO(line, newline="")
        else:
            yield line


def _read_text(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """Paragraphs, if there is more than one; else lines. A line ends where an editor ends it,
    and not at rarer marks such as U+2028.
    """
    lines = _whole(path, label).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip(" \t"):
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    texts = ["\n".join(paragraph) for paragraph in paragraphs if "".join(paragraph).strip()]
    for text in texts if len(texts) > 1 else lines:
        if text.strip():
            yield {"text": text}


def _lines(path: Path, label: str) -> Iterator[str]:
    """Yield the lines of a text file with their ends, which are line feeds and nothing else.
    `DataError` with the line of what is no UTF-8.
    """
    unpacked = 0
    packed = path.stat().st_size if path.suffix.lower() in (".gz", ".zst") else None
    with _unpacked(path, label) as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), 1):
            if packed is not None:
                unpacked += max(len(line), SHORTEST_LINE)
                check_unpacked(unpacked, packed, label)
            if len(line) > LONGEST_LINE:
                most = f"{LONGEST_LINE >> 20} MiB"
                raise DataError(
                    f"{label}:{number}: this line is longer than {most}, the most that a row may have; divide it",
                    subject=label,
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{label}:{number}: {no_utf8(error)}; save the file as UTF-8", subject=label
                ) from error
            yield text


@contextmanager
def _unpacked(path: Path, label: str) -> Iterator[BufferedIOBase]:
    """Yield a file's bytes, unpacked. `DataError` for a compressed file that turns out to be
    damaged while it is read.
    """
    try:
        match path.suffix.lower():
            case ".gz":
                opened: Any = gzip.GzipFile(path, "rb")
            case ".zst":
                import pyarrow

                opened = BufferedReader(
                    cast("Any", pyarrow.input_stream(str(path), compression="zstd"))
                )
            case _:
                opened = path.open("rb")
        with closing(opened) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{label!r} is no whole gzip file: {error}", subject=label) from error
    except OSError as error:
        if path.suffix.lower() != ".zst":
            raise
        raise DataError(
            f"{label!r} is no whole zstd file: {reason_of(error)}", subject=label
        ) from error


def _whole(path: Path, label: str) -> str:
    """Return a text file that can't be read line by line."""
    if path.stat().st_size > LONGEST_WHOLE:
        most = f"{LONGEST_WHOLE >> 20:,} MiB"
        raise DataError(
            f"{label!r} is larger than {most}, the most that is read at once; write it as JSON Lines",
            subject=label,
        )
    return "".join(_lines(path, label))


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(
            f'{where}: {short(record)!r} is no JSON object such as {{"text": …}}', subject=where
        )
    check_columns(len(record), where)
    return cast("dict[str, Any]", record)


def read_columns(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """Give the rows as dictionaries. `DataError` for a damaged file, with the row and column of
    a value that Python has nothing for.
    """
    import pyarrow

    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    count = 0
    try:
        for batch in _parquet(path, label) if kind == "Parquet" else _arrow(path):
            _check(batch.schema.names, count + batch.num_rows, label)
            for begin in range(0, batch.num_rows, BATCH):
                yield from _records_of(batch.slice(begin, BATCH), label, count + begin)
            count += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{label!r} can't be read as {kind}: {reason_of(error)}", subject=label
        ) from error


def _check(names: list[str], rows: int, label: str) -> None:
    check_columns(len(names), repr(label))
    if (twice := repeated(names)) is not None:
        raise DataError(
            f"{label!r} has two columns called {short(twice)!r}; rename one", subject=label
        )
    if rows > MOST_ROWS:
        raise DataError(
            f"{label!r} has {rows:,} rows, and at most {MOST_ROWS:,} are read; take a part of it",
            subject=label,
        )


def _records_of(batch: Any, label: str, before: int) -> Iterator[dict[str, Any]]:
    """Yield a batch as records; row by row if a value in it can't be made, so that the row can
    be named.
    """
    try:
        records = batch.to_pylist()
    except FAULTS:
        for at in range(batch.num_rows):
            row = batch.slice(at, 1)
            try:
                records = row.to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{label!r}, row {before + at + 1}: {no_utf8(error)}", subject=label
                ) from error
            except FAULTS as error:
                raise DataError(
                    f"{label!r}, row {before + at + 1}: {_culprit(row)} can't be read ({reason_of(error)}); leave it out, or write it as text",
                    subject=label,
                ) from error
            yield from records
    else:
        yield from records


def _culprit(row: Any) -> str:
    """Return the first column of a row whose value can't be made, with its type."""
    for field, column in zip(row.schema, row.columns, strict=True):
        try:
            column.to_pylist()
        except FAULTS:
            return f"the column {short(field.name)!r} of the type {short(str(field.type))}"
    return "this row"


def _parquet(path: Path, label: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        about = file.metadata
        _check(file.schema_arrow.names, about.num_rows, label)
        check_unpacked(
            sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups)),
            path.stat().st_size,
            label,
        )
        yield from file.iter_batches(batch_size=BATCH)


def _arrow(path: Path) -> Iterator[Any]:
    """Yield the batches of an Arrow file, or of a stream, which is what `datasets` writes."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(source)
            yield from (_sound(file.get_batch(number)) for number in range(file.num_record_batches))
        else:
            source.seek(0)
            yield from map(_sound, pyarrow.ipc.open_stream(source))


def _sound(batch: Any) -> Any:
    """The batch, once it is sure that none of its offsets points out of its memory: a damaged
    one could end the process. `ArrowInvalid` if so.
    """
    import pyarrow

    batch.validate()
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            # Offsets are looked at before letters are, and of what is no UTF-8 the row is to be
            # named.
            text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(
                column.type
            )
            if not (text and "UTF8" in str(error)):
                raise
    return batch


def short(value: Any) -> str:
    """Return a value for a message, never long and never more than a few levels deep."""
    text, most = (value, 40) if isinstance(value, str) else (_SHORT.repr(value), 80)
    return text if len(text) <= most else text[:most] + "…"


def reason_of(error: BaseException) -> str:
    """Return the first line of what a reader says, or what kind of error it is if it says
    nothing.
    """
    lines = visible(str(error)).strip().splitlines()
    line = lines[0].partition(";")[0] if lines else type(error).__name__
    return line if len(line) <= 160 else line[:160] + "…"


def no_utf8(error: UnicodeDecodeError) -> str:
    """Return a clause that names the byte at which a text is no UTF-8."""
    return f"this is no UTF-8 text (byte {error.object[error.start]:#04x} at {error.start + 1})"


def repeated(names: Iterable[H]) -> H | None:
    """Return the first name that comes a second time; None if none does."""
    earlier: set[H] = set()
    for name in names:
        if name in earlier:
            return name
        earlier.add(name)
    return None


def check_columns(count: int, where: str) -> None:
    """Raise `DataError` for more columns than a table of texts has."""
    if count > MOST_COLUMNS:
        raise DataError(
            f"{where}: there are {count:,} columns, and at most {MOST_COLUMNS:,} are read; keep those that you need",
            subject=where,
        )


def check_unpacked(unpacked: int, packed: int, label: str) -> None:
    """Raise `DataError` for what unpacks to far more than text does; count with it while
    reading, before the memory is full.
    """
    most = max(ALLOWED, TIMES * packed)
    if unpacked > most:
        raise DataError(
            f"{label!r} unpacks to more than {most >> 20:,} MiB, {TIMES} times its size, which no text does; unpack it yourself if it should",
            subject=label,
        )
