"""Records out of files: JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text, each problem with its place in the file.

Texts are taken as they are: control characters, NULs, any script, lines of any length. Only what is no UTF-8 is refused, with its line.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from io import BufferedIOBase, BufferedReader, StringIO
from pathlib import Path
from typing import Any, Final, cast

from calibrant.data._columnar import read_columns
from calibrant.data._limits import (
    FAULTS,
    LONGEST_LINE,
    LONGEST_WHOLE,
    MOST_ROWS,
    SHORTEST_LINE,
    check_columns,
    check_unpacked,
    no_utf8,
    reason_of,
    repeated,
    short,
)
from calibrant.errors import DataError
from calibrant.foreign import visible

SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".csv.gz", ".tsv", ".parquet", ".arrow", ".txt")
PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib")


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
    """The records of a file as dictionaries; `shown` is what messages call it. A text file gives records with the one field `text`.

    Whatever is wrong with the file is a `DataError` that names it, and the row where that is known.
    """
    shown = visible(shown)
    match suffix_of(path, shown):
        case ".json":
            records = _read_json(path, shown)
        case ".csv" | ".csv.gz":
            records = _read_table(path, shown, ",")
        case ".tsv":
            records = _read_table(path, shown, "\t")
        case ".parquet" | ".arrow":
            records = read_columns(path, shown)
        case ".txt":
            records = _read_text(path, shown)
        case _:
            records = _read_jsonl(path, shown)
    return _faultless(records, shown)


def _faultless(records: Iterator[dict[str, Any]], shown: str) -> Iterator[dict[str, Any]]:
    """The records, and a sentence in place of whatever the reader of a format raises. This is the boundary: readers needn't foresee everything."""
    done = 0
    try:
        for record in records:
            done += 1
            if done > MOST_ROWS:
                raise DataError(f"{shown!r} has more than {MOST_ROWS:,} rows, the most that are read; take a part of it", subject=shown)
            yield record
    except FAULTS as error:
        where = f"{shown!r}, row {done + 1}" if done else f"{shown!r}"
        raise DataError(f"{where}: this can't be read ({reason_of(error)}); look at the file, or write it anew", subject=shown) from error


def _read_jsonl(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    """One JSON object a line; empty lines are passed over. `DataError` with `file:line` for a line that is none."""
    for number, line in enumerate(_lines(path, shown), 1):
        if line.strip():
            yield _object(_parsed(line, f"{shown}:{number}", "; every line must be one JSON object"), f"{shown}:{number}")


def _read_json(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    text = _whole(path, shown)
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
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"the key {short(repeated(name for name, _ in pairs))!r} comes twice in one object")
    return record


def _read_table(path: Path, shown: str, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_LINE)
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
    check_columns(len(cells), f"{shown}:1")
    twice = repeated(cells)
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


def _read_text(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    """Paragraphs, if there is more than one; else lines. A line ends where an editor ends it, and not at rarer marks such as U+2028."""
    lines = _whole(path, shown).replace("\r\n", "\n").replace("\r", "\n").split("\n")
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
    number = unpacked = 0
    packed = path.stat().st_size if path.suffix.lower() in (".gz", ".zst") else None
    try:
        with closing(_opened(path)) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), 1):
                if packed is not None:
                    unpacked += max(len(line), SHORTEST_LINE)
                    check_unpacked(unpacked, packed, shown)
                if len(line) > LONGEST_LINE:
                    most = f"{LONGEST_LINE >> 20} MiB"
                    raise DataError(f"{shown}:{number}: this line is longer than {most}, the most that a row may have; divide it", subject=shown)
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown}:{number}: {no_utf8(error)}; save the file as UTF-8", subject=shown) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{shown!r} is no whole gzip file: {error}", subject=shown) from error
    except OSError as error:
        if path.suffix.lower() != ".zst":
            raise
        raise DataError(f"{shown!r} is no whole zstd file: {reason_of(error)}", subject=shown) from error


def _whole(path: Path, shown: str) -> str:
    """A text file that can't be read line by line."""
    if path.stat().st_size > LONGEST_WHOLE:
        most = f"{LONGEST_WHOLE >> 20:,} MiB"
        raise DataError(f"{shown!r} is larger than {most}, the most that is read at once; write it as JSON Lines", subject=shown)
    return "".join(_lines(path, shown))


def _opened(path: Path) -> BufferedIOBase:
    match path.suffix.lower():
        case ".gz":
            return gzip.GzipFile(path, "rb")
        case ".zst":
            import pyarrow

            return BufferedReader(cast("Any", pyarrow.input_stream(str(path), compression="zstd")))
        case _:
            return path.open("rb")


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f'{where}: {short(record)!r} is no JSON object such as {{"text": …}}', subject=where)
    check_columns(len(record), where)
    return cast("dict[str, Any]", record)
