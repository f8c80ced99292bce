"""Numbers that the README shows come from the records that are kept beside it."""

from pathlib import Path

import pytest

from calibrant.compare import CONTROLS
from calibrant.demo import STUDY
from calibrant.report import report
from calibrant.store import Store

PROJECT = Path(__file__).parents[1]
DEMO = PROJECT / "studies/demo"


def paragraphs(text: str) -> list[str]:
    return [" ".join(p.split()) for p in text.split("\n\n") if p.strip()]


def test_the_readme_says_what_the_records_say():
    readme = paragraphs((PROJECT / "README.md").read_text())
    told = paragraphs(str(report(DEMO)))
    table = next(p for p in told if p.startswith("| calibrated on"))
    finding = next(p for p in told if p.startswith("Of "))
    assert table in readme
    assert finding in readme


def test_the_records_are_those_of_the_demo():
    with Store(DEMO, create=False) as store:
        asked = {(cell.data, cell.method, cell.target) for cell in store.cells()}
        assert asked == {(q.cell.data, q.cell.method, q.cell.target) for q in STUDY.questions()}
        for cell in store.cells():
            record = store.record(cell.run)
            assert record is not None
            assert record.run.id == cell.run, "the record answers another question"
            assert len(store.measurements(cell.run)) == len(STUDY.evaluators())


def test_the_ranking_is_believable():
    (ranking,) = report(DEMO).rankings
    means = {entry.name: entry.mean.value for entry in ranking.entries}
    controls = [value for name, value in means.items() if name in CONTROLS]
    assert min(controls) > max(value for name, value in means.items() if name not in CONTROLS)
    assert min(means.values()) > 0, "pruning never helps here"


@pytest.mark.parametrize("name", ["demo.png", "demo-dark.png"])
def test_the_picture_is_there(name: str):
    assert (PROJECT / "docs/images" / name).read_bytes().startswith(b"\x89PNG")
    assert f"docs/images/{name}" in (PROJECT / "README.md").read_text()
