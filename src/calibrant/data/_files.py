"""Reads records out of files: JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text. Each
problem is said with its place in the file.

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
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from io import BufferedIOBase, BufferedReader, StringIO
from pathlib import Path
from reprlib import Repr
from typing import Any, Final, NoReturn, TypeVar, cast

from calibrant.data._limits import (
    ALWAYS_UNPACKED,
    LONGEST_LINE,
    LONGEST_WHOLE,
    MOST_COLUMNS,
    MOST_ROWS,
    MOST_TIMES,
    SHORTEST_LINE,
)
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

Name = TypeVar("Name", bound=Hashable)

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

_SHORT_FORM: Final = Repr()
_SHORT_FORM.maxstring = _SHORT_FORM.maxother = _SHORT_FORM.maxlong = 40


def suffix_of(path: Path, label: str) -> str:
    """Return the file's kind by its ending; `DataError` for one that can't be read, with the
    reason where it is a pickle.
    """
    suffix = known_suffix(path)
    if suffix:
        return suffix
    allowed = f"a data file ends in {', '.join(SUFFIXES)}"
    if path.suffix.lower() in PICKLES:
        refuse(
            f"{label!r} may hold a pickle, which can run any program when it is read, and is "
            f"refused; {allowed}",
            label,
        )
    ending = path.suffix or "no ending"
    return refuse(
        f"{label!r} can't be read as data: {ending!r} is no known ending; {allowed}", label
    )


def known_suffix(path: Path) -> str:
    """Return the ending of a file that can be read; empty for one that can't."""
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    return ""


def is_table(path: Path) -> bool:
    """Return whether all records of a file have the same columns; those of JSON may differ."""
    return not known_suffix(path).startswith(".json")


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
            records = _read_columns(path, label)
        case ".txt":
            records = _read_text(path, label)
        case _:
            records = _read_jsonl(path, label)
    return _guarded(records, label)


def refuse(message: str, subject: str, cause: BaseException | None = None) -> NoReturn:
    """Raise `DataError`, because of `cause` if there is one."""
    raise DataError(message, subject=subject) from cause


def _guarded(records: Iterator[dict[str, Any]], label: str) -> Iterator[dict[str, Any]]:
    """Yield the records, and raise a sentence in place of whatever the reader of a format raises.

    This is the boundary: readers needn't foresee everything.
    """
    count = 0
    try:
        for record in records:
            count += 1
            if count > MOST_ROWS:
                message = f"has more than {MOST_ROWS:,} rows, the most that are read"
                refuse(f"{label!r} {message}; take a part of it", label)
            yield record
    except FAULTS as error:
        place = repr(label)
        if count:
            place += f", row {count + 1}"
        message = f"this can't be read ({reason_of(error)}); look at the file, or write it anew"
        refuse(f"{place}: {message}", label, error)


def _read_jsonl(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """Yield one JSON object a line; empty lines are passed over.

    Raises `DataError` with `file:line` for a line that is none.
    """
    for number, line in enumerate(_lines(path, label), 1):
        if line.strip():
            place = f"{label}:{number}"
            listed = ""
            if line.lstrip().startswith("["):
                listed = ", and a file that is one JSON list is called .json"
            record = _parsed(line, place, f"; every line must be one JSON object{listed}")
            yield _checked_object(record, place, listed)


def _read_json(path: Path, label: str) -> Iterator[dict[str, Any]]:
    text = _whole_text(path, label)
    if not text.strip():
        return
    records = _parsed(text, label)
    if isinstance(records, dict):
        remedy = "it must hold a list of objects, so put it in [ ]"
        for key, value in cast("dict[str, Any]", records).items():
            if _holds_rows(value):
                remedy += f", or write what is in {short(key)!r} alone"
                break
        refuse(f"{label!r} holds one JSON object; {remedy}", label)
    if not isinstance(records, list):
        kind = type(records).__name__
        refuse(f"{label!r} holds a JSON {kind}; it must hold a list of objects", label)
    for number, record in enumerate(cast("list[Any]", records), 1):
        yield _checked_object(record, f"{label}, record {number}")


def _holds_rows(value: Any) -> bool:
    """Return whether a value of a JSON object is a list of rows, and not of a conversation's
    messages.
    """
    if not isinstance(value, list) or not value:
        return False
    first = cast("list[Any]", value)[0]
    return isinstance(first, dict) and not {"role", "from"} & first.keys()


def _parsed(text: str, place: str, rule: str = "") -> Any:
    """Return what a JSON text says; `place` and `rule` stand in messages."""
    try:
        return json.loads(text, parse_constant=_constant, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        line = text
        # A line of JSON Lines is named by its caller, a line of a JSON text by the parser.
        if not rule:
            place += f":{error.lineno}"
            line = text.split("\n")[error.lineno - 1]
            if error.msg == "Extra data" and line.lstrip().startswith("{"):
                rule = "; a file that has a JSON object in every line is called .jsonl"
        refuse(f"{place}: {short(line.strip())!r} is no JSON ({error.msg}){rule}", place, error)
    except RecursionError as error:
        refuse(
            f"{place}: {short(text.strip())!r} is nested too deep to be read; flatten it",
            place,
            error,
        )
    except ValueError as error:
        reason = str(error).partition(";")[0]
        refuse(f"{place}: {short(text.strip())!r} can't be read ({reason}){rule}", place, error)


def _constant(name: str) -> float | None:
    """Return the value of `NaN` or `Infinity`; pandas writes `NaN` where nothing is."""
    if name == "NaN":
        return None
    return float(name)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    # JSON allows it and parsers differ in which of the two they take.
    if len(record) < len(pairs):
        key = short(repeated(name for name, _ in pairs))
        raise ValueError(f"the key {key!r} comes twice in one object")
    return record


def _read_table(path: Path, label: str, delimiter: str) -> Iterator[dict[str, Any]]:
    # Python's own limit of 131,072 letters is too small for books; it is one for the process.
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_divided_at_returns(_lines(path, label)), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            # A blank line is passed over, unless it has a cell for each column.
            blank = not "".join(cells).strip()
            if blank and len(cells) != len(columns):
                continue
            if not columns:
                columns = _header(cells, label, reader.line_num)
                continue
            fault = _fault_of_line(columns, cells, delimiter)
            if fault:
                refuse(f"{label}:{reader.line_num}: {fault}", label)
            yield dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        kind = {",": "CSV", "\t": "TSV"}[delimiter]
        refuse(f"{label}:{reader.line_num}: this line is no {kind} ({error})", label, error)


def _fault_of_line(columns: Sequence[str], cells: Sequence[str], delimiter: str) -> str:
    """Return what is wrong with a line of a table; nothing where it is like the first line."""
    if len(columns) == 1:
        mark = _wrong_delimiter(columns[0], delimiter.join(cells), delimiter)
        if mark:
            return f"{mark} is between columns; write {delimiter!r} there"
    if len(cells) != len(columns):
        noun = "column" if len(columns) == 1 else "columns"
        return f"this line has not the {len(columns)} {noun} of the first line but {len(cells)}"
    return ""


def _wrong_delimiter(header: str, line: str, delimiter: str) -> str:
    """Return what is between columns in place of the delimiter: a semicolon or a tab, of which a
    line has as many as the first one. Empty if it is neither.
    """
    for mark, name in ((";", "';'"), ("\t", "a tab")):
        if mark != delimiter and line.count(mark) == header.count(mark) > 0:
            return name
    return ""


def _header(cells: list[str], label: str, line: int) -> list[str]:
    check_columns(len(cells), f"{label}:{line}")
    twice = repeated(cells)
    if twice is not None:
        refuse(
            f"{label}:{line}: the first line names the column {short(twice)!r} twice; rename one",
            label,
        )
    return cells


def _divided_at_returns(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines of a table, which may also end in a carriage return alone, as only CSV's do."""
    for line in lines:
        if "\r" in line.removesuffix("\r\n"):
            yield from StringIO(line, newline="")
        else:
            yield line


def _read_text(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """Yield paragraphs, if there is more than one; else lines.

    A line ends where an editor ends it, and not at rarer marks such as U+2028.
    """
    lines = _whole_text(path, label).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip(" \t"):
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    texts = ["\n".join(paragraph) for paragraph in paragraphs if "".join(paragraph).strip()]
    if len(texts) <= 1:
        texts = lines
    for text in texts:
        if text.strip():
            yield {"text": text}


def _lines(path: Path, label: str) -> Iterator[str]:
    """Yield the lines of a text file with their ends, which are line feeds and nothing else.

    Raises `DataError` with the line of what is no UTF-8.
    """
    packed = path.suffix.lower() in (".gz", ".zst")
    packed_size = path.stat().st_size
    unpacked = 0
    encoding = "utf-8-sig"  # a byte order mark, which Windows writes, may stand before the first
    number = 0
    with _unpacked(path, label) as file:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if packed:
                # Counted while it is unpacked, before the memory is full.
                unpacked += max(len(line), SHORTEST_LINE)
                check_unpacked(unpacked, packed_size, label)
            if len(line) > LONGEST_LINE:
                refuse(
                    f"{label}:{number}: this line is longer than {LONGEST_LINE >> 20} MiB, the "
                    "most that a row may have; divide it",
                    label,
                )
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError as error:
                refuse(f"{label}:{number}: {no_utf8(error)}; save the file as UTF-8", label, error)
            encoding = "utf-8"
            yield text


@contextmanager
def _unpacked(path: Path, label: str) -> Iterator[BufferedIOBase]:
    """Yield a file's bytes, unpacked. `DataError` for a compressed file that turns out to be
    damaged while it is read.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            opened: Any = gzip.GzipFile(path, "rb")
        elif suffix == ".zst":
            import pyarrow

            stream: Any = pyarrow.input_stream(str(path), compression="zstd")
            opened = BufferedReader(stream)
        else:
            opened = path.open("rb")
        with closing(opened) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        refuse(f"{label!r} is no whole gzip file: {error}", label, error)
    except OSError as error:
        if suffix != ".zst":
            raise
        refuse(f"{label!r} is no whole zstd file: {reason_of(error)}", label, error)


def _whole_text(path: Path, label: str) -> str:
    """Return a text file that can't be read line by line."""
    if path.stat().st_size > LONGEST_WHOLE:
        refuse(
            f"{label!r} is larger than {LONGEST_WHOLE >> 20:,} MiB, the most that is read at "
            "once; write it as JSON Lines",
            label,
        )
    return "".join(_lines(path, label))


def _checked_object(record: Any, place: str, rule: str = "") -> dict[str, Any]:
    if not isinstance(record, dict):
        message = f'{short(record)!r} is no JSON object such as {{"text": …}}{rule}'
        refuse(f"{place}: {message}", place)
    check_columns(len(record), place)
    return cast("dict[str, Any]", record)


def _read_columns(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet or Arrow file.

    Raises `DataError` for a damaged file, with the row and column of a value that Python has
    nothing for.
    """
    import pyarrow

    if path.suffix.lower() == ".parquet":
        kind = "Parquet"
        batches = _parquet_batches(path, label)
    else:
        kind = "Arrow"
        batches = _arrow_batches(path)
    packed_size = path.stat().st_size
    unpacked = 0
    count = 0
    try:
        for batch in batches:
            _check_table(batch.schema.names, count + batch.num_rows, label)
            for begin in range(0, batch.num_rows, BATCH):
                rows = batch.slice(begin, BATCH)
                unpacked += _unpacked_size(rows)
                check_unpacked(unpacked, packed_size, label)
                yield from _records_of(rows, label, count + begin)
            count += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        refuse(f"{label!r} can't be read as {kind}: {reason_of(error)}", label, error)


def _unpacked_size(batch: Any) -> int:
    """Return how many bytes a batch has where each row has its own values."""
    import pyarrow

    size = 0
    for column in batch.columns:
        # What is kept once in a dictionary is made for each row.
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        size += column.nbytes
    return size


def _check_table(names: list[str], rows: int, label: str) -> None:
    check_columns(len(names), repr(label))
    twice = repeated(names)
    if twice is not None:
        refuse(f"{label!r} has two columns called {short(twice)!r}; rename one", label)
    if rows > MOST_ROWS:
        refuse(
            f"{label!r} has {rows:,} rows, and at most {MOST_ROWS:,} are read; take a part of it",
            label,
        )


def _records_of(batch: Any, label: str, before: int) -> Iterator[dict[str, Any]]:
    """Yield a batch as records; `before` counts the rows before it, for messages."""
    try:
        records = batch.to_pylist()
    except FAULTS:
        records = _one_by_one(batch, label, before)
    yield from map(without_nulls, records)


def without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of a table of Arrow with all its columns, without the entries of objects
    within them that hold nothing.

    Arrow gives an object the entries of the objects of all rows: a call would have the arguments of
    every function.
    """
    return {column: _value_without_nulls(value) for column, value in record.items()}


def _value_without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value).items()
        return {name: _value_without_nulls(entry) for name, entry in entries if entry is not None}
    if isinstance(value, list):
        return [_value_without_nulls(entry) for entry in cast("list[Any]", value)]
    return value


def _one_by_one(batch: Any, label: str, before: int) -> Iterator[dict[str, Any]]:
    """Yield a batch as records, and name the row in which a value can't be made."""
    for place in range(batch.num_rows):
        row = batch.slice(place, 1)
        number = f"{label!r}, row {before + place + 1}"
        try:
            records = row.to_pylist()
        except UnicodeDecodeError as error:
            refuse(f"{number}: {no_utf8(error)}", label, error)
        except FAULTS as error:
            refuse(
                f"{number}: {_unreadable_column(row)} can't be read ({reason_of(error)}); leave it "
                "out, or write it as text",
                label,
                error,
            )
        yield from records


def _unreadable_column(row: Any) -> str:
    """Return the first column of a row whose value can't be made, with its type."""
    for field, column in zip(row.schema, row.columns, strict=True):
        try:
            column.to_pylist()
        except FAULTS:
            return f"the column {short(field.name)!r} of the type {short(str(field.type))}"
    return "this row"


def _parquet_batches(path: Path, label: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        facts = file.metadata
        _check_table(file.schema_arrow.names, facts.num_rows, label)
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        check_unpacked(unpacked, path.stat().st_size, label)
        yield from file.iter_batches(batch_size=BATCH)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Yield the batches of an Arrow file, or of a stream, which is what `datasets` writes."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as opened:
        if opened.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(opened)
            for number in range(file.num_record_batches):
                yield _validated(file.get_batch(number))
        else:
            opened.seek(0)
            for batch in pyarrow.ipc.open_stream(opened):
                yield _validated(batch)


def _validated(batch: Any) -> Any:
    """Return the batch, once it is sure that none of its offsets points out of its memory.

    A damaged one could end the process. Raises `ArrowInvalid` for such.
    """
    import pyarrow

    batch.validate()
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            # Offsets are looked at before letters are, and of what is no UTF-8 the row is to be
            # named.
            kind = column.type
            text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
            if not (text and "UTF8" in str(error)):
                raise
    return batch


def short(value: Any) -> str:
    """Return a value for a message, never long and never more than a few levels deep."""
    if isinstance(value, str):
        return _cut(value, 40)
    return _cut(_SHORT_FORM.repr(value), 80)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return text[:most] + "…"


def reason_of(error: BaseException) -> str:
    """Return the first line of what a reader says, or what kind of error it is if it says
    nothing.
    """
    lines = visible(str(error)).strip().splitlines()
    if not lines:
        return _cut(type(error).__name__, 160)
    return _cut(lines[0].partition(";")[0], 160)


def no_utf8(error: UnicodeDecodeError) -> str:
    """Return a clause that names the byte at which a text is no UTF-8."""
    return f"this is no UTF-8 text (byte {error.object[error.start]:#04x} at {error.start + 1})"


def repeated(names: Iterable[Name]) -> Name | None:
    """Return the first name that comes a second time; None if none does."""
    earlier: set[Name] = set()
    for name in names:
        if name in earlier:
            return name
        earlier.add(name)
    return None


def check_columns(count: int, place: str) -> None:
    """Raise `DataError` for more columns than a table of texts has."""
    if count > MOST_COLUMNS:
        refuse(
            f"{place}: there are {count:,} columns, and at most {MOST_COLUMNS:,} are read; keep "
            "those that you need",
            place,
        )


def check_unpacked(unpacked: int, packed: int, label: str) -> None:
    """Raise `DataError` for what unpacks to far more than text does; count with it while
    reading, before the memory is full.
    """
    most = max(ALWAYS_UNPACKED, MOST_TIMES * packed)
    if unpacked > most:
        refuse(
            f"{label!r} unpacks to more than {most >> 20:,} MiB, {MOST_TIMES} times its size, "
            "which no text does; unpack it yourself if it should",
            label,
        )
