"""What Calibrant changes in a process, and only in one of its own."""

import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from calibrant import process
from calibrant.testing import tiny_folder

CODE = """
import gc, sys
from types import SimpleNamespace
from calibrant import process
trims = []
glibc = SimpleNamespace(malloc_trim=trims.append)  # whoever asked for a setting would fail
process.ctypes = SimpleNamespace(CDLL=lambda _: glibc)
process.platform.libc_ver = lambda: ("glibc", "2")
import calibrant
calibrant.quantize(sys.argv[1], target="w4g16", device="cpu")
print(gc.get_freeze_count(), gc.isenabled(), trims)
"""


def test_a_library_call_leaves_the_process_as_it_was_and_gives_memory_back_after_each_block(tmp_path: Path):
    folder = tiny_folder(tmp_path / "model")
    answer = subprocess.run([sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "0 True [0, 0, 0]", answer.stderr


def test_a_process_of_our_own_keeps_memory_and_freezes_what_was_imported(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    glibc = SimpleNamespace(mallopt=lambda *_: calls.append("mallopt"), malloc_trim=lambda _: calls.append("trim"))
    monkeypatch.setattr(process, "ctypes", SimpleNamespace(CDLL=lambda _: glibc))
    monkeypatch.setattr(process.platform, "libc_ver", lambda: ("glibc", "2"))
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    monkeypatch.setitem(process._SETTINGS, "own", False)
    process.own_process()
    with process.uncollected():
        assert not gc.isenabled()
    with process.freed_memory_kept():
        process.give_back()
    assert gc.isenabled()
    assert calls == ["freeze", "mallopt", "mallopt", "trim"]
