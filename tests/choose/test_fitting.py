"""Budgets that a small file can give, and the sentence about it."""

import json
from pathlib import Path

import pytest
from studies.siblings.targets import rows
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet
from calibrant.errors import DataError
from calibrant.lab.choose.fitting import fit, own_files
from calibrant.lab.choose.goal import Goal, parse_goal
from calibrant.lab.choose.halves import Halves, halves_of
from calibrant.testing import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """One of bytes."""
    return tiny_tokenizer()


def goal_of(
    count: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Goal, tuple[Halves, ...]]:
    """A file with some rows as the target, and its halves."""
    monkeypatch.chdir(folder)
    Path("mine.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows("problems", 0, count))
    )
    goal = parse_goal(["mine.jsonl"], 8192, 200, 512)
    halves = [halves_of(file, Path("halves")) for file in own_files(goal.sources)]
    return goal, tuple(each for each in halves if isinstance(each, Halves))


def test_a_small_file_lowers_the_budgets_and_every_draw_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    goal, halves = goal_of(120, tmp_path, monkeypatch)
    fitted = fit(["mine.jsonl:icl", "python_docs"], goal, halves, 8192, 512, tokenizer)
    assert len(fitted.halves) == 1
    assert 256 <= fitted.tokens < 8192
    for each in (
        "mine.jsonl:icl",
        halves[0].replaced_in("mine.jsonl:icl", 0),
        halves[0].replaced_in("mine.jsonl:icl", 1),
        "python_docs",
    ):
        for draw in range(fitted.rounds):
            assert (
                CalibrationSet(each, tokens=fitted.tokens, length=fitted.length, seed=draw)
                .tokens(tokenizer)
                .facts["tokens"]
                == fitted.tokens
            )
    for each in (goal.judge, halves[0].replaced_in(goal.judge, 0)):
        judged = (
            CalibrationSet(each, tokens=fitted.judge_tokens, length=fitted.length, seed=1)
            .held_out()
            .tokens(tokenizer)
        )
        assert judged.facts["tokens"] == fitted.judge_tokens
    assert f"{fitted.tokens:,} tokens" in fitted.said
    ((_, measure),) = fitted.goal.measures
    assert getattr(measure, "tokens", 8192) < 8192, "what is measured on is no more than there is"


def test_where_there_is_enough_nothing_is_lowered_and_nothing_said(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    fitted = fit(
        ["python_docs", "python_code"],
        parse_goal(["python_docs"], 2048, 20, 128),
        (),
        2048,
        128,
        tokenizer,
    )
    assert (fitted.tokens, fitted.judge_tokens, fitted.length, fitted.said) == (2048, 2048, 128, "")


def test_next_to_nothing_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text("".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(20)))
    with pytest.raises(DataError) as caught:
        fit(
            ["mine.jsonl", "python_docs"],
            parse_goal(["mine.jsonl"], 2048, 20, 128),
            (),
            2048,
            128,
            tokenizer,
        )
    assert caught.value.subject == "mine.jsonl"


def test_the_sentence_names_the_set_that_holds_least_and_no_selector_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("mine.jsonl", 200), ("few.jsonl", 20)):
        texts = [
            f"{number} and {number} make {2 * number}, as you know." for number in range(count)
        ]
        Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    goal = parse_goal(["mine.jsonl"], 2048, 20, 128)
    longest = "0.5*mine.jsonl + 0.5*longest(source='mine.jsonl')"
    candidates = ["mine.jsonl", "few.jsonl", longest]
    fitted = fit(candidates, goal, (), 2048, 128, tokenizer)
    assert fitted.said.startswith("few.jsonl holds ")
