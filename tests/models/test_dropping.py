"""A model without some of its blocks is still an ordinary model: it saves, reopens, and computes
what the rest computed.
"""

import copy
from typing import Any, Final

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from calibrant.models import view
from calibrant.testing.tiny import FAMILIES, tiny_model

from tests.models.families import small_config
from tests.models.refused import refusal_of
from tests.usual import reopened, usually

IDS = torch.arange(3, 35).reshape(2, 16)
SAID_OTHERWISE: Final[dict[str, dict[str, Any]]] = {
    "bamba": {"attn_layer_indices": [2]},
    "big_bird": {},
    "falcon_h1": {},
    "falcon_mamba": {},
    "gpt_neo": {},
    "gpt_neox_japanese": {},
    "granite_swa": {"layer_rope_theta": [1e4, 1e2, 1e4]},
    "laguna": {"num_attention_heads_per_layer": [4, 2, 4]},
    "llama4_text": {"moe_layers": [0, 2]},
    "mamba": {},
    "mamba2": {},
    "minimax": {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
    "nemotron_h": {},
    "reformer": {"attn_layers": ["local"] * 3},
    "rwkv": {},
}
"""Families that say in a way of their own what each block is, or what its place is, and entries
that let blocks differ.
"""


def random_model(family: str, **entries: object) -> PreTrainedModel:
    """A small model of one of transformers' families, some entries of whose configuration are
    given.
    """
    config = small_config(family)
    for name, entry in entries.items():
        setattr(config, name, entry)
    return AutoModelForCausalLM.from_config(config).eval()


def skip(block) -> None:
    """Let a block give back what it gets."""
    block.forward = lambda hidden_states, *_, **__: hidden_states


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_without_a_block_the_model_computes_as_if_the_block_did_nothing(family):
    model, oracle = tiny_model(family), tiny_model(family)
    skip(view(oracle).blocks[1].module)
    view(model).drop_blocks([1])
    assert torch.equal(model(IDS, use_cache=False).logits, oracle(IDS, use_cache=False).logits)


@pytest.mark.parametrize(
    "family", usually(["llama", "gpt2", "gemma3", "qwen3_moe"], {"llama", "qwen3_moe"})
)
def test_a_shortened_model_reopens_with_plain_transformers(family, tmp_path):
    model = tiny_model(family)
    view(model).drop_blocks([0, 1] if family == "llama" else [1])
    again = reopened(model, tmp_path / "out")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    with_cache = model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(with_cache, again.generate(IDS, max_new_tokens=5, do_sample=False))


@pytest.mark.parametrize(
    "family",
    usually(SAID_OTHERWISE, {"bamba", "gpt_neo", "laguna", "mamba", "minimax", "nemotron_h"}),
)
def test_however_a_family_says_what_its_blocks_are_the_shortened_model_reopens(family, tmp_path):
    model = random_model(family, **SAID_OTHERWISE[family])
    seen = view(model)
    seen.drop_blocks([1])
    again = reopened(model, tmp_path / "out")
    assert len(view(again).blocks) == len(seen.blocks)
    logits = model(IDS, use_cache=False).logits
    assert torch.equal(again(IDS, use_cache=False).logits, logits)
    with_cache = model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(with_cache, again.generate(IDS, max_new_tokens=5, do_sample=False))


def test_blocks_that_stay_keep_their_rotary_base():
    model = random_model("granite_swa", **SAID_OTHERWISE["granite_swa"])
    oracle = copy.deepcopy(model)
    skip(view(oracle).blocks[1].module)
    view(model).drop_blocks([1])
    assert torch.equal(model(IDS, use_cache=False).logits, oracle(IDS, use_cache=False).logits)


def test_blocks_that_can_not_go_are_refused_and_nothing_changes():
    model = tiny_model("llama")
    seen, want = view(model), model(IDS).logits
    for indices, subject in (([3], "3"), ([-1], "-1"), ([0, 1, 2], "model.layers")):
        assert refusal_of(seen.drop_blocks, indices).subject == subject
    assert torch.equal(model(IDS).logits, want)


def test_what_the_configuration_can_not_describe_is_refused_and_nothing_changes():
    # Every second block has experts: without the first, the places would ask for other kinds.
    model = tiny_model("qwen3_moe", decoder_sparse_step=2)
    before = copy.deepcopy(model.config.to_dict())
    assert refusal_of(view(model).drop_blocks, [0]).subject == "model.layers.0.mlp.down_proj.weight"
    assert model.config.to_dict() == before
    assert len(view(model).blocks) == 3


@pytest.mark.parametrize(
    ("family", "subject"),
    [
        ("beam", "model.layers.0.attn_residual_add_idx"),
        ("diffllama", "model.layers.0.self_attn.lambda_init"),
        ("minicpm3", "model.layers.0.residual_scale"),
        ("zamba2", "model.layers.0.shared_transformer.feed_forward.layer_dic"),
    ],
)
def test_blocks_that_compute_with_their_place_or_with_how_many_there_are_stay(family, subject):
    model = random_model(family)
    want = model(IDS, use_cache=False).logits
    assert refusal_of(view(model).drop_blocks, [0]).subject == subject
    assert torch.equal(model(IDS, use_cache=False).logits, want)


def test_only_the_last_block_can_go_where_each_computes_with_its_place(tmp_path):
    model = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    refusal = refusal_of(view(model).drop_blocks, [0])
    assert refusal.subject == "transformer.h.0.attn.scaling"
    view(model).drop_blocks([2])
    assert torch.equal(reopened(model, tmp_path / "out")(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("dory", "model.layers"),
        ("prophetnet", "prophetnet.decoder.layers"),
        ("zamba", "model.layers"),
    ],
)
def test_a_model_that_transformers_can_not_make_is_refused_and_nothing_changes(family, layers):
    model = random_model(family)
    before = copy.deepcopy(model.config.to_dict())
    assert refusal_of(view(model).drop_blocks, [1]).subject == layers
    assert model.config.to_dict() == before
