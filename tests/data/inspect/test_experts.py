"""Which experts a set reaches, counted by hand."""

import json
import math

import pytest
import torch

from calibrant import inspect
from calibrant.data import TokenBatch
from calibrant.data.inspect.inspecting import expert_coverage
from calibrant.models import Opened, expert_layers, view
from calibrant.testing.tiny import tiny_model, tiny_tokenizer

from tests.models.mixtures_of_experts import tiny_mixture
from tests.models.test_experts import LENGTHS, inputs_of_routers, literal, padded_batch
from tests.usual import usually


def by_hand(kind: str, batch: TokenBatch) -> dict[str, list[list[int]]]:
    """For each layer the ids that were sent to each expert."""
    model = tiny_mixture(kind)
    layers = expert_layers(view(model))
    got: dict[str, list[list[int]]] = {layer.name: [[] for _ in range(8)] for layer in layers}
    for ids, length in zip(batch.ids, LENGTHS, strict=True):
        came = inputs_of_routers(model, layers, ids[None, :length])
        for layer in layers:
            for token, chosen in zip(
                ids.tolist(),
                literal(kind, layer.router, came[layer.name])[0].tolist(),
                strict=False,
            ):
                for expert in chosen:
                    got[layer.name][expert].append(token)
    return got


@pytest.mark.parametrize(
    "kind",
    usually(["mixtral", "deepseek_v3", "gpt_oss", "llama4_text"], {"mixtral", "llama4_text"}),
)
def test_what_is_counted_is_what_experts_would_get_of_the_whole_set(kind: str) -> None:
    batch, whole = padded_batch(False), 10 * sum(LENGTHS)
    found, got = expert_coverage(view(tiny_mixture(kind)), batch, whole), by_hand(kind, batch)
    assert found is not None
    assert (found["tokens"], found["of"], found["why"]) == (sum(LENGTHS), whole, "")
    assert found["layers"].keys() == got.keys()
    for name, layer in found["layers"].items():
        counts = [10 * len(ids) for ids in got[name]]
        assert layer["counts"] == pytest.approx(counts)
        assert layer["kinds"] == [len(set(ids)) for ids in got[name]]
        assert layer["unseen"] == [e for e, count in enumerate(counts) if count == 0]
        assert layer["starved"] == [e for e, count in enumerate(counts) if 0 < count < 32]
        shares = [count / sum(counts) for count in counts if count]
        assert layer["even"] == pytest.approx(
            math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-3
        )
    assert found["experts"] == 8 * len(got)
    for which in ("unseen", "starved"):
        assert found[which] == sum(len(layer[which]) for layer in found["layers"].values())


def test_a_router_that_can_not_be_told_is_said_and_the_rest_is_inspected() -> None:
    assert expert_coverage(view(tiny_model("llama")), padded_batch(False), 28) is None, (
        "a model without experts has nothing to say"
    )
    model = tiny_mixture("mixtral")
    model.model.layers[1].mlp.gate.weight = torch.nn.Parameter(torch.zeros(5, 32))
    found = expert_coverage(view(model), padded_batch(False), 28)
    assert found is not None
    assert "model.layers.1.mlp" in found["why"]
    assert found["layers"] == {}


def test_inspect_says_it_and_what_to_fix() -> None:
    model = tiny_mixture("gpt_oss")
    for layer in expert_layers(view(model)):
        layer.router.bias.data[[2, 5]] = -100.0
    opened = Opened(model, tiny_tokenizer(), "gpt_oss", "sha256:0", "", torch.float32)
    found = inspect("python_docs", opened, samples=4, length=64)
    assert found.model is not None
    experts = found.model["experts"]
    assert (experts["unseen"], experts["experts"], experts["tokens"], experts["of"]) == (
        4,
        16,
        256,
        256,
    )
    assert [
        ("4 of 16 experts" in sentence, "model.layers.0.mlp: 2, 5" in sentence)
        for sentence in found.verdict
    ].count((True, True)) == 1
    assert json.loads(json.dumps(found.to_json()))["model"]["experts"]["layers"][
        "model.layers.0.mlp"
    ]["unseen"] == [2, 5]
