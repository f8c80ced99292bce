"""Language-specific neurons, and what calibration in one "language" does to the others, on a
tiny model that knows three.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibrant import CalibrationSet
from calibrant.compress import Recipe, compress
from calibrant.errors import DataError, ModelError, SpecError
from calibrant.evaluators import Subject
from calibrant.evaluators.lape import Lape, lape
from calibrant.evaluators.loss import Loss
from calibrant.models import Opened, view
from calibrant.testing import FAMILIES, tiny_model, tiny_tokenizer

from tests.refusing import refused
from tests.trained import LANGUAGES, trained_model
from tests.usual import two_languages, usually

ROUTED = ("mixtral", "qwen3_moe", "olmoe")
PLAIN = tuple(family for family in FAMILIES if family not in ROUTED)
INPUTS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "gpt2": ("mlp", lambda m, x: x @ m.c_fc.weight + m.c_fc.bias),
    "gpt_neox": ("mlp", lambda m, x: x @ m.dense_h_to_4h.weight.T + m.dense_h_to_4h.bias),
    "opt": ("fc1", lambda m, x: x @ m.weight.T + m.bias),
    "phi3": (
        "mlp",
        lambda m, x: x @ m.gate_up_proj.weight[: m.gate_up_proj.weight.shape[0] // 2].T,
    ),
}
"""What a family's feed-forward is called, and what its activation function is applied to,
written out.
"""
GATED = ("mlp", lambda m, x: x @ m.gate_proj.weight.T)


def tiny(family: str = "llama", dtype: torch.dtype = torch.float64) -> Opened:
    return Opened(tiny_model(family, dtype), tiny_tokenizer(), family, "sha256:0", "", dtype)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    files = two_languages(tmp_path_factory.mktemp("spoken"))
    return {name: f"{path}:text@one" for name, path in files.items()}


# What the activations say.


@torch.no_grad()
def slowly(opened: Opened, data: CalibrationSet) -> tuple[Tensor, int]:
    """The share of tokens at which each neuron's input is above zero, a sequence at a time and
    without padding, from the blocks' own inputs.
    """
    batch = data.tokens(opened.tokenizer)
    pads = torch.zeros_like(batch.mask) if batch.pads is None else batch.pads
    name, before = INPUTS.get(opened.name, GATED)
    blocks = view(opened.model).blocks
    given: list[Tensor] = []
    handles = [
        b.module.get_submodule(name).register_forward_pre_hook(
            lambda _, args: given.append(args[0])
        )
        for b in blocks
    ]
    above: list[list[Tensor]] = [[] for _ in blocks]
    for ids, mask, pad in zip(batch.ids, batch.mask, pads, strict=True):
        given.clear()
        opened.model(input_ids=ids[mask][None])
        for i, (block, x) in enumerate(zip(blocks, given, strict=True)):
            above[i].append(
                (before(block.module.get_submodule(name), x.reshape(-1, x.shape[-1])) > 0)[
                    ~pad[mask]
                ]
            )
    for handle in handles:
        handle.remove()
    return torch.cat([torch.cat(each).double().mean(0) for each in above]), sum(map(len, above[0]))


def check(opened: Opened, sets: Mapping[str, CalibrationSet]) -> Lape:
    found = lape(opened, sets)
    for at, data in enumerate(sets.values()):
        shares, tokens = slowly(opened, data)
        torch.testing.assert_close(found.probability[at], shares, rtol=0, atol=1e-12)
        assert found.tokens[at] == tokens
    return found


@pytest.mark.parametrize("family", usually(PLAIN, [*INPUTS, "llama"]))
def test_the_shares_are_those_of_the_feed_forwards_own_inputs(
    family: str, spoken: Mapping[str, str]
):
    found = check(
        tiny(family),
        {name: CalibrationSet(expr, samples=12, length=40) for name, expr in spoken.items()},
    )
    assert len(set(found.tokens)) == 2, "windows are padded"
    assert (len(found.sizes), len(set(found.sizes))) == (3, 1)


def test_expressions_name_themselves():
    found = lape(tiny(), LANGUAGES[:2], tokens=300, length=50)
    assert found.languages == LANGUAGES[:2]
    assert found.tokens == (300, 300)


def test_pads_never_count_also_where_the_packing_counts_them(spoken: Mapping[str, str]):
    sets = {
        n: CalibrationSet(e.replace("@one", "@legacy(of='one')"), samples=6, length=80)
        for n, e in spoken.items()
    }
    assert sum(check(tiny(), sets).tokens) < 2 * 6 * 80


def test_a_sets_weights_count():
    """Of a mix each part has its weight, whatever its tokens."""
    opened = tiny()
    parts = [
        lape(
            opened,
            {"a": CalibrationSet(e, tokens=400, length=50), "b": "full_stops"},
            tokens=50,
            length=50,
        )
        for e in LANGUAGES[:2]
    ]
    whole = CalibrationSet(
        f"mix(a={LANGUAGES[0]}, b={LANGUAGES[1]}, weight=0.25)", tokens=400, length=50
    )
    found = lape(opened, {"a": whole, "b": "full_stops"}, tokens=50, length=50)
    # `weight` is the first one's or the last one's share, as the set's own facts say.
    share = whole.tokens(opened.tokenizer).facts["mix"][0]["weight"]
    wanted = share * parts[0].probability[0] + (1 - share) * parts[1].probability[0]
    torch.testing.assert_close(found.probability[0], wanted, rtol=0, atol=1e-6)


# What is made of them.


def made(rows: list[list[float]], **changes: object) -> Lape:
    probability = torch.tensor(rows, dtype=torch.float64)
    given = {"lowest": 0.3, "quantile": 0.5, "sizes": (2, probability.shape[1] - 2), **changes}
    return Lape("m", tuple("abc"[: len(rows)]), (9,) * len(rows), probability=probability, **given)


def test_entropy_threshold_and_choice_by_hand():
    found = made([[0.9, 0.5, 0.0, 0.1, 0.8], [0.1, 0.5, 0.0, 0.0, 0.0]])
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert found.entropy.tolist() == pytest.approx([h, math.log(2), math.log(2), 0.0, 0.0])
    # Ten shares, in order 0 0 0 0 .1 .1 .5 .5 .8 .9: the fifth is the threshold, and .1 isn't above
    # it, so neuron 3 is out though its entropy is 0.
    assert found.threshold == 0.1
    assert found.neurons("a") == [(0, 0), (1, 2)]
    assert found.neurons("b") == []
    assert found.counts.tolist() == [[1, 1], [0, 0]]
    told = found.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["languages"]["a"] == {
        "tokens": 9,
        "specific": 2,
        "by_block": [1, 1],
        "neurons": [[0, 0], [1, 2]],
    }
    assert "<td>a</td><td>9</td><td>2</td><td>1</td><td>1</td>" in found._repr_html_()
    with refused(DataError, "d"):
        found.neurons("d")
    shared = made([[0.9, 0.4, 0.4], [0.9, 0.4, 0.4], [0.0, 0.4, 0.4]], sizes=(3,), lowest=0.34)
    assert [shared.neurons(name) for name in "abc"] == [[(0, 0)], [(0, 0)], []], (
        "a neuron may be specific to two of three"
    )


def test_staying_neurons():
    before = made([[0.9, 0.8, 0.3, 0.3], [0.0, 0.0, 0.3, 0.3]], lowest=0.5)
    after = made([[0.9, 0.3, 0.8, 0.3], [0.0, 0.3, 0.0, 0.3]], lowest=0.5)
    kept = before.staying(after)
    assert kept["a"] == 0.5
    assert math.isnan(kept["b"])
    for other in (made([[0.1] * 4] * 3), made([[0.1] * 5] * 2)):
        with refused(DataError, other.model):
            before.staying(other)


@torch.no_grad()
def test_a_planted_neuron_is_found(spoken: Mapping[str, str]):
    opened = tiny()
    block = opened.model.model.layers[0]
    # So the first feed-forward sees a letter and nothing else.
    block.self_attn.o_proj.weight.zero_()
    ids = torch.tensor(opened.tokenizer("abcdefghijklmnopqrstuvwxyz")["input_ids"])
    seen = block.post_attention_layernorm(opened.model.model.embed_tokens(ids))
    block.mlp.gate_proj.weight[7] = torch.linalg.lstsq(
        seen, torch.tensor([1.0] * 13 + [-1.0] * 13, dtype=torch.float64)
    ).solution
    found = lape(opened, spoken, tokens=600, length=64)
    assert found.probability[:, 7].tolist() == [1.0, 0.0]
    assert found.entropy[7] == 0
    assert (0, 7) in found.neurons("early")
    assert (0, 7) not in found.neurons("late")


# What is refused.


def test_a_feed_forward_that_cannot_be_seen_as_neurons_is_refused():
    opened = tiny()
    blocks = opened.model.model.layers
    blocks[2].mlp.act_fn.register_forward_pre_hook(lambda _, args: (args[0][:, :10],))
    with refused(ModelError, "block 2"):
        lape(opened, LANGUAGES, tokens=50, length=50)
    blocks[1].mlp.act_fn = blocks[0].mlp.act_fn
    with refused(ModelError, "block 0"):
        lape(opened, LANGUAGES, tokens=50, length=50)
    for changed in (nn.Identity(), nn.Sequential(nn.ReLU(), nn.Tanh())):
        blocks[1].mlp.act_fn = changed
        with refused(ModelError, "model.layers.1"):
            lape(opened, LANGUAGES, tokens=50, length=50)


@pytest.mark.parametrize("family", usually(ROUTED))
def test_routed_experts_are_refused(family: str):
    with refused(ModelError, "model.layers.0"):
        lape(tiny(family), LANGUAGES, tokens=50, length=50)


@pytest.mark.parametrize("given", [{"lowest": 0.0}, {"quantile": 1.5}, {"sets": ["python_docs"]}])
def test_what_is_asked_wrongly(given: dict[str, object]):
    with pytest.raises(SpecError) as caught:
        lape(tiny(), **{"sets": LANGUAGES, **given})
    assert [caught.value.subject] == list(given)


# What section 3 of the notes on published systems says that it must show, on the tiny model that
# knows three "languages".

TOKENS, WINDOW = 16_384, 128
POOLED = " + ".join(LANGUAGES)


@pytest.fixture(scope="module")
def trained() -> Opened:
    return Opened(trained_model(), tiny_tokenizer(), "trained", "sha256:0", "", torch.float32)


def losses_by_set(
    opened: Opened, method: str, propagate: str, sets: Iterable[str]
) -> dict[str, list[float]]:
    """For each set the losses on each language, of the model that was pruned by 60 % with it."""
    seen_by = view(opened.model)
    whole, found = seen_by.snapshot(), dict[str, list[float]]()
    for data in sets:
        batch = CalibrationSet(data, tokens=TOKENS, length=WINDOW).tokens(opened.tokenizer)
        compress(opened, seen_by, batch, Recipe.parse(method, 0.6, propagate))
        measured = [
            Loss(source=name, tokens=8192, length=WINDOW).measure(
                Subject(opened.model, opened.tokenizer)
            )
            for name in LANGUAGES
        ]
        found[data] = [one.score.value for one in measured]
        seen_by.restore(whole)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("method", "propagate"), [("sparsegpt", "arrival"), ("wanda", "dense")])
def test_a_language_is_kept_best_by_itself_or_by_the_pooled_set(
    trained: Opened, method: str, propagate: str
):
    """For Wanda only arithmetic is clearly so: prose and code do as well with one another's
    data, within what documents change.
    """
    losses = losses_by_set(trained, method, propagate, (*LANGUAGES, POOLED))
    behind: list[float] = []
    for at, name in enumerate(LANGUAGES):
        column = [losses[other][at] for other in LANGUAGES]
        behind.append(column[at] - min(column))
        assert losses[POOLED][at] - losses[name][at] < min(0.04, 0.6 * (max(column) - min(column)))
    assert max(behind) < 0.015
    if method == "sparsegpt":
        assert behind.count(0) >= 2
    assert min(losses[name][2] for name in LANGUAGES[:2]) - losses["arithmetic"][2] > 0.02
