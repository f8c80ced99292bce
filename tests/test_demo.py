"""The demo on a tiny model: its ranking, its page, its plain data, and that it goes on where it
was.
"""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from calibrant.errors import OutputError
from calibrant.lab.demo import FOLDER, DemoResult, demo
from calibrant.testing import tiny_folder

SETS = ("python_docs", "random_tokens", "full_stops")


def small(model: str, out: Path | None) -> DemoResult:
    return demo(
        out,
        model=model,
        data=SETS,
        evaluate=["loss(source=python_code, tokens=150, length=48)"],
        samples=2,
        length=48,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("demo") / "tiny"))


@pytest.fixture(scope="module")
def done(model: str, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return small(model, tmp_path_factory.mktemp("out") / "demo")


def test_it_ranks_every_set_on_a_terminal_in_a_page_and_as_plain_data(done: DemoResult):
    (ranking,) = done.report.rankings
    assert {e.name for e in ranking.entries} == set(SETS)
    assert [e.name for e in ranking.baselines] == ["magnitude"]
    assert ranking.dense is not None
    assert done.finished.failures == {}
    out = StringIO()
    console = Console(file=out, width=140)
    for line in done.lines(140):
        console.print(line)
    page = done.page.read_text("utf-8")
    for entry in ranking.entries:
        assert f"{entry.mean.value:+.3f} ± {entry.mean.stderr:.3f}" in out.getvalue()
        assert entry.name in page
    told = json.loads(json.dumps(done.to_json(), allow_nan=False))
    assert told["rankings"][0]["finding"]
    assert told["page"] == str(done.page)
    assert set(told["seconds_by_phase"]) >= {"open", "compress", "measure"}


def test_it_is_resumed_from_its_folder(done: DemoResult, model: str):
    again = small(model, done.finished.folder)
    assert (again.finished.computed, again.finished.found) == (0, done.finished.computed)
    assert again.report.rankings == done.report.rankings


def test_the_default_folder_is_in_the_current_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "mine.txt").write_text("x")
    with pytest.raises(OutputError) as refused:
        small(model, None)
    assert Path(refused.value.subject).resolve() == tmp_path / FOLDER
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["mine.txt"]
