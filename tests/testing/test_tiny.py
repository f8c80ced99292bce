import pytest
import torch

from calibrant.testing.tiny import FAMILIES, TEMPLATE, VOCABULARY, tiny_model, tiny_tokenizer

from tests.models.refused import refusal_of
from tests.usual import usually

IDS = torch.arange(3, 35).reshape(2, 16)


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone(family):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = tiny_model(family), tiny_model(family), tiny_model(family, seed=1)
    assert torch.equal(torch.rand(3), want)
    assert torch.equal(one(IDS).logits, two(IDS).logits)
    assert not torch.equal(one(IDS).logits, other(IDS).logits)
    assert not one.training


def test_overrides_and_dtype_are_taken_and_an_unknown_family_is_refused():
    model = tiny_model("llama", torch.float64, num_hidden_layers=2)
    assert len(model.model.layers) == 2
    assert model(IDS).logits.dtype == torch.float64
    assert refusal_of(tiny_model, "lama").subject == "lama"


def test_any_text_goes_through_the_tokenizer_and_comes_back():
    tokenizer = tiny_tokenizer()
    text = "Zwölf Boxkämpfer\t¡日本!\n\x00  "
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert max(ids) < VOCABULARY == len(tokenizer)
    assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.chat_template == TEMPLATE
