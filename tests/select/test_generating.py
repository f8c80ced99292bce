"""Texts that the model writes: how tokens are drawn, what is thrown away, and what is kept on
disk.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from calibrant.data.select._base import Context
from calibrant.data.select._generating import (
    Draft,
    FilterResult,
    GeneratedText,
    GenerationRequest,
    Sampling,
    filter_texts,
    pick,
    pick_likely,
    selection,
    write,
)
from calibrant.data.select.selfcal import SelfCal
from calibrant.errors import DataError, NumericsError
from calibrant.testing import FAMILIES, tiny_model

from tests.select.contexts import context, opened
from tests.usual import usually

PROCESSORS: dict[str, Callable[..., Any]] = {
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
}
WAYS: list[dict[str, Any]] = [
    {},
    {"top_k": 5},
    {"top_p": 0.7},
    {"repetition_penalty": 1.7},
    {"top_k": 8, "top_p": 0.6, "repetition_penalty": 1.2, "temperature": 0.6},
    {"top_k": 1000, "top_p": 1e-3, "temperature": 2.5},
]


def sampling(temperature: float = 1.0, **given: float) -> Sampling:
    return Sampling(lambda step: temperature, **given)


def probabilities(logits: torch.Tensor, before: torch.Tensor, way: dict[str, float]) -> np.ndarray:
    """What transformers makes of the logits, in its order: penalty, temperature, top-k, top-p."""
    scores = logits.clone()
    for name, processor in PROCESSORS.items():
        if name in way:
            scores = processor(way[name])(before, scores)
    return scores.double().softmax(1).numpy()


def slowly(chances: Sequence[float], likely: np.ndarray) -> list[int]:
    """The token that each chance falls on, by walking down the probabilities, the greatest
    first.
    """
    found = []
    for chance, row in zip(chances, likely, strict=True):
        left = chance
        for token in sorted(range(len(row)), key=lambda i: -row[i]):
            if row[token] > 0:
                last = token
                left -= row[token]
                if left < 0:
                    break
        found.append(last)
    return found


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_token_is_drawn_as_transformers_would_weigh_it(way: dict[str, float]) -> None:
    torch.manual_seed(1)
    logits, before = 3 * torch.randn(64, 40), torch.randint(40, (64, 7))
    chances = torch.rand(64, dtype=torch.float64)
    chances[:2] = torch.tensor([0.0, 0.999])
    likely = probabilities(logits, before, way)
    assert pick(logits, before, chances, sampling(**way)).tolist() == slowly(
        chances.tolist(), likely
    )


@pytest.mark.parametrize("spread", [0.01, 3.0], ids=["as likely", "few likely"])
@pytest.mark.parametrize("top_p", [1e-3, 0.7, 1.0])
@pytest.mark.parametrize("vocabulary", [500, 16_384])
def test_of_a_large_vocabulary_a_token_is_drawn_as_of_a_small_one(
    spread: float, top_p: float, vocabulary: int
) -> None:
    torch.manual_seed(1)
    logits = spread * torch.randn(32, vocabulary, dtype=torch.float64)
    chances = torch.rand(32, dtype=torch.float64)
    way = {"top_p": top_p, "temperature": 0.7}
    likely = probabilities(logits, torch.zeros(32, 1, dtype=torch.long), way)
    assert pick_likely(logits, chances, 0.7, top_p).tolist() == slowly(chances.tolist(), likely)


def test_logits_that_are_not_finite_are_named() -> None:
    with pytest.raises(NumericsError) as caught:
        pick(
            torch.full((1, 4), math.inf),
            torch.zeros(1, 1, dtype=torch.long),
            torch.zeros(1, dtype=torch.float64),
            sampling(),
        )
    assert caught.value.subject == "logits"


def without_cache(
    model: torch.nn.Module, ids: torch.Tensor, chances: torch.Tensor, way: dict[str, float]
) -> tuple[list[int], float]:
    """A text of a whole forward for each token; its loss from a last one."""
    with torch.no_grad():
        for number in chances:
            likely = probabilities(model(ids).logits[:, -1], ids, way)
            ids = torch.cat([ids, torch.tensor([slowly([float(number)], likely)])], 1)
        return ids[0].tolist(), float(
            torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:])
        )


@pytest.mark.parametrize("family", usually(FAMILIES, {"llama", "gpt2", "qwen3_moe"}))
def test_with_a_cache_it_writes_what_it_writes_without(family: str) -> None:
    model, way = (
        tiny_model(family),
        {"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "temperature": 0.8},
    )
    prefixes = torch.tensor([[1, 70, 80], [1, 90, 75]])
    chances = torch.rand(
        2, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )  # as `write` says that it draws them
    for draft, prefix, own in zip(
        write(model, prefixes, 10, sampling(**way), 5, frozenset()), prefixes, chances, strict=True
    ):
        text, loss = without_cache(model, prefix[None], own, way)
        assert list(draft.ids) == text
        assert draft.nats == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("family", usually(FAMILIES, {"gemma3"}))
def test_a_text_ends_at_an_end_token_and_leaves_the_others_alone(family: str) -> None:
    model, prefixes = tiny_model(family), torch.tensor([[1, 60 + i] for i in range(6)])
    whole = write(model, prefixes, 12, sampling(), 3, frozenset(), starts=1)
    ends = frozenset(token for draft in whole[:4] for token in draft.ids[4:6])
    cut = write(model, prefixes, 12, sampling(), 3, ends, starts=1)
    for long, short in zip(whole, cut, strict=True):
        assert len(long.ids) == 12
        assert short.ids == (
            long.ids[0],
            *itertools.takewhile(lambda token: token not in ends, long.ids[1:]),
        )
    assert len({len(draft.ids) for draft in cut}) > 1


def test_a_text_of_nothing_but_its_prefix_has_the_loss_of_its_prefix() -> None:
    ids = torch.tensor([[1, 50, 51]])
    (draft,) = write(opened().model, ids, 9, sampling(), 0, frozenset(range(300)), starts=1)
    assert draft.ids == (50, 51)
    with torch.no_grad():
        assert draft.nats == pytest.approx(float(opened().model(ids, labels=ids).loss), rel=1e-5)


def test_tokens_without_a_text_are_not_written() -> None:
    for vocabulary, within in ((100, True), (None, False)):
        drafts = write(
            tiny_model("llama"),
            torch.tensor([[1, 70]] * 4),
            20,
            sampling(temperature=5.0),
            0,
            frozenset(),
            vocabulary=vocabulary,
        )
        assert (max(token for draft in drafts for token in draft.ids) < 100) == within


def drafted(
    nats: Sequence[float], ids: Sequence[Sequence[int]] | None = None
) -> list[GeneratedText]:
    several = ids or [range(40)] * len(nats)
    return [
        GeneratedText(Draft(tuple(own), nat), f"text {i}", 40)
        for i, (nat, own) in enumerate(zip(nats, several, strict=True))
    ]


def test_of_equals_the_later_goes_first_and_loops_and_copies_go_besides() -> None:
    found = filter_texts(drafted([2.0, 1.0, 2.0, 1.0, 0.5]), 0.2)
    assert found.places == (0, 1, 3, 4)
    assert "7.389" in found.note
    texts = drafted(
        [1.0, 0.1, 3.0, 1.0, 1.0], [range(40), [7] * 40, range(40), range(40), range(40)]
    )
    texts[4] = replace(texts[4], text=texts[0].text)
    assert filter_texts(texts, 0.2).places == (0, 3)
    assert filter_texts(texts, 0.2, loops="keep").places == (0, 1, 3)
    assert filter_texts([], 0.2).places == ()


def writing(batch: int = 4, length: int = 16) -> GenerationRequest:
    return GenerationRequest(((1,),), 1, length, sampling(), batch, filter_texts)


def kept_files(cache: Path) -> list[Path]:
    return sorted((cache / "calibrant" / "generated").rglob("*"))


def small(tokens: int = 80, **changes: object) -> Context:
    return replace(context(), tokens=tokens, length=32, **changes)


def test_killed_and_asked_again_it_writes_what_it_would_have(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = selection(SelfCal(), small(160), writing())
    batches = [path.read_bytes() for path in kept_files(own_cache) if path.is_file()]
    assert len(batches) >= 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "elsewhere"))

    def killed(what: str, done: int, total: int) -> None:
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selection(SelfCal(), small(160, progress=killed), writing())
    left = [path for path in kept_files(own_cache / "elsewhere") if path.is_file()]
    assert 0 < len(left) < len(batches)
    before = [path.stat().st_mtime_ns for path in left]
    assert selection(SelfCal(), small(160), writing()) == whole
    after = [path for path in kept_files(own_cache / "elsewhere") if path.is_file()]
    assert [path.stat().st_mtime_ns for path in after[: len(left)]] == before, (
        "a whole batch was written again"
    )
    assert [path.read_bytes() for path in after] == batches


def test_what_cant_be_kept_is_no_error_and_what_is_kept_is_not_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = selection(SelfCal(), small(), writing())
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("CALIBRANT_CACHE", "/dev/null")
        assert selection(SelfCal(), small(), writing()) == first
    monkeypatch.setattr("calibrant.data.select._generating.write", None)
    assert selection(SelfCal(), small(), writing()) == first


def test_a_damaged_batch_is_written_again(own_cache: Path) -> None:
    first = selection(SelfCal(), small(), writing())
    path = next(path for path in kept_files(own_cache) if path.name == "batch-00001.json")
    good = path.read_bytes()
    batch = json.loads(good)
    shorter = {**batch, "texts": batch["texts"][:-1]}
    changed = {**batch, "texts": [[[5, 6], 0.1], *batch["texts"][1:]]}
    for bad in (good[:-20], b"[1]", json.dumps(shorter).encode(), json.dumps(changed).encode()):
        path.write_bytes(bad)
        assert selection(SelfCal(), small(), writing()) == first
        assert path.read_bytes() == good


def test_another_question_is_kept_apart(own_cache: Path) -> None:
    keys: list[str] = []
    changes: list[dict[str, object]] = [
        {},
        {"draw": 1},
        {"tokens": 81},
        {"length": 33},
        {"opened": replace(opened(), hashed="sha256:other")},
    ]
    for number, change in enumerate(changes, 1):
        keys += [
            row.key for row in selection(SelfCal(), replace(small(), **change), writing()).rows
        ]
        assert len([path for path in kept_files(own_cache) if path.is_dir()]) == number
    assert len(set(keys)) == len(keys), "it drew by the same chance"


def test_it_gives_up_where_nothing_is_left_or_a_text_is_longer_than_the_model_sees() -> None:
    room = opened().model.config.max_position_embeddings
    empty = replace(writing(), filter_texts=lambda texts: FilterResult((), "all were bad"))
    for asked, named in ((empty, "all were bad"), (writing(length=room), f" {room} tokens")):
        with pytest.raises(DataError, match=named) as caught:
            selection(SelfCal(), small(16), asked)
        assert caught.value.subject == "selfcal"
