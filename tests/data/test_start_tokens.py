"""Start tokens stand where the packing says, and never twice."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, Row, TokenBatch
from calibrant.data._encoding import content_spans
from calibrant.data.calibration import KINDS
from calibrant.data.formats.qa import QA
from calibrant.errors import DataError

BOS = 0


@pytest.fixture
def pairs(jsonl: Callable[..., Path]) -> Path:
    return jsonl({"question": f"{i}+1?", "answer": str(i + 1)} for i in range(100))


def rows(batch: TokenBatch) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]


@pytest.mark.parametrize("packing", ["many", "many(bos='window')", "one", "crop"])
def test_a_start_token_stands_before_every_window_and_counts(
    pairs: Path, letters: PreTrainedTokenizerBase, started: PreTrainedTokenizerBase, packing: str
):
    plain = CalibrationSet(
        f"{pairs}:qa@{packing.replace('window', 'none')}", samples=4, length=15
    ).tokens(letters)
    batch = CalibrationSet(f"{pairs}:qa@{packing}", samples=4, length=16).tokens(started)
    assert rows(batch) == [[BOS, *row] for row in rows(plain)]
    assert batch.facts["tokens"] == plain.facts["tokens"] + 4


def test_a_start_token_is_left_out_or_put_in_where_the_packing_says_so(
    pairs: Path, letters: PreTrainedTokenizerBase, started: PreTrainedTokenizerBase
):
    for packing in ("many(bos='none')", "one(bos='none')"):
        assert not any(
            row.count(BOS)
            for row in rows(
                CalibrationSet(f"{pairs}:qa@{packing}", samples=3, length=64).tokens(started)
            )
        )
    assert all(
        row[0] == BOS
        for row in rows(
            CalibrationSet(f"{pairs}:qa@many(bos='window')", samples=3, length=64).tokens(letters)
        )
    )


@pytest.mark.parametrize(
    ("which", "packing"),
    [("letters", "many(bos='document')"), ("started", "many(isolate=true)")],
)
def test_each_document_has_its_start_token(
    pairs: Path, which: str, packing: str, request: pytest.FixtureRequest
):
    letters = request.getfixturevalue(which)
    batch = CalibrationSet(f"{pairs}:qa@{packing}", samples=4, length=64).tokens(letters)
    if which == "started":
        # Of an isolated text only what goes on in the next window has none.
        places = [row.index(BOS) for row in rows(batch) if BOS in row]
        assert places == [0] * batch.facts["parts"][0]["rows"]
    whole = [i for row in rows(batch) for i in row]
    texts = letters.decode(whole, skip_special_tokens=False).split("<s>")[1:]
    assert len(texts) == batch.facts["parts"][0]["rows"]
    assert all(text.startswith("Question: ") for text in texts)


def test_a_tokenizer_without_a_start_token_cannot_be_asked_for_one(
    pairs: Path, letters: PreTrainedTokenizerBase
):
    letters = type(letters)(
        tokenizer_object=letters.backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    with pytest.raises(DataError) as caught:
        CalibrationSet(f"{pairs}@many(bos='document')", samples=1, length=64).tokens(letters)
    assert caught.value.subject == "document"
    CalibrationSet(str(pairs), samples=1, length=64).tokens(letters)


BEGINS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [BEGINS, PLAIN])
@pytest.mark.parametrize("which", ["letters", "started"])
@pytest.mark.parametrize("packing", ["one", "many(separator='')", "many(isolate=true)", "legacy"])
def test_a_chat_has_exactly_one_start_token(
    pairs: Path,
    template: str,
    which: str,
    packing: str,
    request: pytest.FixtureRequest,
    monkeypatch,
):
    tokenizer = request.getfixturevalue(which)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    wanted = 1 if template == BEGINS or which == "started" else 0
    batch = CalibrationSet(f"{pairs}:chat@{packing}", samples=3, length=48).tokens(tokenizer)
    for row in rows(batch):
        assert all(pair != [BOS, BOS] for pair in map(list, pairwise(row)))
        if packing != "legacy":
            assert row[:1].count(BOS) <= wanted
            assert row.count(BOS) <= wanted
    if packing == "many(isolate=true)":
        starts = sum(row.count(BOS) for row in rows(batch))
        assert starts == wanted * batch.facts["parts"][0]["rows"]
    heads = [row[0] for row in rows(batch)]
    if packing in ("one", "many(separator='')"):
        assert heads.count(BOS) == wanted * len(heads)


DEMANDING = """\
{% if messages[0].content in ("a", "b") %}{{ raise_exception("too short") }}{% endif %}
"""


@pytest.mark.parametrize("template", [BEGINS, PLAIN])
def test_a_template_that_refuses_short_messages_takes_others(
    pairs: Path, template: str, letters: PreTrainedTokenizerBase, monkeypatch
):
    monkeypatch.setattr(letters, "chat_template", DEMANDING.strip() + template)
    data = CalibrationSet(f"{pairs}:chat@one(bos='none')", samples=3, length=48)
    batch = data.tokens(letters)
    texts = [letters.decode(row, skip_special_tokens=False) for row in rows(batch)]
    assert all("[user]" in text for text in texts)
    (facts,) = batch.facts["parts"]
    assert facts["rows"] == 3
    assert not any(text.startswith("<s>") for text in texts)
    batch = CalibrationSet(f"{pairs}:chat@one", samples=3, length=48).tokens(letters)
    assert [row.count(BOS) for row in rows(batch)] == [int(template == BEGINS)] * 3


SYSTEM_FIRST = """\
{% if messages[0].role != "system" %}{{ raise_exception("no system prompt") }}{% endif %}
"""


def test_a_template_that_wants_a_system_prompt_refuses_rows_and_not_the_set(
    jsonl: Callable[..., Path], letters: PreTrainedTokenizerBase, monkeypatch
):
    monkeypatch.setattr(letters, "chat_template", SYSTEM_FIRST.strip() + BEGINS)
    system = {"role": "system", "content": "Be brief."}
    told = {"role": "assistant", "content": "It is that."}
    talks: list[dict[str, list[dict[str, str]]]] = []
    for number in range(60):
        asked = {"role": "user", "content": f"Is it {number}?"}
        messages = [asked, told]
        if number % 3:
            messages.insert(0, system)
        talks.append({"messages": messages})
    path = jsonl(talks)
    batch = CalibrationSet(f"{path}:chat@one", samples=12, length=96).tokens(letters)
    assert sum(batch.facts["parts"][0]["refused"].values()) > 0
    for row in rows(batch):
        assert row[:1] == [BOS]
        assert row.count(BOS) == 1


def test_kinds_say_what_each_token_is(jsonl: Callable[..., Path], started: PreTrainedTokenizerBase):
    path = jsonl({"question": f"{i}+{i}?", "answer": f"{2 * i}"} for i in range(40))
    chosen = CalibrationSet(f"{path}:qa@many(separator='--')", samples=2, length=48)
    batch, kinds = chosen.tokens(started), chosen.kinds(started)
    assert kinds.shape == batch.ids.shape
    for ids, row in zip(batch.ids, kinds, strict=True):
        letters = [
            (started.decode([i]), KINDS[kind])
            for i, kind in zip(ids.tolist(), row.tolist(), strict=True)
        ]
        assert letters[0] == ("<s>", "start")
        assert all(kind != "start" for _, kind in letters[1:])
        assert {kind for letter, kind in letters if letter in "?0123456789+"} == {"content"}
        assert {kind for letter, kind in letters if letter in "QuestionAwr:-\n"} == {"template"}


def test_a_letter_as_an_answer_is_not_looked_for_in_what_asks_for_it():
    row = Row(question="Grass?", choices=("red", "green"), labels=("A", "B"), answer="A")
    text = QA().render(row)
    assert text.endswith("Answer: A")
    assert content_spans(text, row)[-1] == (len(text) - 1, len(text))
