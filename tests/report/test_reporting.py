import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from calibrant.compare import read
from calibrant.errors import MissingPackageError, OutputError, SpecError
from calibrant.report import FORMATS, check_format, report
from calibrant.report.facts import facts_of
from calibrant.store import Store

from tests.compare.synthetic import Synthetic
from tests.report.made import store_of

SETS = {"python_docs": (2.5, 3.9), "gsm8k:cot": (2.9, 3.4), "full_stops": (8.0, 9.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("made") / "study", SETS)


def test_every_format_names_every_set(folder: Path):
    found = report(folder)
    for format in FORMATS:
        text = found.text(format)
        for name in ("python", "gsm8k:cot", "magnitude"):
            assert name in text, format
    assert json.loads(found.text("json"))["rankings"][0]["entries"][0]["name"] == "gsm8k:cot"
    assert str(found) == found.text("markdown")
    assert len(found.to_csv().splitlines()) == 1 + 5 * 2


def test_another_format_way_or_measure_is_refused(folder: Path):
    for refused, given in (
        (lambda: check_format("pdf"), "pdf"),
        (lambda: report(folder).text("pdf"), "pdf"),
        (lambda: report(folder, way="share"), "share"),
        (lambda: report(folder, ["nonsense"]), "nonsense"),
    ):
        with pytest.raises(SpecError) as raised:
            refused()
        assert raised.value.subject == given


def test_the_way_is_that_of_the_tables(folder: Path):
    for way, figure in (("loss", "3.246 ± "), ("increase", "+0.646 ± ")):
        (line,) = [line for line in report(folder, way=way).table().splitlines() if line.startswith("gsm8k:cot")]
        assert figure in line


def test_measures_narrow_every_format(folder: Path):
    found = report(folder, ["code"])
    assert [r.measured for r in found.rankings] == [("code:text",)]
    assert len(found.to_csv().splitlines()) == 1 + 5


def test_the_page_lands_where_it_is_asked_for_whole_or_not_at_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = report(folder)
    path = found.write_html(tmp_path / "page.html")
    written = path.read_text("utf-8")
    assert written.startswith("<!DOCTYPE html>")
    assert not (folder / "report.html").exists()

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError) as raised:
        found.write_html(tmp_path / "nowhere/page.html")
    assert raised.value.subject == str(tmp_path / "nowhere/page.html")
    monkeypatch.setattr("calibrant.durable.write_bytes", full)
    with pytest.raises(OutputError) as raised:
        found.write_html(path)
    assert raised.value.subject == str(path)
    assert path.read_text("utf-8") == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html"]


def test_facts_need_no_items(folder: Path):
    store = Store(folder, create=False)
    found = facts_of(store, read(store, items=False))
    assert found.seconds == {"compress": 15.0, "measure": 25.0}
    assert [s.value for s in found.dense] == [2.0, 3.0]
    assert found.settings["achieved sparsity"] == "0.6000"
    assert found.machine["versions"] == "torch 2.13"


def test_a_large_study_is_reported_whole_and_each_file_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The work grows with the study and no faster: `benchmarks/reporting.py` says what it takes for ten thousand records."""
    study = Synthetic(models=2, methods=2, targets=1, sets=4, draws=2, measures=2, items=6)
    folder, opened, original = study.write(tmp_path / "large"), Counter[str](), io.open

    def counting(file: Path, *args: Any, **kwargs: Any) -> Any:
        opened[Path(file).name] += 1
        return original(file, *args, **kwargs)

    monkeypatch.setattr("io.open", counting)
    found = report(folder)
    assert found.text("markdown").count("calibrated on") >= 4
    scores = study.records * study.measures
    assert (len(found.rankings), {len(r.entries) for r in found.rankings}) == (2 * 2, {4})
    assert len(found.comparison.contrasts) == 2 * 4
    assert len(found.to_csv().splitlines()) == 1 + scores
    assert (opened["record.json"], opened["score.json"]) == (study.records, scores)
    assert opened["items.parquet"] <= scores
    assert opened["provenance.json"] == study.models
    opened.clear()
    found.text("json")
    assert opened["provenance.json"] <= study.records + scores + study.models
    assert opened["record.json"] == study.models, "one record of each model, whose matrices are counted"
    assert opened["score.json"] == opened["items.parquet"] == 0


def test_without_an_optional_package_its_name_is_said_and_tables_need_none(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for package in ("vl_convert", "altair"):
        found = report(folder)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingPackageError, match=rf"{package}, .*calibrant\[report\]"):
            found.write_plots(folder.parent / "plots")
        assert "gsm8k:cot" in str(found)
