"""Held-out loss against one token at a time, and the errors of means."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.data import held_out, start_tokens
from calibrant.errors import NumericsError
from calibrant.evaluators import Subject
from calibrant.evaluators._base import ratio
from calibrant.evaluators.loss import Loss
from calibrant.models import Opened

from tests.refusing import overflowing, refused


def documents(texts: Path) -> list[str]:
    source, format = held_out(str(texts), None)
    return [format.render(row) for row in source.rows("measure")]


def by_hand(opened: Opened, text: str, length: int) -> tuple[float, int, list[int]]:
    """Summed nats and scored tokens of one document, one prediction at a time, no window longer
    than `length`.
    """
    ids, start = (
        opened.tokenizer(text, add_special_tokens=False).input_ids,
        start_tokens(opened.tokenizer),
    )
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
    measured = Loss(source=str(texts), tokens=100_000, length=length).measure(
        Subject(opened.model, opened.tokenizer)
    )
    parts = [by_hand(opened, text, length) for text in documents(texts)]
    nats, tokens = sum(p[0] for p in parts), sum(p[1] for p in parts)
    assert measured.score.value == pytest.approx(nats / tokens, rel=1e-9)
    assert measured.score.facts["tokens"] == tokens
    assert measured.score.facts["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert measured.score.n == measured.score.facts["documents"] == len(parts)
    assert sorted(o.value for o in measured.outcomes) == pytest.approx(
        sorted(p[0] for p in parts), rel=1e-9
    )
    assert sum(o.value for o in measured.outcomes) / sum(
        o.weight for o in measured.outcomes
    ) == pytest.approx(measured.score.value)


def test_bits_per_byte_counts_the_bytes_of_scored_tokens(opened: Opened, texts: Path) -> None:
    measured = Loss(source=str(texts), tokens=100_000, length=512).measure(
        Subject(opened.model, opened.tokenizer)
    )
    unscored = 0 if start_tokens(opened.tokenizer) else 1
    total = sum(len(text.encode()) - unscored for text in documents(texts))
    assert measured.score.facts["bytes"] == total
    bits = sum(o.value for o in measured.outcomes) / math.log(2)
    assert measured.score.facts["bits_per_byte"] == pytest.approx(bits / total)


def test_a_budget_buys_documents_first(opened: Opened, texts: Path) -> None:
    everything = Loss(source=str(texts), tokens=100_000, length=8).measure(
        Subject(opened.model, opened.tokenizer)
    )
    some = Loss(source=str(texts), tokens=everything.score.n * 5, length=8).measure(
        Subject(opened.model, opened.tokenizer)
    )
    assert some.score.facts["tokens"] < everything.score.facts["tokens"]
    assert some.score.n == pytest.approx(everything.score.n, abs=everything.score.n * 0.4)
    assert some.score.facts["tokens"] >= everything.score.n * 5
    whole = {o.item: o for o in everything.outcomes}
    assert all(o.weight <= whole[o.item].weight for o in some.outcomes)


def test_the_result_does_not_depend_on_the_batch(
    opened: Opened, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Loss(source=str(texts), tokens=600, length=32)
    together = loss.measure(Subject(opened.model, opened.tokenizer))
    monkeypatch.setattr("calibrant.evaluators.loss.TOKENS_PER_BATCH", 1)
    alone = loss.measure(Subject(opened.model, opened.tokenizer))
    assert [o.item for o in alone.outcomes] == [o.item for o in together.outcomes]
    assert [o.value for o in alone.outcomes] == pytest.approx(
        [o.value for o in together.outcomes], rel=1e-12
    )


def test_what_cannot_be_measured_is_refused_by_name(texts: Path) -> None:
    broken = overflowing()
    loss = Loss(source=str(texts), tokens=100)
    with refused(NumericsError, loss.measured):
        loss.measure(Subject(broken.model, broken.tokenizer))


def test_equal_weights_give_the_mean_and_its_textbook_error() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    mean, stderr = ratio(values, [1.0] * 4)
    assert mean == 4.0
    assert stderr == pytest.approx(np.std(values, ddof=1) / 2)


def test_the_error_of_a_ratio_agrees_with_a_bootstrap() -> None:
    random = np.random.default_rng(0)
    weights = random.integers(5, 200, 300).astype(float)
    values = weights * random.normal(2.0, 0.3, 300)
    mean, stderr = ratio(values.tolist(), weights.tolist())
    picks = random.integers(0, 300, (4000, 300))
    resampled = values[picks].sum(1) / weights[picks].sum(1)
    assert mean == pytest.approx(values.sum() / weights.sum())
    assert stderr == pytest.approx(resampled.std(), rel=0.06)


def test_one_item_has_no_error() -> None:
    assert ratio([3.0], [2.0]) == (1.5, None)
