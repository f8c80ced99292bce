"""What the view shows is held against the model's own parameters and forwards."""

import pytest
import torch
from torch import nn

from calibrant.errors import NumericsError
from calibrant.models import check_finite, view
from calibrant.testing.tiny import FAMILIES, tiny_model

from tests.models.mixtures_of_experts import tiny_mixture
from tests.models.refused import refused
from tests.usual import usually

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


def test_heads_projections_and_convolutions_are_listed_too():
    found = reasons(view(tiny_model("gpt2")))
    assert found["head, tied to the embedding"] == {"lm_head.weight"}
    assert found["embedding"] == {"transformer.wte.weight", "transformer.wpe.weight"}
    found = reasons(view(tiny_model("opt", word_embed_proj_dim=16)))
    assert found["outside the blocks"] == {"model.decoder.project_in.weight", "model.decoder.project_out.weight"}
    model = tiny_model("llama")
    model.model.layers[0].mlp.conv = nn.Conv1d(4, 4, 3)
    assert {"model.layers.0.mlp.conv.weight"} in [names for reason, names in reasons(view(model)).items() if "Conv1d" in reason]


def test_the_biases_of_stored_experts_are_listed_and_transposed_experts_shown_as_used():
    seen = view(tiny_mixture("gpt_oss"))
    assert len(reasons(seen)["bias of the experts"]) == 2 * 2
    expert = next(w for w in seen.weights if w.name.endswith("gate_up_proj[5]"))
    assert expert.transposed
    assert expert.shape == (128, 32)
    model = tiny_model("mixtral")
    model.set_experts_implementation("batched_mm")
    view(model)
    assert model.config._experts_implementation == "eager", "one product each"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_setting_a_matrix_changes_the_model_and_nothing_else(family):
    model = tiny_model(family)
    seen = view(model)
    weight = seen.weights[-1]
    before = {name: p.clone() for name, p in model.named_parameters()}
    wanted = torch.arange(weight.shape[0] * weight.shape[1], dtype=torch.float32).reshape(weight.shape)
    weight.set(wanted)
    assert torch.equal(weight.get(), wanted)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) == 1
    stored = dict(model.named_parameters())[changed[0]]
    inside = stored if weight.expert is None else stored[weight.expert]
    assert torch.equal(inside, wanted.T if family == "gpt2" else wanted)
    if weight.expert is not None:
        assert torch.equal(stored[: weight.expert], before[changed[0]][: weight.expert])


def test_a_matrix_is_a_view_and_is_known_by_where_it_lies():
    model = tiny_model("mixtral")
    seen = view(model)
    expert = next(w for w in seen.weights if w.name == "model.layers.1.mlp.experts.down_proj[7]")
    assert expert.address == model.model.layers[1].mlp.experts.down_proj[7].data_ptr() == expert.get().data_ptr()
    assert not expert.get().requires_grad
    assert len({w.address for w in seen.weights}) == len(seen.weights)


def test_another_shape_is_refused():
    weight = view(tiny_model("llama")).weights[1]
    said = refused(weight.set, torch.zeros(32, 16))
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
    assert reasons(seen)["the same memory as model.embed_tokens.weight"] == {"model.layers.0.mlp.up_proj.weight"}
    layers[0].self_attn.o_proj.weight.data = buffer[16:48]
    assert refused(view, model).subject == "model.layers.0.self_attn.o_proj"


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_base_runs_the_blocks_and_not_the_head(family):
    model = tiny_model(family)
    seen, ran = view(model), []
    hooks = [b.module.register_forward_hook(lambda *_, i=b.index: ran.append(i)) for b in seen.blocks]
    hooks.append(model.get_output_embeddings().register_forward_hook(lambda *_: ran.append("head")))
    hidden = seen.base(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).last_hidden_state
    assert ran == [0, 1, 2]
    for hook in hooks:
        hook.remove()
    assert hidden.shape == (2, 16, 32)


def test_a_model_without_a_head_is_its_own_base_and_one_that_can_not_leave_it_out_is_refused():
    model = tiny_model("llama")
    assert view(model.model).base is model.model
    seen = view(model)
    model.model.lm_head = model.lm_head
    assert refused(lambda: seen.base).subject == "model.layers"


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
    assert refused(seen.restore, other).subject.startswith("model.layers.2.")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("family", "parameter", "named"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj"),
        ("mixtral", "model.layers.2.mlp.experts.down_proj", "model.layers.2.mlp.experts.down_proj[0]"),
        ("llama", "model.norm.weight", "model.norm.weight"),
    ],
)
def test_weights_that_are_no_numbers_are_named(family: str, parameter: str, named: str, value: float):
    model = tiny_model(family)
    seen = view(model)
    check_finite(seen)
    dict(model.named_parameters())[parameter].data.view(-1)[3] = value
    assert refused(check_finite, seen, kind=NumericsError).subject == named


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
    module = type("Linear", (nn.Module,), {"__module__": "torch.ao.nn.quantized.dynamic.modules.linear"})
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
        (lambda model: with_weight(model, lambda numbers: numbers.to(torch.int8)), "model.layers.0.mlp.up_proj.weight", "int8"),
        (lambda model: with_weight(model, lambda numbers: numbers.to(torch.float8_e4m3fn)), "model.layers.0.mlp.up_proj.weight", "float8"),
        (lambda model: with_weight(model, lambda numbers: numbers.as_subclass(Wrapped)), "model.layers.0.mlp.up_proj.weight", "Wrapped"),
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
    said = refused(view, model)
    assert said.subject == subject
    assert value in str(said)
