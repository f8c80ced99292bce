"""Files that appear whole or not at all."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calibrant.system.durable import from_json, put, replacing, take, text_of_json

WRITER = """
import sys
from pathlib import Path
from calibrant.system.durable import put

put(Path(sys.argv[1]), b"other")
"""


def test_another_process_writes_to_another_half(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    with replacing(path) as half:
        half.write_bytes(b"mine")
        subprocess.run([sys.executable, "-c", WRITER, str(path)], check=True)
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("value", ["1.5", "abc", 2, [1.5], {"float": "inf"}, math.inf, [math.inf]])
def test_an_object_with_the_key_float_comes_back(value: object) -> None:
    document = {"notes": {"float": value}}
    assert from_json(text_of_json(document)) == document


@pytest.mark.parametrize(("written", "number"), [("inf", math.inf), ("1.5", 1.5)])
def test_what_was_written_before_is_read_as_before(written: str, number: float) -> None:
    assert from_json(f'[{{"float": "{written}"}}]') == [number]


@pytest.mark.parametrize("value", ["3", "[]", "[1, 2]", "null"])
def test_what_was_never_written_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="no number"):
        from_json(f'{{"float": {value}}}')


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".unfinished-a[1].json-999999999"
    left.write_bytes(b"half")
    living = tmp_path / f".unfinished-a[1].json-{os.getppid()}"
    living.write_bytes(b"half")
    put(tmp_path / "a[1].json", b"whole")
    assert not left.exists()
    assert living.exists()


@pytest.mark.parametrize(("code", "raised"), [(errno.ENOLCK, False), (errno.EIO, True)])
def test_only_a_file_system_without_locks_goes_without(
    code: int, raised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows has none")

    def fails(*_: object) -> None:
        raise OSError(code, "it fails")

    monkeypatch.setattr(fcntl, "flock", fails)
    with (tmp_path / "lock").open("w") as file:
        if raised:
            with pytest.raises(OSError, match="it fails"):
                take(file)
        else:
            assert take(file)
