"""`calibrant study`: what is wrong with a file in as many lines, a plan that writes nothing, and a run that goes on."""

from pathlib import Path

import pytest

from calibrant.methods import methods

from tests.cli.conftest import Answer, Ask

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


def refused(answer: Answer, *lines: str) -> None:
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == list(lines)


def test_every_mistake_is_a_line_and_nothing_is_written(ask: Ask, tmp_path: Path):
    (tmp_path / "bad.yaml").write_text("model: smollm2\ndata: random_tokens\nmethod: wnada\nseeds: -1\n")
    said = (
        "bad.yaml has 2 mistakes:",
        f"line 3: method: there is no method called 'wnada', did you mean 'wanda'? (known: {', '.join(methods.names())})",
        "line 4: seeds: a draw is -1; it must be a whole number of at least 0",
    )
    for more in ([], ["--plan"]):
        refused(ask("study", "bad.yaml", "--out", "out", *more), *said)
    for more in (["--json"], ["--plan", "--json"]):
        answer = ask("study", "bad.yaml", "--out", "out", *more)
        assert (answer.code, answer.err.splitlines()) == (2, list(said))
        error = answer.json["error"]
        assert (error["message"], error["subject"]) == ("\n".join(said), "bad.yaml")
        assert [(problem["line"], problem["where"]) for problem in error["problems"]] == [(3, "method"), (4, "seeds")]
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "the file can't be read (No such file or directory); name the YAML file of a study"),
        (b"", "there is nothing in it; a study names at least a model and data, as in model: smollm2"),
        (b"a: \xff", "line 1: the byte 0xff is no UTF-8; save the file as UTF-8"),
        (b"a: [", "line 1: this is no YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_what_is_no_study(ask: Ask, tmp_path: Path, content: bytes | None, said: str):
    if content is not None:
        (tmp_path / "bad.yaml").write_bytes(content)
    answer = ask("study", "bad.yaml", "--out", "out")
    assert answer.code == 2
    assert answer.err.splitlines()[0] == "bad.yaml has a mistake:"
    assert said.split(": expected")[0] in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "lcoal"], "there is no engine called 'lcoal', did you mean 'local'?"),
        (["--data-dir", "nowhere"], "'nowhere'"),
    ],
)
def test_options(ask: Ask, file: Path, words: list[str], said: str):
    answer = ask("study", file, "--out", "out", *words)
    assert answer.code == 2, answer
    assert said in answer.err
    assert answer.err.count("\n") == 1


def test_a_folder_that_isnt_ours(ask: Ask, file: Path, tmp_path: Path):
    for more in ([], ["--plan", "--quick"]):
        answer = ask("study", file, "--out", ".", *more)
        assert answer.code == 2
        assert "'.'" in answer.err
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


def test_the_plan_is_shown_and_nothing_is_written(ask: Ask, file: Path, tmp_path: Path):
    answer = ask("study", file, "--out", "out", "--plan")
    assert (answer.code, answer.err) == (0, "")
    for said in (
        "6: 1 model, 2 sets, 2 draws, sparsity 0.5",
        "wanda: dense, since it only scores",
        "21 in 3 blocks, with 12 distinct inputs, float32",
        "no end",
        "for one worker. This is an estimate",
    ):
        assert said in answer.out, said
    quick = ask("study", file, "--out", "out", "--plan", "--quick", "--json").json
    assert (quick["runs"], quick["seconds"]) == ({"asked": 6, "done": 0, "left": 6}, None)
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


def test_a_study_runs_and_asked_again_does_nothing(ask: Ask, file: Path, tmp_path: Path):
    """Both draws of full stops are the same tokens, and so one run."""
    first = ask("study", file, "--out", "out")
    assert first.code == 0, first
    assert "10 runs and measurements; 0 were there" in first.out
    again = ask("study", file, "--out", "out", "--json").json
    assert (again["computed"], again["found"], again["failures"]) == (0, 12, {})
    planned = ask("study", file, "--out", "out", "--plan", "--quick").out
    assert "0 of 6" in planned
    kept = tmp_path / "out/study.yaml"
    assert ask("study", kept, "--out", "out", "--plan", "--quick", "--json").json["runs"]["left"] == 0


def test_what_failed_is_named_and_the_exit_code_tells(ask: Ask, file: Path, tmp_path: Path):
    (tmp_path / "short.jsonl").write_text('{"text": "hello there"}\n{"text": "good bye"}')
    file.write_text(file.read_text().replace("full_stops", "short.jsonl"))
    answer = ask("study", file, "--out", "out")
    assert answer.code == 1
    assert "short.jsonl" in answer.out
    assert "--retry" in answer.out
