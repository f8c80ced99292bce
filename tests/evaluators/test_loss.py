"""Held-out loss against one token at a time."""

import json
import math
from pathlib import Path

import pytest
import torch

from calibrant.errors import NumericsError, SpecError
from calibrant.evaluators import Subject, evaluate, evaluators
from calibrant.evaluators.loss import Loss
from calibrant.models import Opened, open_model
from calibrant.testing import tiny_folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_model(str(tiny_folder(tmp_path_factory.mktemp("model") / "llama", "llama")), "float64")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"Document {i}: " + "some words é and more of them. " * (1 + i % 4)}) for i in range(60)))
    return path


def documents(opened: Opened, texts: Path) -> list[str]:
    from calibrant.data import held_out

    source, format = held_out(str(texts), None)
    return [format.render(row) for row in source.rows("measure")]


def by_hand(opened: Opened, text: str, length: int) -> tuple[float, int, list[int]]:
    """Summed nats and scored tokens of one document, one prediction at a time, no window longer than `length`."""
    from calibrant.data import start_tokens

    ids, start = opened.tokenizer(text, add_special_tokens=False).input_ids, start_tokens(opened.tokenizer)
    nats, scored, room = 0.0, 0, length - len(start)
    for begin in range(0, len(ids), room):
        window = [*start, *ids[begin : begin + room]]
        for place in range(len(start) or 1, len(window)):
            with torch.no_grad():
                logits = opened.model(torch.tensor([window[:place]])).logits[0, -1].double()
            nats -= float(logits.log_softmax(-1)[window[place]])
            scored += 1
    return nats, scored, ids


@pytest.mark.parametrize("length", [8, 512])
def test_loss_is_the_mean_over_tokens(opened: Opened, texts: Path, length: int) -> None:
    measured = Loss(source=str(texts), tokens=100_000, length=length).measure(Subject(opened.model, opened.tokenizer))
    parts = [by_hand(opened, text, length) for text in documents(opened, texts)]
    nats, tokens = sum(p[0] for p in parts), sum(p[1] for p in parts)
    assert measured.score.value == pytest.approx(nats / tokens, rel=1e-9)
    assert measured.score.facts["tokens"] == tokens
    assert measured.score.facts["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert measured.score.n == measured.score.facts["documents"] == len(parts)
    assert sorted(o.value for o in measured.outcomes) == pytest.approx(sorted(p[0] for p in parts), rel=1e-9)
    assert sum(o.value for o in measured.outcomes) / sum(o.weight for o in measured.outcomes) == pytest.approx(measured.score.value)


def test_bits_per_byte_counts_the_bytes_of_scored_tokens(opened: Opened, texts: Path) -> None:
    measured = Loss(source=str(texts), tokens=100_000, length=512).measure(Subject(opened.model, opened.tokenizer))
    total = 0
    for text in documents(opened, texts):
        encoded = opened.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        total += len(text[encoded["offset_mapping"][1][0] :].encode()) if not _starts(opened) else len(text.encode())
    assert measured.score.facts["bytes"] == pytest.approx(total, abs=total * 0.01)
    bits = sum(o.value for o in measured.outcomes) / math.log(2)
    assert measured.score.facts["bits_per_byte"] == pytest.approx(bits / measured.score.facts["bytes"])


def _starts(opened: Opened) -> bool:
    from calibrant.data import start_tokens

    return bool(start_tokens(opened.tokenizer))


def test_a_budget_buys_documents_first(opened: Opened, texts: Path) -> None:
    everything = Loss(source=str(texts), tokens=100_000, length=8).measure(Subject(opened.model, opened.tokenizer))
    some = Loss(source=str(texts), tokens=everything.score.n * 5, length=8).measure(Subject(opened.model, opened.tokenizer))
    assert some.score.facts["tokens"] < everything.score.facts["tokens"]
    assert some.score.n == pytest.approx(everything.score.n, abs=everything.score.n * 0.4)
    assert some.score.facts["tokens"] >= everything.score.n * 5
    whole = {o.item: o for o in everything.outcomes}
    assert all(o.weight <= whole[o.item].weight for o in some.outcomes)


def test_the_result_does_not_depend_on_the_batch(opened: Opened, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Loss(source=str(texts), tokens=2000, length=32)
    together = loss.measure(Subject(opened.model, opened.tokenizer))
    monkeypatch.setattr("calibrant.evaluators.loss.TOKENS_PER_BATCH", 1)
    alone = loss.measure(Subject(opened.model, opened.tokenizer))
    assert [o.item for o in alone.outcomes] == [o.item for o in together.outcomes]
    assert [o.value for o in alone.outcomes] == pytest.approx([o.value for o in together.outcomes], rel=1e-12)


def test_what_was_measured_is_named_by_the_evaluator(opened: Opened, texts: Path) -> None:
    (measured,) = evaluate(opened, f"loss(source='{texts}', tokens=500, length=64)")
    assert str(texts) in measured.score.measured
    assert measured.score.facts["length"] == 64
    assert measured.provenance["seconds"] > 0
    (fewer,) = evaluate(opened, [Loss(source=str(texts))], tokens=300)
    assert fewer.score.facts["tokens"] < 700


def test_a_model_that_overflows_is_named(opened: Opened, texts: Path, tmp_path: Path) -> None:
    broken = open_model(str(tiny_folder(tmp_path / "llama", "llama")), "float32")
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(NumericsError, match=r"the loss on .*mine.jsonl.* is nan"):
        Loss(source=str(texts), tokens=100).measure(Subject(broken.model, broken.tokenizer))


@pytest.mark.parametrize("bad", ["loss(tokens=0)", "loss(length=1)"])
def test_impossible_budgets_are_refused(bad: str) -> None:
    with pytest.raises(SpecError, match=bad.partition("(")[2].rstrip(")")):
        evaluators.build(bad)


def test_it_says_how_far_it_is(opened: Opened, texts: Path) -> None:
    told: list[tuple[str, int, int]] = []
    (measured,) = evaluate(opened, Loss(source=str(texts), tokens=4000, length=64), progress=lambda *said: told.append(said))
    done = [d for _, d, _ in told]
    assert done == sorted(done)
    assert told[-1][1] == told[-1][2] == measured.score.facts["tokens"]
    assert len(told) > 1
    assert str(texts) in told[0][0]
