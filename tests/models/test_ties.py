"""What shares memory is named, and a head that is untied stays untied through saving and
opening.
"""

import pytest
import torch
from transformers import LlamaForCausalLM

from calibrant.models import overwrite, view
from calibrant.testing.tiny import FAMILIES, tiny_model

from tests.models.refused import refusal_of
from tests.usual import reopened, usually

IDS = torch.arange(3, 35).reshape(2, 16)


def head_name(model) -> str:
    return (
        next(
            name
            for name, module in model.named_modules()
            if module is model.get_output_embeddings()
        )
        + ".weight"
    )


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_a_tied_head_is_named_and_untied_for_good(family, tmp_path):
    model = tiny_model(family, tie_word_embeddings=True)
    seen, want = view(model), model(IDS).logits
    (group,) = seen.tied
    embedding = next(
        name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight
    )
    assert set(group) == {embedding, head_name(model)}
    assert seen.untie()
    assert seen.tied == ()
    assert torch.equal(model(IDS).logits, want)
    assert {d.name: d.reason for d in seen.dense}[head_name(model)] == "head"
    head = model.get_output_embeddings().weight
    overwrite(head, head.detach() * 2)
    changed = model(IDS).logits
    assert not torch.equal(changed, want)
    again = reopened(model, tmp_path / "out")
    assert torch.equal(again(IDS).logits, changed)
    assert not torch.equal(
        again.get_output_embeddings().weight, again.get_input_embeddings().weight
    )


def test_a_model_without_a_head_is_refused():
    assert refusal_of(view(tiny_model("llama").model).untie).subject == "head"


class AlwaysTied(LlamaForCausalLM):
    def tie_weights(self, *_, **__) -> None:
        self.lm_head.weight = self.model.embed_tokens.weight


def test_a_head_that_is_always_the_embedding_is_refused():
    model = AlwaysTied(tiny_model("llama").config).eval()
    model.tie_weights()
    assert refusal_of(view(model).untie).subject == "lm_head.weight"
    assert len(view(model).tied) == 1
