"""NVFP4's global scale, which matrices that are joined when they are served have in common: against
the definition in float64, and against llm-compressor.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrant.activations import Gram, Seen
from calibrant.compress import Recipe, compress, quantize
from calibrant.data import CalibrationSet
from calibrant.edits import Edit, Replace
from calibrant.edits.shared_scales import sharing_scales
from calibrant.lab.mixtures import Sample, shared_inputs
from calibrant.methods.quantization.rtn import RoundToNearest
from calibrant.models import open_model, view
from calibrant.packed import FloatCodes
from calibrant.targets import Target, parse_target
from calibrant.testing import tiny_folder, tiny_model

from tests.models.mixtures_of_experts import SIZES, tiny_mixture
from tests.usual import two_hundred_lines

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = Path(os.environ.get("CALIBRANT_TOOL_ENVS", ROOT / ".venv-tools"))
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
FP8 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
JOINED = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "model", "llama"))


def packed_by(method: str, target: str, folder: str, texts: str) -> dict[str, FloatCodes]:
    """The matrices of a model in their packed form, by name."""
    opened = open_model(folder, "float32", "cpu")
    recipe = Recipe.parse(method, target)
    batch = CalibrationSet(texts, samples=4, length=32).tokens(opened.tokenizer)
    edits: list[Edit] = []
    compress(opened, view(opened.model), batch, recipe, keep=edits.append)
    found: dict[str, FloatCodes] = {}
    for edit in edits:
        if isinstance(edit, Replace):
            assert isinstance(edit.compressed.packed, FloatCodes)
            found[edit.weight.name] = edit.compressed.packed
    return found


def global_scale(packed: FloatCodes) -> float:
    assert packed.scales.global_scale is not None
    return float(packed.scales.global_scale)


def nearest(numbers: Tensor, values: Tensor) -> Tensor:
    """The nearest value of each number, with its sign."""
    places = (numbers.abs()[..., None] - values).abs().argmin(-1)
    return values[places].copysign(numbers)


@pytest.mark.parametrize(
    ("method", "target"),
    [("rtn", "NVFP4A16"), ("gptq", "NVFP4"), ("awq", "NVFP4A16"), ("rsq", "NVFP4A16")],
)
def test_matrices_that_are_joined_have_one_scale(
    method: str, target: str, folder: str, texts: str
) -> None:
    packed = packed_by(method, target, folder, texts)
    for block in range(3):
        different: set[float] = set()
        for group in JOINED:
            members = [packed[f"model.layers.{block}.{name}"] for name in group]
            (shared,) = {global_scale(member) for member in members}
            different.add(shared)
            # The group with the largest weight of all has the largest scale there is, code 126.
            assert max(int(member.scales.stored.max()) for member in members) == 126
        assert len(different) == len(JOINED)


def test_numbers_are_those_of_the_definition(folder: str, texts: str) -> None:
    packed = packed_by("rtn", "NVFP4A16", folder, texts)
    weights = view(open_model(folder, "float32", "cpu").model).named
    for block in range(3):
        for group in JOINED:
            names = [f"model.layers.{block}.{name}" for name in group]
            largest = max(float(weights[name].get().abs().max()) for name in names)
            overall = 448 * 6 / largest
            for name in names:
                parts = weights[name].get().double().unflatten(1, (-1, 16))
                stored = nearest(parts.abs().amax(2) / 6 * overall, FP8)
                factors = (stored / overall)[:, :, None]
                expected = (nearest(parts / factors, FP4) * factors).flatten(1)
                assert global_scale(packed[name]) == pytest.approx(overall, rel=1e-6)
                torch.testing.assert_close(
                    packed[name].dense().double(), expected, rtol=1e-6, atol=0
                )


def test_a_matrix_on_another_grid_has_its_scale_for_itself() -> None:
    (block, *_) = view(tiny_model("llama")).blocks
    targets: dict[str, Target] = {}
    for weight in block.weights:
        targets[weight.name] = parse_target("NVFP4A16")
    targets[f"{block.name}.self_attn.v_proj"] = parse_target("w8")
    found: dict[str, Any] = sharing_scales(block.weights, targets)
    assert found[f"{block.name}.self_attn.q_proj"].reach is None
    up_proj = found[f"{block.name}.mlp.up_proj"]
    assert up_proj.reach == found[f"{block.name}.mlp.gate_proj"].reach
    assert up_proj.reach is not None
    # What it shares is no part of its name.
    assert str(up_proj) == "NVFP4A16"


def test_rows_are_predicted_with_the_scale_of_the_whole_matrix(folder: str, texts: str) -> None:
    packed = packed_by("rtn", "NVFP4A16", folder, texts)
    block = view(open_model(folder, "float32", "cpu").model).blocks[1]
    seen = {weight: Seen({Gram: Gram.of(torch.eye(weight.shape[1]))}) for weight in block.weights}
    sample = Sample(1, 5)
    target = parse_target("NVFP4A16")
    found: set[str] = set()
    for shared in shared_inputs([(block, seen)], [(block, seen)], sample, target):
        changes = shared.changes(RoundToNearest(), shared.seen[0])
        for name, of_matrix in zip(shared.names, changes.split(5), strict=True):
            rounded = packed[name].dense()
            rows = sample.of_rows(len(rounded))
            dense = dict(zip(shared.names, shared.rows, strict=True))[name]
            torch.testing.assert_close(dense - of_matrix, rounded[rows])
            found.add(name)
    assert found == {weight.name for weight in block.weights}


def groups_of(model: PreTrainedModel, block: int) -> set[tuple[str, ...]]:
    """The matrices of a block that share a global scale, by the last parts of their names."""
    weights = view(model).blocks[block].weights
    targets = {weight.name: parse_target("NVFP4A16") for weight in weights}
    found: dict[str, Any] = sharing_scales(weights, targets)
    names: dict[float, list[str]] = {}
    for name, target in found.items():
        if target.reach is not None:
            names.setdefault(target.reach, []).append(name.rpartition(".")[2])
    return {tuple(sorted(group)) for group in names.values()}


ATTENTION = ("k_proj", "q_proj", "v_proj")
FEED_FORWARD = ("gate_proj", "up_proj")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_attention_and_feed_forward_share_by_themselves(family: str) -> None:
    assert groups_of(tiny_model(family), 0) == {ATTENTION, FEED_FORWARD}


def test_a_matrix_that_the_model_has_joined_already_is_left_alone() -> None:
    assert groups_of(tiny_model("gpt2"), 0) == set()


def test_latent_attention_shares_what_reads_its_input() -> None:
    model = tiny_mixture("deepseek_v3")
    assert groups_of(model, 0) == {("kv_a_proj_with_mqa", "q_a_proj"), FEED_FORWARD}


def test_linear_attention_shares_as_vllm_joins_it() -> None:
    kinds = ["linear_attention", "full_attention"]
    configuration = AutoConfig.for_model(
        "qwen3_5_text",
        **{**SIZES, "head_dim": 16, "intermediate_size": 64, "layer_types": kinds},
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    model = AutoModelForCausalLM.from_config(configuration)
    linear = {("in_proj_qkv", "in_proj_z"), ("in_proj_a", "in_proj_b")}
    assert groups_of(model, 0) == {*linear, FEED_FORWARD}
    assert groups_of(model, 1) == {ATTENTION, FEED_FORWARD}


def test_a_target_is_revised_with_the_grid_in_it() -> None:
    revised = ["NVFP4A16", "W8A8", "NVFP4A16+kv_fp8", "NVFP4+kv_fp8", "w4g64+kv_fp8", "kv_fp8"]
    assert [parse_target(text).revised for text in revised] == [1, 0, 1, 1, 0, 0]


LLM_COMPRESSOR = """
import sys
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
recipe = QuantizationModifier(targets="Linear", scheme="NVFP4A16", ignore=["lm_head"])
oneshot(model=model, recipe=recipe)
model.save_pretrained(sys.argv[2], save_compressed=True)
"""


@pytest.mark.slow
def test_scales_and_codes_are_those_of_llm_compressor(tmp_path: Path) -> None:
    python = ENVIRONMENTS / "llm_compressor" / "bin" / "python"
    if not python.is_file():
        pytest.skip("llm_compressor has no environment; make tools makes it")
    model = tiny_folder(tmp_path / "model", "llama", tie_word_embeddings=False)
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-c", LLM_COMPRESSOR, model, tmp_path / "theirs"],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    quantize(
        str(model),
        target="NVFP4A16",
        out=tmp_path / "out",
        dtype="float32",
        export="compressed_tensors",
    )
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = load_file(tmp_path / "out" / "compressed_tensors" / "model.safetensors")
    compared = 0
    for name, tensor in theirs.items():
        if name.endswith(("weight_packed", "weight_scale", "weight_global_scale")):
            same = ours[name].contiguous().view(torch.uint8) == tensor.view(torch.uint8)
            assert same.all(), name
            compared += 1
    assert compared == 3 * 21
