"""Whatever is done to a model, its snapshot makes it again what it was, to the bit, and copies
no more than was overwritten.
"""

import copy

import pytest
import torch
from torch import nn

from calibrant.models import Snapshot, overwrite, view
from calibrant.testing.tiny import FAMILIES, tiny_model

from tests.models.refused import refusal_of
from tests.usual import usually

IDS = torch.arange(3, 35).reshape(2, 16)


def everything(model) -> dict[str, torch.Tensor]:
    """All numbers, by name, and which names share memory."""
    return {
        name: tensor.detach().clone()
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(),
        )
    }


def is_as_before(model, numbers, config, logits) -> bool:
    now = everything(model)
    return (
        list(now) == list(numbers)
        and all(torch.equal(now[name], numbers[name]) for name in numbers)
        and model.config.to_dict() == config
        and torch.equal(model(IDS).logits, logits)
    )


def set_matrices(seen) -> None:
    for weight in seen.weights:
        weight.set(torch.zeros(weight.shape))


def drop_a_block(seen) -> None:
    seen.drop_blocks([1])


def scale_norms_and_embedding(seen) -> None:
    for parameter in seen.model.parameters():
        if parameter.dim() == 1:
            overwrite(parameter, parameter.detach() * 2)
    overwrite(
        seen.model.get_input_embeddings().weight,
        seen.model.get_input_embeddings().weight.detach() + 1,
    )


def replace_a_module(seen) -> None:
    block = seen.blocks[0].module
    name = next(name for name, child in block.named_children() if list(child.parameters()))
    setattr(block, name, nn.Identity())


def replace_a_parameter(seen) -> None:
    weight = seen.weights[0]
    setattr(
        weight.owner, weight.key, nn.Parameter(torch.zeros_like(getattr(weight.owner, weight.key)))
    )
    seen.refresh()
    seen.weights[0].set(torch.ones(seen.weights[0].shape))


def give_other_numbers(seen) -> None:
    parameter = getattr(seen.weights[0].owner, seen.weights[0].key)
    parameter.data = torch.zeros_like(parameter.data)
    seen.weights[0].set(torch.ones(seen.weights[0].shape))


def change_the_configuration(seen) -> None:
    seen.model.config.use_cache = False
    seen.model.config.get_text_config().brand_new = [1, 2]
    seen.blocks[0].module.brand_new = True


CHANGES = (
    set_matrices,
    drop_a_block,
    scale_norms_and_embedding,
    replace_a_parameter,
    give_other_numbers,
    change_the_configuration,
    replace_a_module,
)


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_everything_comes_back_after_any_changes(family):
    model = tiny_model(family)
    seen = view(model)
    before = everything(model), model.config.to_dict(), model(IDS).logits
    said = model.generate(IDS, max_new_tokens=3, do_sample=False)
    names = [weight.name for weight in seen.weights]
    snapshot = Snapshot.of(seen)
    for change in CHANGES:
        change(seen)
        assert not is_as_before(model, *before)
        snapshot.restore()
        assert is_as_before(model, *before), change.__name__
    for change in CHANGES:
        change(seen)
    snapshot.restore()
    assert is_as_before(model, *before)
    assert [weight.name for weight in seen.weights] == names
    assert [block.index for block in seen.blocks] == [0, 1, 2]
    assert torch.equal(model.generate(IDS, max_new_tokens=3, do_sample=False), said)


def test_the_numbers_it_was_made_of_can_be_read():
    seen = view(tiny_model("mixtral"))
    want, snapshot = seen.snapshot(), Snapshot.of(seen)
    for weight in seen.weights[::2]:
        weight.set(torch.zeros(weight.shape))
    assert all(torch.equal(snapshot.original(weight), want[weight.name]) for weight in seen.weights)
    other = view(tiny_model("mixtral")).weights[3]
    assert refusal_of(snapshot.original, other).subject == other.name


def test_what_was_overwritten_without_a_word_is_named_and_nothing_is_changed():
    model = tiny_model("llama")
    seen = view(model)
    snapshot = Snapshot.of(seen)
    seen.weights[0].set(torch.zeros(seen.weights[0].shape))
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert refusal_of(snapshot.restore).subject == "model.norm.weight"
    assert not seen.weights[0].get().any()


def test_the_model_as_it_was_is_shown_without_a_copy():
    model = tiny_model("gpt2")
    seen = view(model)
    snapshot, want = Snapshot.of(seen), model(IDS).logits
    set_matrices(seen)
    seen.drop_blocks([1])
    numbers, config, logits = everything(model), model.config.to_dict(), model(IDS).logits
    size = snapshot.bytes()
    with snapshot.as_it_was():
        untouched = copy.deepcopy(model)
    assert torch.equal(untouched(IDS).logits, want)
    assert is_as_before(model, numbers, config, logits)
    assert snapshot.bytes() == size
    snapshot.restore()
    assert torch.equal(model(IDS).logits, want)


def test_blocks_dropped_from_what_is_left_come_back_too():
    """A list of modules that lost one holds the rest in another kind of dictionary."""
    model = tiny_model("llama")
    seen = view(model)
    seen.drop_blocks([0])
    snapshot = Snapshot.of(seen)
    there = list(seen.blocks)
    seen.drop_blocks([1])
    snapshot.restore()
    assert list(seen.blocks) == there
    undo = seen.remembered()
    seen.drop_blocks([0])
    undo()
    assert list(seen.blocks) == there
