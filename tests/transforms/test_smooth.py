"""A smoothed model computes what it did, its scales are the paper's, and its inputs lose less when
they are quantized.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from calibrant.activations import FeatureMaxima, Seen
from calibrant.compress import quantize
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import ModelError, SpecError
from calibrant.models import ModelView, Snapshot, view
from calibrant.testing import FAMILIES, tiny_folder, tiny_model, tiny_tokenizer
from calibrant.transforms import transforms
from calibrant.transforms.smooth import Smooth
from calibrant.walk import walk

from tests.models.families import FAMILIES as ALL_FAMILIES
from tests.models.families import small_model
from tests.models.refused import REFUSED_BY
from tests.models.test_families import IDS as FEW_IDS
from tests.models.test_families import NOT_RUN, full
from tests.refusing import refused
from tests.trained import trained_model
from tests.transforms.test_rotate import logits, uneven
from tests.usual import two_hundred_lines, usually

IDS = torch.randint(3, 259, (4, 24), generator=torch.Generator().manual_seed(7))


def batch_of(ids: Tensor = IDS, weights: Tensor | None = None) -> TokenBatch:
    given = torch.ones(ids.shape) if weights is None else weights
    there = torch.ones_like(ids, dtype=torch.bool)
    return TokenBatch(ids, there, given, "sha256:0", {})


def seen_by(model: ModelView, batch: TokenBatch) -> Mapping[str, Seen]:
    arrivals = walk(model, batch, (FeatureMaxima,), "dense")
    return {weight.name: seen for weight, seen in arrivals}


def smooth(spec: str, model: ModelView, batch: TokenBatch | None = None) -> Mapping[str, Any]:
    seen = seen_by(model, batch or batch_of())
    with torch.no_grad():
        return transforms.build(spec).apply(model, seen)


def apart(before: Tensor, after: Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())


SITES = {
    # A llama has a norm before queries, keys and values, and one before gate and up. Where heads
    # share values, an output has no site.
    "llama": (6, 9),
    "mistral": (6, 9),
    "qwen2": (6, 9),
    "qwen3": (6, 9),
    "phi3": (6, 9),
    "gemma2": (6, 9),
    "gemma3": (6, 9),
    "olmo2": (0, 3),
    "gpt2": (6, 9),
    # What a GELU makes is not proportional to anything.
    "gpt_neox": (6, 9),
    # A ReLU's outputs are.
    "opt": (6, 12),
    # Of experts only what they read.
    "mixtral": (6, 6),
    "qwen3_moe": (6, 6),
    "olmoe": (6, 6),
}


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_logits_stay_what_they_were(family: str):
    for spec, sites in zip(("smooth", "smooth(sites=all)"), SITES[family], strict=True):
        model, seen = uneven(family)
        before = logits(model)
        matrices = {weight.name: weight.get().clone() for weight in seen.weights}
        if not sites:
            with refused(ModelError, type(model).__name__):
                smooth(spec, seen)
            assert torch.equal(logits(model), before)
            continue
        notes = smooth(spec, seen)
        assert apart(before, logits(model)) <= 1e-6
        assert notes["sites"] == sites
        moved = [name for name, old in matrices.items() if not seen.named[name].get().equal(old)]
        assert len(moved) >= sites


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_computes_what_it_did_or_is_refused_by_name(family: str):
    if family in NOT_RUN:
        return
    model = small_model(family)
    with suppress(ModelError):
        view(model)  # which has experts run one by one
    chance = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=chance).to(parameter)
    with torch.no_grad():
        before = model(input_ids=FEW_IDS, use_cache=False).logits
    for spec in ("smooth", "smooth(sites=all)"):
        if family in REFUSED_BY[spec]:
            with pytest.raises(ModelError, match=type(model).__name__):
                smooth(spec, view(model), full())
        else:
            assert smooth(spec, view(model), full())["sites"]
        with torch.no_grad():
            after = model(input_ids=FEW_IDS, use_cache=False).logits
        assert apart(before, after) <= 1e-4  # most of these compute in float32


def literal_scales(inputs: list[Tensor], weights: list[Tensor], alpha: float) -> Tensor:
    """The paper's equation 4, number by number."""
    scales: list[float] = []
    for feature in range(weights[0].shape[1]):
        largest_input = 0.0
        for rows in inputs:
            for value in rows[:, feature].tolist():
                largest_input = max(largest_input, abs(value))
        largest_weight = 0.0
        for weight in weights:
            for value in weight[:, feature].tolist():
                largest_weight = max(largest_weight, abs(value))
        scales.append(largest_input**alpha / largest_weight ** (1 - alpha))
    return torch.tensor(scales, dtype=torch.float64)


def inputs_of(model: PreTrainedModel, name: str, ids: Tensor, counted: Tensor) -> Tensor:
    """What a layer gets of the tokens that count."""
    found: list[Tensor] = []

    def keep(_: Any, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])

    handle = model.get_submodule(name).register_forward_pre_hook(keep)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    handle.remove()
    return found[0][counted]


@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_scales_are_those_of_the_papers_equation(alpha: float):
    """Tokens of weight 0 don't count, and how much the others weigh makes no difference."""
    weights = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(1))
    weights[weights < 0.5] = 0
    model, seen = uneven("llama", num_key_value_heads=4)
    old = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    block = "model.layers.1."
    groups = {
        f"{block}input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        f"{block}post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
        f"{block}self_attn.v_proj": ["self_attn.o_proj"],
        f"{block}mlp.up_proj": ["mlp.down_proj"],
    }
    expected: dict[str, Tensor] = {}
    for before, readers in groups.items():
        names = [f"{block}{name}" for name in readers]
        inputs = [inputs_of(model, name, IDS, weights > 0) for name in names]
        scales = literal_scales(inputs, [old[f"{name}.weight"] for name in names], alpha)
        for name in names:
            key = f"{name}.weight"
            expected[key] = expected.get(key, old[key]) * scales
        key = f"{before}.weight"
        rows = expected.get(key, old[key])
        expected[key] = rows / (scales if rows.dim() == 1 else scales[:, None])
    smooth(f"smooth(alpha={alpha}, sites=all)", seen, batch_of(IDS, weights))
    for name, numbers in expected.items():
        assert torch.allclose(model.get_parameter(name), numbers, rtol=1e-6), name


def test_one_scale_is_for_all_that_read_a_norm_and_the_router_is_scaled_too():
    model, seen = uneven("mixtral")
    mlp = model.get_submodule("model.layers.0.mlp")
    norm = model.get_submodule("model.layers.0.post_attention_layernorm")
    before = [mlp.gate.weight.detach().clone(), mlp.experts.gate_up_proj.detach().clone()]
    gain = norm.weight.detach().clone()
    smooth("smooth", seen)
    scales = gain / norm.weight
    assert torch.allclose(mlp.gate.weight, before[0] * scales)
    assert torch.allclose(mlp.experts.gate_up_proj, before[1] * scales)


def test_inputs_that_are_always_zero_and_weights_that_read_nothing_stay():
    model, seen = uneven("llama")
    norm = model.get_submodule("model.layers.0.input_layernorm")
    norm.weight.data[3] = 0
    for name in ("q_proj", "k_proj", "v_proj"):
        model.get_submodule(f"model.layers.0.self_attn.{name}").weight.data[:, 5] = 0
    before = logits(model)
    columns = {weight.name: weight.get().clone() for weight in seen.blocks[0].weights[:3]}
    gain = norm.weight.detach().clone()
    smooth("smooth", seen)
    for name, old in columns.items():
        assert torch.equal(seen.named[name].get()[:, 3], old[:, 3])
    assert norm.weight[3] == 0
    assert norm.weight[5] == gain[5]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert apart(before, logits(model)) <= 1e-6


def test_what_several_places_share_is_left_and_named():
    model, _ = uneven("llama")
    layers = model.get_submodule("model.layers")
    layers[1].input_layernorm.weight = layers[0].input_layernorm.weight
    before = logits(model)
    notes = smooth("smooth", view(model))
    assert apart(before, logits(model)) <= 1e-6
    assert notes["sites"] == 4
    assert {name.split(".")[2] for name in notes["left"]} == {"0", "1"}


def test_matrices_that_no_token_reached_are_left_and_named():
    model, seen = uneven("llama")
    before = logits(model)
    statistics = {name: one for name, one in seen_by(seen, batch_of()).items() if ".1." not in name}
    with torch.no_grad():
        notes = transforms.build("smooth").apply(seen, statistics)
    assert notes["sites"] == 4
    assert {name.split(".")[2] for name in notes["left"]} == {"1"}
    assert apart(before, logits(model)) <= 1e-6


def test_a_snapshot_brings_the_model_back_and_the_same_tokens_smooth_alike():
    model, seen = uneven("llama")
    snapshot, before = Snapshot.of(seen), logits(model)
    found: list[Tensor] = []
    for _ in range(2):
        smooth("smooth(sites=all)", seen)
        found.append(seen.weights[0].get().clone())
        snapshot.restore()
        assert torch.equal(logits(model), before)
    assert torch.equal(*found)


def rounded(numbers: Tensor, largest: Tensor) -> Tensor:
    """To the nearest of 255 values up to the largest."""
    step = largest / 127
    return (numbers / step).round().clamp(-127, 127) * step


@contextmanager
def eight_bits(model: PreTrainedModel, names: list[str]) -> Iterator[None]:
    """While it lasts, these layers have weights of eight bits with a scale a row, and inputs of
    eight bits with one scale.
    """
    handles: list[Any] = []
    before: dict[str, Tensor] = {}

    def round_inputs(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded(args[0], args[0].abs().max()), *args[1:])

    for name in names:
        layer = model.get_submodule(name)
        before[name] = layer.weight.data
        layer.weight.data = rounded(layer.weight.data, layer.weight.data.abs().amax(1, True))
        handles.append(layer.register_forward_pre_hook(round_inputs))
    yield
    for handle in handles:
        handle.remove()
    for name, numbers in before.items():
        model.get_submodule(name).weight.data = numbers


def loss(model: PreTrainedModel, ids: Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids, use_cache=False).loss)


def test_with_inputs_of_eight_bits_the_loss_rises_less_where_features_stand_out():
    """Two features of every norm are made a hundred times as large, and the columns that read
    them as much smaller: the trained model computes what it did.
    """
    model = trained_model()
    for name, norm in model.named_modules():
        if name.endswith("layernorm"):
            norm.weight.data[[7, 30]] *= 100
    seen = view(model)
    readers = [w.name for w in seen.weights if "o_proj" not in w.name and "down" not in w.name]
    for name in readers:
        model.get_submodule(name).weight.data[:, [7, 30]] /= 100
    tokenizer = tiny_tokenizer()
    shown = CalibrationSet("python_docs", samples=4, length=64).tokens(tokenizer)
    other = CalibrationSet("python_docs", samples=8, length=64, seed=1).tokens(tokenizer).ids
    dense = loss(model, other)
    with eight_bits(model, readers):
        rise = loss(model, other) - dense
    smooth("smooth", seen, shown)
    assert loss(model, other) == pytest.approx(dense, rel=1e-5)
    with eight_bits(model, readers):
        rise_when_smooth = loss(model, other) - dense
    assert rise > 0
    assert abs(rise_when_smooth) < 0.3 * rise


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_it_goes_with_a_method_and_the_folder_gives_what_was_measured(method: str, tmp_path: Path):
    done = quantize(
        str(tiny_folder(tmp_path / "model", "qwen2")),
        data=two_hundred_lines(tmp_path),
        method=method,
        target="w8",
        out=tmp_path / "out",
        samples=4,
        length=32,
        transform=["smooth(alpha=0.7)"],
        dtype="float32",
    )
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reopened), logits(done.opened.model))
    (edit,) = [edit for edit in done.record.edits if edit["edit"] == "transform"]
    assert edit["transform"] == "smooth(alpha=0.7)"
    assert edit["notes"]["sites"] == 6
    assert edit["notes"]["left"] == {}
    untouched = tiny_model("qwen2").model.layers[0].input_layernorm.weight
    assert not torch.allclose(reopened.model.layers[0].input_layernorm.weight, untouched)


def test_without_data_and_with_what_is_no_alpha_or_site_it_is_refused(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model"))
    with refused(SpecError, "smooth"):
        quantize(folder, target="w8", transform="smooth", dtype="float32")
    for alpha in (-0.1, 1.5, float("nan")):
        with refused(SpecError, "alpha"):
            Smooth(alpha=alpha)
    with refused(SpecError, "sites"):
        transforms.build("smooth(sites=values)")
