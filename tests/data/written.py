"""Files as a user may have them: packed as their ending says, or a table of Arrow's."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import write_table


def packed(path: Path, data: bytes) -> Path:
    """A file of these bytes."""
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(data))
        case ".zst":
            with pyarrow.output_stream(str(path), compression="zstd") as stream:
                stream.write(data)
        case _:
            path.write_bytes(data)
    return path


def tabled(path: Path, table: pyarrow.Table, stream: bool = True) -> Path:
    """A file of Parquet or of Arrow, of which there are two kinds."""
    if path.suffix == ".parquet":
        write_table(table, path)
    else:
        with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(
            str(path), table.schema
        ) as writer:
            writer.write_table(table)
    return path


def written(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """A file of these records: a table, or JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".parquet", ".arrow"):
        return tabled(path, pyarrow.Table.from_pylist(list(records)))
    return packed(
        path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    )
