"""What a user would write, understood: formats behind a measured source, folders without ./, per
cent, and items and tokens each by their name.
"""

import json
from pathlib import Path

import pytest

from calibrant.evaluators import evaluators
from calibrant.spec import canonical
from calibrant.targets import parse_target

from tests.cli.conftest import SMALL, Ask, assert_refused


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Sums in a file, and a folder of notes."""
    rows = [
        {"question": f"What is {i} plus {i % 7}?", "answer": str(i + i % 7)} for i in range(200)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "notes").mkdir()
    for i in range(30):
        (tmp_path / "notes" / f"{i}.txt").write_text(
            f"Note {i}: "
            + " ".join(
                f"{word} {i * k}"
                for k, word in enumerate(["a", "cat", "sat", "on", "some", "mat"] * 6)
            )
        )
    return tmp_path


def test_a_format_stands_behind_a_measured_source_too(ask: Ask, files: Path, model: Path):
    spelt = [
        "loss(source='mine.jsonl:question', tokens=200, length=32)",
        "loss(source='mine.jsonl', format='question', tokens=200, length=32)",
    ]
    short, long = ask(
        "evaluate",
        model,
        *(word for task in spelt for word in ("--task", task)),
        "--dtype",
        "float32",
        "--json",
    ).json
    assert short["measured"] == long["measured"] == "mine.jsonl:question"
    assert short["value"] == long["value"]


def test_a_folder_needs_no_dot_and_slash(ask: Ask, files: Path, model: Path):
    bare, dotted = (
        ask("inspect", name, "--model", model, *SMALL[2:], "--json").json
        for name in ("notes", "./notes")
    )
    assert bare["fingerprint"] == dotted["fingerprint"]
    assert (
        ask(
            "evaluate",
            model,
            "--task",
            "loss(source=notes, tokens=100, length=32)",
            "--dtype",
            "float32",
        ).code
        == 0
    )
    (files / "gsm8k").mkdir()
    assert ask("inspect", "gsm8k", *SMALL[2:]).err != "", "a source's name is that of the source"


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("29 %", "0.29"),
        ("7.5%", "0.075"),
        ("blocks 25%", "blocks 0.25"),
        ("50%+w4g64", "0.5+w4g64"),
        ("0%", "0.0"),
    ],
)
def test_per_cent_is_a_share(written: str, target: str):
    assert str(parse_target(written)) == target


def test_limit_counts_items_and_tokens_count_tokens(ask: Ask, files: Path, model: Path):
    tasks = [
        "loss(source='python_docs', length=32)",
        "perplexity(source='notes', length=16)",
        "task(name='mine.jsonl')",
    ]
    words = (
        "evaluate",
        model,
        *(word for task in tasks for word in ("--task", task)),
        "--dtype",
        "float32",
        "--json",
    )
    assert [score["n"] for score in ask(*words, "--limit", 3).json] == [3, 3, 3]
    loss, perplexity, task = ask(*words, "--limit", 2, "--tokens", 40).json
    assert (loss["n"], task["n"]) == (2, 2)
    assert 40 <= perplexity["facts"]["tokens"] + loss["facts"]["tokens"] <= 40 + 16 + 40 + 32
    assert_refused(
        ask("evaluate", model, "--task", tasks[2], "--tokens", 40),
        "40",
        "task(name='mine.jsonl')",
        "--limit",
    )


def test_a_limit_left_out_changes_no_identity():
    for name in ("loss", "agreement", "perplexity"):
        assert "limit" not in canonical(evaluators.build(name))
        assert canonical(evaluators.build(f"{name}(limit=3)"))["limit"] == 3


WRONG = [
    (("prune", "nowhere", "--out", "out", "--data", "wikitxt"), "wikitxt"),
    (("list", "methdos"), "methdos"),
    (("evaluate", "nowhere", "--task", "loss(toknes=3)"), "toknes"),
    (("list", "--jsonn"), None),
    (("inspect",), None),
    (("prune", "m", "--samples", "many"), None),
]


@pytest.mark.parametrize(("words", "subject"), WRONG)
def test_with_json_an_error_is_json_too(ask_main: Ask, words: tuple[str, ...], subject: str | None):
    plain, answer = ask_main(*words), ask_main(*words, "--json")
    assert (plain.code, plain.out) == (2, "")
    assert (answer.code, answer.err) == (2, plain.err)
    error = answer.json["error"]
    assert set(error) == {"message", "subject", "hint"}
    assert error["message"] + "\n" == plain.err
    assert error["message"].endswith(error["hint"])
    if subject is not None:
        assert error["subject"] == subject
