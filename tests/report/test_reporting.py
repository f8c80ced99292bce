import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.errors import MissingPackageError, OutputError, SpecError
from calibrant.lab.report import FORMATS, check_format, report
from calibrant.results import Store, merge

from tests.report.made import store_of
from tests.stats import stores

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


def test_other_runs_of_cells_and_of_other_types_are_doubtful(folder: Path, tmp_path: Path):
    one = stores.store_of(tmp_path / "one", stores.LOSSES)
    more = stores.store_of(tmp_path / "more", {**stores.LOSSES, "pile": [[3.6, 2.7]]})
    other = stores.in_another_type(more, tmp_path / "other")
    merge(tmp_path / "merged", [one.folder, other.folder])
    found = report(tmp_path / "merged")
    named = "tiny, wanda 0.5, c4 (draw 0); tiny, wanda 0.5, gsm8k:cot (draw 0); and 1 more, which"
    first = "5 results have another run in the store, which differs in its dtype"
    second = "The runs of tiny were computed in bfloat16 and float32"
    texts = {"html": found.html(), **{format: found.text(format) for format in FORMATS}}
    for format in ("markdown", "table", "html"):
        text = " ".join(texts[format].split())
        assert second in text
        assert first in text
        assert named in text
    data = json.loads(texts["json"])
    assert data["dtypes"] == {"tiny": ["bfloat16", "float32"]}
    cells = [run["cell"] for run in data["uncounted"]]
    named = [cell["data"] or cell["method"] for cell in cells]
    assert named == ["none", "magnitude", "c4", "gsm8k:cot", "full_stops"]
    assert "4 results have" in report(tmp_path / "merged", methods="wanda").text("markdown")
    assert "uncounted" not in report(folder).to_json()


def test_a_measurement_that_isnt_there_yet_spoils_no_format(tmp_path: Path):
    with Store(store_of(tmp_path / "study", SETS)) as store:
        cells = []
        for cell in store.cells():
            measures = {**cell.measures, "loss(later)": f"later:{cell.run}"}
            cells.append(replace(cell, measures=measures))
        store.write_cells(cells)
    found = report(tmp_path / "study")
    for format in FORMATS:
        assert "gsm8k:cot" in found.text(format), format
    assert "gsm8k:cot" in found.html()
    assert found.facts.seconds["measure"] == 5 * 2 * 2.5


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
        (line,) = [
            line
            for line in report(folder, way=way).table().splitlines()
            if line.startswith("gsm8k:cot")
        ]
        assert figure in line


def test_measures_narrow_every_format(folder: Path):
    found = report(folder, ["code"])
    assert [r.measured for r in found.rankings] == [("code:text",)]
    assert len(found.to_csv().splitlines()) == 1 + 5


def test_a_single_text_stands_for_a_list_of_one(folder: Path):
    assert str(report(folder, "code")) == str(report(folder, ["code"]))
    assert str(report(folder, methods="wanda")) == str(report(folder, methods=["wanda"]))


def test_the_page_lands_where_it_is_asked_for_whole_or_not_at_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
    monkeypatch.setattr("calibrant.system.durable.write_bytes", full)
    with pytest.raises(OutputError) as raised:
        found.write_html(path)
    assert raised.value.subject == str(path)
    assert path.read_text("utf-8") == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html"]


def test_without_an_optional_package_its_name_is_said_and_tables_need_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for package in ("vl_convert", "altair"):
        found = report(folder)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingPackageError, match=rf"{package}, .*calibrant\[report\]"):
            found.write_plots(folder.parent / "plots")
        assert "gsm8k:cot" in str(found)
