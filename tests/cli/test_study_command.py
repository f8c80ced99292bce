"""`calibrant study`: what is wrong with a file in as many lines, a plan that writes nothing, and
a run that goes on.
"""

from pathlib import Path

import pytest

from tests.cli.conftest import Ask, assert_refused

SMALL = """
model: MODEL
data: [random_tokens, full_stops]
method: [wanda, magnitude]
seeds: [0, 1]
samples: 4
length: 32
dtype: float32
evaluate: ["loss(source='python_docs', tokens=100, length=32)"]
"""


@pytest.fixture
def file(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("MODEL", str(model)))
    return path


def test_every_mistake_is_a_line_and_nothing_is_written(ask: Ask, tmp_path: Path):
    (tmp_path / "bad.yaml").write_text(
        "model: smollm2\ndata: random_tokens\nmethod: wnada\nseeds: -1\n"
    )
    for more in ([], ["--plan"]):
        plain = ask("study", "bad.yaml", "--out", "out", *more)
        assert (plain.code, plain.out) == (2, "")
        head, first, second = plain.err.splitlines()
        assert head.startswith("bad.yaml ")
        assert first.startswith("line 3: method: ")
        assert second.startswith("line 4: seeds: ")
        answer = ask("study", "bad.yaml", "--out", "out", *more, "--json")
        assert (answer.code, answer.err) == (2, plain.err)
        error = answer.json["error"]
        assert (error["message"] + "\n", error["subject"]) == (plain.err, "bad.yaml")
        assert [(problem["line"], problem["where"]) for problem in error["problems"]] == [
            (3, "method"),
            (4, "seeds"),
        ]
    assert ask("study", "gone.yaml", "--out", "out").err.startswith("gone.yaml ")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_the_plan_is_shown_and_nothing_is_written(ask: Ask, file: Path, tmp_path: Path):
    answer = ask("study", file, "--out", "out", "--plan")
    assert (answer.code, answer.err) == (0, "")
    for said in ("6: 1 model", "wanda: dense", "21 in 3 blocks", "float32"):
        assert said in answer.out, said
    quick = ask("study", file, "--plan", "--quick", "--json").json
    assert (quick["runs"], quick["seconds"]) == ({"asked": 6, "done": 0, "left": 6}, None)
    assert_refused(ask("study", file, "--quick"), "--out")
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


def test_a_study_runs_and_asked_again_does_nothing(ask: Ask, file: Path, tmp_path: Path):
    """Both draws of full stops are the same tokens, and so one run."""
    first = ask("study", file, "--out", "out")
    assert first.code == 0, first
    assert "10 runs and measurements" in first.out
    again = ask("study", file, "--out", "out", "--json").json
    assert (again["computed"], again["found"], again["failures"]) == (0, 12, {})
    planned = ask("study", file, "--out", "out", "--plan", "--quick").out
    assert "0 of 6" in planned
    kept = tmp_path / "out/study.yaml"
    assert (
        ask("study", kept, "--out", "out", "--plan", "--quick", "--json").json["runs"]["left"] == 0
    )


def test_what_failed_is_named_and_the_exit_code_tells(ask: Ask, file: Path, tmp_path: Path):
    (tmp_path / "short.jsonl").write_text('{"text": "hello there"}\n{"text": "good bye"}')
    file.write_text(file.read_text().replace("full_stops", "short.jsonl"))
    answer = ask("study", file, "--out", "out")
    assert answer.code == 1
    assert "short.jsonl" in answer.out
    assert "--retry" in answer.out
