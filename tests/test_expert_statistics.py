"""What experts got and gave, against a slow loop that runs every expert of every token in
float64.
"""

import math
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from calibrant.activations import Routing
from calibrant.data import TokenBatch
from calibrant.errors import ModelError, NumericsError
from calibrant.models import ExpertLayer, expert_layers, view
from calibrant.walk import walk_blocks
from calibrant.walk.block_statistics import ExpertOutputs, TokenKinds
from calibrant.walk.products import Product

from tests.models.mixtures_of_experts import KINDS, tiny_mixture
from tests.models.test_experts import LENGTHS, inputs_of_routers, literal, padded_batch
from tests.usual import usually

WALKED = [kind for kind in KINDS if kind != "jetmoe"]
"""JetMoE has experts of attention too, which sort the tokens; no walk goes through it with
padding.
"""
OF_EXPERTS = (Routing, TokenKinds, ExpertOutputs)


class Sent(NamedTuple):
    """A token that an expert got: where it stood, its id and weight, the router's weight, and
    what the expert made of it.
    """

    where: tuple[int, int]
    token: int
    weight: float
    gate: float
    y: Tensor


def given(kind: str, layer: ExpertLayer, expert: int, x: Tensor, gate: float) -> Tensor:
    """What one expert makes of one token, from the description of its architecture; `x` [in]
    float64.
    """
    (module,) = layer.holders
    first, last = (
        module.gate_up_proj[expert].detach().double(),
        module.down_proj[expert].detach().double(),
    )
    if kind == "gpt_oss":
        both = x @ first + module.gate_up_proj_bias[expert].detach().double()
        gates, ups = both[0::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
        return ((ups + 1) * gates * torch.sigmoid(1.702 * gates)) @ last + module.down_proj_bias[
            expert
        ].detach().double()
    if kind == "llama4_text":
        both = (gate * x) @ first
        half = len(both) // 2
        return (both[half:] * both[:half] * torch.sigmoid(both[:half])) @ last
    both = first @ x
    half = len(both) // 2
    return last @ (both[:half] * torch.sigmoid(both[:half]) * both[half:])


def by_loop(
    kind: str, model, batch: TokenBatch, layers: tuple[ExpertLayer, ...]
) -> dict[int, list[list[Sent]]]:
    """For each block and expert the tokens that it got. Every expert is run on every token; what
    wasn't chosen is left out.
    """
    got: dict[int, list[list[Sent]]] = {layer.block: [[] for _ in range(8)] for layer in layers}
    for sample, (ids, weights, length) in enumerate(
        zip(batch.ids, batch.weights, LENGTHS, strict=True)
    ):
        came = inputs_of_routers(model, layers, ids[None, :length])
        for layer in layers:
            chosen, gates = literal(kind, layer.router, came[layer.name])
            for place in range(length):
                gate_of = dict(zip(chosen[place].tolist(), gates[place].tolist(), strict=True))
                for expert in range(8):
                    gate = gate_of.get(expert, 0.0)
                    y = given(kind, layer, expert, came[layer.name][place].double(), gate)
                    if expert in gate_of and weights[place] > 0:
                        got[layer.block][expert].append(
                            Sent((sample, place), int(ids[place]), float(weights[place]), gate, y)
                        )
    return got


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kind", usually(WALKED, {"mixtral", "gpt_oss", "llama4_text"}))
def test_sums_are_those_of_a_loop_over_every_expert_of_every_token(
    kind: str, weighted: bool
) -> None:
    model, batch = tiny_mixture(kind), padded_batch(weighted)
    seen_by = view(model)
    want = by_loop(kind, model, batch, expert_layers(seen_by))
    with torch.no_grad():
        found = {
            b.index: seen
            for b, seen in walk_blocks(seen_by, batch, OF_EXPERTS, tokens_per_pass=24)
            if Routing in seen
        }
    assert found.keys() == want.keys()
    for block, experts in want.items():
        outputs, kinds = found[block][ExpertOutputs], found[block][TokenKinds]
        assert torch.allclose(outputs.counts, found[block][Routing].counts, atol=1e-6)
        assert (outputs.tokens, kinds.tokens) == (int((batch.weights > 0).sum()),) * 2
        assert outputs.mass == kinds.mass == pytest.approx(float(batch.weights.sum()))
        for expert, sent in enumerate(experts):
            assert kinds.counts()[expert] == len({one.token for one in sent})
            zeros = torch.zeros(32, dtype=torch.float64)
            sums, squares = (
                sum((one.weight * one.y**power for one in sent), zeros) for power in (1, 2)
            )
            assert torch.allclose(outputs.sums[expert], sums, rtol=1e-4, atol=1e-5)
            assert torch.allclose(outputs.squares[expert], squares, rtol=1e-4, atol=1e-6)
            assert float(outputs.norms[expert]) == pytest.approx(
                sum(one.weight * float(one.y.norm()) for one in sent), rel=1e-4
            )
            before = kind == "llama4_text"  # there the weight is in y already
            gated = sum(
                one.weight * (1.0 if before else one.gate) * float(one.y.norm()) for one in sent
            )
            assert float(outputs.gated[expert]) == pytest.approx(gated, rel=1e-4)
            assert float(outputs.largest[expert]) == pytest.approx(
                max((float(one.y.abs().max()) for one in sent), default=0.0), rel=1e-4
            )
            assert float(outputs.histogram[expert].sum()) == pytest.approx(
                32 * sum(one.weight for one in sent), rel=1e-6
            )
            for other in range(8):
                both = {one.token for one in sent} & {one.token for one in experts[other]}
                assert kinds.shared()[expert, other] == len(both)
        assert kinds.distinct() == len({one.token for sent in experts for one in sent})


def test_means_variances_and_outliers_are_those_of_the_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(400, 6, generator=generator, dtype=torch.float64) ** 3 + 0.2
    weights = torch.rand(400, generator=generator, dtype=torch.float64) + 0.5
    seen = ExpertOutputs.none(3, 6, y.device)
    seen.add(1, y[:150], torch.ones(150), weights[:150])
    seen.add(1, y[150:], torch.ones(250), weights[150:])
    mean = (weights[:, None] * y).sum(0) / weights.sum()
    assert torch.allclose(seen.means()[1], mean)
    assert torch.allclose(
        seen.variances()[1], (weights[:, None] * (y - mean).square()).sum(0) / weights.sum()
    )
    assert (
        float(seen.means()[0].abs().sum())
        == float(seen.variances()[2].abs().sum())
        == float(seen.outliers()[0])
        == 0
    )
    every, w = y.flatten(), weights.repeat_interleave(6)
    middle = float((w * every).sum() / w.sum())
    spread = math.sqrt(float((w * (every - middle).square()).sum() / w.sum()))

    def beyond(share: float) -> float:
        """The weight of what lies beyond borders that are moved outwards by a share of where
        they are.
        """
        up, down = (middle + 3 * spread) * share, (middle - 3 * spread) * share
        return float(w[(every > up) | (every < down)].sum())

    width = 2 ** (1 / 16)
    assert beyond(width) <= float(seen.outliers()[1]) <= beyond(1 / width)
    assert 0 < beyond(width) < beyond(1 / width) < 0.05 * float(w.sum()), (
        "the borders are where numbers are"
    )


def test_they_add_up_and_are_scaled() -> None:
    generator = torch.Generator().manual_seed(1)
    ids, chosen = (
        torch.randint(50, (60,), generator=generator),
        torch.randint(5, (60, 2), generator=generator),
    )
    whole, parts = (
        TokenKinds.of(ids, chosen, 5),
        [TokenKinds.of(ids[at : at + 20], chosen[at : at + 20], 5) for at in (0, 20, 40)],
    )
    added = parts[0] + parts[1] + parts[2]
    assert torch.equal(added.pairs, whole.pairs)
    assert (added.tokens, added.mass, (added * 0.25).mass) == (60, 60.0, 15.0)
    assert torch.equal((added * 0.25).pairs, whole.pairs)
    y = torch.randn(60, 4, generator=generator)
    both, one, other = (ExpertOutputs.none(2, 4, y.device, tokens=1, mass=2.0) for _ in range(3))
    for seen, rows in ((both, y), (one, y[:10]), (other, y[10:])):
        seen.add(0, rows, torch.full((len(rows),), 0.5), torch.ones(len(rows)))
    total, half = one + other, (one + other) * 0.5
    for name in ("counts", "sums", "squares", "norms", "gated", "histogram"):
        assert torch.allclose(getattr(total, name), getattr(both, name))
        assert torch.allclose(getattr(half, name), getattr(both, name) * 0.5)
    assert torch.equal(total.largest, both.largest)
    assert torch.equal(half.largest, both.largest), "a weight makes nothing smaller than it was"
    assert (total.tokens, total.mass, half.mass) == (2, 4.0, 2.0)


def test_a_choice_that_was_left_out_is_of_no_kind() -> None:
    kinds = TokenKinds.of(
        torch.tensor([5, 5, 6]),
        torch.tensor([[0, -1], [3, 2], [3, 3]]),
        3,
        torch.tensor([1.0, 0.5, 1.0]),
    )
    assert kinds.counts().tolist() == [1, 0, 1]
    assert (kinds.distinct(), kinds.mass) == (1, 2.5)
    nothing = TokenKinds.of(
        torch.empty(0, dtype=torch.int64), torch.empty(0, 2, dtype=torch.int64), 3
    )
    assert (nothing.distinct(), nothing.counts().tolist(), int(nothing.shared().sum())) == (
        0,
        [0, 0, 0],
        0,
    )


def test_of_a_router_there_are_mean_gates_and_the_entropy_of_its_load() -> None:
    chosen, gates = (
        torch.tensor([[0, 1], [0, 2], [0, 1], [0, 1]]),
        torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]),
    )
    seen = Routing.of(chosen, gates, 4)
    assert seen.mean_gates().tolist() == pytest.approx([0.75, 0.8 / 3, 0.2, 0.0])
    shares = [n / 8 for n in Counter(chosen.flatten().tolist()).values()]
    assert seen.entropy() == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert Routing.of(
        torch.tensor([[0], [1], [2], [3]]), torch.ones(4, 1), 4
    ).entropy() == pytest.approx(math.log(4))


def test_outputs_that_are_not_finite_or_can_not_be_traced_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_mixture("mixtral")
    for expert in expert_layers(view(model))[1].experts:
        expert[1].set(torch.full(expert[1].shape, math.inf))
    with torch.no_grad(), pytest.raises(NumericsError) as endless:
        list(walk_blocks(view(model), padded_batch(False), OF_EXPERTS))
    assert endless.value.subject.startswith("model.layers.1.mlp.experts.down_proj[")
    plain = Product.__init__
    monkeypatch.setattr(
        Product, "__init__", lambda self, weight, x, tokens=None: plain(self, weight, x, None)
    )
    with torch.no_grad(), pytest.raises(ModelError) as lost:
        list(walk_blocks(view(tiny_mixture("mixtral")), padded_batch(False), OF_EXPERTS))
    assert lost.value.subject.startswith("model.layers.0.mlp.experts.down_proj[")
