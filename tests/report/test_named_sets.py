"""A set that the study's file gives a short name is called so in reports, and is the same set."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.errors import StudyError
from calibrant.lab.report import report
from calibrant.lab.study import read_study
from calibrant.results import Cell, Store

from tests.report.made import store_of

MIX = "0.5*c4 + 0.5*python_code"
STUDY = """
model: smollm2
data:
  - c4
  - {name: mixture, data: %s}
method: wanda
baseline: mixture
primary: [{compare: mixture, with: c4}]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_a_named_set_is_the_same_set_and_readers_of_results_get_its_name(tmp_path: Path):
    named = read_study(written(tmp_path, STUDY % MIX))
    plain = STUDY.replace("{name: mixture, data: %s}", MIX).replace("mixture", f'"{MIX}"')
    unnamed = read_study(written(tmp_path, plain))
    assert named.labels() == unnamed.labels()
    assert named.for_reading() == {**unnamed.for_reading(), "names": {MIX: "mixture"}}
    assert "names" not in unnamed.for_reading()
    again = read_study(written(tmp_path, named.as_yaml()))
    assert again == named
    assert again.for_reading() == named.for_reading()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{name: mixture}", "write both name and data"),
        ("{name: c4, data: pile}", "another set"),
        ("{name: mixture, data: pile}", "another set"),
        ("{name: [1], data: pile}", "is no name"),
    ],
)
def test_names_that_cannot_be_are_refused(entry: str, said: str, tmp_path: Path):
    text = (STUDY % MIX).replace("  - c4\n", f"  - c4\n  - {entry}\n")
    with pytest.raises(StudyError, match=said):
        read_study(written(tmp_path, text))


def test_a_report_calls_a_set_by_its_short_name(tmp_path: Path):
    folder = store_of(tmp_path / "study", {MIX: (2.5, 3.9), "c4": (2.9, 3.4)})
    with Store(folder) as store:
        cells: list[Cell] = store.cells()
        reading = {
            "names": {MIX: "mixture"},
            "baseline": MIX,
            "pools": {},
            "primary": [{"name": f"{MIX} against c4", "compare": MIX, "with": "c4"}],
        }
        store.write_cells(cells, reading)
    found = report(folder)
    (ranking,) = found.rankings
    assert {entry.name for entry in ranking.entries} == {"mixture", "c4"}
    assert ranking.baseline == "mixture"
    assert [c.compare for c in found.comparison.contrasts] == ["mixture"]
    assert MIX not in found.table()
    assert "mixture" in found.to_csv()
    assert report(folder, baseline="c4").rankings[0].baseline == "c4"
    assert MIX in found.html(), "the command that repeats a run has what it was made of"


def test_a_name_that_rich_takes_for_an_emoji_is_printed_as_it_is(tmp_path: Path):
    folder = store_of(tmp_path / "study", {MIX: (2.5, 3.9), "c4": (2.9, 3.4)})
    with Store(folder) as store:
        store.write_cells(store.cells(), {"names": {MIX: "my:key:mix"}, "pools": {}, "primary": []})
    assert "my:key:mix" in report(folder).table()


@pytest.mark.parametrize("labelled", [5, 6])
def test_a_set_with_a_short_name_keeps_the_reason_of_its_failure(tmp_path: Path, labelled: int):
    with Store(store_of(tmp_path / "study", {"c4": (2.9, 3.4), "pile": (2.9, 3.5)})) as store:
        failed = replace(store.cells()[-1], data=MIX, run="", measures={})
        store.write_cells([*store.cells(), failed], {"names": {MIX: "mixture"}})
        cell = list(failed.labels[:labelled])
        store.add_failure("sha256:f", {"what": "it", "cell": cell, "error": "DataError: no rows"})
        other = [*failed.labels[:5], "arrival"]
        store.add_failure("sha256:o", {"what": "other", "cell": other, "error": "lost"})
    found = report(tmp_path / "study")
    assert [failure["what"] for failure in found.facts.failures] == ["it"]
    missing = found.comparison.missing
    assert len(missing) == 2
    for sentence in missing:
        assert ": mixture (draw 0)" in sentence
        assert sentence.endswith("DataError: no rows")
