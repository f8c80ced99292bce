"""Measurements that can't be had: which error it is, what it is about, and what people read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.errors import DataError, InputError, SpecError
from calibrant.evaluators import evaluate, evaluators
from calibrant.models import Opened
from calibrant.testing import tiny_gguf


@pytest.mark.parametrize(
    ("spec", "subject", "sentence"),
    [
        ("loss(tokens=0)", "tokens", "loss(tokens=0): tokens must be at least 1"),
        ("perplexity(tokens=0)", "tokens", "tokens must be at least 1"),
        ("perplexity(length=8, stride=9)", "stride", "length=8, stride=9"),
        ("task(limit=0)", "limit", "task(limit=0): limit must be at least 1"),
        ("task(style=cloz)", "style", "perhaps you mean 'cloze'"),
        ("task(metric=accuracy)", "metric", "metric='accuracy'"),
        ("generation(shots=-1)", "shots", "generation(shots=-1): shots must be at least 0"),
        ("influence(limit=0)", "limit", "limit must be at least 1"),
        ("words(shuffles=0)", "shuffles", "shuffles must be at least 1"),
        (
            "lape(sources=[1, 2])",
            "sources",
            "lape(sources=[1, 2]): sources must be a list of names or of texts in quotes",
        ),
        ("lape(sources=[wikitext, wikitext])", "sources", "name two languages or more, each once"),
        (
            "lape(sources=['wikitext', 'c4'], lowest=0)",
            "lowest",
            "lowest is a share between 0 and 1",
        ),
        ("harness(task=mine, limit=0)", "limit", "harness(limit=0): limit must be at least 1"),
        ("harness(task=mine, num_fewshot=-1)", "num_fewshot", "num_fewshot must be at least 0"),
        ("harness", "task", "harness needs task"),
    ],
)
def test_what_cannot_be_meant(spec: str, subject: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        evaluators.build(spec)
    assert caught.value.subject == subject
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("task", "error", "subject", "sentence"),
    [
        ("words(source='MINE')", SpecError, "MODEL", "isn't known; give --reference"),
        ("words(groups=lemmass)", SpecError, "lemmass", "perhaps you mean 'lemmas'"),
        (
            "task(name='MINE', shots=99)",
            DataError,
            "MINE",
            "exemplars, and 99 were asked for; take fewer shots",
        ),
        ("task(name='MINE', metric=acc)", DataError, "MINE", "neither choices nor numbers"),
        ("task(name='MINE', style=letters)", DataError, "MINE", "has no choices; leave style out"),
        ("task(name='MINE', metric=solution)", DataError, "solution", "use one of loss"),
        ("task(name=full_stops)", DataError, "full_stops", "'full_stops' is a control"),
        (
            "generation(name='MINE', shots=99)",
            DataError,
            "MINE",
            "exemplars and 99 shots were asked for",
        ),
    ],
)
def test_what_cannot_be_measured(
    opened: Opened, tmp_path: Path, task: str, error: type[InputError], subject: str, sentence: str
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text(
        "\n".join(
            json.dumps({"question": f"Who is number {i}?", "answer": "Nobody knows"})
            for i in range(60)
        )
    )
    with pytest.raises(error) as caught:
        evaluate(opened, tasks=task.replace("MINE", str(mine)))
    assert caught.value.subject == subject.replace("MINE", str(mine)).replace("MODEL", opened.name)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"engine": "llama.cpp"},
            "there is no engine 'llama.cpp', perhaps you mean 'llama_cpp'; choose one of torch, "
            "llama_cpp",
        ),
        ({"engine": "llama_cpp", "memory": 4.0}, "memory is for a model that is opened here"),
        ({"memory": 0.01}, "GB are held, and memory is"),
        ({"memory": -1.0}, "memory=-1 is no room to work in"),
        (
            {"tasks": "lape", "limit": 8},
            "can't be given limit=8; use --tokens for a budget of tokens",
        ),
        (
            {"tasks": "influence", "tokens": 8},
            "can't be given tokens=8; use --limit for the number of items",
        ),
    ],
)
def test_what_a_file_cannot_be_measured_with(
    tmp_path: Path, asked: dict[str, object], sentence: str
) -> None:
    file = tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises(InputError) as caught:
        evaluate(str(file), **{"tasks": "loss(source=python_docs, tokens=64, length=32)", **asked})
    assert sentence in str(caught.value)


RULER = """
import math
from dataclasses import dataclass, replace
import numpy as np
from calibrant.evaluators import Evaluator
from calibrant.results.outcomes import Measurement, Outcome, Score

SCORE = Score("lines", "length", 2.0, None, 2, "cm", "lower")
ITEMS = (Outcome("a", 1.0), Outcome("b", 3.0))


def changed(name, value):
    score = replace(SCORE)
    object.__setattr__(score, name, value)  # no type is checked, as with users
    return score


GIVEN = {
    "sound": Measurement(SCORE, ITEMS),
    "without items": Measurement(replace(SCORE, n=7)),
    "value": Measurement(replace(SCORE, value=9.0), ITEMS),
    "better": Measurement(changed("better", "smaller")),
    "name": Measurement(SCORE, tuple(replace(item, item="a") for item in ITEMS)),
    "n": Measurement(replace(SCORE, n=9), ITEMS),
    "nan": Measurement(replace(SCORE, value=math.nan)),
    "float32": Measurement(changed("value", np.float32(2)), ITEMS),
    "facts": Measurement(SCORE, (ITEMS[0], replace(ITEMS[1], facts={"hit": True}))),
    "mixed": Measurement(
        SCORE, (replace(ITEMS[0], facts={"hit": 1}), replace(ITEMS[1], facts={"hit": "no"}))
    ),
    "nothing": None,
}

@dataclass(frozen=True, repr=False)
class Ruler(Evaluator):
    given: str = "sound"

    def measure(self, subject):
        return GIVEN[self.given]

    def rows(self):
        return []

    def limited(self, limit):
        return self
"""


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("value", "its items give 2.0, and the score is 9.0"),
        ("better", "Invalid enum value 'smaller'"),
        ("name", "2 items have the name 'a'"),
        ("n", "has 2 items, and the score is over 9"),
        ("nan", "its score is no number"),
        ("float32", "float32"),
        ("facts", "the facts of 'b' aren't those of the first item"),
        ("mixed", "it can't be written and read again ("),
        ("nothing", "gives no Measurement, but a NoneType"),
    ],
)
def test_what_an_evaluator_of_another_package_must_not_give(
    opened: Opened, plugged: Callable[..., None], given: str, sentence: str
) -> None:
    plugged({"calibrant.evaluators": {"ruler": "rulers:Ruler"}}, rulers=RULER)
    with pytest.raises(SpecError) as caught:
        evaluate(opened, tasks=f"ruler(given={given!r})")
    assert caught.value.subject == f"ruler(given={given!r})"
    assert sentence in str(caught.value)
    assert str(caught.value).endswith("; mend rulers:Ruler, or leave it out")


def test_what_an_evaluator_of_another_package_may_give(
    opened: Opened, plugged: Callable[..., None]
) -> None:
    plugged({"calibrant.evaluators": {"ruler": "rulers:Ruler"}}, rulers=RULER)
    evaluate(opened, tasks=["ruler", "ruler(given='without items')"])
    for budget in ({"limit": 3}, {"tokens": 300}):
        with pytest.raises(SpecError, match="none of these has a parameter limit or tokens"):
            evaluate(opened, tasks="ruler", **budget)
    with pytest.raises(KeyError) as caught:
        evaluate(opened, tasks="ruler(given='raises')")
    assert caught.value.__notes__ == ["ruler(given='raises') failed"]
