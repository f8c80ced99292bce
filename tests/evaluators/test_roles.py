"""Divergence by role: the template's own tokens, questions and answers, where the template is
known.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from calibrant.data import Chat, Message, Row, held_out, start_tokens
from calibrant.errors import DataError, SpecError
from calibrant.evaluators import Subject, evaluators
from calibrant.evaluators.agreement import Agreement, token_roles
from calibrant.models import Opened
from calibrant.results.items import from_bytes, outcomes_of, table_of, to_bytes
from calibrant.results.outcomes import Journal, Measurement
from calibrant.testing import tiny_tokenizer

from tests.databases import forget_last
from tests.refusing import refused

ROLES = ("template", "question", "answer")
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}\n{% endfor %}"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte, and a template that is known."""
    known = tiny_tokenizer()
    known.chat_template = TEMPLATE
    return known


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "mine.jsonl"
    lines: list[str] = []
    for number in range(40):
        row = {
            "question": f"How many é are {number} and {number + 1}?",
            "answer": str(2 * number + 1),
        }
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


def written(row: Row) -> tuple[str, list[str]]:
    """The text of a row in the known template, and the role of each byte, put down by hand."""
    pieces = [
        ("[user]", "template"),
        (row.need("question"), "question"),
        ("\n[assistant]", "template"),
        (row.need("answer"), "answer"),
        ("\n", "template"),
    ]
    text = "".join(piece for piece, _ in pieces)
    roles: list[str] = []
    for piece, role in pieces:
        roles += [role] * len(piece.encode())
    return text, roles


def measure(
    opened: Opened, pruned: Opened, tokenizer: PreTrainedTokenizerBase, agreement: Agreement
) -> Measurement:
    return agreement.measure(Subject(pruned.model, tokenizer, opened.model))


def test_each_token_has_the_role_of_its_letters(tokenizer: PreTrainedTokenizerBase) -> None:
    row = Row(question="Is é 5?", answer="5")
    _, roles = written(row)
    assert token_roles(row, Chat(), tokenizer) == roles
    # What the system is told is no question; the template takes spaces off what is said.
    turns = (
        Message("system", "Be 5."),
        Message("user", " 5 "),
        Message("assistant", "5\n"),
        Message("user", "user"),
    )
    ids = tokenizer("[system]Be 5.\n[user]5\n[assistant]5\n[user]user\n").input_ids
    found = token_roles(Row(turns=turns), Chat(), tokenizer)
    assert len(found) == len(ids)
    places = {role: [n for n, known in enumerate(found) if known == role] for role in ROLES}
    assert places["question"] == [20, 41, 42, 43, 44]
    assert places["answer"] == [33]
    # A template may take space off one side only.
    for way, said in (("lstrip", "hi "), ("rstrip", " hi")):
        tokenizer.chat_template = (
            "{% for m in messages %}[{{ m.content.WAY() }}]{% endfor %}".replace("WAY", way)
        )
        talk = Row(turns=(Message("user", " hi "), Message("assistant", "yes")))
        found = token_roles(talk, Chat(), tokenizer)
        assert found == [
            "template",
            *["question"] * len(said),
            "template",
            "template",
            *["answer"] * 3,
            "template",
        ]


Told = tuple[float, bool, float]
"""Of a token: its divergence, whether it is predicted alike, its own nats."""


def by_hand(
    opened: Opened, pruned: Opened, tokenizer: PreTrainedTokenizerBase, row: Row
) -> dict[str, list[Told]]:
    """What each scored token of a row gives, by role, one position at a time."""
    text, roles = written(row)
    start = start_tokens(tokenizer)
    ids = [*start, *tokenizer(text, add_special_tokens=False).input_ids]
    with torch.no_grad():
        old = opened.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        new = pruned.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found: dict[str, list[Told]] = {role: [] for role in ROLES}
    for place in range(len(start) or 1, len(ids)):
        before, after = old[place - 1], new[place - 1]
        divergence = float((before.exp() * (before - after)).sum())
        alike = int(before.argmax()) == int(after.argmax())
        found[roles[place - len(start)]].append((divergence, alike, -float(after[ids[place]])))
    return found


@pytest.mark.parametrize("length", [16, 512])
def test_the_roles_add_up_to_the_whole(
    opened: Opened, pruned: Opened, questions: Path, tokenizer: PreTrainedTokenizerBase, length: int
) -> None:
    given = {"source": str(questions), "format": "chat", "tokens": 10_000, "length": length}
    whole = measure(opened, pruned, tokenizer, Agreement(**given))
    told = measure(opened, pruned, tokenizer, Agreement(**given, roles=True))
    assert told.score == whole.score
    assert told.beside[: len(whole.beside)] == whole.beside
    for one, plain in zip(told.outcomes, whole.outcomes, strict=True):
        assert (one.item, one.value, one.weight) == (plain.item, plain.value, plain.weight)
        sums = {
            fact: sum(one.facts[f"{fact}_{role}"] for role in ROLES)
            for fact in ("tokens", "kl", "agreed", "nats")
        }
        assert sums["tokens"] == one.weight
        assert sums["kl"] == pytest.approx(one.value, rel=1e-9)
        assert sums["agreed"] == one.facts["agreed"]
        assert sums["nats"] == pytest.approx(one.facts["nats"], rel=1e-6)
        assert all(one.facts[f"tokens_{role}"] for role in ROLES)


def test_each_role_has_the_scores_of_its_own_tokens(
    opened: Opened, pruned: Opened, questions: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = {"source": str(questions), "format": "chat", "tokens": 10_000, "length": 512}
    agreement = Agreement(**given, roles=True)
    measured = measure(opened, pruned, tokenizer, agreement)
    source, _ = held_out(str(questions), "chat")
    found = [by_hand(opened, pruned, tokenizer, row) for row in source.rows("measure")]
    scores = {score.metric: score for score in measured.beside}
    for role in ROLES:
        tokens = [token for row in found for token in row[role]]
        for number, metric in enumerate(("kl", "top1_agreement", "loss")):
            score = scores[f"{metric}_{role}"]
            mean = sum(token[number] for token in tokens) / len(tokens)
            assert score.value == pytest.approx(mean, rel=1e-5)
            assert score.facts["tokens"] == len(tokens)
            assert score.n == len(found)


def test_a_measurement_that_was_killed_ends_as_one_that_was_not(
    opened: Opened,
    pruned: Opened,
    questions: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    agreement = Agreement(source=str(questions), format="chat", tokens=2_000, length=64, roles=True)
    once = Subject(
        pruned.model, tokenizer, opened.model, journal=Journal(tmp_path / "journal", "?")
    )
    measured = agreement.measure(once)
    windows = len(once.journal)
    assert windows > 6
    forget_last(tmp_path / "journal", 3)  # what a kill left
    again = Subject(
        pruned.model, tokenizer, opened.model, journal=Journal(tmp_path / "journal", "?")
    )
    assert len(again.journal) == windows - 3
    assert agreement.measure(again) == measured
    assert len(again.journal) == windows
    kept = from_bytes(to_bytes(table_of(measured.outcomes)))
    assert outcomes_of(kept) == measured.outcomes


def test_what_is_no_conversation_has_no_roles(
    opened: Opened, questions: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    agreement = evaluators.build(f"agreement(source='{questions}', format=qa, roles=true)")
    with refused(SpecError, agreement):
        agreement.check()
    with refused(SpecError, agreement):
        measure(opened, opened, tokenizer, agreement)
    evaluators.build("agreement(source=gsm8k, format=chat, roles=true)").check()


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content | length }}{% endfor %}",
    ],
)
def test_a_template_that_changes_what_is_said_is_refused(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    row = Row(question="What is two and three?", answer="five")
    with refused(DataError, row.key):
        token_roles(row, Chat(), tokenizer)
