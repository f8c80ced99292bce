"""Advice that can't be had: which error it is, what it is about, and what people read."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import calibrant
from calibrant.cli import app
from calibrant.errors import DataError, InputError, OutputError, SpecError, TargetError
from calibrant.lab.choose import recommend
from calibrant.lab.choose.goal import parse_goal

from tests.trained import trained_folder


@pytest.mark.parametrize(
    ("goals", "error", "subject", "sentence"),
    [
        ([], SpecError, "for", "no goal was given; write a source"),
        (["python_cod"], SpecError, "python_cod", "perhaps you mean 'python_code'"),
        (
            ["python_code + python_docs"],
            SpecError,
            "python_code + python_docs",
            "is a sum; give each part as a goal of its own",
        ),
        (
            ["random_tokens"],
            DataError,
            "random_tokens",
            "is a control: there is nothing in it to predict",
        ),
    ],
)
def test_what_is_no_goal(
    goals: list[str], error: type[InputError], subject: str, sentence: str
) -> None:
    with pytest.raises(error) as caught:
        parse_goal(goals, tokens=1000, items=20, length=64)
    assert caught.value.subject == subject
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("method", "target", "minutes", "error", "sentence"),
    [
        ("wanda", 0.5, 0.0, SpecError, "a budget of 0 minutes leaves no time; give some above 0"),
        (
            "rtn",
            "w4g64",
            1.0,
            SpecError,
            "rtn looks at no data, so every text gives the same weights",
        ),
        (None, "blocks 0.25", 1.0, TargetError, "blocks 0.25 is no target that data is chosen for"),
        (None, "w4g48", 1.0, TargetError, "has 64 inputs, which groups of 48 don't divide"),
        (None, "Q4_K_M", 1.0, OutputError, "gguf(like='FILE.gguf')"),
        (None, "gguf 0.02MB", 1.0, TargetError, "gguf 0.02MB is too little: the matrices"),
        (None, "gguf 90MB", 1.0, SpecError, "gguf 90MB has room for every tensor"),
    ],
)
def test_what_cannot_be_advised_on_and_nothing_is_written(
    tmp_path: Path,
    method: str | None,
    target: float | str,
    minutes: float,
    error: type[InputError],
    sentence: str,
) -> None:
    small = {
        "tokens": 512,
        "length": 128,
        "dtype": "float32",
        "device": "cpu",
        "folder": tmp_path / "out",
    }
    with pytest.raises(error) as caught:
        recommend(
            str(trained_folder()),
            goal="python_docs",
            sources=("python_docs", "random_tokens"),
            method=method,
            target=target,
            minutes=minutes,
            **small,
        )
    assert sentence in str(caught.value)
    assert not (tmp_path / "out" / "race").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"goal": ()}, "no goal was given; write a source"),
        ({"minutes": 0.0}, "a budget of 0 minutes leaves no time"),
        ({"minutes": float("inf")}, "a budget of inf minutes has no end"),
        ({"sources": ["gsm8k:cot"]}, "one set can't be compared; give another"),
        ({"tokens": 100}, "sets of 100 tokens are too small; give 256 tokens at least"),
        ({"tokens": -5}, "sets of -5 tokens are too small"),
        ({"tool": "gptqmodl"}, "perhaps you mean 'gptqmodel'"),
        ({"tool": "llama.cpp"}, "llama.cpp opens GGUF files"),
        ({"sources": "python_docs"}, "write sources=['python_docs']"),
        ({"target": "gguf 90MB"}, "gguf 90MB has room for every tensor"),
    ],
)
def test_a_plan_refuses_what_the_job_would(
    given: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    settings = {"goal": "python_docs", "folder": tmp_path / "out"} | given
    for verb in (recommend, partial(calibrant.plan, recommend)):
        with pytest.raises(InputError) as caught:
            verb(str(trained_folder()), **settings)
        assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_2_and_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(
        app,
        [
            "recommend",
            str(trained_folder()),
            "--for",
            "python_docs",
            "--method",
            "rtn",
            "--target",
            "w4g64",
        ],
    )
    assert found.exit_code == 2
    assert "rtn looks at no data" in found.stderr
    assert len(found.stderr.splitlines()) == 1
