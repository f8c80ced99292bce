"""What a model is for, as it is read."""

import json
from pathlib import Path

import pytest
from datasets import config

from calibrant.data import CalibrationSet
from calibrant.lab.choose.goal import CORPORA, OFFLINE, default_sources, parse_goal, readable


@pytest.fixture(autouse=True)
def no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only what needs nothing can be read, and a file of questions."""
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "question": f"Is {i} even?",
            "choices": ["yes", "no"],
            "answer": "yes" if i % 2 == 0 else "no",
        }
        for i in range(60)
    ]
    (tmp_path / "even.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(*targets: str):
    return parse_goal(targets, tokens=1000, items=20, length=64)


def test_a_source_is_measured_by_its_loss_and_stands_for_itself() -> None:
    goal = read("python_code")
    assert [(weight, str(measure)) for weight, measure in goal.measures] == [
        (1.0, "loss(source='python_code', format='text', tokens=1000, length=64)")
    ]
    assert (goal.judge, goal.sources) == ("python_code", ("python_code",))


def test_questions_with_choices_are_a_task() -> None:
    goal = read("even.jsonl")
    assert [str(measure) for _, measure in goal.measures] == ["task(name='even.jsonl', limit=20)"]
    assert goal.judge == "even.jsonl:icl"


def test_targets_have_weights_that_sum_to_one() -> None:
    goal = read("0.3*python_code", ".6 * python_docs", "0.3*python_code")
    assert [weight for weight, _ in goal.measures] == [0.5, 0.5]
    assert len({str(measure) for _, measure in goal.measures}) == 2
    assert goal.judge == "0.5*python_code + 0.5*python_docs"


def test_general_is_what_can_be_read() -> None:
    assert not any(readable(CalibrationSet(name).parts[0].source) for name in CORPORA)
    goal = read("general")
    assert goal.sources == OFFLINE
    assert sum(weight for weight, _ in goal.measures) == pytest.approx(1)
    assert default_sources(read("python_code"))[0] == "python_code"
    assert set(default_sources(goal)) == set(OFFLINE)


def test_a_measure_may_be_named() -> None:
    goal = read("loss(source=python_docs, tokens=77)")
    assert [str(measure) for _, measure in goal.measures] == [
        "loss(source='python_docs', tokens=77)"
    ]
    assert goal.judge == "python_docs"


def test_the_format_of_a_measure_is_that_of_the_judge_and_of_the_candidate() -> None:
    goal = read("loss(source=arithmetic, format=cot)")
    assert (goal.judge, goal.sources) == ("arithmetic:cot", ("arithmetic:cot",))


def test_where_the_hub_does_not_answer_no_set_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    offline: list[bool] = []
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("calibrant.data.hub.is_reachable", lambda: False)
    monkeypatch.setattr(
        "calibrant.lab.choose.goal.readable",
        lambda source: offline.append(config.HF_HUB_OFFLINE) or False,
    )
    default_sources(parse_goal(["python_code"], 100, 10, 64))
    assert offline
    assert all(offline)
    assert not config.HF_HUB_OFFLINE
