"""`--plan`: a command says what it would take, and does nothing."""

from pathlib import Path

import pytest

from tests.cli.conftest import SMALL, Ask, assert_refused

COMMANDS = {
    "prune": [*SMALL, "--out", "there"],
    "quantize": ["--out", "there"],
    "evaluate": ["--task", "loss(tokens=512)"],
    "recommend": ["--for", "gsm8k", "--budget", "3"],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_plan_is_printed_and_nothing_is_written(ask: Ask, model: Path, tmp_path: Path, verb: str):
    # A folder that is there already is no problem, since nothing goes into it.
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "note.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    words = [verb, model, *COMMANDS[verb], "--plan"]
    planned = ask(*words, "--json")
    assert planned.code == 0, planned
    assert planned.json["fits"]
    assert planned.json["memory"] > 4 * planned.json["numbers"]
    shown = ask(*words)
    assert shown.code == 0
    assert f"{planned.json['numbers']:,}" in shown.out
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_planned_is_refused(ask: Ask, model: Path):
    assert_refused(ask("prune", model, *SMALL, "--method", "wnda", "--out", "x", "--plan"), "wnda")
    answer = ask("evaluate", model, "--task", "agreement", "--plan")
    assert_refused(answer, "--reference")
