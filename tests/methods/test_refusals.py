"""What methods can't do is refused, nothing is written, and the error names the parameter, the
target or the part of the model that it is about.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest

from calibrant.compress import Recipe, prune, quantize
from calibrant.errors import InputError, ModelError, SpecError, TargetError
from calibrant.methods import methods
from calibrant.testing import tiny_folder

SMALL = {"samples": 2, "length": 16, "dtype": "float32"}

PARAMETERS = {
    "admm": ["rho=0.0", "damp=0.0", "ramp=0", "iterations=1", "iterations=10, ramp=15"],
    "alps": ["rho=0.0", "damp=0.0", "iterations=0", "steps=-1", "per=column"],
    "autoround": ["steps=0", "batch=0", "inputs=all", "seed=-1"],
    "awq": ["steps=0"],
    "basis_sharing": ["group=0"],
    "cd_moe": ["experts=-1", "gates=best", "tokens=1", "rate=0.0"],
    "dsnot": [
        "swaps=-1",
        "tolerance=-1.0",
        "start=sparsegpt",
        "start=none()",
        "start=dsnot",
        "start=short_gpt",
        "start=nobody",
    ],
    "evop": ["generation=3", "children=0", "population=4, elites=4", "tokens=[2048,512]"],
    "evopress": ["generations=0"],
    "fips": [
        "group=0",
        "group=1.5",
        "rank=0",
        "rounds=0",
        "steps=-1",
        "density=0.0",
        "density=1.5",
        "rank=8, density=0.5",
        "damp=0.0",
        "aware=false, damp=0.1",
    ],
    "gptq": ["damp=0.0", "order=best", "scales=best"],
    "greedy": ["finalists=0", "tokens=[]", "tokens=[1]"],
    "held_out": ["damps=[]", "damps=['a']", "damps=[0.1,0.1]"],
    "mc_suite": ["criterion=eam", "drop=least", "rounds=0", "steps=-1", "rate=0.0"],
    "reconstructed": ["steps=0", "rate=0.0"],
    "refined": [
        "start=none",
        "start=rtn",
        "start=rsq",
        "start=[wanda]",
        "swaps=-1",
        "steps=-3",
        "rounds=0",
        "damp=0.0",
        "tolerance=1.0",
    ],
    "ria": ["power=-0.5"],
    "robust": ["rounds=0", "swaps=-1"],
    "rsq": ["importance=norm", "least=1.5", "expand=0", "damp=0.0"],
    "rtn": ["scales=best"],
    "sparsegpt": ["damp=-0.1", "block=0", "order=activation"],
    "svd": ["damp=-1.0", "aware=false, damp=0.1"],
}
"""For each method, parameters that it refuses. Where there are two, the second is the wrong one."""


@pytest.mark.parametrize(
    ("method", "parameters"),
    [(method, one) for method, several in PARAMETERS.items() for one in several],
)
def test_a_parameter_that_cannot_be_is_named(method: str, parameters: str):
    with pytest.raises(SpecError) as refused:
        methods.build(f"{method}({parameters})")
    assert refused.value.subject == parameters.rpartition(", ")[2].partition("=")[0]


@pytest.mark.parametrize(
    ("spec", "subject"),
    [
        ("held_out(method=rsq)", "rsq"),
        ("held_out(method=wanda)", "wanda"),
        ("reconstructed(method=gptq)", "gptq"),
        ("reconstructed(method=robust)", "robust"),
        ("reconstructed(method=short_gpt)", "short_gpt"),
    ],
)
def test_a_method_that_cannot_be_built_on_is_named(spec: str, subject: str):
    with pytest.raises(SpecError) as refused:
        methods.build(spec)
    assert refused.value.subject == subject


@pytest.mark.parametrize("target", [0.5, "w4g64"])
def test_a_method_that_fits_no_target_says_so(target: float | str):
    with pytest.raises(TargetError, match=r"fits no target.* write held_out\(method=sparsegpt\)"):
        Recipe.parse("held_out(method=gptq)", target)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    families = ("llama", "gpt2", "mixtral", "qwen3_moe")
    return {
        family: tiny_folder(tmp_path_factory.mktemp(family) / "model", family)
        for family in families
    }


@pytest.mark.parametrize(
    ("family", "method", "target", "error", "subject"),
    [
        ("llama", "basis_sharing(group=8)", 0.3, SpecError, "group"),
        ("llama", "cd_moe", 0.5, TargetError, "cd_moe"),
        ("mixtral", "cd_moe(experts=2)", 0.5, ModelError, "MixtralForCausalLM"),
        ("qwen3_moe", "cd_moe(experts=0)", 0.5, ModelError, "model.layers.0.mlp"),
        ("qwen3_moe", "cd_moe(experts=33)", 0.5, SpecError, "experts"),
        ("llama", "evop", 0.1, TargetError, "blocks 0.1"),
        ("llama", "evop(apart=true)", 0.05, TargetError, "blocks 0.05"),
        ("gpt2", "evop(apart=true)", 0.34, ModelError, "transformer.h.0.attn.c_proj.bias"),
        ("llama", "evopress", "experts 0.5", TargetError, "experts 0.5"),
        ("llama", "fips(group=2)", 0.3, SpecError, "group"),
        ("llama", "fips(group=3, rank=33)", 0.3, TargetError, "numbers 0.3"),
        ("llama", "fips(group=3)", 0.97, TargetError, "numbers 0.97"),
        ("llama", "fips", "numbers 1.5", TargetError, "'numbers' 1.5"),
        ("llama", "mc_suite", 0.5, TargetError, "mc_suite"),
        ("mixtral", "mc_suite", 0.99, TargetError, "model.layers.0.mlp"),
        (
            "mixtral",
            "reconstructed",
            0.5,
            TargetError,
            "model.layers.0.mlp.experts.gate_up_proj[0]",
        ),
        ("llama", "short_gpt", 0.3, TargetError, "blocks 0.3"),
        ("llama", "sparsegpt(scales=mse)", 0.5, TargetError, "0.5"),
        ("llama", "svd", 0.99, TargetError, "numbers 0.99"),
    ],
)
def test_what_a_model_cannot_be_is_refused_and_nothing_is_written(
    folders: Mapping[str, Path],
    tmp_path: Path,
    family: str,
    method: str,
    target: float | str,
    error: type[InputError],
    subject: str,
):
    with pytest.raises(error) as refused:
        prune(
            str(folders[family]),
            data="python_docs",
            method=method,
            target=target,
            out=tmp_path / "out",
            **SMALL,
        )
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
def test_a_grid_that_does_not_fit_is_refused(
    folders: Mapping[str, Path], method: str, target: str, subject: str
):
    with pytest.raises(TargetError) as refused:
        quantize(str(folders["llama"]), data="python_docs", method=method, target=target, **SMALL)
    assert refused.value.subject == subject


@pytest.mark.parametrize(
    ("method", "target", "default"),
    [
        ("autoround", "w4g64", "dense"),
        ("awq", "w4g64", "dense"),
        ("fips", 0.5, "dense"),
        ("mc_suite", 0.5, "dense"),
        ("reconstructed", 0.5, "reference"),
        ("short_gpt", 0.5, "dense"),
    ],
)
def test_a_propagation_that_a_method_lacks_is_refused_and_its_own_is_the_default(
    method: str, target: float | str, default: str
):
    with pytest.raises(SpecError) as refused:
        Recipe.parse(method, target, "arrival")
    assert refused.value.subject == "arrival"
    assert Recipe.parse(method, target).propagate == default


@pytest.mark.parametrize(
    "spec",
    [
        "dsnot(start=ria(power=1.0), swaps=10)",
        "held_out(method=sparsegpt(block=64))",
        "held_out(damps=[0.1, 1.0], refit=False)",
        "refined(start=sparsegpt(damp=0.1), swaps=5)",
        "rtn(scales='mse')",
    ],
)
def test_the_text_of_a_method_gives_it_back(spec: str):
    assert str(methods.build(spec)) == spec
    assert methods.build(str(methods.build(spec))) == methods.build(spec)
