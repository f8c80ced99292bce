"""What people read who ask for a measurement that can't be had: what was given, what is allowed, what to do."""

import json
from pathlib import Path

import pytest

from calibrant.errors import InputError
from calibrant.evaluators import evaluate, evaluators
from calibrant.models import Opened
from calibrant.testing import tiny_gguf

from tests.evaluators.refusals import overflowing


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("loss(tokens=0)", "loss(tokens=0, length=2048): tokens must be at least 1 and length at least 2"),
        ("perplexity(stride=0)", "stride=0"),
        ("perplexity(length=8, stride=9)", "length=8, stride=9"),
        ("agreement(length=1)", "length=1): tokens must be at least 1 and length at least 2"),
        ("task(limit=0)", "limit=0): shots must be at least 0 and limit at least 1"),
        ("task(style=cloz)", "did you mean 'cloze'"),
        ("generation(shots=-1)", "generation(shots=-1): shots must be at least 0"),
        ("lape(sources=[wikitext, c4])", "each language is a source in quotes"),
        ("lape(sources=['wikitext'])", "name two languages or more, each once"),
        ("lape(sources=['wikitext', 'c4'], lowest=0)", "lowest is a share between 0 and 1"),
        ("harness(task=mine, limit=0)", "harness(limit=0): limit must be at least 1"),
        ("harness", "harness needs task"),
    ],
)
def test_what_cannot_be_meant(spec: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        evaluators.build(spec)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("words(source=MINE)", "isn't known; give --reference"),
        ("task(name=MINE, shots=99)", "exemplars, and 99 were asked for; take fewer shots"),
        ("task(name=MINE, metric=acc)", "neither choices nor numbers"),
        ("task(name=MINE, style=letters)", "has no choices; leave style out"),
        ("task(name=wikitext)", "wikitext can't be rendered as qa"),
        ("task(name=full_stops)", "'full_stops' is a control"),
        ("generation(name=MINE, shots=99)", "exemplars and 99 shots were asked for"),
    ],
)
def test_what_cannot_be_measured(opened: Opened, tmp_path: Path, task: str, sentence: str) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("\n".join(json.dumps({"question": f"Who is number {i}?", "answer": "Nobody knows"}) for i in range(60)))
    with pytest.raises(InputError) as caught:
        evaluate(opened, task.replace("MINE", repr(str(mine))))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"engine": "llama.cpp"}, "there is no engine 'llama.cpp', did you mean 'llama_cpp'?; choose one of torch, llama_cpp"),
        ({"engine": "llama_cpp", "memory": 4.0}, "memory is for a model that is opened here"),
        ({"memory": 0.01}, "GB are held, and memory is"),
        ({"memory": -1.0}, "memory=-1 is no room to work in"),
    ],
)
def test_what_a_file_cannot_be_measured_with(tmp_path: Path, asked: dict[str, object], sentence: str) -> None:
    file = tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises(InputError) as caught:
        evaluate(str(file), "loss(source=python_docs, tokens=64, length=32)", **asked)
    assert sentence in str(caught.value)


def test_outputs_that_are_not_finite(texts: Path) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(overflowing(), f"loss(source='{texts}', tokens=64, length=32)")
    assert "the model's outputs aren't finite" in str(caught.value)
