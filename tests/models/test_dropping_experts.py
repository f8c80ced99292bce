"""A model without some of its experts is one of its architecture: built by hand from what is
left, it computes the same.
"""

import copy

import pytest
import torch

from calibrant.errors import TargetError
from calibrant.models import Snapshot, drop_experts, expert_layers, view
from calibrant.testing.tiny import tiny_model

from tests.models.mixtures_of_experts import tiny_mixture
from tests.models.refused import refusal_of
from tests.usual import reopened, usually

IDS = torch.arange(3, 35).reshape(2, 16)
COUNTS = {
    "mixtral": "num_local_experts",
    "qwen2_moe": "num_experts",
    "qwen3_moe": "num_experts",
    "olmoe": "num_experts",
    "deepseek_v3": "n_routed_experts",
    "gpt_oss": "num_local_experts",
    "llama4_text": "num_local_experts",
    "granitemoe": "num_local_experts",
    "phimoe": "num_local_experts",
    "ernie4_5_moe": "moe_num_experts",
}
"""What each configuration calls the number of its experts; JetMoE's says that of its attention's
experts too.
"""
FEW = ("mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text", "ernie4_5_moe")


def gone_of(model) -> dict[int, list[int]]:
    """Other experts in each block, equally many."""
    return {
        layer.block: [[1, 4, 6], [7, 0, 1]][layer.block] for layer in expert_layers(view(model))
    }


def by_hand(kind: str, model, gone: dict[int, list[int]]):
    """A smaller model, made anew, whose numbers are copied expert by expert."""
    small = tiny_mixture(kind, **{COUNTS[kind]: 5})
    theirs, numbers = (
        dict([*model.named_parameters(), *model.named_buffers()]),
        dict([*small.named_parameters(), *small.named_buffers()]),
    )
    for name, tensor in numbers.items():
        if tensor.shape == theirs[name].shape:
            tensor.data = theirs[name].data.clone()
            continue
        kept = [e for e in range(8) if e not in gone[int(name.split(".layers.")[1].split(".")[0])]]
        for place, expert in enumerate(kept):
            if tensor.shape[0] == 5:
                tensor.data[place] = theirs[name].data[expert]
            else:
                tensor.data[:, place] = theirs[name].data[:, expert]
    return small


@pytest.mark.parametrize("kind", usually(COUNTS, FEW))
def test_what_is_left_is_what_one_would_build_by_hand_and_reopens(kind, tmp_path):
    model = tiny_mixture(kind)
    gone, before = gone_of(model), model(IDS, use_cache=False).logits
    oracle = by_hand(kind, model, gone)
    seen = view(model)
    drop_experts(seen, gone)
    got = model(IDS, use_cache=False).logits
    assert torch.equal(got, oracle(IDS, use_cache=False).logits)
    assert not torch.equal(got, before)
    assert all(layer.count == 5 and layer.matrix.shape == (5, 32) for layer in expert_layers(seen))
    assert getattr(model.config, COUNTS[kind]) == 5
    again = reopened(model, tmp_path / "out")
    assert torch.equal(again(IDS, use_cache=False).logits, got)
    assert torch.equal(
        again.generate(IDS, max_new_tokens=4, do_sample=False),
        model.generate(IDS, max_new_tokens=4, do_sample=False),
    )


@pytest.mark.parametrize("kind", usually(COUNTS, {"mixtral", "gpt_oss"}))
def test_a_snapshot_brings_dropped_experts_back_without_having_copied_any(kind):
    model = tiny_mixture(kind)
    seen, want, config = view(model), model(IDS, use_cache=False).logits, model.config.to_dict()
    names, snapshot = [w.name for w in seen.weights], Snapshot.of(seen)
    drop_experts(seen, gone_of(model))
    assert len(seen.weights) < len(names)
    assert snapshot.bytes() == 0
    for weight in seen.weights:
        weight.set(torch.zeros(weight.shape))
    seen.drop_blocks([1])
    snapshot.restore()
    assert torch.equal(model(IDS, use_cache=False).logits, want)
    assert model.config.to_dict() == config
    assert [w.name for w in seen.weights] == names


def test_dropping_nothing_changes_nothing():
    model = tiny_mixture("mixtral")
    before = model.model.layers[0].mlp.gate.weight
    for experts in ({}, {0: [], 1: []}):
        drop_experts(view(model), experts)
    assert model.model.layers[0].mlp.gate.weight is before


def test_a_router_of_groups_keeps_groups_of_one_size(tmp_path):
    model = tiny_mixture("deepseek_v3", n_group=2, topk_group=1)
    seen = view(model)
    for gone, value in (([0, 1], "[2, 4]"), ([0, 1, 2, 4, 5, 6], "[1, 1]")):
        said = refusal_of(drop_experts, seen, {1: gone})
        assert said.subject == "model.layers.1.mlp"
        assert value in str(said)
    drop_experts(seen, {1: [1, 6]})
    again = reopened(model, tmp_path / "out")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("kind", "experts", "subject"),
    [
        ("mixtral", {0: [8], 1: [0]}, "8"),
        ("mixtral", {0: [-1], 1: [0]}, "-1"),
        ("mixtral", {2: [0]}, "2"),
        ("deepseek_v3", {0: [0], 1: [0]}, "0"),
        ("mixtral", {0: [1]}, "model.layers.0.mlp"),
        ("jetmoe", {0: [1], 1: [1]}, "model.layers.0.self_attention.experts.input_linear.weight"),
    ],
)
def test_what_can_not_be_dropped_is_refused_and_nothing_changes(kind, experts, subject):
    model = tiny_mixture(kind)
    want, config = model(IDS, use_cache=False).logits, copy.deepcopy(model.config.to_dict())
    assert refusal_of(drop_experts, view(model), experts).subject == subject
    assert torch.equal(model(IDS, use_cache=False).logits, want)
    assert model.config.to_dict() == config


def test_no_fewer_experts_are_left_than_a_router_picks_and_there_must_be_some():
    model = tiny_mixture("mixtral")
    assert (
        refusal_of(drop_experts, view(model), {0: range(7), 1: range(7)}, kind=TargetError).subject
        == "model.layers.0.mlp"
    )
    assert len(model.model.layers[0].mlp.gate.weight) == 8
    assert refusal_of(drop_experts, view(tiny_model("llama")), {1: [0]}).subject == "1"


def test_a_model_whose_experts_are_named_or_counted_otherwise_is_refused():
    model = tiny_mixture("mixtral")
    seen = view(model)
    model.config.num_local_experts = 9
    assert (
        refusal_of(drop_experts, seen, {0: [1], 1: [1]}).subject
        == "model.layers.0.mlp.experts.down_proj"
    )
    model = tiny_mixture("mixtral")
    model.model.layers[0].mlp.register_buffer("table", torch.zeros(3, dtype=torch.int64))
    assert (
        refusal_of(drop_experts, view(model), {0: [1], 1: [1]}).subject
        == "model.layers.0.mlp.table"
    )
