"""Layers of experts are found whatever their layout, and whom routers pick is what a literal
computation picks.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from calibrant.activations import Routing
from calibrant.data import TokenBatch
from calibrant.models import Choices, expert_layers, view
from calibrant.walk import walk_blocks

from tests.models.mixtures_of_experts import KINDS, tiny_mixture
from tests.models.refused import refusal_of
from tests.usual import usually

IDS = torch.arange(3, 35).reshape(2, 16)
LENGTHS = (12, 7, 9)


def softmax_then_top(logits: Tensor, renormalise: bool) -> tuple[Tensor, Tensor]:
    chances = logits.softmax(-1)
    gates, chosen = chances.topk(2, dim=-1)
    return chosen, gates / gates.sum(-1, keepdim=True) if renormalise else gates


def top_then_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = logits.topk(2, dim=-1)
    return chosen, best.softmax(-1)


def corrected(
    logits: Tensor, correction: Tensor, scores: Callable[[Tensor], Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    """Picked with a correction, weighted without it."""
    sure = scores(logits)
    chosen = (sure + correction).topk(2, dim=-1)[1]
    gates = sure.gather(1, chosen)
    return chosen, scale * gates / gates.sum(-1, keepdim=True)


def one_after_the_other(logits: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """The best, weighted among those that are nearly as good; then the best of the others,
    weighted among those nearly as good as it is.
    """
    chosen, gates = [], []
    for row in logits.tolist():
        first = max(range(len(row)), key=row.__getitem__)
        second = max((e for e in range(len(row)) if e != first), key=row.__getitem__)
        for best, without in ((first, -1), (second, first)):
            near = [
                s
                for e, s in enumerate(row)
                if e != without and (row[best] - s) / max(abs(s), row[best]) <= 2 * jitter
            ]
            gates.append(1 / sum(math.exp(s - row[best]) for s in near))
            chosen.append(best)
    return torch.tensor(chosen).reshape(-1, 2), torch.tensor(gates, dtype=torch.float64).reshape(
        -1, 2
    )


def literal(kind: str, router: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Whom a router of `kind` sends each row of `x` to, and with what weight, written down from
    the architecture's description.
    """
    named = {
        name.rpartition(".")[2]: p.double()
        for name, p in [*router.named_parameters(), *router.named_buffers()]
    }
    logits = x.double() @ named["weight"].T
    match kind:
        case "mixtral":
            return softmax_then_top(logits, renormalise=True)
        case "qwen2_moe" | "qwen3_moe" | "olmoe":
            return softmax_then_top(logits, renormalise=False)
        case "granitemoe" | "jetmoe":
            return top_then_softmax(logits)
        case "gpt_oss":
            return top_then_softmax(logits + named["bias"])
        case "llama4_text":
            best, chosen = logits.topk(2, dim=-1)
            return chosen, best.sigmoid()
        case "phimoe":
            return one_after_the_other(logits, 0.01)
        case "deepseek_v3":
            return corrected(logits, named["e_score_correction_bias"], torch.sigmoid, 2.5)
        case "ernie4_5_moe":
            return corrected(
                logits, named["e_score_correction_bias"].reshape(-1), lambda x: x.softmax(-1), 1.0
            )
    raise AssertionError(kind)


def inputs_of_routers(model, layers, ids: Tensor) -> dict[str, Tensor]:
    """What arrives at each router in a plain forward of one row of tokens."""
    came: dict[str, Tensor] = {}

    def hook(name: str):
        return lambda _, args: came.__setitem__(name, args[0].reshape(-1, 32).detach())

    hooks = [layer.router.register_forward_pre_hook(hook(layer.name)) for layer in layers]
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return came


def padded_batch(weighted: bool) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(3, 100, mask.shape, generator=generator).masked_fill(~mask, 0)
    weights = torch.rand(mask.shape, generator=generator) if weighted else torch.ones(mask.shape)
    weights[weights < 0.2] = 0.0
    return TokenBatch(
        ids=ids, mask=mask, weights=weights * mask, fingerprint="sha256:test", facts={}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_sends_tokens_where_a_literal_router_does(kind):
    model = tiny_mixture(kind, torch.float64)
    layers = expert_layers(view(model))
    with Choices(layers) as choices:
        came = inputs_of_routers(model, layers, IDS)
    for layer in layers:
        (chosen, gates), (want, given) = (
            choices.of(layer),
            literal(kind, layer.router, came[layer.name]),
        )
        order, other = chosen.argsort(-1), want.argsort(-1)
        assert torch.equal(chosen.gather(1, order), want.gather(1, other))
        assert torch.allclose(gates.gather(1, order).double(), given.gather(1, other), atol=1e-6)


@pytest.mark.parametrize("weighted", usually([False, True], {True}))
@pytest.mark.parametrize(
    "kind", usually(KINDS, {"mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "phimoe"})
)
def test_routing_is_what_plain_forwards_and_a_literal_router_come_to(kind, weighted):
    model = tiny_mixture(kind, torch.float64)
    seen_by, batch = view(model), padded_batch(weighted)
    layers = expert_layers(seen_by)
    want = {
        layer.block: (torch.zeros(8), torch.zeros(8).double(), torch.zeros(8, 8))
        for layer in layers
    }
    for ids, weights, length in zip(batch.ids, batch.weights, LENGTHS, strict=True):
        came = inputs_of_routers(model, layers, ids[None, :length])
        for layer in layers:
            chosen, gates = literal(kind, layer.router, came[layer.name])
            counts, sums, together = want[layer.block]
            for experts, given, weight in zip(
                chosen.tolist(), gates.tolist(), weights.tolist(), strict=False
            ):
                for expert, gate in zip(experts, given, strict=True):
                    counts[expert] += weight
                    sums[expert] += weight * gate
                    for other in experts:
                        together[expert, other] += weight
    found = {
        block.index: seen[Routing]
        for block, seen in walk_blocks(seen_by, batch, (Routing,), tokens_per_pass=24)
        if Routing in seen
    }
    assert found.keys() == want.keys()
    for block, (counts, sums, together) in want.items():
        assert torch.allclose(found[block].counts, counts.double(), atol=1e-4)
        # Routers compute in float32, whatever the model's type.
        assert torch.allclose(found[block].gates, sums, atol=1e-4)
        assert torch.allclose(found[block].together, together.double(), atol=1e-4)
        assert found[block].tokens == int((batch.weights > 0).sum())
        assert found[block].mass == pytest.approx(float(batch.weights.sum()))


def test_a_router_that_is_not_understood_is_named():
    layers = expert_layers(view(tiny_mixture("mixtral")))
    with Choices(layers) as choices:
        pass
    assert refusal_of(choices.of, layers[0]).subject == "model.layers.0.mlp"


def test_experts_without_a_router_or_with_two_are_named():
    model = tiny_mixture("mixtral")
    model.model.layers[1].mlp.router = nn.Linear(32, 8)
    said = refusal_of(expert_layers, view(model))
    assert said.subject == "model.layers.1.mlp"
    assert "model.layers.1.mlp.router" in str(said)
    del model.model.layers[1].mlp.router
    model.model.layers[1].mlp.gate.weight = nn.Parameter(torch.zeros(5, 32))
    assert refusal_of(expert_layers, view(model)).subject == "model.layers.1.mlp"


def test_a_router_that_does_not_say_how_many_it_picks_is_named(monkeypatch):
    model = tiny_mixture("mixtral")
    del model.model.layers[0].mlp.gate.top_k, model.model.layers[0].mlp.top_k
    monkeypatch.setattr("calibrant.models.experts.TOP_K_NAMES", ("top_k",))
    assert refusal_of(expert_layers, view(model)).subject == "model.layers.0.mlp"
