"""Every score says how many rows of how many it is over."""

import json
from typing import Any

import pytest

from calibrant.data import StoredSource
from calibrant.evaluators import evaluate, evaluators
from calibrant.testing import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "llama"))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mine") / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"How much is {i} and {i}?", "answer": str(2 * i)}) for i in range(60)))
    return str(path)


def facts(model: str, task: str) -> list[dict[str, Any]]:
    (measured,) = evaluate(model, task, dtype="float32")
    return [dict(score.facts) for score in (measured.score, *measured.beside)]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("loss(source='{}', length=64)", None),
        ("perplexity(source='{}', length=64)", None),
        ("task(name='{}')", None),
        ("task(name='{}', limit=5)", 5),
        ("generation(name='{}', max_tokens=2, limit=3, shots=0)", 3),
    ],
)
def test_a_divided_file_says_how_much_of_it_was_measured(model: str, mine: str, task: str, rows: int | None):
    source = evaluators.build(task.format(mine)).reads()
    assert isinstance(source, StoredSource)
    wanted = len(source.part("measure").rows) if rows is None else rows
    assert 0 < wanted < 40
    found = facts(model, task.format(mine))
    assert [(each["rows"], each["rows_of"]) for each in found] == [(wanted, 60)] * len(found)


def test_agreement_says_it_too(model: str, mine: str):
    (measured,) = evaluate(model, f"agreement(source='{mine}', tokens=30, length=32)", reference=model, dtype="float32")
    assert {(s.facts["rows"], s.facts["rows_of"]) for s in (measured.score, *measured.beside)} == {(measured.score.n, 60)}


def test_a_joined_text_counts_the_rows_that_it_reaches(model: str, mine: str):
    few, more = (facts(model, f"perplexity(source='{mine}', length=16, tokens={tokens})")[0] for tokens in (1, 60))
    assert 1 <= few["rows"] < more["rows"] < few["rows_of"] == 60
