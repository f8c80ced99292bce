"""Digests of files: known as long as the file is the same, and read again where it may not be."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.models import digests, open_model
from calibrant.models.digests import known_digest
from calibrant.testing import tiny_folder

from tests.models.refused import refusal_of


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read, in order. Small and new ones are remembered too."""
    monkeypatch.setattr(digests, "REMEMBERED", 0)
    monkeypatch.setattr(digests, "SETTLED", 0)
    found: list[str] = []
    usual = digests.file_digest

    def noted(path: Path) -> str:
        found.append(path.name)
        return usual(path)

    monkeypatch.setattr(digests, "file_digest", noted)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"some numbers")
    wait()
    return path


def wait() -> None:
    """Until the file system's clock has gone on."""
    time.sleep(0.05)


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def change_in_place(path: Path) -> None:
    path.write_bytes(b"other number")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other number")
    other.replace(path)


def turn_into_a_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other number")
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("change", [change_in_place, replace, turn_into_a_link])
def test_a_file_is_read_once_until_it_changes_even_if_its_time_is_put_back(
    file: Path, read: list[str], change: Callable[[Path], None]
) -> None:
    before = file.stat()
    assert known_digest(file) == known_digest(file) == digest_of(file)
    assert len(read) == 1
    change(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    wait()
    assert known_digest(file) == known_digest(file) == digest_of(file)
    assert len(read) == 2


def test_what_was_noted_and_damaged_doesnt_count(
    file: Path, read: list[str], own_cache: Path
) -> None:
    known_digest(file)
    note = next(own_cache.rglob("digests/*.json"))
    for harmed in (
        b"{}",
        b"\xff",
        note.read_bytes().replace(digest_of(file)[-8:].encode(), b"0" * 8),
    ):
        note.write_bytes(harmed)
        assert known_digest(file) == digest_of(file)
    assert len(read) == 4


def test_a_new_file_and_a_small_one_are_read_each_time(
    file: Path, read: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as within:
        within.setattr(digests, "SETTLED", 10**12)
        known_digest(file)
    with monkeypatch.context() as within:
        within.setattr(digests, "REMEMBERED", 1000)
        known_digest(file)
    assert not list(own_cache.rglob("digests/*.json"))
    assert len(read) == 2


def test_where_nothing_can_be_written_every_file_is_read(
    file: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, cache in enumerate((os.devnull, str(file), f"{file}/below"), start=1):
        monkeypatch.setenv("CALIBRANT_CACHE", cache)
        assert known_digest(file) == digest_of(file)
        assert len(read) == number


def test_a_user_without_a_home_has_every_file_read(
    file: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALIBRANT_CACHE", "~nobody-of-that-name/cache")
    assert known_digest(file) == known_digest(file) == digest_of(file)
    assert len(read) == 2


def test_a_model_whose_weights_are_known_is_still_itself(tmp_path: Path, read: list[str]) -> None:
    folder = tiny_folder(tmp_path / "tiny")
    wait()
    first = open_model(str(folder), "float32", "cpu")
    assert "model.safetensors" in read
    read.clear()
    assert open_model(str(folder), "float32", "cpu").digest == first.digest
    assert not read
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert open_model(str(folder), "float32", "cpu").digest != first.digest


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are texts")
def test_a_name_may_have_bytes_that_are_no_text(tmp_path: Path, read: list[str]) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    path.write_bytes(b"some numbers")
    wait()
    assert known_digest(path) == known_digest(path) == digest_of(path)
    assert len(read) == 1


def test_a_file_that_isnt_there_is_refused(tmp_path: Path) -> None:
    assert refusal_of(known_digest, tmp_path / "none").subject == str(tmp_path / "none")
