"""What Calibrant changes in a process, and only in one of its own."""

import gc
from pathlib import Path
from types import SimpleNamespace

import pytest

import calibrant
from calibrant.system import process
from calibrant.testing import tiny_folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the C library and the garbage collector were asked for."""
    made: list[str] = []
    glibc = SimpleNamespace(
        mallopt=lambda *_: made.append("mallopt"), malloc_trim=lambda _: made.append("trim")
    )
    monkeypatch.setattr(process, "ctypes", SimpleNamespace(CDLL=lambda _: glibc))
    monkeypatch.setattr(process.platform, "libc_ver", lambda: ("glibc", "2"))
    monkeypatch.setattr(gc, "freeze", lambda: made.append("freeze"))
    monkeypatch.setitem(process._SETTINGS, "own", False)
    return made


def test_a_library_call_leaves_the_process_as_it_was_and_gives_memory_back_after_each_block(
    calls: list[str], tmp_path: Path
):
    with process.uncollected():
        assert not gc.isenabled()
    calibrant.quantize(str(tiny_folder(tmp_path / "model")), target="w4g16", device="cpu")
    assert calls == ["trim"] * 3
    assert gc.isenabled()


def test_a_process_of_our_own_keeps_memory_and_freezes_what_was_imported(calls: list[str]):
    process.own_process()
    with process.uncollected():
        assert not gc.isenabled()
    with process.freed_memory_kept():
        process.give_back()
    assert gc.isenabled()
    assert calls == ["freeze", "mallopt", "mallopt", "trim"]
