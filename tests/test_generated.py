"""What is made from the folders is up to date, and a new file in one of them needs nothing else."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from tools import generate

import calibrant

from tests.anew import imported_anew


def test_the_pages_say_what_the_folders_hold_and_every_source_was_tried(
    capsys: pytest.CaptureFixture[str],
):
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_check_of_what_is_stale_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "page.md"
    page.write_text("There are <!-- count of sources -->1 sources.\n")
    monkeypatch.setattr(generate, "PROJECT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", (page,))
    catalogue = tmp_path / "catalogue.json"
    catalogue.write_text(generate.CATALOGUE.read_text("utf-8").replace("MIT", "none"), "utf-8")
    monkeypatch.setattr(generate, "CATALOGUE", catalogue)
    before = catalogue.read_text("utf-8")
    assert generate.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert "page.md is stale" in told
    assert "catalogue.json is stale" in told
    assert page.read_text() == "There are <!-- count of sources -->1 sources.\n"
    assert catalogue.read_text("utf-8") == before


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
        rows: list[Row] = []
        for i in range(400):
            rows.append(Row(question=f"What is the symbol of element {i}?", answer=f"E{i}"))
        return SourceRows(divide(rows), "made here")
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


def test_a_file_in_a_folder_is_all_that_a_source_or_a_method_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a copy of the package: the new names run in a study, are compared by their own family,
    and the tables say what is stale.
    """
    root = tmp_path / "src/calibrant"
    shutil.copytree(
        Path(calibrant.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__")
    )
    (root / "data/sources/chemistry.py").write_text(SOURCE.lstrip())
    (root / "methods/largest.py").write_text(METHOD.lstrip())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    measures = ["loss(source=chemistry, tokens=200, length=32)"]
    with imported_anew(tmp_path / "src"):
        from tools import generate as generator

        from calibrant import Study, names
        from calibrant.data import sources
        from calibrant.lab.stats import read
        from calibrant.results import Store
        from calibrant.testing import tiny_folder
        from calibrant.testing.sources import check_source

        check_source(sources.build("chemistry"))
        listed = {entry.name: entry.summary for entry in names.catalogue("methods")}
        assert listed["largest"] == "Removes the largest weights.", (
            "the catalogue is older than the file"
        )
        assert "largest" in [entry.name for entry in names.removing()]
        tiny_folder("model")
        Study(
            "model",
            ["chemistry:icl", "random_tokens"],
            ["wanda", "largest"],
            0.5,
            evaluate=measures,
            samples=2,
            length=32,
        ).run("out")
        with Store("out") as store:
            reading = read(store)
            families = [
                kept.data_facts["parts"][0]["family"]
                for kept in store.records()
                if kept.run.data == "chemistry:icl"
            ]
            store.live.remove_document("index", "")
            copied = read(store)
        assert reading.failures == {}
        assert {cell.method for cell in reading.cells} == {"largest", "none", "wanda"}
        assert (reading.label("chemistry:icl").family, reading.label("chemistry:icl").format) == (
            "reading",
            "icl",
        )
        assert copied.label("chemistry:icl").family == "reading"
        assert families == ["reading"]
        assert [page.name for page in generator.stale()] == ["README.md", "data.md", "sources.md"]
        assert generator.lacking() == ["chemistry"]
        assert generator.stale_catalogue()
        written = json.loads(generator.catalogue())
        assert written["methods"]["largest"]["removes"]
        assert written["sources"]["chemistry"]["facts"]["family"] == "reading"
