"""Words left out of questions, against forwards of single texts in float64."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from calibrant.data import start_tokens
from calibrant.errors import DataError, SpecError
from calibrant.evaluators import Subject
from calibrant.evaluators.influence import LeftOutWords
from calibrant.testing import tiny_model, tiny_tokenizer

from tests.refusing import refused

ANIMALS = ("cat", "dog", "owl", "fox")
ROWS = [
    {"question": f"The {a} saw the {b}, {n} times. Who saw the {b}?", "answer": f"The {a}"}
    for n, (a, b) in enumerate((a, b) for a in ANIMALS for b in ANIMALS if a != b)
]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "animals.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def nats(model: PreTrainedModel, context: str, continuation: str) -> float:
    """The summed loss of a continuation, with a tokenizer of bytes."""
    spoken = tiny_tokenizer()
    before, after = (
        [*spoken(text, add_special_tokens=False).input_ids] for text in (context, continuation)
    )
    ids = [*start_tokens(spoken), *before, *after]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return sum(
        float(logits[at - 1].logsumexp(0) - logits[at - 1][ids[at]])
        for at in range(len(ids) - len(after), len(ids))
    )


def test_it_is_what_single_forwards_give(questions: Path) -> None:
    dense, other = tiny_model("llama", torch.float64), tiny_model("llama", torch.float64)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(0.7)
    task = LeftOutWords(name=str(questions), limit=4)
    measured = task.measure(Subject(other, tiny_tokenizer(), dense))
    rows = list(task.rows())[:4]
    contexts = [f"Question: {row.question}\nAnswer:" for row in rows]
    in_all = set.intersection(*(set(re.findall(r"\w+", text.lower())) for text in contexts))
    expected: dict[str, tuple[float, float]] = {}
    by_word: dict[str, list[float]] = {}
    for row, text in zip(rows, contexts, strict=True):
        top = bottom = 0.0
        for word in sorted(set(re.findall(r"\w+", text.lower())) - in_all):
            without = re.sub(rf" ?\b{word}\b", "", text, flags=re.IGNORECASE)
            was, now = (
                nats(model, without, f" {row.answer}") - nats(model, text, f" {row.answer}")
                for model in (dense, other)
            )
            top, bottom = top + was * now, bottom + was * was
            by_word.setdefault(word, []).append(was)
        expected[row.name] = top, bottom
    assert {
        o.item: (pytest.approx(o.value, rel=1e-6), pytest.approx(o.weight, rel=1e-6))
        for o in measured.outcomes
    } == expected
    value = sum(top for top, _ in expected.values()) / sum(
        bottom for _, bottom in expected.values()
    )
    assert measured.score.value == pytest.approx(value, rel=1e-6)
    assert measured.score.value != pytest.approx(1, abs=1e-3)
    table = measured.score.facts["influences"]
    several = {word: sum(each) / len(each) for word, each in by_word.items() if len(each) > 1}
    assert dict(zip(table["word"], table["dense"], strict=True)) == pytest.approx(several, abs=1e-5)
    assert table["dense"] == sorted(table["dense"], reverse=True)
    assert "question" not in table["word"]


def test_the_untouched_model_keeps_all(questions: Path) -> None:
    measured = LeftOutWords(name=str(questions), limit=3).measure(
        Subject(tiny_model("llama"), tiny_tokenizer(), tiny_model("llama"))
    )
    assert measured.score.value == 1
    assert {o.value / o.weight for o in measured.outcomes} == {1.0}


def test_what_cannot_be_asked_is_refused(questions: Path, tmp_path: Path) -> None:
    task, model = LeftOutWords(name=str(questions)), tiny_model("llama")
    with refused(SpecError, task):
        task.measure(Subject(model, tiny_tokenizer()))
    same = tmp_path / "same.jsonl"
    same.write_text(
        "\n".join(json.dumps({"question": "Who?", "answer": f"nobody {n}"}) for n in range(30))
    )
    with refused(DataError, same):
        LeftOutWords(name=str(same)).measure(Subject(model, tiny_tokenizer(), model))
