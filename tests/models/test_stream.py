"""The residual stream is found from where numbers flow, and what it allows leaves the logits
what they were.
"""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from calibrant.models import Stream, view
from calibrant.testing.tiny import FAMILIES, tiny_model

from tests.models.mixtures_of_experts import KINDS, SIZES, tiny_mixture
from tests.models.refused import refusal_of
from tests.usual import usually

IDS = torch.arange(3, 35).reshape(2, 16)
UNITS = {"gpt2": 128, "qwen3_moe": 16}


def model_and_view(family: str, **overrides):
    """A model in float64, untied, whose norms aren't ones and whose biases aren't zeros; and its
    view.
    """
    model = tiny_model(family, torch.float64, **overrides)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    found_view = view(model)
    if found_view.tied:
        found_view.untie()
    return model, found_view


def factors(seed: int) -> torch.Tensor:
    return 0.5 + torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_rescaled_norms_and_permuted_hidden_units_leave_the_logits(family):
    model, found_view = model_and_view(family)
    stream, want = Stream.of(found_view), model(IDS).logits
    for number, norm in enumerate(stream.norms):
        norm.multiply(factors(number))
        assert not torch.allclose(model(IDS).logits, want, atol=1e-3), norm.name
        norm.multiply(1 / factors(number))
        before = {r.weight.name: r.weight.get().clone() for r in stream.readers_of(norm)}
        stream.rescale(norm, factors(number))
        assert all(
            not torch.equal(r.weight.get(), before[r.weight.name]) for r in stream.readers_of(norm)
        )
    assert torch.allclose(model(IDS).logits, want, rtol=0, atol=1e-6)
    assert len(stream.hidden) == 3 * (32 if family in ("mixtral", "qwen3_moe", "olmoe") else 1)
    for hidden in stream.hidden:
        assert hidden.units == UNITS.get(family, 64) == hidden.down.shape[1]
        before = hidden.down.get().clone()
        hidden.permute(torch.randperm(hidden.units))
        assert not torch.equal(hidden.down.get(), before)
    assert torch.allclose(model(IDS).logits, want, rtol=0, atol=1e-6)


def test_gains_of_one_and_a_weight_are_moved_into_matrices_with_one_rounding():
    """In bfloat16, against float64: a number is at most 2⁻⁸ of itself from what is stored."""
    model = tiny_model("gemma3", torch.bfloat16)
    chance = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=chance)
    found_view = view(model)
    found_view.untie()
    stream = Stream.of(found_view)
    for norm in stream.norms:
        gain = 1 + norm.module.weight.detach().double()
        before = {r.weight.name: r.weight.get().double() for r in stream.readers_of(norm)}
        assert norm.scale is not None
        stream.rescale(norm, 1 / norm.scale)
        for reader in stream.readers_of(norm):
            exact = before[reader.weight.name] * gain
            lost = (reader.weight.get().double() - exact).abs()
            assert bool((lost <= 1.001 * 2**-8 * exact.abs()).all())


# Blocks whose halves run side by side, tied embeddings, norms without weights, no attention, …
OTHERS = {
    "bloom": {"n_head": 4},
    "cohere": {},
    "falcon": {},
    "glm4": {"head_dim": 8},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "granite": {"residual_multiplier": 0.3, "embedding_multiplier": 3.0},
    "mamba": {"state_size": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "olmo": {},
    "phi": {},
    "stablelm": {},
}


@pytest.mark.parametrize("kind", usually(OTHERS, {"bloom", "falcon", "mamba", "granite", "olmo"}))
def test_other_architectures_are_understood_too(kind):
    config = AutoConfig.for_model(kind, **{"intermediate_size": 64, **SIZES, **OTHERS[kind]})
    model = AutoModelForCausalLM.from_config(config).eval().double()
    found_view = view(model)
    if found_view.tied:
        found_view.untie()
    stream, want = Stream.of(found_view), model(IDS, use_cache=False).logits
    assert (
        {r.weight.block for r in stream.readers}
        == {w.weight.block for w in stream.writers}
        == {-1, 0, 1}
    )
    for number, norm in enumerate(stream.norms):
        if norm.scale is not None:
            stream.rescale(norm, factors(number))
    for hidden in stream.hidden:
        hidden.permute(torch.randperm(hidden.units))
    assert len(stream.hidden) == (0 if kind == "mamba" else 2)
    assert torch.allclose(model(IDS, use_cache=False).logits, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    usually(KINDS, {"mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text", "jetmoe"}),
)
def test_the_same_holds_for_experts_shared_ones_and_their_biases(kind):
    model = tiny_mixture(kind, torch.float64, tie_word_embeddings=False)
    found_view = view(model)
    if kind == "llama4_text" and next(
        w for w in found_view.weights if w.name.endswith("gate_up_proj[0]")
    ).shape == (32, 128):
        assert "Llama4ForCausalLM" in str(refusal_of(Stream.of, found_view))
        pytest.skip("the view shows the experts of Llama 4 as they are stored, [in, out]")
    stream, want = Stream.of(found_view), model(IDS, use_cache=False).logits
    experts = {
        weight.name
        for weight in found_view.weights
        if weight.expert is not None and "attention" not in weight.name
    }
    found = {r.weight.name for r in stream.readers} | {w.weight.name for w in stream.writers}
    assert experts <= found
    assert any("router" in r.weight.name or r.weight.name.endswith("gate") for r in stream.readers)
    for number, norm in enumerate(stream.norms):
        stream.rescale(norm, factors(number))
    # Routers compute in float32, whatever the model's type.
    assert torch.allclose(model(IDS, use_cache=False).logits, want, rtol=0, atol=1e-5)
    assert {h.down.name for h in stream.hidden} >= {
        name for name in experts if "down_proj" in name or "output_linear" in name
    }
    for hidden in stream.hidden:
        hidden.permute(torch.randperm(hidden.units))
    assert torch.allclose(model(IDS, use_cache=False).logits, want, rtol=0, atol=1e-5)


def test_a_head_that_is_the_embedding_is_to_be_untied_first():
    model = tiny_model("llama", torch.float64, tie_word_embeddings=True)
    found_view = view(model)
    stream, want = Stream.of(found_view), model(IDS).logits
    assert refusal_of(stream.rescale, stream.norms[-1], factors(0)).subject == "lm_head"
    assert torch.equal(model(IDS).logits, want)
    found_view.untie()
    Stream.of(found_view).rescale(Stream.of(found_view).norms[-1], factors(0))
    assert torch.allclose(model(IDS).logits, want, rtol=0, atol=1e-6)


class Twisted(nn.Module):
    """Stands in place of a feed-forward network: gives `twist(the network, its input)`."""

    def __init__(self, inner: nn.Module, twist) -> None:
        super().__init__()
        self.inner, self.twist = inner, twist

    def forward(self, hidden_states, **kwargs):
        return self.twist(self.inner, hidden_states)


def twisted(twist, dtype: torch.dtype = torch.float32):
    model = tiny_model("llama", dtype)
    model.model.layers[1].mlp = Twisted(model.model.layers[1].mlp, twist)
    return model


def norm_before(stream: Stream):
    """The norm whose output a twist gets."""
    return next(
        norm for norm in stream.norms if norm.name == "model.layers.1.post_attention_layernorm"
    )


def twice(inner, x):
    return inner(x) + inner.down_proj(inner.act_fn(inner.gate_proj(x * 0 + 1)) * inner.up_proj(x))


def with_its_mean(inner, x):
    return inner(x) * (1 + x.mean(-1, keepdim=True))


@pytest.mark.parametrize(
    ("twist", "other"),
    [
        (twice, "model.layers.1.mlp.inner.gate_proj, which reads something else too"),
        (with_its_mean, "mean in model.layers.1"),
    ],
)
def test_what_else_a_norms_output_goes_into_is_written_down_and_its_scale_stays(twist, other):
    model = twisted(twist, torch.float64)
    stream, want = Stream.of(view(model)), model(IDS).logits
    norm = norm_before(stream)
    assert other in norm.others
    assert refusal_of(stream.rescale, norm, factors(0)).subject == norm.name
    assert torch.equal(model(IDS).logits, want)


def reused(inner, x):
    made = inner(x)
    return made * made.cumsum(-1)[..., :1].sigmoid()


def test_a_writer_whose_outputs_go_elsewhere_too_is_refused():
    said = refusal_of(Stream.of, view(twisted(reused)))
    assert said.subject == "model.layers.1.mlp.inner.down_proj"
    assert "cumsum" in str(said)


def through_a_view(inner, x):
    out = torch.zeros_like(x)
    out[:, ::2] += x[:, ::2].cumsum(-1)
    return inner(x) + out


def over_what_was_made(inner, x):
    out = inner(x)
    out[..., :3].mul_(2.0)
    return out


def shifted(inner, x):
    return inner(x) + torch.linspace(1, 2, 32)


@pytest.mark.parametrize("twist", [through_a_view, over_what_was_made, shifted])
def test_an_addition_to_the_stream_that_no_matrix_made_is_refused(twist):
    """Also where it is added in place, through a view."""
    said = refusal_of(Stream.of, view(twisted(twist)))
    assert said.subject == "model.layers.2"
    assert "add of what no matrix made in model.layers.1" in str(said)


class SquaredNorm(nn.Module):
    """What it multiplies by is no linear function of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x):
        return nn.functional.rms_norm(x, (32,)) * self.weight**2


def test_a_norm_whose_weight_is_no_scale_is_left_alone():
    model = tiny_model("llama")
    model.model.layers[1].post_attention_layernorm = SquaredNorm()
    stream, want = Stream.of(view(model)), model(IDS).logits
    assert (
        refusal_of(stream.rescale, norm_before(stream), factors(0)).subject
        == "model.layers.1.post_attention_layernorm"
    )
    assert torch.equal(model(IDS).logits, want)


def changed_on_its_way(model) -> None:
    original = model.model.layers[1].forward
    model.model.layers[1].forward = lambda hidden_states, *args, **kwargs: original(
        hidden_states.cumsum(-1), *args, **kwargs
    )


def changed_embeddings(model) -> None:
    model.model.embed_tokens.register_forward_hook(lambda _, __, out: out.cumsum(-1))


def unused(model) -> None:
    model.model.layers[2].mlp.spare = nn.Linear(32, 32)


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        (changed_on_its_way, "model.layers.2"),
        (changed_embeddings, "model.layers.0"),
        (unused, "model.layers.2.mlp.spare"),
    ],
)
def test_a_stream_that_is_changed_and_a_matrix_that_nothing_goes_through_are_refused(
    change, subject
):
    model = tiny_model("llama")
    change(model)
    said = refusal_of(Stream.of, view(model))
    assert said.subject == subject
    assert "LlamaForCausalLM" in str(said)
