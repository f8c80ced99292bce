"""What is made from the folders is up to date, and a new file in one of them needs nothing else."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from tools import freeze, generate
from tools.generate import filled, lacking, ours

import calibrant

from tests.anew import imported_anew
from tests.frozen import masks


def test_the_pages_say_what_the_folders_hold_and_every_source_was_tried(capsys: pytest.CaptureFixture[str]):
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_stands_between_other_marks_is_left_alone():
    page = (
        "<!-- something -->\nwords\n<!-- /something -->\nThere are <!-- count of formats -->99 formats.\n<!-- formats -->\nold\n<!-- /formats -->\n"
    )
    found = filled(page)
    assert found.startswith(f"<!-- something -->\nwords\n<!-- /something -->\nThere are <!-- count of formats -->{len(ours('formats'))} formats.")
    assert "| `qa` |" in found
    assert "old" not in found
    assert filled(found) == found


def test_a_check_names_what_is_stale_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    page, survey = tmp_path / "page.md", tmp_path / "survey.json"
    page.write_text("There are <!-- count of sources -->1 sources.\n")
    known = freeze.read(generate.MASKS)
    del known[masks.key_of("wanda")]
    tried = [one for one in generate.surveyed() if one["source"] != "python_docs"]
    survey.write_text(json.dumps(tried))
    monkeypatch.setattr(generate, "PROJECT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", (page,))
    monkeypatch.setattr(generate, "SURVEY", survey)
    monkeypatch.setattr(freeze, "read", lambda name: known)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert generate.main(["--check"]) == 1
    names = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert names == ["page.md", "tests/frozen/masks.json", "survey.json"]
    assert lacking() == ["python_docs"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


USED = (
    "calibrant",
    "calibrant.data",
    "calibrant.store",
    "calibrant.compare",
    "calibrant.testing",
    "calibrant.testing.sources",
    "tools.generate",
)
SOURCE = '''
"""Questions about elements."""

from dataclasses import dataclass

from calibrant.data._base import Row, SourceRows, StoredSource, divide


@dataclass(frozen=True, repr=False)
class Chemistry(StoredSource):
    """The symbols of elements that there aren't."""

    kind, family, licence, homepage = "questions", "reading", "CC0 1.0", ""
    fields = ("question", "answer")

    def read(self) -> SourceRows:
        return SourceRows(divide(Row(question=f"What is the symbol of element {i}?", answer=f"E{i}") for i in range(400)), "made here")
'''
METHOD = '''
"""Half of magnitude."""

from dataclasses import dataclass

from calibrant.methods._base import Compressed, MatrixMethod


@dataclass(frozen=True, repr=False)
class Largest(MatrixMethod):
    """Removes the largest weights."""

    def compress(self, weight, seen, target) -> Compressed:
        return Compressed(weight * target.keep(-weight.abs().float(), "matrix"))
'''


def test_a_file_in_a_folder_is_all_that_a_source_or_a_method_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a copy of the package: the new names run in a study, are compared by their own family, and the tables say what is stale."""
    root = tmp_path / "src/calibrant"
    shutil.copytree(Path(calibrant.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data/sources/chemistry.py").write_text(SOURCE.lstrip())
    (root / "methods/largest.py").write_text(METHOD.lstrip())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    measures = ["loss(source=chemistry, tokens=200, length=32)"]
    with imported_anew(tmp_path / "src"):
        anew, data, store, compare, testing, checks, tables = (importlib.import_module(name) for name in USED)
        assert Path(anew.__file__).parent == root
        checks.check_source(data.sources.build("chemistry"))
        testing.tiny_folder("model")
        study = anew.Study("model", ["chemistry:icl", "random_tokens"], ["wanda", "largest"], 0.5, evaluate=measures, samples=2, length=32)
        study.run("out")
        with store.Store("out", create=False) as finished:
            reading = compare.read(finished)
            families = [kept.data_facts["parts"][0]["family"] for kept in finished.records() if kept.run.data == "chemistry:icl"]
            Path("out/index.json").rename("index.json")
            copied = compare.read(finished)
        assert reading.failures == {}
        assert {cell.method for cell in reading.cells} == {"largest", "none", "wanda"}
        assert (reading.label("chemistry:icl").family, reading.label("chemistry:icl").format) == ("reading", "icl")
        assert copied.label("chemistry:icl").family == "reading"
        assert families == ["reading"]
        assert [page.name for page in tables.stale()] == ["README.md", "data.md"]
        assert tables.lacking() == ["chemistry"]
        assert "chemistry" in {entry.name for entry in tables.ours("sources")}
