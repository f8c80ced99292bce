"""A dense model split into experts computes what it did where all are picked; the mixture to try methods on has learnt, and its truths hold."""

from pathlib import Path

import pytest
import torch
from studies.experts.upcycling import Split, clustered, layers, upcycled
from transformers import AutoModelForCausalLM

from calibrant.activations import Routing
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.models import Opened, expert_layers, save, view
from calibrant.testing import tiny_model, tiny_tokenizer
from calibrant.walk import walk_blocks
from calibrant.walk.variants import loss

from tests.trained import trained_model
from tests.trained_mixture import plant, trained_mixture, untrained_mixture


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    return CalibrationSet("0.4*python_docs + 0.3*python_code + 0.3*arithmetic", samples=9, length=128).tokens(tiny_tokenizer())


def read_by(model, batch: TokenBatch) -> list[torch.Tensor]:
    """What each feed-forward network reads."""
    found: list[torch.Tensor] = []
    handles = [network.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, 1))) for network in layers(model)]
    with torch.no_grad():
        model(batch.ids)
    for handle in handles:
        handle.remove()
    return found


def test_with_all_experts_picked_alike_the_mixture_is_the_dense_model(batch: TokenBatch, tmp_path: Path) -> None:
    dense = tiny_model("llama")
    model, facts = upcycled(dense, read_by(dense, batch), Split(experts=4, picked=4, shared=16))
    for block in layers(model):
        torch.nn.init.zeros_(block.gate.weight)
    with torch.no_grad():
        torch.testing.assert_close(model(batch.ids).logits, dense(batch.ids).logits, rtol=0, atol=2e-5)
    assert len(facts) == 3
    save(Opened(model, tiny_tokenizer(), "", "", "", torch.float32), tmp_path / "out", {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again.set_experts_implementation("eager")
    with torch.no_grad():
        assert torch.equal(again(batch.ids).logits, model(batch.ids).logits)
    assert again.config.model_type == "qwen2_moe"


def test_a_taught_router_is_better_than_one_that_always_picks_the_same(batch: TokenBatch) -> None:
    dense = trained_model()
    split = Split(experts=8, picked=4, shared=64)
    model, facts = upcycled(dense, read_by(dense, batch), split)
    taught = loss(view(model), batch)
    for block in layers(model):
        torch.nn.init.zeros_(block.gate.weight)
    same = loss(view(model), batch)
    whole = loss(view(dense), batch)
    assert whole < taught < same
    assert all(one["error_of_the_largest"] <= one["error"] < 1 for one in facts)


def test_clusters_hold_every_neuron_once_and_find_those_that_act_together() -> None:
    """Sixteen neurons are always active; the others in four groups, each for tokens of its own."""
    chance = torch.Generator().manual_seed(0)
    groups = torch.arange(48).remainder(4)
    tokens = torch.randint(4, (512,), generator=chance)
    hidden = (tokens[:, None] == groups).float() * (1 + 0.1 * torch.randn(512, 48, generator=chance))
    hidden = torch.cat([hidden, 2 + 0.1 * torch.randn(512, 16, generator=chance)], 1)
    shared, experts = clustered(hidden, torch.ones(8, 64), Split(experts=4, picked=2, shared=16), seed=0)
    assert shared.tolist() == list(range(48, 64))
    assert sorted(torch.cat(experts).tolist()) == list(range(48))
    assert all(len(set(groups[neurons].tolist())) == 1 for neurons in experts)


def test_the_byte_mixture_has_learnt_and_uses_its_experts(batch: TokenBatch) -> None:
    assert loss(view(trained_mixture()), batch) < loss(view(untrained_mixture()), batch) - 2.5
    # It is trained where it is tested, and each processor rounds its way to another model: some experts are for words that few texts have.
    more = CalibrationSet("0.4*python_docs + 0.3*python_code + 0.3*arithmetic", samples=72, length=128).tokens(tiny_tokenizer())
    loads = [seen[Routing].counts for _, seen in walk_blocks(view(trained_mixture()), more, (Routing,))]
    assert all(int((load > 0).sum()) >= 12 for load in loads)
    model = trained_mixture()
    for layer in expert_layers(view(model)):
        for expert in layer.experts:
            expert[-1].set(torch.zeros(expert[-1].shape))
    assert loss(view(model), batch) > loss(view(trained_mixture()), batch) + 0.05, "the routed experts matter"


def test_planted_truths_hold(batch: TokenBatch) -> None:
    model = plant(trained_mixture(), dead=[(1, 3)], doubled=[(2, 0, 7)])
    layers_of = expert_layers(view(model))
    assert not any(bool(matrix.get().any()) for matrix in layers_of[1].experts[3])
    assert all(torch.equal(a.get(), b.get()) for a, b in zip(layers_of[2].experts[0], layers_of[2].experts[7], strict=True))
    routings = {block.index: seen[Routing] for block, seen in walk_blocks(view(model), batch, (Routing,))}
    assert float(routings[1].counts[3]) == float(routings[1].counts.min())
    assert float(routings[2].together[0, 7]) > 0, "who is sent to the one first is sent to the other too"
    others = trained_mixture()
    assert all(torch.equal(a, b) for a, b in zip(others.model.layers[0].parameters(), model.model.layers[0].parameters(), strict=True))
