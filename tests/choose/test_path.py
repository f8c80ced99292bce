"""The path of a user: a file of their own, a recommendation within its time, its command pasted,
another file measured, a report.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies.siblings.targets import rows
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.cli.screen.choosing import recommended
from calibrant.lab.mixtures import Effort

from tests.trained import trained_folder


@pytest.fixture
def ask(
    tmp_path: Path, effort: Effort, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, str]]:
    """Run a command in a folder with two files, of one kind and of two families of templates;
    return what it said, and what beside it.
    """
    monkeypatch.chdir(tmp_path)
    for name, family in (("mine.jsonl", 0), ("other.jsonl", 1)):
        Path(name).write_text(
            "".join(json.dumps(row) + "\n" for row in rows("problems", family, 120))
        )

    def run(*words: object) -> tuple[str, str]:
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, found.output
        return found.stdout, found.stderr

    return run


def walked(
    ask: Callable[..., tuple[str, str]], model: str, minutes: float, *more: str
) -> dict[str, Any]:
    """Go the path, and return the recommendation."""
    out, beside = ask(
        "recommend", model, "--for", "mine.jsonl", "--budget", minutes, *more, "--json"
    )
    advice = json.loads(out)
    assert "mine.jsonl:icl" in beside, "what was lowered is said before it begins"
    assert f"{minutes:g} minutes" in beside, "and what the time buys"
    pasted = shlex.split(advice["command"])
    assert pasted[:3] == ["calibrant", "prune", model]
    assert pasted[pasted.index("--data") + 1] == advice["expr"]
    ask(*pasted[1:])
    folder = pasted[pasted.index("--out") + 1]
    pruned = json.loads((Path(folder) / "calibrant.json").read_text())
    assert pruned["record"]["run"]["propagate"] == "dense", "as it was measured"
    measured, _ = ask(
        "evaluate", folder, "--task", "loss(source='other.jsonl', tokens=512, length=128)", "--json"
    )
    assert json.loads(measured)[0]["value"] > 0
    report, _ = ask("report", Path(advice["folder"]) / "race")
    assert "mine.jsonl" in report
    return advice


def test_from_a_file_to_a_compressed_model_and_a_number(
    ask: Callable[..., tuple[str, str]],
) -> None:
    more = (
        "--sources",
        "mine.jsonl",
        "--sources",
        "python_docs",
        "--length",
        "128",
        "--dtype",
        "float32",
    )
    advice = walked(ask, str(trained_folder()), 20, *more)
    assert [each["source"] for each in advice["siblings"]] == ["mine.jsonl"]
    own = next(one for one in advice["candidates"] if one["data"] == "mine.jsonl:icl")
    assert own["sibling"] != own["increase"], (
        "each row is judged by the run that was calibrated on other templates"
    )
    other = next(one for one in advice["candidates"] if one["data"] == "python_docs")
    assert other["sibling"] == other["increase"], (
        "for a set that holds nothing of the file the two are the same"
    )
    assert other["predicted_sibling"] is not None
    *_, command = recommended(advice)
    assert command == advice["command"], "the last thing that is shown can be pasted"


def test_without_a_sibling_the_advice_says_whose_rows_judge(
    ask: Callable[..., tuple[str, str]],
) -> None:
    more = (
        "--sources",
        "mine.jsonl",
        "--sources",
        "random_tokens",
        "--length",
        "128",
        "--dtype",
        "float32",
        "--no-sibling",
        "--tokens",
        "1024",
    )
    out, _ = ask(
        "recommend", trained_folder(), "--for", "mine.jsonl", "--budget", 0.01, *more, "--json"
    )
    advice = json.loads(out)
    assert advice["siblings"] == []
    assert "mine.jsonl" in advice["expr"]
    assert "from the same file (mine.jsonl)" in advice["text"]


@pytest.mark.slow
def test_the_same_on_smollm2(ask: Callable[..., tuple[str, str]]) -> None:
    walked(
        ask,
        "smollm2",
        4,
        "--sources",
        "mine.jsonl",
        "--sources",
        "arithmetic:cot",
        "--sources",
        "python_docs",
        "--tokens",
        "2048",
    )
