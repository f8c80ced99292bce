"""The examples in docstrings are so."""

import doctest
import importlib
from pathlib import Path

import pytest

import calibrant

LEAST = 80
"""Examples that there are at least; to be raised as they are written."""


def test_examples_in_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    finder, options = doctest.DocTestFinder(exclude_empty=True), doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    runner, count = doctest.DocTestRunner(optionflags=options), 0
    wrong: list[str] = []
    root = Path(calibrant.__file__).parent
    written = {".".join(["calibrant", *path.relative_to(root).with_suffix("").parts]) for path in root.rglob("*.py") if ">>> " in path.read_text()}
    for name in sorted(name.removesuffix(".__init__") for name in written):
        for test in finder.find(importlib.import_module(name), name):
            count += len(test.examples)
            runner.run(test, out=wrong.append, clear_globs=True)
    assert not wrong, "".join(wrong)
    assert count >= LEAST, f"{count} examples"
