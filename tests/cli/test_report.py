"""`calibrant report` in every format, and what it says of input that can't be used."""

import csv
import io
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Ask
from tests.report.made import store_of

SETS = {"python_docs": (2.5, 3.9), "gsm8k:cot": (2.9, 3.4), "full_stops": (8.0, 9.0)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("made") / "study", SETS)


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


def test_the_table_is_printed(ask: Ask, study: Path):
    answer = ask("report", study)
    assert (answer.code, answer.err) == (0, "")
    assert "Of 3 calibration sets, gsm8k:cot kept smollm2 best" in answer.out
    assert "magnitude (no data)" in answer.out
    assert "dense (its own loss)" in answer.out


def test_every_format_is_printed(ask: Ask, study: Path):
    assert ask("report", study, "--format", "markdown").out.startswith("## smollm2")
    assert r"\toprule" in ask("report", study, "--format", "latex").out
    rows = list(csv.DictReader(io.StringIO(ask("report", study, "--format", "csv").out, newline="")))
    assert {row["data"] for row in rows} == {"", *SETS}
    assert {row["metric"] for row in rows} == {"loss"}
    told = ask("report", study, "--format", "json")
    assert told.json["rankings"][0]["entries"][0]["name"] == "gsm8k:cot"
    assert ask("report", study, "--json").json == told.json


def test_the_page_is_written_where_it_is_asked_for(ask: Ask, study: Path, tmp_path: Path):
    answer = ask("report", study, "--html", "page.html", "--format", "json")
    assert answer.json["rankings"]
    assert answer.err == "the page is page.html\n"
    assert "Which calibration data kept" in (tmp_path / "page.html").read_text("utf-8")


def test_plots_are_written_as_files_of_three_kinds(ask: Ask, study: Path, tmp_path: Path):
    answer = ask("report", study, "--plots", "figures")
    assert answer.code == 0
    files = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert {"forest-wanda-0.6.png", "forest-wanda-0.6.svg", "forest-wanda-0.6.pdf", "kept-wanda-0.6.svg"} <= set(files)
    assert answer.err == f"{len(files)} files of plots are in figures\n"
    light = (tmp_path / "figures/kept-wanda-0.6.svg").read_text()
    assert ask("report", study, "--plots", "figures", "--dark").code == 0
    dark = (tmp_path / "figures/kept-wanda-0.6.svg").read_text()
    assert ("#1e2024" in light, "#1e2024" in dark) == (False, True)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == files


def test_another_baseline_is_compared_with(ask: Ask, study: Path):
    (first,) = ask("report", study, "--json").json["rankings"]
    (other,) = ask("report", study, "--json", "--baseline", "gsm8k:cot").json["rankings"]
    assert (first["baseline"], other["baseline"]) == ("python_docs", "gsm8k:cot")
    gaps = {e["name"]: e["to_baseline"].get("mean", {}).get("value") for e in other["entries"]}
    assert gaps["gsm8k:cot"] is None
    means = {e["name"]: e["mean"]["value"] for e in other["entries"]}
    assert gaps["python_docs"] == pytest.approx(means["python_docs"] - means["gsm8k:cot"])


def test_figures_are_shown_as_asked(ask: Ask, study: Path):
    assert "Increase over the dense model" in ask("report", study).out
    assert "Each set's own number" in ask("report", study, "--as", "loss").out
    assert "Share of the dense model's performance" in ask("report", study, "--as", "kept").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "nowhere"], "nowhere"),
        (["report", "."], "holds no results of calibrant"),
        (["report", "study", "--format", "pdf"], "'pdf'; choose among table, markdown, csv, latex, json"),
        (["report", "study", "--as", "share"], "'share'; choose among increase, loss, kept"),
        (["report", "study", "--html", "no/such/page.html"], "no/such/page.html"),
        (["report", "study", "--html", "study"], "'study' can't be written"),
        (["report", "study", "--measure", "nonsense"], "nonsense"),
        (["report", "study", "--baseline", "c4"], "'c4' (there are: python_docs, gsm8k:cot, full_stops)"),
        (["report", "study", "--plots", "study/study.yaml"], "'study/study.yaml'"),
    ],
)
def test_bad_input_is_one_sentence(ask: Ask, study: Path, words: list[str], said: str):
    answer = ask(*words)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1
