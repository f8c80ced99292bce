"""`calibrant report` in every format, and what it says of input that can't be used."""

import csv
import io
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Ask, assert_refused
from tests.report.made import store_of

SETS = {"python_docs": (2.5, 3.9), "gsm8k:cot": (2.9, 3.4), "full_stops": (8.0, 9.0)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("made") / "study", SETS)


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


def test_every_format_is_printed(ask: Ask, study: Path):
    answer = ask("report", study)
    assert (answer.code, answer.err) == (0, "")
    assert {*SETS, "magnitude"} <= set(answer.out.replace("(", " ").split())
    assert ask("report", study, "--format", "markdown").out.startswith("## smollm2")
    assert r"\toprule" in ask("report", study, "--format", "latex").out
    rows = list(
        csv.DictReader(io.StringIO(ask("report", study, "--format", "csv").out, newline=""))
    )
    assert {row["data"] for row in rows} == {"", *SETS}
    assert {row["metric"] for row in rows} == {"loss"}
    told = ask("report", study, "--format", "json")
    assert told.json["rankings"][0]["entries"][0]["name"] == "gsm8k:cot"
    assert ask("report", study, "--json").json == told.json


def test_the_page_and_plots_of_three_kinds_are_written_where_they_are_asked_for(
    ask: Ask, study: Path, tmp_path: Path
):
    answer = ask("report", study, "--html", "page.html", "--plots", "figures", "--format", "json")
    assert answer.json["rankings"]
    assert "page.html" in answer.err
    assert "figures" in answer.err
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "gsm8k:cot" in page
    # A page takes the place of an earlier one.
    assert ask("report", study, "--html", "page.html").code == 0
    assert (tmp_path / "page.html").read_text("utf-8") == page
    files = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert {
        "forest-wanda-0.6.png",
        "forest-wanda-0.6.svg",
        "forest-wanda-0.6.pdf",
        "kept-wanda-0.6.svg",
    } <= set(files)
    assert "#1e2024" not in (tmp_path / "figures/kept-wanda-0.6.svg").read_text()


def test_a_file_where_the_folder_of_plots_would_be_is_refused_before_anything_is_read(
    ask: Ask, tmp_path: Path
):
    (tmp_path / "file").write_text("mine")
    for given in ("file", "file/plots"):
        answer = ask("report", "nowhere", "--plots", given)
        assert_refused(answer, f"'{given}' is no folder; name one that is there, or a new one")


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["report", "nowhere"], "nowhere"),
        (["report", "."], "'.'"),
        (["report", "study", "--format", "pdf"], "'pdf'"),
        (["report", "study", "--as", "share"], "'share'"),
        (["report", "study", "--html", "no/such/page.html"], "no/such/page.html"),
        (["report", "study", "--html", "study"], "'study'"),
        (["report", "study", "--task", "nonsense"], "nonsense"),
        (["report", "study", "--baseline", "c4"], "'c4'"),
        (["report", "study", "--plots", "study/study.yaml"], "'study/study.yaml'"),
    ],
)
def test_bad_input(ask: Ask, study: Path, words: list[str], given: str):
    assert_refused(ask(*words), given)
