"""What the view shows is held against the model's own parameters and forwards."""

import pytest
import torch
from torch import nn

from calibrant.errors import NumericsError
from calibrant.models import ModelShape, check_finite, view
from calibrant.testing.tiny import tiny_model

from tests.models.families import small_model
from tests.models.mixtures_of_experts import tiny_mixture
from tests.models.refused import refusal_of

IDS = torch.arange(3, 35).reshape(2, 16)


def reasons(seen) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for dense in seen.dense:
        found.setdefault(dense.reason, set()).add(dense.name)
    return found


def test_what_is_left_dense_is_listed_with_its_reason():
    found = reasons(view(tiny_model("mixtral")))
    assert found["router"] == {f"model.layers.{i}.mlp.gate.weight" for i in range(3)}
    assert found["embedding"] == {"model.embed_tokens.weight"}
    assert found["head"] == {"lm_head.weight"}
    assert "model.norm.weight" in found["norm or bias (one-dimensional)"]
    assert len(found) == 4


def test_another_shape_is_refused():
    weight = view(tiny_model("llama")).weights[1]
    said = refusal_of(weight.set, torch.zeros(32, 16))
    assert said.subject == weight.name
    assert "[32, 16]" in str(said)


def test_memory_that_is_shared_is_shown_once_left_dense_or_refused():
    model = tiny_model("llama", intermediate_size=259)
    layers = model.model.layers
    layers[2].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    layers[0].mlp.up_proj.weight = model.model.embed_tokens.weight
    buffer = torch.zeros(64, 32)
    layers[0].self_attn.q_proj.weight.data = buffer[:32]
    layers[0].self_attn.o_proj.weight.data = buffer[32:]
    seen = view(model)
    assert len(seen.weights) == 21 - 2, "what lies side by side in one memory is two"
    assert ("model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight") in seen.tied
    assert reasons(seen)["the same memory as model.embed_tokens.weight"] == {
        "model.layers.0.mlp.up_proj.weight"
    }
    layers[0].self_attn.o_proj.weight.data = buffer[16:48]
    assert refusal_of(view, model).subject == "model.layers.0.self_attn.o_proj"


def test_a_model_without_a_head_is_its_own_base_and_one_that_can_not_leave_it_out_is_refused():
    model = tiny_model("llama")
    assert view(model.model).base is model.model
    seen = view(model)
    model.model.lm_head = model.lm_head
    assert refusal_of(lambda: seen.base).subject == "model.layers"


def test_a_snapshot_brings_every_matrix_back_and_that_of_another_model_is_refused():
    model = tiny_model("mixtral")
    seen = view(model)
    want, kept = model(IDS).logits, seen.snapshot()
    for weight in seen.weights:
        weight.set(torch.zeros(weight.shape))
    assert not torch.equal(model(IDS).logits, want)
    seen.restore(kept)
    assert torch.equal(model(IDS).logits, want)
    other = view(tiny_model("mixtral", num_hidden_layers=2)).snapshot()
    assert refusal_of(seen.restore, other).subject.startswith("model.layers.2.")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("family", "parameter", "named"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj"),
        (
            "mixtral",
            "model.layers.2.mlp.experts.down_proj",
            "model.layers.2.mlp.experts.down_proj[0]",
        ),
        ("llama", "model.norm.weight", "model.norm.weight"),
    ],
)
def test_weights_that_are_no_numbers_are_named(
    family: str, parameter: str, named: str, value: float
):
    model = tiny_model(family)
    seen = view(model)
    check_finite(seen)
    dict(model.named_parameters())[parameter].data.view(-1)[3] = value
    assert refusal_of(check_finite, seen, kind=NumericsError).subject == named


class Packed(nn.Module):
    """Keeps integers in place of a weight, as GPTQ's linears do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))


class Wrapped(torch.Tensor):
    """A tensor that only looks like plain numbers, as torchao's do."""


def with_weight(model, change) -> None:
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = nn.Parameter(change(linear.weight.detach()), requires_grad=False)


def compiled(model) -> None:
    model.model.layers[1].compile(backend="eager")


def wrapped_by_compile(model) -> None:
    model.model.layers[2] = type("OptimizedModule", (nn.Module,), {})()


def packed(model) -> None:
    model.model.layers[0].mlp.down_proj = Packed()


def quantized_by_torch(model) -> None:
    module = type(
        "Linear", (nn.Module,), {"__module__": "torch.ao.nn.quantized.dynamic.modules.linear"}
    )
    model.model.layers[0].mlp.down_proj = module()


def with_another_list(model) -> None:
    model.model.others = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))


def without_blocks(model) -> None:
    model.config.num_hidden_layers = 5


@pytest.mark.parametrize(
    ("change", "subject", "value"),
    [
        (compiled, "model.layers.1", "compile"),
        (wrapped_by_compile, "model.layers.2", "compile"),
        (lambda model: model.to("meta"), "model.embed_tokens.weight", "meta"),
        (
            lambda model: with_weight(model, lambda numbers: numbers.to(torch.int8)),
            "model.layers.0.mlp.up_proj.weight",
            "int8",
        ),
        (
            lambda model: with_weight(model, lambda numbers: numbers.to(torch.float8_e4m3fn)),
            "model.layers.0.mlp.up_proj.weight",
            "float8",
        ),
        (
            lambda model: with_weight(model, lambda numbers: numbers.as_subclass(Wrapped)),
            "model.layers.0.mlp.up_proj.weight",
            "Wrapped",
        ),
        (packed, "model.layers.0.mlp.down_proj", "Packed"),
        (quantized_by_torch, "model.layers.0.mlp.down_proj", "Linear"),
        (with_another_list, "LlamaForCausalLM", "model.others"),
        (without_blocks, "LlamaForCausalLM", "5"),
    ],
)
def test_a_model_that_can_not_be_viewed_is_refused(change, subject: str, value: str):
    model = tiny_model("llama")
    model.model.layers[0].parts = nn.ModuleList(nn.Identity() for _ in range(3))
    assert len(view(model).blocks) == 3, "a list inside the blocks is no second candidate"
    change(model)
    said = refusal_of(view, model)
    assert said.subject == subject
    assert value in str(said)


def test_how_wide_inputs_are_is_read_off_shapes_and_every_distinct_input_counts():
    plain = ModelShape.of(view(tiny_model("llama")))
    assert plain.input_widths == 3 * [32, 32, 32, 64]
    recurrent = ModelShape.of(view(small_model("mamba")))
    assert recurrent.input_widths == 3 * [32, 64, 8, 64]
    latent = ModelShape.of(view(tiny_mixture("deepseek_v3", v_head_dim=16)))
    # Of the first block, which has no experts.
    assert latent.input_widths[:6] == [32, 16, 16, 64, 32, 64]
