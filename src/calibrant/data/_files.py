"""Records out of files: JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text, each problem with its place in the file.

Texts are taken as they are: control characters, NULs, any script, lines of any length. Only what is no UTF-8 is refused, with its line.
"""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from io import BufferedIOBase, BufferedReader, StringIO
from pathlib import Path
from reprlib import Repr
from typing import Any, Final, cast

from calibrant.errors import DataError

SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".csv.gz", ".tsv", ".parquet", ".arrow", ".txt")
PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib")

_SHORT: Final = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 40


def suffix_of(path: Path, shown: str) -> str:
    """The file's kind by its ending; `DataError` for one that can't be read, with the reason where it is a pickle."""
    found = known_suffix(path)
    if found:
        return found
    allowed = f"a data file ends in {', '.join(SUFFIXES)}"
    if path.suffix.lower() in PICKLES:
        raise DataError(f"{shown!r} may hold a pickle, which can run any program when it is read, and is refused; {allowed}", subject=shown)
    raise DataError(f"{shown!r} can't be read as data: {path.suffix or 'no ending'!r} is no known ending; {allowed}", subject=shown)


def known_suffix(path: Path) -> str:
    """The ending of a file that can be read; empty for one that can't."""
    return next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")


def read_records(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    """The records of a file as dictionaries; `shown` is what messages call it. A text file gives records with the one field `text`."""
    match suffix_of(path, shown):
        case ".json":
            return _read_json(path, shown)
        case ".csv" | ".csv.gz":
            return _read_table(path, shown, ",")
        case ".tsv":
            return _read_table(path, shown, "\t")
        case ".parquet" | ".arrow":
            return _read_columns(path, shown)
        case ".txt":
            return _read_text(path, shown)
        case _:
            return read_jsonl(path, shown)


def read_jsonl(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    """One JSON object a line; empty lines are passed over. `DataError` with `file:line` for a line that is none."""
    for number, line in enumerate(_lines(path, shown), 1):
        if line.strip():
            yield _object(_parsed(line, f"{shown}:{number}", "; every line must be one JSON object"), f"{shown}:{number}")


def short(value: Any) -> str:
    """A value for a message, never long and never more than a few levels deep."""
    told, most = (value, 40) if isinstance(value, str) else (_SHORT.repr(value), 80)
    return told if len(told) <= most else told[:most] + "…"


def _read_json(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    text = "".join(_lines(path, shown))
    records = _parsed(text, shown) if text.strip() else []
    if not isinstance(records, list):
        raise DataError(f"{shown!r} holds a JSON {type(records).__name__}; it must hold a list of objects", subject=shown)
    for number, record in enumerate(cast("list[Any]", records), 1):
        yield _object(record, f"{shown}, record {number}")


def _parsed(text: str, where: str, rule: str = "") -> Any:
    """What a JSON text says. A `NaN`, which pandas writes where nothing is, counts as null."""
    try:
        return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name), object_pairs_hook=_unrepeated)
    except json.JSONDecodeError as error:
        # A line of JSON Lines is named by its caller, a line of a JSON text by the parser.
        where, line = (where, text) if rule else (f"{where}:{error.lineno}", text.split("\n")[error.lineno - 1])
        raise DataError(f"{where}: {short(line.strip())!r} is no JSON ({error.msg}){rule}", subject=where) from error
    except RecursionError as error:
        raise DataError(f"{where}: {short(text.strip())!r} is nested too deep to be read; flatten it", subject=where) from error
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise DataError(f"{where}: {short(text.strip())!r} can't be read ({reason}){rule}", subject=where) from error


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at]))
        raise ValueError(f"the key {short(twice)!r} comes twice in one object")
    return found


def _read_table(path: Path, shown: str, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(_bare_returns(_lines(path, shown)), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            if not "".join(cells).strip() and len(cells) != len(columns):
                continue
            if not columns:
                columns = _header(cells, shown)
            elif len(cells) != len(columns):
                found = f"this line has not the {len(columns)} columns of the first line but {len(cells)}"
                raise DataError(f"{shown}:{reader.line_num}: {found}", subject=shown)
            else:
                yield dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        kind = "CSV" if delimiter == "," else "TSV"
        raise DataError(f"{shown}:{reader.line_num}: this line is no {kind} ({error})", subject=shown) from error


def _header(cells: list[str], shown: str) -> list[str]:
    twice = next((name for at, name in enumerate(cells) if name in cells[:at]), None)
    if twice is not None:
        raise DataError(f"{shown}:1: the first line names the column {short(twice)!r} twice; rename one", subject=shown)
    return cells


def _bare_returns(lines: Iterable[str]) -> Iterator[str]:
    """Lines of a table that may end in a carriage return alone, which only CSV still knows."""
    for line in lines:
        if "\r" in line[:-2]:
            yield from StringIO(line, newline="")
        else:
            yield line


def _read_columns(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    import pyarrow

    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    done = 0
    try:
        for batch in _parquet(path) if kind == "Parquet" else _arrow(path):
            names = batch.schema.names
            twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
            if twice is not None:
                raise DataError(f"{shown!r} has two columns called {short(twice)!r}; rename one", subject=shown)
            yield from _records_of(batch, shown, done)
            done += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{shown!r} can't be read as {kind}: {reason}", subject=shown) from error


def _records_of(batch: Any, shown: str, before: int) -> Iterator[dict[str, Any]]:
    """A batch as records; row by row if a text in it is no UTF-8, so that the row can be named."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            try:
                yield from batch.slice(at, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(f"{shown!r}, row {before + at + 1}: {_no_utf8(error)}", subject=shown) from error


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=1_000)


def _arrow(path: Path) -> Iterator[Any]:
    """The batches of an Arrow file, or of a stream, which is what `datasets` writes."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(source)
            yield from (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            source.seek(0)
            yield from pyarrow.ipc.open_stream(source)


def _read_text(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    """Paragraphs, if there is more than one; else lines. A line ends where an editor ends it, and not at rarer marks such as U+2028."""
    lines = "".join(_lines(path, shown)).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip(" \t"):
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    found = ["\n".join(paragraph) for paragraph in paragraphs if "".join(paragraph).strip()]
    for text in found if len(found) > 1 else lines:
        if text.strip():
            yield {"text": text}


def _lines(path: Path, shown: str) -> Iterator[str]:
    """The lines of a text file with their ends, which are line feeds and nothing else. `DataError` with the line of what is no UTF-8."""
    number = 0
    try:
        with closing(_opened(path)) as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown}:{number}: {_no_utf8(error)}; save the file as UTF-8", subject=shown) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{shown!r} is no whole gzip file: {error}", subject=shown) from error
    except OSError as error:
        if path.suffix.lower() != ".zst":
            raise
        raise DataError(f"{shown!r} is no whole zstd file: {str(error).splitlines()[0]}", subject=shown) from error


def _opened(path: Path) -> BufferedIOBase:
    match path.suffix.lower():
        case ".gz":
            return gzip.GzipFile(path, "rb")
        case ".zst":
            import pyarrow

            return BufferedReader(cast("Any", pyarrow.input_stream(str(path), compression="zstd")))
        case _:
            return path.open("rb")


def _no_utf8(error: UnicodeDecodeError) -> str:
    return f"this is no UTF-8 text (byte {error.object[error.start]:#04x} at {error.start + 1})"


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f'{where}: {short(record)!r} is no JSON object such as {{"text": …}}', subject=where)
    return cast("dict[str, Any]", record)
