"""What eight tokens show of a model, and what is said of matrices that a walk can't follow."""

import pytest
import torch
from torch import nn

from calibrant.errors import ModelError
from calibrant.models import view
from calibrant.testing import FAMILIES, tiny_model
from calibrant.walk.rehearsal import rehearse

from tests.usual import usually

REASONS = ("arrival", "reference", "dense")


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_of_an_ordinary_model_everything_is_followed(family: str) -> None:
    found = rehearse(view(tiny_model(family)))
    assert found.calls == (0, 1, 2)
    assert not any(found.left(propagate) for propagate in REASONS)
    assert not found.changes_input
    assert not found.turned


def test_a_view_is_rehearsed_anew_after_blocks_were_dropped() -> None:
    seen_by = view(tiny_model("llama"))
    assert rehearse(seen_by) is rehearse(seen_by)
    seen_by.drop_blocks([1])
    assert rehearse(seen_by).calls == (0, 1)


def test_a_matrix_that_two_blocks_share_is_left() -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight
    found = rehearse(view(model))
    for propagate in REASONS:
        assert found.left(propagate).keys() == {"model.layers.1.mlp.up_proj"}


def test_a_matrix_read_otherwise_or_in_part_is_left_and_asking_for_its_type_is_no_reading() -> None:
    model = tiny_model("llama")
    layers = model.model.layers
    down, up, typed = layers[1].mlp.down_proj, layers[2].mlp.up_proj, layers[0].mlp.up_proj
    down.forward = lambda x: nn.functional.linear(x, down.weight.round())
    up.forward = lambda x: torch.cat(
        [nn.functional.linear(x, half) for half in up.weight.chunk(2)], -1
    )
    typed.forward = lambda x: nn.functional.linear(
        x.to(typed.weight.dtype).to(typed.weight) + typed.weight.new_zeros(1), typed.weight
    )
    left = rehearse(view(model)).left("dense")
    assert left.keys() == {"model.layers.1.mlp.down_proj", "model.layers.2.mlp.up_proj"}
    assert "round" in left["model.layers.1.mlp.down_proj"]
    assert "linear" in left["model.layers.2.mlp.up_proj"]


def test_a_block_that_runs_twice_or_not_at_all_is_left() -> None:
    model = tiny_model("llama")
    first, second = model.model.layers[0], model.model.layers[1]
    whole = type(first).forward
    first.forward = lambda hidden, **asked: whole(first, second(hidden, **asked), **asked)
    model.model.layers[2].forward = lambda hidden, **_: hidden
    seen_by = view(model)
    left = rehearse(seen_by).left("dense")
    assert "2 times" in left["model.layers.1.mlp.up_proj"]
    assert "model.layers.0.mlp.up_proj" not in left


def test_a_model_without_a_matrix_that_can_be_followed_is_refused() -> None:
    model = tiny_model("llama")
    whole = model.model.forward
    model.model.forward = lambda **asked: (whole(**asked), whole(**asked))
    with pytest.raises(ModelError) as refused:
        rehearse(view(model))
    assert refused.value.subject == "LlamaForCausalLM"


def test_an_input_that_is_read_later_is_kept() -> None:
    model = tiny_model("llama")
    assert rehearse(view(model)).frees_input
    embedded: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda _m, _a, out: embedded.append(out))
    last = model.model.layers[2]
    last.forward = lambda hidden, **asked: type(last).forward(last, hidden, **asked) + embedded[-1]
    assert not rehearse(view(model)).frees_input
