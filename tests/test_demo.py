import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from calibrant.demo import FOLDER, SOURCES, STUDY, DemoResult, demo
from calibrant.errors import OutputError
from calibrant.testing import tiny_folder


def small(model: str, out: Path | None) -> DemoResult:
    evaluate = [f"loss(source={s}, tokens=150, length=48)" for s in ("python_docs", "python_code")]
    return demo(out, model=model, data=["python_docs", "python_code", "random_tokens", "full_stops"], evaluate=evaluate, samples=2, length=48)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("demo") / "tiny"))


@pytest.fixture(scope="module")
def done(model: str, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return small(model, tmp_path_factory.mktemp("out") / "demo")


def shown(result: DemoResult, width: int = 140) -> str:
    out = StringIO()
    console = Console(file=out, width=width)
    for line in result.lines(width):
        console.print(line)
    return out.getvalue()


def test_it_asks_what_the_project_promises():
    assert STUDY.models == ("smollm2",)
    assert STUDY.sparsities == (0.6,)
    assert set(STUDY.data) == {"python_docs", "python_code@crop", "arithmetic:icl", "arithmetic:cot", "random_tokens", "full_stops"}
    assert [q.cell.method for q in STUDY.requests()] == ["none", "magnitude", *["wanda"] * 6]
    assert [e.source for e in STUDY.evaluators().values()] == list(SOURCES)  # pyright: ignore[reportAttributeAccessIssue]


def test_it_ranks_every_set_and_writes_a_page(done: DemoResult):
    (ranking,) = done.report.rankings
    assert {e.name for e in ranking.entries} == {"python_docs", "python_code", "random_tokens", "full_stops"}
    assert [e.name for e in ranking.baselines] == ["magnitude"]
    assert ranking.dense is not None
    assert done.finished.failures == {}
    assert done.page.name == "report.html"
    assert "Which calibration data kept" in done.page.read_text("utf-8")


def test_the_terminal_says_what_was_found_how_sure_and_where_the_time_went(done: DemoResult):
    text = shown(done)
    (ranking,) = done.report.rankings
    for entry in ranking.entries:
        assert f"{entry.mean.value:+.3f} ± {entry.mean.stderr:.3f}" in text
    assert "worse than the best" in text
    assert "one draw cannot say" in " ".join(text.split())
    assert "measuring" in text
    assert "propagation wanda: dense" in " ".join(text.split())
    assert max(map(len, shown(done, 80).splitlines())) <= 80


def test_it_is_resumed_from_its_folder(done: DemoResult, model: str):
    again = small(model, done.finished.folder)
    assert (again.finished.computed, again.finished.found) == (0, done.finished.computed)
    assert again.report.rankings == done.report.rankings


def test_its_result_is_plain_data(done: DemoResult):
    told = json.loads(json.dumps(done.to_json(), allow_nan=False))
    assert told["rankings"][0]["finding"]
    assert told["page"].endswith("report.html")
    assert set(told["seconds_by_phase"]) >= {"open", "compress", "measure"}


def test_the_default_folder_is_in_the_current_one(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=FOLDER):
        small(model, None)
