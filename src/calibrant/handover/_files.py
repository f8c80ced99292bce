"""How rows become a file or a folder; everything appears whole or not at all."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from calibrant.errors import OutputError
from calibrant.system.durable import UNFINISHED, appearing, line_of_json, put, reason
from calibrant.system.extras import needed_for

Rows = Sequence[Any]


def _json_lines(rows: Rows) -> bytes:
    lines = [line_of_json(row) + "\n" for row in rows]
    return "".join(lines).encode()


@needed_for("a Parquet file")
def _parquet(rows: Rows) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def _text(texts: Rows) -> bytes:
    # llama.cpp's -f takes one newline away from the end. Without this one it could be the text's
    # own, and with its last token the last window would be lost.
    return ("".join(texts) + "\n").encode()


ENDINGS: Final[Mapping[str, Callable[[Rows], bytes]]] = {
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".txt": _text,
}
"""What makes the content of a file of each ending."""


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all of these files. With an `OutputError` none of them is new: what was there stays, as
    it was or replaced.
    """
    new = _absent(files)
    for path, content in files.items():
        try:
            put(path, content)
        except OSError as error:
            _remove(new)
            message = f"{str(path)!r} can't be written ({reason(error)})"
            raise OutputError(message, subject=str(path)) from error


@needed_for("a folder of datasets")
def write_folder(folder: Path, rows: Rows, card_text: str, beside: Mapping[Path, bytes]) -> None:
    """Write rows as a folder that `datasets` opens, with its card in it, and the files beside it.
    With an `OutputError` there is no folder, and none of the files is new.
    """
    from datasets import Dataset

    new: list[Path] = []
    try:
        folder.parent.stat()  # a misspelt folder is the user's to correct, and isn't made
        with appearing(folder, folder.with_name(f"{UNFINISHED}-{folder.name}")) as half:
            # Not before: another process that makes this folder writes the same files beside it.
            new = _absent(beside)
            write_files(beside)
            with _without_bars():
                Dataset.from_list(list(rows)).save_to_disk(half)
            put(half / "README.md", card_text.encode())
    except OSError as error:
        _remove(new)
        message = f"{str(folder)!r} can't be written ({reason(error)})"
        raise OutputError(message, subject=str(folder)) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """While it lasts, `datasets` draws no bars; they would stand among the command's own."""
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _absent(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if not path.exists()]


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()
