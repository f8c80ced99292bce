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


@pytest.mark.parametrize("target", ["W8A8", "FP8", "NVFP4", "NVFP4A16"])
def test_schemes_are_planned(ask: Ask, model: Path, target: str):
    """Scales that are found beforehand take another walk."""
    seconds: dict[str, float] = {}
    for asked in (target, "w8"):
        words = ["quantize", model, *SMALL, "--method", "gptq", "--target", asked]
        planned = ask(*words, "--out", "there", "--plan", "--json")
        assert planned.code == 0, planned
        seconds[asked] = planned.json["parts"]["forward"]
    walks = 2 if target in ("FP8", "NVFP4") else 1
    assert seconds[target] == pytest.approx(walks * seconds["w8"], rel=0.3)
    advised = ask("recommend", model, "--for", "gsm8k", "--target", target, "--plan", "--json")
    assert advised.code == 0, advised
    assert advised.json["fits"]


@pytest.mark.parametrize("verb", ["prune", "quantize"])
def test_only_a_plan_needs_no_folder(ask: Ask, model: Path, tmp_path: Path, verb: str):
    words = [verb, model, *SMALL]
    if verb == "quantize":
        words += ["--target", "w8"]
    planned = ask(*words, "--plan", "--json")
    assert planned.code == 0, planned
    assert planned.json["disk"]
    assert_refused(ask(*words), "--out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_planned_is_refused(ask: Ask, model: Path):
    assert_refused(ask("prune", model, *SMALL, "--method", "wnda", "--out", "x", "--plan"), "wnda")
    answer = ask("evaluate", model, "--task", "agreement", "--plan")
    assert_refused(answer, "--reference")
