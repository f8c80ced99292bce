"""AWQ's scales leave what a model computes as it is, and are the best of those tried; without
them it rounds to nearest.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import calibrant
from calibrant.activations import Gram
from calibrant.compress import Recipe, compress, edits_of
from calibrant.data import TokenBatch
from calibrant.edits import Fold, Replace
from calibrant.edits.sites import Sites
from calibrant.errors import ModelError
from calibrant.job import Job
from calibrant.methods import methods
from calibrant.methods.quantization._rounding import clipped
from calibrant.methods.quantization.awq import _each_token_once
from calibrant.models import Opened, view
from calibrant.targets import Grid, parse_target
from calibrant.testing.tiny import tiny_folder, tiny_model

from tests.models.mixtures_of_experts import tiny_mixture
from tests.usual import usually

IDS = torch.randint(3, 259, (3, 40), generator=torch.Generator().manual_seed(7))
EVERY_HEAD = {"num_key_value_heads": 4}


def uneven(family: str, **overrides: Any) -> PreTrainedModel:
    """A tiny model some of whose features are much larger than others, as those of trained ones
    are.
    """
    model = tiny_model(family, **overrides)
    chance = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += (
                torch.randn(parameter.shape, generator=chance).exp()
                if "norm" in name or "ln" in name
                else 0.1
            )
    return model


def uneven_mixture(kind: str, **sizes: Any) -> PreTrainedModel:
    """A tiny mixture of experts that scales help: some features are much larger than others."""
    model = tiny_mixture(kind, **sizes)
    chance = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data += torch.randn(parameter.shape, generator=chance).exp()
    return model


def batch_of(mask: Tensor | None = None) -> TokenBatch:
    there = torch.ones_like(IDS, dtype=torch.bool) if mask is None else mask
    return TokenBatch(IDS * there, there, there.float(), "sha256:0", {})


def job_of(model: PreTrainedModel, target: str = "w3g16", mask: Tensor | None = None) -> Job:
    seen, aim = view(model), parse_target(target)
    opened = Opened(model, None, "tiny", "sha256:0", "", torch.float32)
    return Job(opened, seen, batch_of(mask), aim, dict.fromkeys(seen.named, aim), "dense")


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.double()


def done(
    method: str, model: PreTrainedModel, target: str = "w3g16", *, only: type[Any] | None = None
) -> list[Any]:
    job, edits = job_of(model, target), list[Any]()
    for edit in edits_of(methods.build(method), job):
        if only is None or isinstance(edit, only):
            edit.apply(job.view)
        edits.append(edit)
    return edits


@pytest.mark.parametrize(
    "family", usually(["llama", "gpt2", "mixtral", "phi3"], {"gpt2", "mixtral"})
)
def test_with_nothing_scaled_and_nothing_clipped_it_rounds_to_nearest(family: str):
    nearest = {edit.weight.name: edit.compressed.packed for edit in done("rtn", uneven(family))}
    found = done("awq(steps=1, clip=false)", uneven(family))
    assert {edit.weight.name for edit in found} >= {
        name for name in nearest if "experts" not in name
    }  # no token comes to some experts
    for edit in found:
        assert isinstance(edit, Replace)
        assert torch.equal(edit.compressed.packed.codes, nearest[edit.weight.name].codes)
        assert torch.equal(edit.compressed.packed.scales, nearest[edit.weight.name].scales)


@pytest.mark.parametrize(
    ("family", "overrides", "sites"),
    [
        ("llama", EVERY_HEAD, {"input_layernorm", "post_attention_layernorm", "v_proj", "up_proj"}),
        ("qwen2", EVERY_HEAD, {"input_layernorm", "post_attention_layernorm", "v_proj", "up_proj"}),
        (
            "phi3",
            EVERY_HEAD,
            {"input_layernorm", "post_attention_layernorm", "qkv_proj", "gate_up_proj"},
        ),
        ("gemma2", {}, {"input_layernorm", "pre_feedforward_layernorm", "up_proj"}),
        ("gpt2", {}, {"ln_1", "ln_2", "c_attn"}),
        ("opt", {}, {"self_attn_layer_norm", "final_layer_norm", "v_proj", "fc1"}),
        ("mixtral", {}, {"input_layernorm", "post_attention_layernorm"}),
        ("qwen3_moe", EVERY_HEAD, {"input_layernorm", "post_attention_layernorm", "v_proj"}),
    ],
)
def test_a_folded_model_computes_what_it_did(
    family: str, overrides: dict[str, Any], sites: set[str]
):
    """Whatever the scales, at every site that the architecture has."""
    model = uneven(family, **overrides)
    before, seen, chance = logits(model), view(model), torch.Generator().manual_seed(1)
    found = Sites.of(seen)
    for block, its in found.by_block.items():
        assert {site.name.rpartition(".")[2] for site in its} == sites
        for site in its:
            s = torch.rand(site.readers[0].shape[1], generator=chance) * 3 + 0.2
            columns = site.readers[0].get().clone()
            Fold(block, site.scalings(s)).apply(seen)
            assert (
                torch.allclose(site.readers[0].get(), columns * s, rtol=1e-4, atol=1e-7)
                or site.readers[0].name == site.name
            )
    after = logits(model)
    divergence = (
        (before.log_softmax(-1).exp() * (before.log_softmax(-1) - after.log_softmax(-1)))
        .sum(-1)
        .mean()
    )
    assert divergence <= 1e-9
    assert (after - before).abs().max() <= 1e-3


def inputs_and_outputs(model: PreTrainedModel, name: str, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What a module gets and gives of the real tokens."""
    found: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda _, args, out: found.append((args[0], out))
    )
    with torch.no_grad():
        model(input_ids=IDS * mask, attention_mask=mask.long(), use_cache=False)
    hook.remove()
    return found[0][0][mask], found[0][1][mask]


def rounded_by_hand(weight: Tensor, s: Tensor) -> Tensor:
    """To w3g16a; on a symmetric grid the largest weight lies half way between two codes, and the
    last bit of its scale decides.
    """
    grouped = (weight * s).unflatten(1, (-1, 16))
    low, high = (
        grouped.amin(2, keepdim=True).clamp_max(0),
        grouped.amax(2, keepdim=True).clamp_min(0),
    )
    scale = (high - low) / 7
    zero = (-4 - low / scale).round()
    return (((grouped / scale + zero).round().clamp(-4, 3) - zero) * scale).flatten(1) / s


def scales_by_hand(x: Tensor, alpha: float) -> Tensor:
    raw = x.abs().mean(0) ** alpha
    return raw / (raw.max() * raw.min()).sqrt()


def test_a_last_matrix_gets_the_scales_that_err_least_in_its_own_outputs():
    block = 2
    model, name = uneven("llama"), f"model.layers.{block}.mlp.down_proj"
    x, _ = inputs_and_outputs(model, name, torch.ones_like(IDS, dtype=torch.bool))
    weight = model.get_submodule(name).weight.detach().clone()
    errors = [
        float(
            (x @ (rounded_by_hand(weight, scales_by_hand(x, step / 20)) - weight).T).square().sum()
        )
        for step in range(20)
    ]
    best = min(range(20), key=errors.__getitem__)
    found = [
        e.notes
        for e in done("awq", uneven("llama"), "w3g16a")
        if isinstance(e, Fold) and e.index == block and e.notes["site"].endswith("up_proj")
    ]
    assert [note["alpha"] for note in found] == ([best / 20] if best else [])
    for note in found:
        assert note["objective"] == "linear"
        assert note["error"] == pytest.approx(errors[best] / errors[0], rel=1e-3)


@pytest.mark.parametrize(
    ("norm", "writer", "padded"),
    [
        ("input_layernorm", "self_attn.o_proj", True),
        ("post_attention_layernorm", "mlp.down_proj", False),
    ],
)
def test_matrices_behind_a_norm_get_those_that_err_least_in_the_modules_output(
    norm: str, writer: str, padded: bool
):
    """Checked in the first block, whose inputs nothing has changed, with the norm's own inputs
    and the model's own modules.
    """
    model, mask = uneven("llama"), torch.ones_like(IDS, dtype=torch.bool)
    if padded:
        mask[1, 25:] = False
    names = {
        "input_layernorm": ("q_proj", "k_proj", "v_proj"),
        "post_attention_layernorm": ("gate_proj", "up_proj"),
    }[norm]
    modules = [
        model.get_submodule(f"model.layers.0.{writer.partition('.')[0]}.{name}") for name in names
    ]
    x, _ = inputs_and_outputs(model, f"model.layers.0.{writer.partition('.')[0]}.{names[0]}", mask)
    _, whole = inputs_and_outputs(model, f"model.layers.0.{writer}", mask)
    weights, errors = [module.weight.detach().clone() for module in modules], list[float]()
    for step in range(20):
        for module, weight in zip(modules, weights, strict=True):
            module.weight.data = rounded_by_hand(weight, scales_by_hand(x, step / 20))
        errors.append(
            float(
                (inputs_and_outputs(model, f"model.layers.0.{writer}", mask)[1] - whole)
                .square()
                .mean()
            )
        )
    for module, weight in zip(modules, weights, strict=True):
        module.weight.data = weight
    best = min(range(20), key=errors.__getitem__)
    job = job_of(model, "w3g16a", mask)
    found = [
        e.notes
        for e in edits_of(methods.build("awq"), job)
        if isinstance(e, Fold) and e.index == 0 and e.notes["site"].endswith(norm)
    ]
    assert [note["alpha"] for note in found] == ([best / 20] if best else [])
    for note in found:
        assert note["objective"] == "module"
        assert note["error"] == pytest.approx(errors[best] / errors[0], rel=1e-3)


@pytest.mark.parametrize("mixed", [False, True])
def test_tokens_judge_by_their_weights_and_the_sets_of_a_mix_by_their_shares(mixed: bool):
    model = uneven("llama")
    whole = batch_of()
    weights = whole.weights.clone()
    weights[2] = 20.0
    by_token = weights.flatten()[:, None]
    tokens = replace(whole, weights=weights)
    if mixed:
        first = TokenBatch(IDS[:2], whole.mask[:2], whole.weights[:2], "sha256:1", {})
        second = TokenBatch(IDS[2:], whole.mask[2:], whole.weights[2:], "sha256:2", {})
        tokens = replace(tokens, mixed=((1.0, first), (20.0, second)))
    modules = [
        model.get_submodule(f"model.layers.0.mlp.{name}") for name in ("gate_proj", "up_proj")
    ]
    x, _ = inputs_and_outputs(model, "model.layers.0.mlp.gate_proj", whole.mask)
    _, untouched = inputs_and_outputs(model, "model.layers.0.mlp.down_proj", whole.mask)
    # The mean |x|, in one row.
    sizes = (x.abs() * by_token).sum(0, keepdim=True) / weights.sum()
    dense = [module.weight.detach().clone() for module in modules]
    errors: list[float] = []
    for step in range(20):
        for module, weight in zip(modules, dense, strict=True):
            module.weight.data = rounded_by_hand(weight, scales_by_hand(sizes, step / 20))
        _, outputs = inputs_and_outputs(model, "model.layers.0.mlp.down_proj", whole.mask)
        errors.append(float(((outputs - untouched).square() * by_token).sum()))
    for module, weight in zip(modules, dense, strict=True):
        module.weight.data = weight
    job = replace(job_of(model, "w3g16a"), batch=tokens)
    notes = [
        edit.notes
        for edit in edits_of(methods.build("awq"), job)
        if isinstance(edit, Fold)
        and edit.notes["site"] == "model.layers.0.post_attention_layernorm"
    ]
    best = errors.index(min(errors))
    assert best > 0
    assert [note["alpha"] for note in notes] == [best / 20]
    assert notes[0]["error"] == pytest.approx(errors[best] / errors[0], rel=1e-3)


@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v3", "ernie4_5_moe"])
def test_experts_beside_a_shared_one_get_the_scales_that_err_least_in_what_all_give(kind: str):
    """In float64, in the second block, whose inputs nothing has changed where no edit is made."""
    sizes: dict[str, Any] = {}
    if kind == "qwen2_moe":
        sizes["shared_expert_intermediate_size"] = 32
    model = uneven_mixture(kind, **sizes)
    exact = deepcopy(model).double()
    x, whole = inputs_and_outputs(exact, "model.layers.1.mlp", torch.ones_like(IDS).bool())
    network = exact.model.layers[1].mlp
    readers = [
        weight
        for weight in view(exact).blocks[1].weights
        if ".mlp." in weight.name and "down_proj" not in weight.name
    ]
    dense = [weight.get().clone() for weight in readers]
    errors: list[float] = []
    for step in range(20):
        for weight, numbers in zip(readers, dense, strict=True):
            weight.set(rounded_by_hand(numbers, scales_by_hand(x, step / 20)))
        with torch.no_grad():
            outputs = network(x[None])[0]
        errors.append(float((outputs - whole).square().mean()))
    best = errors.index(min(errors))
    notes = [
        edit.notes
        for edit in edits_of(methods.build("awq"), job_of(model, "w3g16a"))
        if isinstance(edit, Fold)
        and edit.notes["site"] == "model.layers.1.post_attention_layernorm"
    ]
    assert best > 0
    assert [(note["alpha"], note["objective"]) for note in notes] == [(best / 20, "module")]
    assert notes[0]["error"] == pytest.approx(errors[best] / errors[0], rel=1e-3)


def test_experts_are_judged_by_all_too_where_their_module_gives_what_its_router_said_besides():
    folds = [edit for edit in done("awq", uneven_mixture("llama4_text")) if isinstance(edit, Fold)]
    sites = [f"model.layers.{block}.post_attention_layernorm" for block in range(2)]
    objectives = [fold.notes["objective"] for fold in folds if fold.notes["site"] in sites]
    assert objectives == ["module", "module"]


@pytest.mark.parametrize("text", ["w3g8", "w2g16a", "w4"])
def test_a_group_is_clipped_where_its_outputs_err_least(text: str):
    chance = torch.Generator().manual_seed(2)
    weight, x = (
        torch.randn(5, 32, generator=chance).double() ** 3,
        torch.randn(90, 32, generator=chance).double(),
    )
    grid = parse_target(text)
    assert isinstance(grid, Grid)
    found, width, span = clipped(weight, grid, Gram.of(x)), grid.width(32), 2**grid.bits - 1
    for r in range(5):
        for g in range(32 // width):
            members, seen, errors = (
                weight[r, g * width : (g + 1) * width],
                x[:, g * width : (g + 1) * width],
                list[float](),
            )
            for step in range(10):
                most = float(members.abs().max()) * (1 - step / 20)
                cut = members.clamp(-most, most)
                low, high = min(float(cut.min()), 0.0), max(float(cut.max()), 0.0)
                scale = max(-low, high) / (span / 2) if grid.symmetric else (high - low) / span
                zero = (
                    0
                    if grid.symmetric
                    else min(max(round(grid.lowest - low / scale), grid.lowest), grid.highest)
                )
                values = (
                    (members / scale + zero).round().clamp(grid.lowest, grid.highest) - zero
                ) * scale
                errors.append(float((seen @ (values - members)).square().sum()))
            zero = 0.0 if found.zeros is None else float(found.zeros[r, g])
            values = (
                (members / found.scales[r, g] + zero).round().clamp(grid.lowest, grid.highest)
                - zero
            ) * found.scales[r, g]
            assert float((seen @ (values - members)).square().sum()) == pytest.approx(
                min(errors), rel=1e-9
            )


def test_queries_and_keys_are_not_clipped():
    for family, never in (
        ("llama", {"q_proj", "k_proj"}),
        ("phi3", {"qkv_proj"}),
        ("gpt2", {"c_attn"}),
    ):
        seen = view(tiny_model(family))
        unclipped = {weight.name for weight in seen.weights} - Sites.of(seen).clippable
        assert {name.rpartition(".")[2] for name in unclipped} == never


def test_grids_of_queries_and_keys_reach_their_largest_weights_and_others_are_clipped():
    reaching: list[str] = []
    for edit in done("awq(steps=1)", uneven("llama"), only=Fold):
        largest = edit.weight.get().double().unflatten(1, (-1, 16)).abs().amax(2)
        if torch.allclose(edit.compressed.packed.scales.double(), largest / 3.5, rtol=1e-6):
            reaching.append(edit.weight.name.rpartition(".")[2])
    assert sorted(reaching) == 3 * ["k_proj"] + 3 * ["q_proj"]


def test_outputs_err_less_than_those_of_nearest_values():
    lost = {}
    for method in ("rtn", "awq(clip=false)", "awq"):
        model = uneven("llama", **EVERY_HEAD)
        before = logits(model)
        done(method, model)
        lost[method] = float((logits(model) - before).square().mean())
    assert lost["awq"] < lost["rtn"]
    assert lost["awq(clip=false)"] < lost["rtn"]


def test_what_is_shared_with_starved_experts_is_counted_once():
    model = tiny_mixture("mixtral")
    job = job_of(model)
    experts = [weight for weight in job.view.blocks[0].weights if weight.expert is not None]
    plain = job.view.blocks[0].weights[0]
    readers = [plain, *experts[:3]]
    starving = {experts[1].name: 4.0, experts[2].name: 4.0}
    shared = replace(job, starved="shared", starving=starving)
    assert _each_token_once(readers, shared) == [experts[1], plain]
    assert _each_token_once(readers, replace(job, starved="shared")) == readers
    assert _each_token_once(readers, job) == readers


def test_windows_in_which_no_token_counts_change_nothing():
    states: list[dict[str, Tensor]] = []
    for rows in ((0, 1, 2), (1, 2)):
        batch = batch_of()
        batch.weights[0] = 0.0
        ids, mask, weights = (part[list(rows)] for part in (batch.ids, batch.mask, batch.weights))
        given = replace(batch, ids=ids, mask=mask, weights=weights)
        model = uneven("llama", **EVERY_HEAD)
        opened = Opened(model, None, "tiny", "sha256:0", "", torch.float32)
        record = compress(opened, view(model), given, Recipe.parse("awq", "w3g16"))
        assert any(edit["edit"] == "fold" for edit in record.edits), "scales were found"
        states.append(model.state_dict())
    first, second = states
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_folder_gives_what_was_measured(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model"))
    made = calibrant.quantize(
        folder,
        data="random_tokens",
        method="awq",
        target="w3g16",
        out=tmp_path / "out",
        samples=4,
        length=32,
        dtype="float32",
    )
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(made.opened.model)
    )
    assert made.record.run.propagate == "dense"
    assert {edit["edit"] for edit in made.record.edits} <= {"fold"}
    assert all(matrix["bits_a_weight"] == 5.0 for matrix in made.record.weights)


def test_a_model_whose_parts_are_not_understood_is_refused():
    model = tiny_model("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda _, __, out: out.sin())
    with pytest.raises(ModelError) as refused:
        methods.build("awq").check_model(
            view(model), Grid(4, 16), dict.fromkeys(view(model).named, Grid(4, 16))
        )
    assert refused.value.subject == "model.layers.2"
