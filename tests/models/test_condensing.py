"""A layer of experts that became a plain network computes what its parts, added up by hand,
compute; saved, it opens with plain transformers.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrant.models import Condensed, condense, condensed, expert_layers, view

from tests.models.mixtures_of_experts import SIZES, tiny_mixture
from tests.models.refused import refusal_of
from tests.usual import reopened, usually

IDS = torch.arange(3, 35).reshape(2, 16)
KEPT = {0: Condensed({5: 0.25, 1: 1.5}, 0.75), 1: Condensed({2: 0.5}, 1.25)}
EXAONE: dict[str, Any] = {
    **SIZES,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "head_dim": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "sliding_window": 4,
}


def exaone() -> PreTrainedModel:
    """Blocks with experts are listed one by one in its configuration; the first has none."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("exaone_moe", **EXAONE)).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    model.set_experts_implementation("eager")
    return model


class ByHand(nn.Module):
    """Experts one by one, in float64, each times its gate."""

    def __init__(self, mlp: Any, kept: Condensed) -> None:
        super().__init__()
        self.mlp, self.kept = copy.deepcopy(mlp).double(), kept
        self.shared = getattr(self.mlp, "shared_expert", None) or getattr(
            self.mlp, "shared_experts", None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        if self.shared is not None:
            y = y + self.kept.shared * self.shared.down_proj(
                silu(self.shared.gate_proj(x)) * self.shared.up_proj(x)
            )
        for expert, gate in self.kept.gates.items():
            both, down = self.mlp.experts.gate_up_proj[expert], self.mlp.experts.down_proj[expert]
            half = len(both) // 2
            y = y + gate * ((silu(x @ both[:half].T) * (x @ both[half:].T)) @ down.T)
        return y


def by_hand(model: PreTrainedModel, layers: dict[int, Condensed]) -> Tensor:
    model = copy.deepcopy(model).double()
    for block, kept in layers.items():
        model.model.layers[block].mlp = ByHand(model.model.layers[block].mlp, kept)
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def bytes_of(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return sum(one.numel() * one.element_size() for one in map(file.get_tensor, file.keys()))


MODELS = {
    "qwen2_moe": lambda: tiny_mixture("qwen2_moe"),
    "qwen3_moe": lambda: tiny_mixture("qwen3_moe"),
    "exaone_moe": exaone,
}
LAYERS = {"exaone_moe": {1: KEPT[0], 2: KEPT[1]}}


@pytest.mark.parametrize("kind", usually(MODELS, {"qwen2_moe", "exaone_moe"}))
@pytest.mark.parametrize("every", [True, False], ids=["every layer", "one layer"])
def test_a_condensed_layer_is_its_experts_side_by_side_and_reopens(
    kind: str, every: bool, tmp_path: Path
) -> None:
    model = MODELS[kind]()
    layers = LAYERS.get(kind, KEPT)
    layers = layers if every else dict(list(layers.items())[-1:])
    seen, before = view(model), model(IDS, use_cache=False).logits
    want = by_hand(model, layers)
    reopened(model, tmp_path / "dense")
    size = sum(numbers.numel() for numbers in model.state_dict().values())
    condense(seen, layers)
    got = model(IDS, use_cache=False).logits
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    assert not torch.allclose(got, before, atol=1e-2)
    assert not layers.keys() & {layer.block for layer in expert_layers(seen)}
    again = reopened(model, tmp_path / "out")
    assert torch.equal(again(IDS, use_cache=False).logits, got)
    assert torch.equal(
        again.generate(IDS, max_new_tokens=4, do_sample=False),
        model.generate(IDS, max_new_tokens=4, do_sample=False),
    )
    smaller = size - sum(numbers.numel() for numbers in model.state_dict().values())
    assert smaller > 0
    assert bytes_of(tmp_path / "dense") - bytes_of(tmp_path / "out") == 4 * smaller


def test_all_networks_are_as_wide_as_the_widest_and_a_second_time_as_the_first() -> None:
    model = tiny_mixture("qwen2_moe")
    condense(view(model), KEPT)
    mlps = [block.mlp for block in model.model.layers]
    assert [mlp.gate_proj.weight.shape[0] for mlp in mlps] == [24 + 2 * 16] * 2
    assert [int(mlp.down_proj.weight.any(0).sum()) for mlp in mlps] == [24 + 2 * 16, 24 + 16]
    assert (model.config.intermediate_size, model.config.mlp_only_layers) == (24 + 2 * 16, [0, 1])
    model = tiny_mixture("qwen2_moe")
    want = by_hand(model, {0: KEPT[1], 1: Condensed({}, 0.5)})
    condense(view(model), {0: KEPT[1]})
    assert refusal_of(condense, view(model), {1: KEPT[0]}).subject == "56"
    condense(view(model), {1: Condensed({}, 0.5)})
    torch.testing.assert_close(model(IDS, use_cache=False).logits.double(), want, rtol=0, atol=2e-5)
    assert (model.config.intermediate_size, model.config.mlp_only_layers) == (40, [0, 1])


@pytest.mark.parametrize(
    ("kind", "layers", "subject"),
    [
        ("mixtral", KEPT, "MixtralForCausalLM"),
        ("deepseek_v3", {1: KEPT[1]}, "DeepseekV3ForCausalLM"),
        ("qwen2_moe", {2: KEPT[0]}, "2"),
        ("qwen2_moe", {0: Condensed({8: 1.0})}, "8"),
        ("qwen3_moe", {0: Condensed({})}, "model.layers.0.mlp"),
    ],
)
def test_what_can_not_be_condensed_is_refused_and_nothing_changes(
    kind: str, layers: dict[int, Condensed], subject: str
) -> None:
    model = tiny_mixture(kind)
    want, config = model(IDS, use_cache=False).logits, copy.deepcopy(model.config.to_dict())
    assert refusal_of(condense, view(model), layers).subject == subject
    assert torch.equal(model(IDS, use_cache=False).logits, want)
    assert model.config.to_dict() == config


def test_experts_that_compute_something_else_are_refused() -> None:
    model = tiny_mixture("qwen3_moe")
    model.model.layers[0].mlp.experts.act_fn = nn.ReLU()
    assert refusal_of(condensed, view(model), KEPT).subject == "model.layers.0.mlp"
