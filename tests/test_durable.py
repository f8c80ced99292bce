"""Files that appear whole or not at all."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calibrant.errors import OutputError
from calibrant.system.durable import (
    FULL_DISK,
    READ_ONLY,
    appearing,
    from_json,
    locked_folder,
    put,
    reason,
    replacing,
    take,
    takes_files,
    text_of_json,
)

WRITER = """
import sys
from pathlib import Path
from calibrant.system.durable import put

put(Path(sys.argv[1]), b"other")
"""

MAKER = """
import sys
from pathlib import Path
from calibrant.system.durable import appearing

with appearing(Path(sys.argv[1]), Path(sys.argv[2])) as half:
    (half / "second").touch()
"""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, FULL_DISK),
        (errno.EDQUOT, FULL_DISK),
        (errno.EROFS, READ_ONLY),
        (errno.ENAMETOOLONG, "the name is too long; give a shorter one"),
        (errno.EACCES, "Permission denied; is it yours to write to?"),
    ],
)
def test_what_cannot_be_written_is_told_with_what_to_do(number: int, said: str) -> None:
    assert reason(OSError(number, os.strerror(number))) == said


def test_a_folder_takes_files_where_it_is_or_can_be_made(tmp_path: Path) -> None:
    assert takes_files(tmp_path)
    assert takes_files(tmp_path / "not" / "there")
    file = tmp_path / "file"
    file.touch()
    assert not takes_files(file)
    assert not takes_files(file / "below")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    assert not takes_files(link), "a link to nowhere is no folder, and none can be made there"
    assert not takes_files(link / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_link_into_a_folder_that_may_not_be_looked_into_takes_none(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "cache").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(closed / "cache")
    closed.chmod(0)
    assert not takes_files(link)
    closed.chmod(0o700)


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


@pytest.mark.parametrize(
    ("code", "raised"), [(errno.ENOLCK, False), (errno.EBADF, False), (errno.EIO, True)]
)
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


def test_what_is_closed_is_not_taken_for_a_file_system_without_locks(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="Windows has none")
    number = os.open(tmp_path, os.O_RDONLY)
    os.close(number)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        take(number)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_place_of_a_half_is_not_followed(there: bool, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.write_bytes(b"somebody's")
    (tmp_path / f".unfinished-a.json-{os.getpid()}").symlink_to(elsewhere)
    path = put(tmp_path / "a.json", b"whole")
    assert not path.is_symlink()
    assert path.read_bytes() == b"whole"
    assert elsewhere.exists() == there
    if there:
        assert elsewhere.read_bytes() == b"somebody's"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_place_of_a_half_folder_is_not_followed(there: bool, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.mkdir()
        (elsewhere / "somebody's").touch()
    (tmp_path / ".out").symlink_to(elsewhere)
    with appearing(tmp_path / "out", tmp_path / ".out") as half:
        (half / "whole").touch()
    assert not (tmp_path / "out").is_symlink()
    assert os.listdir(tmp_path / "out") == ["whole"]
    assert elsewhere.exists() == there
    if there:
        assert os.listdir(elsewhere) == ["somebody's"]


def test_a_folder_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="Windows has none")
    folder = tmp_path / "a" / "out"
    hidden = tmp_path / "a" / ".out"
    maker = [sys.executable, "-c", MAKER, str(folder), str(hidden)]
    with appearing(folder, hidden) as half:
        (half / "first").touch()
        ended = subprocess.run(maker, capture_output=True, text=True, check=False)
        assert f"OutputError: {folder} is being made by another process; wait" in ended.stderr
        assert os.listdir(half) == ["first"]
    assert os.listdir(folder) == ["first"]
    assert os.listdir(folder.parent) == ["out"]


def test_a_folder_that_is_finished_in_the_last_instant_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl", reason="Windows has none")
    folder = tmp_path / "out"
    hidden = tmp_path / ".out"
    first = appearing(folder, hidden)
    (first.__enter__() / "first").touch()
    open_as_ever = os.open

    def finished_meanwhile(path: Path, flags: int) -> int:
        number = open_as_ever(path, flags)
        first.__exit__(None, None, None)
        return number

    monkeypatch.setattr(os, "open", finished_meanwhile)
    with pytest.raises(OutputError, match="another process"), appearing(folder, hidden):
        pass
    assert os.listdir(folder) == ["first"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_begins_after_the_rename_keeps_its_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / ".out"
    rename = Path.rename

    def renamed_and_begun(path: Path, target: Path) -> Path:
        there = rename(path, target)
        (hidden / "second").mkdir(parents=True)
        return there

    monkeypatch.setattr(Path, "rename", renamed_and_begun)
    with appearing(tmp_path / "out", hidden):
        pass
    assert os.listdir(hidden) == ["second"]


def test_a_folder_is_made_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    left = tmp_path / ".out" / "left"
    left.mkdir(parents=True)
    with appearing(tmp_path / "out", tmp_path / ".out") as half:
        (half / "whole").touch()
    assert os.listdir(tmp_path / "out") == ["whole"]
    with locked_folder(tmp_path / "out", shared=True) as shared:
        assert not shared, "nobody could be told that it is in use"
