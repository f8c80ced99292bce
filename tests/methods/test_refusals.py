"""What methods can't do is refused before any work, and the error names the parameter, the target or the part of the model that it is about."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from calibrant.compress import Recipe, prune, quantize
from calibrant.errors import InputError, ModelError, SpecError, TargetError
from calibrant.methods import methods
from calibrant.testing import tiny_folder

SMALL = {"samples": 2, "length": 16, "dtype": "float32"}

PARAMETERS = {
    "admm(rho=0.0)": "rho",
    "admm(damp=0.0)": "damp",
    "admm(ramp=0)": "ramp",
    "admm(iterations=10)": "ramp",
    "alps(rho=0.0)": "rho",
    "alps(damp=0.0)": "damp",
    "alps(iterations=0)": "iterations",
    "alps(steps=-1)": "steps",
    "alps(per=column)": "per",
    "awq(steps=0)": "steps",
    "basis_sharing(group=0)": "group",
    "cd_moe(experts=-1)": "experts",
    "cd_moe(gates=best)": "gates",
    "cd_moe(tokens=1)": "tokens",
    "cd_moe(rate=0.0)": "rate",
    "dsnot(swaps=-1)": "swaps",
    "dsnot(tolerance=-1.0)": "tolerance",
    "dsnot(start=sparsegpt)": "start",
    "dsnot(start=none())": "start",
    "dsnot(start=dsnot)": "start",
    "dsnot(start=short_gpt)": "start",
    "dsnot(start=nobody)": "start",
    "evop(generation=3)": "generation",
    "evop(children=0)": "children",
    "evop(population=4, elites=4)": "elites",
    "evop(tokens=[2048, 512])": "tokens",
    "evopress(generations=0)": "generations",
    "fips(group=0)": "group",
    "fips(group=1.5)": "group",
    "fips(rank=0)": "rank",
    "fips(rounds=0)": "rounds",
    "fips(steps=-1)": "steps",
    "fips(density=0.0)": "density",
    "fips(density=1.5)": "density",
    "fips(rank=8, density=0.5)": "density",
    "fips(damp=0.0)": "damp",
    "gptq(damp=0.0)": "damp",
    "gptq(order=best)": "order",
    "gptq(scales=best)": "scales",
    "greedy(finalists=0)": "finalists",
    "greedy(tokens=[])": "tokens",
    "greedy(tokens=[1, 512])": "tokens",
    "held_out(method=wanda)": "wanda",
    "held_out(method=nothing)": "nothing",
    "held_out(damps=[])": "damps",
    "held_out(damps=[0.1, 0.1])": "damps",
    "held_out(damps=['a'])": "damps",
    "held_out(damps=[0.1, 0])": "damp",
    "mc_suite(criterion=eam)": "criterion",
    "mc_suite(drop=least)": "drop",
    "mc_suite(rounds=0)": "rounds",
    "mc_suite(steps=-1)": "steps",
    "mc_suite(rate=0.0)": "rate",
    "reconstructed(method=short_gpt)": "short_gpt",
    "reconstructed(method=held_out)": "held_out",
    "reconstructed(steps=0)": "steps",
    "reconstructed(rate=0.0)": "rate",
    "refined(start=none)": "start",
    "refined(start=rtn)": "start",
    "refined(start=rsq)": "start",
    "refined(start=[wanda])": "start",
    "refined(swaps=-1)": "swaps",
    "refined(steps=-3)": "steps",
    "refined(rounds=0)": "rounds",
    "refined(damp=0.0)": "damp",
    "refined(tolerance=1.0)": "tolerance",
    "refined(tolerance=-0.1)": "tolerance",
    "ria(power=-0.5)": "power",
    "robust(rounds=0)": "rounds",
    "robust(swaps=-1)": "swaps",
    "rsq(importance=norm)": "importance",
    "rsq(least=1.5)": "least",
    "rsq(expand=0)": "expand",
    "rsq(damp=0.0)": "damp",
    "rtn(scales=best)": "scales",
    "sparsegpt(damp=-0.1)": "damp",
    "sparsegpt(block=0)": "block",
    "sparsegpt(order=activation)": "order",
    "svd(damp=-1.0)": "damp",
}
"""What is wrong, and with which parameter; of a method given as a parameter that can't be one, the method."""


@pytest.mark.parametrize("spec", PARAMETERS)
def test_a_parameter_that_cannot_be_is_named(spec: str):
    with pytest.raises(SpecError) as refused:
        methods.build(spec)
    assert refused.value.subject == PARAMETERS[spec]


@pytest.mark.parametrize(
    ("method", "name"), [("admm", "damp"), ("alps", "rho"), ("dsnot", "tolerance"), ("refined", "damp"), ("ria", "power"), ("sparsegpt", "damp")]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_no_parameter(method: str, name: str, value: float):
    with pytest.raises(SpecError) as refused:
        methods.get(method)(**{name: value})
    assert refused.value.subject == name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    families = ("llama", "gpt2", "opt", "mixtral", "qwen3_moe")
    return {family: tiny_folder(tmp_path_factory.mktemp(family) / "model", family) for family in families}


@pytest.mark.parametrize(
    ("family", "method", "target", "subject"),
    [
        ("llama", "basis_sharing(group=8)", 0.3, "group"),
        ("llama", "cd_moe", 0.5, "cd_moe"),
        ("mixtral", "cd_moe(experts=2)", 0.5, "MixtralForCausalLM"),
        ("qwen3_moe", "cd_moe(experts=0)", 0.5, "model.layers.0.mlp"),
        ("qwen3_moe", "cd_moe(experts=33)", 0.5, "experts"),
        ("qwen3_moe", "cd_moe", 0.1, "blocks 0.1"),
        ("llama", "evop", 0.1, "blocks 0.1"),
        ("llama", "evop(apart=true)", 0.05, "blocks 0.05"),
        ("gpt2", "evop(apart=true)", 0.34, "transformer.h.0.attn.c_proj.bias"),
        ("opt", "evop(apart=true)", 0.34, "model.decoder.layers.0.fc2.bias"),
        ("llama", "evopress", "experts 0.5", "experts 0.5"),
        ("llama", "fips(group=2)", 0.3, "group"),
        ("llama", "fips(group=3, rank=33)", 0.3, "numbers 0.3"),
        ("llama", "fips(group=3)", 0.97, "numbers 0.97"),
        ("llama", "fips", "blocks 0.25", "blocks 0.25"),
        ("llama", "fips", "numbers 1.5", "'numbers' 1.5"),
        ("llama", "greedy", "2:4", "2:4"),
        ("llama", "mc_suite", 0.5, "mc_suite"),
        ("mixtral", "mc_suite", 0.99, "model.layers.0.mlp"),
        ("mixtral", "mc_suite", 0.01, "experts 0.01"),
        ("mixtral", "reconstructed", 0.5, "model.layers.0.mlp.experts.gate_up_proj[0]"),
        ("llama", "short_gpt", 0.3, "blocks 0.3"),
        ("llama", "short_gpt", "2:4", "2:4"),
        ("llama", "svd", 0.99, "numbers 0.99"),
    ],
)
def test_what_a_model_cannot_be_is_refused_and_nothing_is_written(
    folders: Mapping[str, Path], tmp_path: Path, family: str, method: str, target: float | str, subject: str
):
    with pytest.raises(InputError) as refused:
        prune(str(folders[family]), "python_docs", method, target, tmp_path / "out", **SMALL)
    assert isinstance(refused.value, SpecError | TargetError | ModelError)
    assert refused.value.subject == subject
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "target", "subject"),
    [
        ("awq", "0.5", "0.5"),
        ("ggml", "q4_k", "model.layers.0.self_attn.q_proj"),
        ("gptq", "w4g7", "model.layers.0.self_attn.q_proj"),
        ("sparsegpt", "w4g16", "w4g16"),
        ("sparsegpt(order=loss)", "2:4+w4g16", "2:4+w4g16"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(folders: Mapping[str, Path], method: str, target: str, subject: str):
    with pytest.raises(TargetError) as refused:
        quantize(str(folders["llama"]), "python_docs", method, target, **SMALL)
    assert refused.value.subject == subject


@pytest.mark.parametrize(("method", "target", "own"), [("awq", "w4g64", "dense"), ("fips", 0.5, "dense"), ("reconstructed", 0.5, "reference")])
def test_what_looks_at_the_dense_model_cannot_be_done_in_arrival(method: str, target: float | str, own: str):
    with pytest.raises(SpecError) as refused:
        Recipe.parse(method, target, "arrival")
    assert refused.value.subject == "arrival"
    assert Recipe.parse(method, target).propagate == own


@pytest.mark.parametrize(
    "spec",
    [
        "dsnot(start=ria(power=1.0), swaps=10)",
        "dsnot",
        "fips",
        "held_out(method=sparsegpt(block=64))",
        "held_out(damps=[0.1, 1.0], refit=False)",
        "reconstructed",
        "refined",
        "refined(start=sparsegpt(damp=0.1), swaps=5)",
        "rtn(scales='mse')",
    ],
)
def test_the_text_of_a_method_gives_it_back(spec: str):
    assert str(methods.build(spec)) == spec
    assert methods.build(str(methods.build(spec))) == methods.build(spec)
