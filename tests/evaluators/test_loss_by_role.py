"""The loss of what one role writes, against one prediction at a time."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from calibrant.data import Row, held_out
from calibrant.errors import DataError, SpecError
from calibrant.evaluators import Subject, evaluators
from calibrant.evaluators.loss import Loss
from calibrant.models import Opened
from calibrant.testing import tiny_tokenizer

from tests.refusing import refused

TEMPLATE = """\
{%- for m in messages %}
{{- '[' + m.role + ']' }}
{%- if m.reasoning_content %}{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}
{%- if 'loud' in m.content %}{{- m.content | upper }}{%- else %}{{- m.content }}{%- endif %}
{{- eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"""
SCORED = {
    "assistant": {"markup", "reasoning", "answer"},
    "answer": {"answer"},
    "question": {"question"},
    "template": {"template"},
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte, but for the end token, and a template that is known."""
    known = tiny_tokenizer()
    known.chat_template = TEMPLATE
    return known


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of which every fifth is written otherwise than it is said."""
    path = tmp_path_factory.mktemp("talks") / "mine.jsonl"
    lines: list[str] = []
    for number in range(60):
        answer = {"role": "assistant", "content": f"{number} é"}
        if number % 2:
            answer["reasoning_content"] = f"{number} and none"
        question = f"How many é are {number}?"
        if number % 5 == 0:
            question += " (loud)"
        messages = [{"role": "user", "content": question}, answer]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines))
    return path


def known_tokens(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, str]]:
    """The tokens of a row in the known template, each with its role, put down by hand."""
    question, answer = row.turns
    pieces = [("[user]", "template"), (question.content or "", "question")]
    pieces += [("<eos>\n[assistant]", "template")]
    if answer.reasoning:
        pieces += [("<think>", "markup"), (answer.reasoning, "reasoning"), ("</think>", "markup")]
    pieces += [(answer.content or "", "answer"), ("<eos>", "markup"), ("\n", "template")]
    tokens: list[tuple[int, str]] = []
    for text, role in pieces:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        tokens += [(token, role) for token in ids]
    return tokens


def by_hand(
    opened: Opened, tokens: list[tuple[int, str]], roles: set[str], length: int
) -> tuple[float, int]:
    """Summed nats and number of a row's tokens of these roles, no window longer than `length`."""
    nats = 0.0
    scored = 0
    for begin in range(0, len(tokens), length):
        window = tokens[begin : begin + length]
        for place in range(1, len(window)):
            token, role = window[place]
            if role in roles:
                shown = torch.tensor([[before for before, _ in window[:place]]])
                with torch.no_grad():
                    logits = opened.model(shown).logits[0, -1].double()
                nats += float(logits.exp().sum().log() - logits[token])
                scored += 1
    return nats, scored


@pytest.mark.parametrize("length", [16, 512])
@pytest.mark.parametrize("role", SCORED)
def test_only_tokens_of_the_role_are_scored(
    opened: Opened, tokenizer: PreTrainedTokenizerBase, talks: Path, role: str, length: int
) -> None:
    loss = Loss(source=str(talks), format="chat", tokens=100_000, length=length, of=role)
    measured = loss.measure(Subject(opened.model, tokenizer))
    source, _ = held_out(str(talks), "chat")
    expected: dict[str, tuple[float, int]] = {}
    unclear = 0
    for row in source.rows("measure"):
        if "loud" in (row.turns[0].content or ""):
            unclear += 1
        else:
            tokens = known_tokens(row, tokenizer)
            expected[row.name] = by_hand(opened, tokens, SCORED[role], length)
    assert unclear
    assert measured.score.facts["unclear"] == unclear
    found = {outcome.item: outcome for outcome in measured.outcomes}
    assert set(found) == set(expected)
    for name, (nats, scored) in expected.items():
        assert found[name].value == pytest.approx(nats, rel=1e-9)
        assert found[name].weight == scored
    whole = sum(nats for nats, _ in expected.values())
    count = sum(scored for _, scored in expected.values())
    assert measured.score.value == pytest.approx(whole / count, rel=1e-9)
    assert measured.score.facts["tokens"] == count
    assert measured.score.facts["perplexity"] == pytest.approx(math.exp(whole / count))
    assert measured.score.measured == f"{source}:chat, {role}"
    assert "bytes" not in measured.score.facts


def test_windows_without_the_role_give_no_outcome(
    opened: Opened, tokenizer: PreTrainedTokenizerBase, talks: Path
) -> None:
    # First windows alone are shown, which end in the question.
    loss = Loss(source=str(talks), format="chat", tokens=16, length=16, of="assistant")
    with refused(DataError, loss):
        loss.measure(Subject(opened.model, tokenizer))
    some = Loss(source=str(talks), format="chat", tokens=100_000, length=64, of="assistant")
    whole = Loss(source=str(talks), format="chat", tokens=100_000, length=512, of="assistant")
    subject = Subject(opened.model, tokenizer)
    assert {o.item for o in some.measure(subject).outcomes} == {
        o.item for o in whole.measure(subject).outcomes
    }


def test_the_default_is_what_it_was(
    opened: Opened, tokenizer: PreTrainedTokenizerBase, talks: Path
) -> None:
    plain = Loss(source=str(talks), format="chat", tokens=1_000, length=64)
    assert str(Loss(source=str(talks), of="all")) == str(Loss(source=str(talks)))
    measured = plain.measure(Subject(opened.model, tokenizer))
    assert "unclear" not in measured.score.facts
    assert measured.score.facts["bytes"] > 0


def test_roles_are_those_of_a_conversation(opened: Opened, talks: Path) -> None:
    loss = evaluators.build(f"loss(source='{talks}', format=qa, of=answer)")
    with refused(SpecError, loss):
        loss.check()
    with refused(SpecError, loss):
        loss.measure(Subject(opened.model, opened.tokenizer))
    with refused(SpecError, "assistent"):
        Loss(of="assistent")
