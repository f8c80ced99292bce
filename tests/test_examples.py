"""The examples in docstrings are so."""

import doctest
import importlib
from pathlib import Path

import pytest

import calibrant

ROOT = Path(calibrant.__file__).parent
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def test_examples_in_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=OPTIONS)
    wrong: list[str] = []
    for path in sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text()):
        name = ".".join(["calibrant", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        for test in finder.find(importlib.import_module(name), name):
            runner.run(test, out=wrong.append, clear_globs=True)
    assert runner.tries
    assert not wrong, "".join(wrong)
