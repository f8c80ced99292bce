"""Perplexity against a literal loop over windows, in float64."""

import json
import math
from pathlib import Path

import pytest
import torch

from calibrant.data import held_out
from calibrant.errors import DataError, NumericsError
from calibrant.evaluators import Subject
from calibrant.evaluators.loss import Loss
from calibrant.evaluators.perplexity import Perplexity, joined_rows
from calibrant.models import Opened
from calibrant.results.outcomes import Journal

from tests.data.conftest import byte_tokenizer
from tests.databases import forget_last
from tests.refusing import overflowing, refused

LINES = [
    "",
    " = One = \n",
    "",
    " Some words of it . \n",
    " And é more . \n",
    "",
    " = Two = \n",
    "",
    " Others , quite a few of them . \n",
]


@pytest.fixture(scope="module")
def started(opened: Opened) -> Opened:
    """The same model with a tokenizer that puts a start token before a text."""
    return Opened(
        opened.model, byte_tokenizer(start=True), "started", "sha256:0", "", torch.float64
    )


@pytest.fixture
def wikitext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "mirror" / "wikitext2_raw"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(
            "\n".join(json.dumps({"text": line}) for line in LINES)
        )
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path / "mirror"))
    return "wikitext"


def documents(path: Path) -> list[str]:
    source, format = held_out(str(path), None)
    return [format.render(row) for row in source.rows("measure")]


def strided(model, ids: list[int], length: int, stride: int) -> tuple[float, int, list[int]]:
    """The loop of transformers' documentation, one prediction at a time; the tokens that each
    window scores.
    """
    nats, scored, previous = 0.0, [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        window, targets = ids[begin:end], end - previous
        places = [place for place in range(len(window) - targets, len(window)) if place > 0]
        for place in places:
            with torch.no_grad():
                logits = model(torch.tensor([window[:place]])).logits[0, -1].double()
            nats += float(logits.logsumexp(-1) - logits[window[place]])
        scored.append(len(places))
        previous = end
        if end == len(ids):
            break
    return nats, sum(scored), scored


@pytest.mark.parametrize(
    ("length", "stride", "tokenizer"),
    [
        (16, 4, "plain"),
        (16, 16, "started"),
        (5, 3, "started"),
        (5000, 200, "plain"),
        pytest.param(16, 1, "plain", marks=pytest.mark.slow),
        pytest.param(16, 4, "started", marks=pytest.mark.slow),
    ],
)
def test_strided_is_the_literal_loop(
    opened: Opened, started: Opened, texts: Path, length: int, stride: int, tokenizer: str
) -> None:
    used = started if tokenizer == "started" else opened
    ids = used.tokenizer("\n\n".join(documents(texts))).input_ids
    measured = Perplexity(source=str(texts), length=length, stride=stride, tokens=10**6).measure(
        Subject(used.model, used.tokenizer)
    )
    nats, tokens, each = strided(used.model, ids, length, stride)
    assert (
        measured.score.facts["tokens"] == tokens == len(ids) - (1 if stride < length else len(each))
    )
    assert measured.score.value == pytest.approx(nats / tokens, rel=1e-9)
    assert [o.weight for o in measured.outcomes] == [count for count in each if count]
    assert measured.score.facts["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert measured.score.facts["stride"] == stride


@pytest.mark.parametrize("tokenizer", ["plain", "started"])
def test_whole_windows_are_the_papers(
    opened: Opened, started: Opened, texts: Path, tokenizer: str
) -> None:
    """As the code of SparseGPT and Wanda: whole windows, the mean of their mean losses."""
    used, length = started if tokenizer == "started" else opened, 32
    ids = torch.tensor([used.tokenizer("\n\n".join(documents(texts))).input_ids])
    losses = []
    for i in range(ids.numel() // length):
        batch = ids[:, i * length : (i + 1) * length]
        with torch.no_grad():
            logits = used.model(batch).logits
        losses.append(torch.nn.CrossEntropyLoss()(logits[0, :-1], batch[0, 1:]))
    measured = Perplexity(source=str(texts), length=length, tokens=10**6).measure(
        Subject(used.model, used.tokenizer)
    )
    assert measured.score.facts["perplexity"] == pytest.approx(
        float(torch.stack(losses).mean().exp()), rel=1e-9
    )
    assert measured.score.n == measured.score.facts["windows"] == len(losses)
    assert {o.weight for o in measured.outcomes} == {length - 1}
    assert measured.score.facts["error_over"] == "windows"
    assert measured.score.measured.endswith("mine.jsonl:text, joined")


def test_wikitext_is_joined_as_the_papers_join_it(opened: Opened, wikitext: str) -> None:
    perplexity = Perplexity(source=wikitext, length=16, tokens=10**6)
    source, format = held_out(wikitext)
    assert "\n\n".join(
        joined_rows(source, perplexity.rows(), format, opened.tokenizer, 10**6)
    ) == "\n\n".join(LINES)
    ids = opened.tokenizer("\n\n".join(LINES)).input_ids
    facts = perplexity.measure(Subject(opened.model, opened.tokenizer)).score.facts
    assert facts["windows"] == len(ids) // 16
    assert facts["rows_of"] == len(LINES)
    assert 0 < facts["rows"] <= len(LINES)


def test_document_by_document(opened: Opened, texts: Path) -> None:
    measured = Perplexity(
        source=str(texts), length=16, stride=4, tokens=10**6, joined=False
    ).measure(Subject(opened.model, opened.tokenizer))
    parts = [
        strided(opened.model, opened.tokenizer(text).input_ids, 16, 4) for text in documents(texts)
    ]
    assert measured.score.value == pytest.approx(
        sum(p[0] for p in parts) / sum(p[1] for p in parts), rel=1e-9
    )
    assert sorted(o.value for o in measured.outcomes) == pytest.approx(
        sorted(p[0] for p in parts), rel=1e-9
    )
    assert measured.score.n == len(parts)
    assert measured.score.facts["error_over"] == "documents"
    loss = Loss(source=str(texts), length=16, tokens=10**6).measure(
        Subject(opened.model, opened.tokenizer)
    )
    whole = Perplexity(source=str(texts), length=16, tokens=10**6, joined=False).measure(
        Subject(opened.model, opened.tokenizer)
    )
    assert whole.outcomes == loss.outcomes, "without a stride and a start token that is the loss"
    assert whole.score.facts["bits_per_byte"] == pytest.approx(loss.score.facts["bits_per_byte"])


def test_a_killed_one_goes_on(
    opened: Opened, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrant.evaluators.loss.TOKENS_PER_BATCH", 64)
    perplexity, path = (
        Perplexity(source=str(texts), length=16, tokens=10**6),
        tmp_path / "journal.jsonl",
    )
    whole = perplexity.measure(Subject(opened.model, opened.tokenizer, journal=Journal(path, "q")))
    known = len(Journal(path, "q"))
    forget_last(path, known // 2)
    calls: list[int] = []
    hook = opened.model.register_forward_hook(lambda *_: calls.append(1))
    again = perplexity.measure(Subject(opened.model, opened.tokenizer, journal=Journal(path, "q")))
    hook.remove()
    assert again == whole
    assert 0 < len(calls) < known / 4


def test_what_cannot_be_measured_is_refused_by_name(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, perplexity = overflowing(), Perplexity(source=str(texts), length=16, tokens=50)
    with refused(NumericsError, f"{texts}:text, joined"):
        perplexity.measure(Subject(broken.model, broken.tokenizer))
    monkeypatch.setattr(Perplexity, "rows", lambda self: iter(()))
    with refused(DataError, perplexity.held_out()[0]):
        perplexity.measure(Subject(broken.model, broken.tokenizer))
