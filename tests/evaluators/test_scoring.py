"""The engine against one forward a request, in float64."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrant.errors import DataError, NumericsError
from calibrant.evaluators import _scoring
from calibrant.evaluators._scoring import Request, Scored, score, shares
from calibrant.testing import FAMILIES, tiny_model

from tests.models.families import small_model
from tests.refusing import refused
from tests.usual import usually

VOCABULARY = 259
SOFTMAX_IN_FLOAT32 = {"gemma2": 1e-5}
"""Its soft caps need transformers' own attention, whose softmax is in float32 whatever the model
is in: sums in another order round otherwise.
"""


def tokens(draw: random.Random, number: int) -> tuple[int, ...]:
    return tuple(draw.randrange(3, VOCABULARY) for _ in range(number))


def questions(common: int, seed: int = 0, items: int = 6) -> list[Request]:
    """Items of four choices behind `common` tokens: some share a context, some only its
    beginning; one request is there twice.
    """
    draw = random.Random(seed)
    few, asked = tokens(draw, common), list[Request]()
    for item in range(items):
        context = few + tokens(draw, draw.randrange(1, 9))
        for _ in range(4):
            asked.append(
                Request(context + tokens(draw, item % 2), tokens(draw, draw.randrange(1, 6)))
            )
    return [*asked, asked[3]]


def by_hand(model: PreTrainedModel, request: Request) -> Scored:
    """Log likelihoods one token at a time, each from a forward that sees what comes before it
    and nothing else.
    """
    nats, greedy = 0.0, True
    for at, token in enumerate(request.continuation):
        with torch.no_grad():
            logits = (
                model(torch.tensor([[*request.context, *request.continuation[:at]]]))
                .logits[0, -1]
                .double()
            )
        nats -= float(logits[token] - torch.log(torch.exp(logits).sum()))
        greedy = greedy and int(logits.argmax()) == token
    return Scored(nats, len(request.continuation), greedy)


def agree(found: Sequence[Scored], wanted: Sequence[Scored], within: float) -> None:
    assert [s.nats for s in found] == pytest.approx([s.nats for s in wanted], abs=within)
    assert [(s.tokens, s.greedy) for s in found] == [(s.tokens, s.greedy) for s in wanted]


@pytest.mark.parametrize(
    "family", usually(FAMILIES, {"llama", "gpt2", "gemma2", "gemma3", "qwen3_moe"})
)
def test_both_ways_are_what_one_request_gives_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, within = tiny_model(family, torch.float64), SOFTMAX_IN_FLOAT32.get(family, 1e-9)
    assert shares(model, 40) == (family != "gemma3"), (
        "a window of four tokens is shorter than a question"
    )
    few, none = questions(20, items=3), questions(3, seed=1, items=2)
    alone = {request: by_hand(model, request) for request in (*few, *none)}
    for requests in (few, [*few, *none]):  # with and without a beginning that all share
        wanted = [alone[request] for request in requests]
        agree(score(model, requests, tokens_per_pass=24), wanted, within)
        agree(score(model, requests), wanted, within)
        with monkeypatch.context() as patched:
            patched.setattr(_scoring, "shares", lambda model, longest: False)
            agree(score(model, requests, tokens_per_pass=64), wanted, within)


def test_a_recurrent_model_is_padded() -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4
    )
    model, asked = AutoModelForCausalLM.from_config(config).eval().double(), questions(5, items=2)
    assert not shares(model, 10)
    agree(
        score(model, asked), [by_hand(model, request) for request in asked], 1e-5
    )  # its scan is in float32


def test_windows_that_go_by_the_distance_in_a_row_share_nothing() -> None:
    config = AutoConfig.for_model(
        "gpt_neo",
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=32,
    )
    model, asked = AutoModelForCausalLM.from_config(config).eval().double(), questions(5)
    assert not shares(model, 8)
    agree(score(model, asked), [by_hand(model, request) for request in asked], 1e-5)


@pytest.mark.parametrize("family", ["bert", "big_bird", "gpt2", "roberta"])
def test_a_tree_may_have_more_tokens_than_the_model_has_positions(family: str) -> None:
    model = small_model(family)
    draw = random.Random(0)
    asked: list[Request] = []
    for _ in range(8):
        context = tuple(draw.randrange(3, 99) for _ in range(12))
        asked += [Request(context, (5, 6)), Request(context, (7,))]
    assert sum(len(request.context) for request in asked[::2]) > 64
    agree(score(model, asked), [by_hand(model, request) for request in asked], 1e-5)


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("a chunk", {"attention_chunk_size": 8}),
        ("recurrent layers", {"layer_types": ["full_attention", "linear_attention"]}),
        ("ALiBi", {"alibi": True}),
        (
            "frequencies that depend on the length",
            {
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4},
                "max_position_embeddings": 8,
            },
        ),
        ("an attention without masks", {"_attn_implementation_internal": "flash_attention_2"}),
    ],
)
def test_what_a_tree_cannot_be_exact_for_is_known_by_its_configuration(
    told: str, change: dict[str, Any]
) -> None:
    model = tiny_model("llama")
    assert shares(model, 9)
    vars(model.config).update(change)
    assert not shares(model, 9), told


def test_frequencies_of_one_kind_of_layers_may_depend_on_the_length() -> None:
    model = tiny_model("llama")
    usual = {"rope_type": "default", "rope_theta": 1e4}
    growing = {**usual, "rope_type": "longrope", "original_max_position_embeddings": 8}
    by_layer_kind = {"full_attention": growing, "sliding_attention": usual}
    vars(model.config).update(rope_parameters=by_layer_kind)
    assert model.config.max_position_embeddings > 9
    assert shares(model, 8)
    assert not shares(model, 9)
    # Of frequencies that stay, the original length says nothing.
    stretched = {**growing, "rope_type": "yarn"}
    vars(model.config).update(rope_parameters={**by_layer_kind, "full_attention": stretched})
    assert shares(model, 9)


@pytest.mark.parametrize("way", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_no_scores(
    way: bool, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scoring, "shares", lambda model, longest: way)
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = bad
    with refused(NumericsError, "piqa"):
        score(model, questions(3), measured="piqa")


def test_what_cannot_be_scored_is_refused_and_nothing_asked_is_nothing_found() -> None:
    model = tiny_model("gpt2", n_positions=16)
    assert score(model, []) == []
    assert score(model, [Request((5,) * 16, (6,))])[0].tokens == 1
    for request, subject in (
        (Request((), (5,)), "context"),
        (Request((5,), ()), "continuation"),
        (Request((5,) * 16, (6, 7)), 17),
    ):
        with refused(DataError, subject):
            score(model, [request])
