"""The source of Python's standard library: code that every full installation has."""

import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from calibrant.data._base import Row, SourceRows, StoredSource, divide
from calibrant.errors import DataError

MOST_BYTES: Final = 200_000
# Tests and their data, tables rather than code, and what isn't the standard library's own.
EXCLUDED: Final = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "encodings",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "ensurepip",
    }
)


@dataclass(frozen=True, repr=False)
class PythonCode(StoredSource):
    """The `.py` files of the standard library, a file a row; files over 200 kB, tests and tables of
    characters are left out.

    The rows are those of the running Python; the record keeps its version.
    """

    kind = "corpus"
    family = "code"
    licence = "PSF-2.0"
    homepage = "https://github.com/python/cpython"
    fields = ("text",)

    def read(self) -> SourceRows:
        rows = list(files(Path(sysconfig.get_path("stdlib"))))
        if not rows:
            raise DataError(
                "this Python comes without its library's source files; install one that has them",
                subject="python_code",
            )
        return SourceRows(divide(rows), f"Python {platform.python_version()}")


def files(folder: Path) -> Iterator[Row]:
    """Yield the source files under `folder`, as rows."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - EXCLUDED)
        for name in sorted(names):
            path = Path(place, name)
            # _sysconfigdata… describes the machine that Python was built on.
            if not name.endswith(".py") or name.startswith("_sysconfigdata"):
                continue
            if path.stat().st_size > MOST_BYTES:
                continue
            text = path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n").strip()
            if text:
                yield Row(text=text)
