"""Records out of files: JSON Lines, JSON, CSV, Parquet and plain text, each problem with its place in the file."""

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, cast

from calibrant.errors import DataError

SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ".txt")
PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib")


def suffix_of(path: Path, shown: str) -> str:
    """The file's kind by its ending; `DataError` for one that can't be read, with the reason where it is a pickle."""
    found = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if found:
        return found
    allowed = f"a data file ends in {', '.join(SUFFIXES)}"
    if path.suffix.lower() in PICKLES:
        raise DataError(f"{shown!r} may hold a pickle, which can run any program when it is read, and is refused; {allowed}", subject=shown)
    raise DataError(f"{shown!r} can't be read as data: {path.suffix or 'no ending'!r} is no known ending; {allowed}", subject=shown)


def read_records(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    """The records of a file as dictionaries; `shown` is what messages call it. A text file gives records with the one field `text`."""
    match suffix_of(path, shown):
        case ".json":
            return _read_json(path, shown)
        case ".csv":
            return _read_csv(path, shown)
        case ".parquet":
            return _read_parquet(path, shown)
        case ".txt":
            return _read_text(path, shown)
        case _:
            return read_jsonl(path, shown)


def read_jsonl(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    """One JSON object a line; empty lines are passed over. `DataError` with `file:line` for a line that is none."""
    with _opened(path) as file:
        for number, line in enumerate(_decoded(file, shown), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{shown}:{number}: {_short(line)!r} is no JSON ({error.msg}); every line must be one JSON object", subject=shown
                ) from error
            yield _object(record, f"{shown}:{number}")


def _read_json(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        text = "".join(_decoded(file, shown))
    try:
        records = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise DataError(f"{shown}:{error.lineno}: {_short(text.splitlines()[error.lineno - 1])!r} is no JSON ({error.msg})", subject=shown) from error
    if not isinstance(records, list):
        raise DataError(f"{shown!r} holds a JSON {type(records).__name__}; it must hold a list of objects", subject=shown)
    for number, record in enumerate(cast("list[Any]", records), 1):
        yield _object(record, f"{shown}, record {number}")


def _read_csv(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_decoded(file, shown), strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    columns = len(reader.fieldnames or ())
                    raise DataError(f"{shown}:{reader.line_num}: this line has not the {columns} columns of the first line", subject=shown)
                yield record
        except csv.Error as error:
            raise DataError(f"{shown}:{reader.reader.line_num}: this line is no CSV ({error})", subject=shown) from error


def _read_parquet(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{shown!r} can't be read as Parquet: {str(error).splitlines()[0]}", subject=shown) from error


def _read_text(path: Path, shown: str) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        text = "".join(_decoded(file, shown))
    paragraphs = [p.strip("\n") for p in re.split(r"\n[ \t]*\n", text) if p.strip()]
    for paragraph in paragraphs if len(paragraphs) > 1 else text.splitlines():
        if paragraph.strip():
            yield {"text": paragraph}


def _opened(path: Path) -> TextIOWrapper:
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _decoded(file: TextIOWrapper, shown: str) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{shown!r} is no UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8", subject=shown) from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{shown!r} is no whole gzip file: {error}", subject=shown) from error


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f'{where}: {_short(str(record))!r} is no JSON object such as {{"text": …}}', subject=where)
    return cast("dict[str, Any]", record)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 40 else text[:40] + "…"
