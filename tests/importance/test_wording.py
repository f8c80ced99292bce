"""The sentences that a user of importance matrices most likely meets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.errors import InputError
from calibrant.importance import Imatrix, imatrix, read_imatrix

from tests.models.refused import refused


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda place: read_imatrix(place / "none.dat"), "can't be read (No such file or directory); give an imatrix, a .gguf or .dat file"),
        (lambda place: read_imatrix(place / "text.dat"), "is truncated or damaged, or no imatrix of llama.cpp"),
        (lambda place: Imatrix({}, (), 1, 1).write(place / "a.bin"), "is no name for an imatrix; let it end with .gguf (llama.cpp) or .dat"),
        (lambda place: Imatrix({}, (), 1, 1).write(place / "no" / "a.dat"), "can't be written; name a file in a folder that exists"),
        (lambda place: imatrix("smollm2", "python_docs", place / "a.txt"), "is no name for an imatrix; let it end with .gguf (llama.cpp) or .dat"),
    ],
)
def test_what_is_said(tmp_path: Path, ask: Callable[[Path], object], sentence: str) -> None:
    (tmp_path / "text.dat").write_text("a text that calls itself an imatrix")
    assert sentence in str(refused(ask, tmp_path, kind=InputError))
