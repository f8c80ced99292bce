"""Agreement with the untouched model against sums over the whole vocabulary in float64, one
position at a time.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from calibrant.data import held_out, start_tokens
from calibrant.errors import ModelError, NumericsError, SpecError
from calibrant.evaluators import Subject, evaluate, forget_predictions, keep_predictions
from calibrant.evaluators.agreement import Agreement
from calibrant.evaluators.loss import Loss
from calibrant.models import Opened
from calibrant.results.outcomes import Journal
from calibrant.testing import tiny_model

from tests.databases import forget_last
from tests.refusing import overflowing, refused


def by_hand(opened: Opened, pruned: Opened, text: str, length: int) -> tuple[list[float], int, int]:
    """The divergence of each token, tokens predicted alike and tokens of one document."""
    ids, start = (
        opened.tokenizer(text, add_special_tokens=False).input_ids,
        start_tokens(opened.tokenizer),
    )
    nats, alike, scored, room = [], 0, 0, length - len(start)
    for begin in range(0, len(ids), room):
        window = [*start, *ids[begin : begin + room]]
        with torch.no_grad():
            p, q = (o.model(torch.tensor([window])).logits[0].numpy() for o in (opened, pruned))
        for place in range(len(start) or 1, len(window)):
            old, new = p[place - 1], q[place - 1]
            a, b = np.exp(old) / np.exp(old).sum(), np.exp(new) / np.exp(new).sum()
            nats.append(float((a * np.log(a / b)).sum()))
            alike += int(np.argmax(old) == np.argmax(new))
            scored += 1
    return nats, alike, scored


@pytest.mark.parametrize("length", [8, 512])
def test_it_is_the_mean_divergence_over_tokens(
    opened: Opened, pruned: Opened, texts: Path, length: int
) -> None:
    agreement = Agreement(source=str(texts), tokens=100_000, length=length)
    measured = agreement.measure(Subject(pruned.model, pruned.tokenizer, opened.model))
    source, format = held_out(str(texts), None)
    parts = {
        row.name: by_hand(opened, pruned, format.render(row), length)
        for row in source.rows("measure")
    }
    by_token = [nats for p in parts.values() for nats in p[0]]
    parts = {
        name: (sum(by_token), alike, tokens) for name, (by_token, alike, tokens) in parts.items()
    }
    nats, alike, tokens = (sum(p[i] for p in parts.values()) for i in range(3))
    top, *high, loss = measured.beside
    assert (loss.metric, loss.unit, loss.better) == ("loss", "nats/token", "lower")
    assert [(score.metric, score.value, score.stderr, score.unit) for score in high] == [
        (f"kl_p{p}", pytest.approx(np.percentile(by_token, p), rel=1e-6), None, "nats")
        for p in (95, 99)
    ]
    assert nats / tokens < high[0].value < high[1].value <= max(by_token) * (1 + 1e-6)
    assert measured.score.value == pytest.approx(nats / tokens, rel=1e-9)
    assert measured.score.value > 1e-4
    assert top.value == alike / tokens
    assert 0 < top.value < 1
    for outcome in measured.outcomes:
        assert (outcome.value, outcome.facts["agreed"], outcome.weight) == pytest.approx(
            parts[outcome.item], rel=1e-9
        )
    assert measured.score.n == top.n == len(parts)
    assert measured.score.better == "lower"
    assert top.better == "higher"
    residuals = [(v - nats / tokens * w) ** 2 for v, _, w in parts.values()]
    assert measured.score.stderr == pytest.approx(
        (sum(residuals) * len(parts) / (len(parts) - 1)) ** 0.5 / tokens
    )


def test_the_windows_are_those_of_loss(opened: Opened, pruned: Opened, texts: Path) -> None:
    given = {"source": str(texts), "tokens": 500, "length": 16}
    agreement = Agreement(**given).measure(Subject(pruned.model, pruned.tokenizer, opened.model))
    loss = Loss(**given).measure(Subject(pruned.model, pruned.tokenizer))
    assert agreement.score.facts["items"] == loss.score.facts["items"]
    assert [(o.item, o.weight) for o in agreement.outcomes] == [
        (o.item, o.weight) for o in loss.outcomes
    ]
    assert [o.facts["nats"] for o in agreement.outcomes] == pytest.approx(
        [o.value for o in loss.outcomes], rel=1e-12
    )
    beside = agreement.beside[-1]
    assert (beside.value, beside.stderr) == pytest.approx(
        (loss.score.value, loss.score.stderr), rel=1e-12
    )


def test_the_result_does_not_depend_on_batch_or_chunk(
    opened: Opened, pruned: Opened, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = Agreement(source=str(texts), tokens=400, length=32)
    together = agreement.measure(Subject(pruned.model, pruned.tokenizer, opened.model))
    monkeypatch.setattr("calibrant.evaluators.agreement.TOKENS_PER_BATCH", 1)
    monkeypatch.setattr("calibrant.evaluators.agreement.NUMBERS_PER_CHUNK", 1500)
    alone = agreement.measure(Subject(pruned.model, pruned.tokenizer, opened.model))
    assert [o.value for o in alone.outcomes] == pytest.approx(
        [o.value for o in together.outcomes], rel=1e-9
    )
    assert alone.beside[0] == together.beside[0]
    assert [score.value for score in alone.beside] == pytest.approx(
        [score.value for score in together.beside], rel=1e-6
    )


@pytest.fixture
def counted(opened: Opened) -> Iterator[tuple[PreTrainedModel, list[int]]]:
    """A dense model whose predictions are kept, and one entry for each of its forwards."""
    dense, ran = copy.deepcopy(opened.model), list[int]()
    dense.register_forward_hook(lambda module, args, output: ran.append(1))
    keep_predictions(dense)
    yield dense, ran
    forget_predictions(dense)


def test_the_dense_model_runs_once_for_any_number_of_models_and_nothing_changes(
    opened: Opened, pruned: Opened, texts: Path, counted: tuple[PreTrainedModel, list[int]]
) -> None:
    dense, ran = counted
    agreement = Agreement(source=str(texts), tokens=400, length=32)
    measured = [agreement.measure(Subject(pruned.model, pruned.tokenizer, dense))]
    once = len(ran)
    measured += [
        agreement.measure(Subject(pruned.model, pruned.tokenizer, dense)) for _ in range(2)
    ]
    assert len(ran) == once > 0
    assert measured[1:] == measured[:-1]
    assert agreement.measure(Subject(opened.model, opened.tokenizer, dense)).score.value == 0.0


def test_logits_that_are_changed_behind_the_head_are_kept_themselves(
    pruned: Opened, texts: Path, counted: tuple[PreTrainedModel, list[int]]
) -> None:
    dense, ran = counted

    def cap(module: torch.nn.Module, arguments: object, output: CausalLMOutput) -> None:
        assert output.logits is not None
        output.logits = 2 * torch.tanh(output.logits / 2)

    dense.register_forward_hook(cap)
    agreement = Agreement(source=str(texts), tokens=300, length=32)
    first = agreement.measure(Subject(pruned.model, pruned.tokenizer, dense))
    once = len(ran)
    again = agreement.measure(Subject(pruned.model, pruned.tokenizer, dense))
    assert len(ran) == once > 0
    assert again == first
    forget_predictions(dense)
    assert agreement.measure(Subject(pruned.model, pruned.tokenizer, dense)) == first


def test_a_head_that_is_given_its_input_by_name_is_known_too(
    pruned: Opened, texts: Path, counted: tuple[PreTrainedModel, list[int]]
) -> None:
    dense, ran = counted
    agreement = Agreement(source=str(texts), tokens=300, length=32)
    expected = agreement.measure(Subject(pruned.model, pruned.tokenizer, dense))
    forget_predictions(dense)
    keep_predictions(dense)
    head = dense.get_output_embeddings()
    assert head is not None
    dense.set_output_embeddings(_ByName(head))
    for _ in range(2):
        assert agreement.measure(Subject(pruned.model, pruned.tokenizer, dense)) == expected
    assert ran


class _ByName(torch.nn.Module):
    """A head that hands on what it is given by its name."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().__call__(hidden=hidden)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden)


def test_a_dense_model_that_changed_is_run_again(
    pruned: Opened, texts: Path, counted: tuple[PreTrainedModel, list[int]]
) -> None:
    dense, ran = counted
    agreement = Agreement(source=str(texts), tokens=300, length=32)

    def measured() -> float:
        ran.clear()
        return agreement.measure(Subject(pruned.model, pruned.tokenizer, dense)).score.value

    before = measured()
    with torch.no_grad():
        dense.lm_head.weight.mul_(2.0)
    doubled = measured()
    assert doubled != before
    assert ran
    dense.to(torch.bfloat16)
    assert measured() != doubled
    assert ran


@pytest.mark.parametrize("why", ["no room", "nobody asked"])
def test_no_prediction_is_kept_without_room_or_unless_asked(
    why: str,
    pruned: Opened,
    texts: Path,
    counted: tuple[PreTrainedModel, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense, ran = counted
    if why == "no room":
        monkeypatch.setattr("calibrant.evaluators._dense.room", lambda device, added=0: 0)
    else:
        forget_predictions(dense)
    counts = list[int]()
    for _ in range(3):
        Agreement(source=str(texts), tokens=300, length=32).measure(
            Subject(pruned.model, pruned.tokenizer, dense)
        )
        counts.append(len(ran))
    assert counts[2] - counts[1] == (counts[1] - counts[0]) > 0


def test_a_killed_one_goes_on(
    opened: Opened, pruned: Opened, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrant.evaluators.agreement.TOKENS_PER_BATCH", 32)
    agreement, path = (
        Agreement(source=str(texts), tokens=400, length=16),
        tmp_path / "journal.jsonl",
    )
    whole = agreement.measure(
        Subject(pruned.model, pruned.tokenizer, opened.model, journal=Journal(path, "q"))
    )
    known = len(Journal(path, "q"))
    forget_last(path, known // 2)
    calls: list[int] = []
    hook = pruned.model.register_forward_hook(lambda *_: calls.append(1))
    again = agreement.measure(
        Subject(pruned.model, pruned.tokenizer, opened.model, journal=Journal(path, "q"))
    )
    hook.remove()
    assert again == whole
    assert 0 < len(calls) < known / 4


def test_by_name_with_a_reference(opened: Opened, pruned: Opened, texts: Path) -> None:
    told: list[int] = []
    task = f"agreement(source='{texts}', length=16)"
    (measured,) = evaluate(
        pruned,
        tasks=task,
        reference=opened,
        tokens=200,
        progress=lambda _, done, __: told.append(done),
    )
    assert 200 <= measured.score.facts["tokens"] < 220
    assert told[-1] == measured.score.facts["tokens"]
    assert measured.score.metric == "kl"


def test_what_cannot_be_compared_is_refused_by_name(
    opened: Opened, pruned: Opened, texts: Path
) -> None:
    agreement = Agreement(source=str(texts), tokens=100)
    with refused(SpecError, agreement):
        agreement.measure(Subject(pruned.model, pruned.tokenizer))
    other = tiny_model("llama", torch.float64, vocab_size=300)
    with pytest.raises(ModelError, match="300"):
        agreement.measure(Subject(opened.model, opened.tokenizer, other))
    broken = overflowing().model
    with pytest.raises(NumericsError, match="the model's"):
        agreement.measure(Subject(broken, opened.tokenizer, opened.model))
    with pytest.raises(NumericsError, match="the reference's"):
        agreement.measure(Subject(opened.model, opened.tokenizer, broken))
