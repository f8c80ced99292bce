"""A model without some of its blocks is still an ordinary model: it saves, reopens, and computes
what the rest computed.
"""

import copy

import pytest
import torch

from calibrant.models import view
from calibrant.testing.tiny import FAMILIES, tiny_model

from tests.models.refused import refusal_of
from tests.models.reopening import reopened
from tests.usual import usually

IDS = torch.arange(3, 35).reshape(2, 16)


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
