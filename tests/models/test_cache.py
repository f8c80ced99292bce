"""Kept models: bit for bit what dequantizing gives, noticed when damaged, and never in the way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from calibrant.models import Opened, gguf_file, open_model, save
from calibrant.models import cache as kept
from calibrant.testing.tiny import tiny_gguf

from tests.usual import usually

DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("packed") / "tiny.gguf", "Q4_1")


@pytest.fixture
def folder(own_cache, monkeypatch) -> Path:
    """Where models are kept, there not being one yet."""
    monkeypatch.delenv("CALIBRANT_CACHE", raising=False)
    return own_cache / "calibrant" / "models"


@pytest.fixture
def dequantized(monkeypatch) -> list[Path]:
    """The files that were dequantized, in order."""
    found, usual = [], gguf_file._dequantized
    monkeypatch.setattr(
        gguf_file, "_dequantized", lambda path, dtype: found.append(path) or usual(path, dtype)
    )
    return found


def opened(file: Path, dtype: str = "float32") -> Opened:
    return open_model(str(file), dtype, "cpu")


def facts(model: Opened) -> tuple:
    about = (
        model.model.config.to_dict(),
        model.model.generation_config.to_dict(),
        model.model.name_or_path,
    )
    return model.name, model.digest, model.note, model.dtype, model.model.training, *about


def same(one: Opened, other: Opened) -> bool:
    states = one.model.state_dict(), other.model.state_dict()
    held = dict(one.model.named_buffers()), dict(other.model.named_buffers())
    return facts(one) == facts(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in (states, held)
    )


@pytest.mark.parametrize("dtype", usually(DTYPES, {"bfloat16"}))
def test_the_second_opening_gives_what_the_first_gave_without_dequantizing(
    file, folder, dequantized, monkeypatch, tmp_path, dtype
):
    first, second = opened(file, dtype), opened(file, dtype)
    assert len(dequantized) == 1
    assert {p.dtype for p in second.model.parameters()} == {first.dtype}
    for name, model in (("first", first), ("second", second)):
        save(model, tmp_path / name, {})
    one, other = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert one == other
    monkeypatch.setenv("CALIBRANT_CACHE", os.devnull)
    alone = opened(file, dtype)
    assert len(dequantized) == 2
    assert same(first, second)
    assert same(second, alone)
    assert len(list(folder.glob("*/model.safetensors"))) == 1


def test_each_dtype_and_each_file_has_its_own(file, folder, dequantized, tmp_path):
    other = tiny_gguf(tmp_path / "other.gguf", "Q8_0")
    for path, dtype in (
        (file, "float32"),
        (file, "bfloat16"),
        (other, "float32"),
        (file, "float32"),
    ):
        assert opened(path, dtype).note == f"dequantized from {'Q4_1' if path == file else 'Q8_0'}"
    assert len(dequantized) == 3
    copy = tmp_path / "elsewhere" / "copy.gguf"
    copy.parent.mkdir()
    shutil.copy(file, copy)
    again = opened(copy).model
    assert again.name_or_path == str(copy.parent)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert any(p.any() for p in opened(file).model.parameters()), (
        "changing an opened model leaves the kept one alone"
    )
    assert len(dequantized) == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_what_is_damaged_is_made_anew(file, folder, dequantized):
    first = opened(file)
    damages = (
        lambda kept: flip(kept / "model.safetensors"),
        lambda kept: (kept / "model.safetensors").write_bytes(b"junk"),
        lambda kept: (kept / "model.safetensors").unlink(),
        lambda kept: (kept / "config.json").unlink(),
        lambda kept: flip(kept / "config.json"),
        lambda kept: (kept / "kept.json").write_text("{"),
        lambda kept: (kept / "kept.json").write_text("[]"),
        lambda kept: (kept / "kept.json").unlink(),
        lambda kept: (kept / "more.json").write_text("{}"),
    )
    for before, damage in enumerate(damages, start=1):
        damage(next(folder.glob("*-float32-*")))
        assert len(dequantized) == before
        assert same(opened(file), first)
        assert len(dequantized) == before + 1
    assert same(opened(file), first)
    assert len(dequantized) == len(damages) + 1


def test_where_nothing_can_be_written_nothing_is_kept(file, folder, dequantized, monkeypatch):
    for number, cache in enumerate([os.devnull, str(file), f"{file}/below"], start=1):
        monkeypatch.setenv("CALIBRANT_CACHE", cache)
        opened(file)
        assert len(dequantized) == number
    assert not folder.exists()


def test_a_full_disk_leaves_nothing_behind(file, folder, dequantized, monkeypatch):
    def full(path: Path) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as within:
        within.setattr(kept, "_checksum", full)
        opened(file)
    assert [p.name for p in folder.iterdir()] == [".lock"]
    monkeypatch.setattr(kept, "ROOM", 10**18)
    opened(file)
    assert [p.name for p in folder.iterdir()] == [".lock"]


def test_other_versions_take_the_place_of_older_ones(file, folder, dequantized, monkeypatch):
    usual = os.umask(0o022)
    try:
        opened(file)
    finally:
        os.umask(usual)
    older = next(folder.glob("*-float32-*"))
    assert {p.stat().st_mode & 0o777 for p in older.iterdir()} == {0o644}
    opened(file, "bfloat16")
    monkeypatch.setattr(kept, "LAYOUT", kept.LAYOUT + 1)
    opened(file)
    assert len(dequantized) == 3
    assert not older.exists()
    assert len(list(folder.glob("*-float32-*"))) == len(list(folder.glob("*-bfloat16-*"))) == 1


def test_a_half_written_one_is_cleared_by_the_next(file, folder, dequantized):
    opened(file)
    done = next(folder.glob("*-float32-*"))
    done.rename(folder / f".unfinished-{done.name}")
    opened(file)
    assert sorted(p.name for p in folder.iterdir()) == [".lock", done.name]


def test_while_somebody_else_writes_nothing_is_waited_for(file, folder, dequantized):
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        assert kept.take(lock)
        opened(file)
    assert [p.name for p in folder.iterdir()] == [".lock"]
    opened(file)
    assert len(list(folder.iterdir())) == 2


TURNS = """
import shutil, sys, torch
from pathlib import Path
from calibrant.models import open_model
first = open_model(sys.argv[1], "float32", "cpu").model
for _ in range(8):
    shutil.rmtree(next(iter(Path(sys.argv[2]).glob("*-float32-*")), "none"), ignore_errors=True)
    again = open_model(sys.argv[1], "float32", "cpu").model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
print(sum(p.double().abs().sum().item() for p in first.parameters()))
"""


@pytest.mark.slow
def test_processes_that_open_and_delete_at_once_all_get_the_model(file, folder):
    asked = [sys.executable, "-c", TURNS, str(file), str(folder)]
    turns = [
        subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [turn.communicate() for turn in turns]
    assert [turn.returncode for turn in turns] == [0, 0, 0], said
    assert len({numbers for numbers, _ in said}) == 1
