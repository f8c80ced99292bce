"""A local mirror of data sets, `NAME/{split}.jsonl[.gz]`, looked at before the hub: for machines without internet."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrant.data._files import read_records
from calibrant.errors import DataError
from calibrant.foreign import user_path

_chosen: list[Path] = []


def mirror(folder: str | Path | None = None) -> Path | None:
    """The mirror's folder, for the whole process. Given one, it is set; else it is the one set before, or that of `CALIBRANT_DATA`, or none.

    Raises `DataError` for a folder that doesn't exist.
    """
    if folder is not None:
        _chosen[:] = [_existing(Path(folder), "--data-dir")]
    if _chosen:
        return _chosen[0]
    variable = os.environ.get("CALIBRANT_DATA")
    return _existing(Path(variable), "CALIBRANT_DATA") if variable else None


def mirrored(folder: str, split: str) -> Iterator[dict[str, Any]] | None:
    """The records of `folder/split.jsonl` or `.jsonl.gz` in the mirror; none if there is no mirror or no such file."""
    root = mirror()
    for name in (f"{split}.jsonl", f"{split}.jsonl.gz"):
        if root is not None and (path := root / folder / name).is_file():
            return read_records(path, f"{folder}/{name}")
    return None


def _existing(path: Path, given_by: str) -> Path:
    folder = user_path(path, DataError)
    if not os.path.isdir(folder):
        raise DataError(f"{given_by} names {str(path)!r}, which is no folder; give the folder that holds NAME/train.jsonl", subject=str(path))
    return folder.resolve()
