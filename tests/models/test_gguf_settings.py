"""What a GGUF header says of how its model computes is what the opened model does; what can't be
read is refused, and no other model opened.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from calibrant.compress import export
from calibrant.models import open_model
from calibrant.models.gguf_settings import adopt_settings
from calibrant.testing import tiny_model

from tests.models.gguf_files import Entry, tiny_starcoder, write_tiny_gguf
from tests.models.refused import refusal_of

IDS = torch.arange(3, 83).reshape(2, 40)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
Tables = Mapping[str, list[float]]


def llama3_table(factor: float, size: int = 8, base: float = 500_000.0) -> list[float]:
    """As llama.cpp's converter makes it, in float32."""
    frequencies = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    table: list[float] = []
    for frequency in frequencies:
        length = 2 * math.pi / frequency
        if length < 8192 / 4:
            table.append(1.0)
        elif length > 8192:
            table.append(factor)
        else:
            smooth = (8192 / length - 1) / 3
            table.append(float(1 / ((1 - smooth) / factor + smooth)))
    return table


def opened(path: Path) -> PreTrainedModel:
    return open_model(str(path), "float32", "cpu").model


def same_as_written(
    path: Path, model: PreTrainedModel, entries: Mapping[str, Entry], tables: Tables | None = None
) -> Any:
    """The configuration of the model in a file, which computes what the written one did."""
    found = opened(write_tiny_gguf(path, model, entries, tables))
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    return found.config


def lies_elsewhere(path: Path, model: PreTrainedModel) -> None:
    """A file without the setting is another model: the test sees the setting."""
    other = opened(write_tiny_gguf(path, model))
    assert (other(IDS).logits - model(IDS).logits).abs().max() > 1e-4


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_table_of_llama_3_is_read_as_its_scaling(tmp_path: Path, factor: float) -> None:
    model = tiny_model("llama", rope_parameters={**LLAMA3, "factor": factor}, head_dim=16)
    tables = {"rope_freqs.weight": llama3_table(factor, 16)}
    assert 1 < tables["rope_freqs.weight"][4] < factor  # one is between short and long
    config = same_as_written(tmp_path / "own.gguf", model, {"rope.dimension_count": 16}, tables)
    assert config.rope_parameters == {**LLAMA3, "factor": factor}
    lies_elsewhere(tmp_path / "without.gguf", model)


def test_what_is_saved_has_the_scaling_too(tmp_path: Path) -> None:
    model = tiny_model("llama", rope_parameters=LLAMA3)
    tables = {"rope_freqs.weight": llama3_table(8.0)}
    path = write_tiny_gguf(tmp_path / "own.gguf", model, {"rope.dimension_count": 8}, tables)
    export(str(path), tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["rope_parameters"] == LLAMA3
    assert torch.equal(opened(tmp_path / "saved")(IDS).logits, opened(path)(IDS).logits)


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(llama3_table(16.0), id="another factor"),
        pytest.param(llama3_table(8.0, base=10_000.0), id="another base"),
        pytest.param(llama3_table(8.0)[:3], id="too short"),
        pytest.param([1.0, 2.0, 3.0, 4.0], id="anything"),
        pytest.param([1.0, 0.1, 0.01, 0.001], id="frequencies"),
    ],
)
def test_a_table_that_no_published_model_has_is_refused(tmp_path: Path, table: list[float]) -> None:
    model = tiny_model("llama", rope_parameters={"rope_theta": 500_000.0, "rope_type": "default"})
    path = write_tiny_gguf(tmp_path / "own.gguf", model, tables={"rope_freqs.weight": table})
    refusal = refusal_of(opened, path)
    assert refusal.subject == "rope_freqs.weight"
    assert str(refusal) == (
        f"{path} has rope_freqs.weight, a table of angles that isn't one of Llama 3.1, 3.2 or 3.3, "
        "and that can't be read from GGUF; open the model's original folder of safetensors"
    )


LINEAR: dict[str, Entry] = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
YARN: dict[str, Entry] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}


@pytest.mark.parametrize(
    "entries", [LINEAR, {"rope.scaling.factor": 8.0}, {"rope.scale_linear": 8.0}]
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_linear_scaling(tmp_path: Path, family: str, entries: Mapping[str, Entry]) -> None:
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0}
    model = tiny_model(family, rope_parameters=rope)
    config = same_as_written(tmp_path / "own.gguf", model, entries)
    assert config.rope_parameters == rope
    lies_elsewhere(tmp_path / "without.gguf", model)


@pytest.mark.parametrize("tuned", [{}, {"beta_fast": 16.0, "beta_slow": 2.0}])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_yarn(tmp_path: Path, family: str, tuned: dict[str, float]) -> None:
    rope = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 64,
        **tuned,
    }
    model = tiny_model(family, rope_parameters=rope, max_position_embeddings=256)
    own = {f"rope.scaling.yarn_{name}": value for name, value in tuned.items()}
    config = same_as_written(tmp_path / "own.gguf", model, {**YARN, **own})
    assert config.rope_parameters == rope
    lies_elsewhere(tmp_path / "without.gguf", model)


def test_gemma_3_scales_the_layers_without_windows_alone(tmp_path: Path) -> None:
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}
    windowed = {"rope_type": "default", "rope_theta": 10_000.0}
    model = tiny_model(
        "gemma3",
        rope_parameters={"full_attention": full, "sliding_attention": windowed},
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        num_hidden_layers=6,
        query_pre_attn_scalar=8,
    )
    config = same_as_written(tmp_path / "own.gguf", model, LINEAR)
    assert config.rope_parameters == {"full_attention": full, "sliding_attention": windowed}
    lies_elsewhere(tmp_path / "without.gguf", model)
    alike = same_as_written(tmp_path / "all.gguf", model, {**LINEAR, **PATTERN_OF_SIX})
    assert alike.layer_types == model.config.layer_types


PATTERN_OF_SIX: dict[str, Entry] = {
    "attention.sliding_window_pattern": [True, True, True, True, True, False]
}


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3", 62), ("gemma2", 4)])
def test_the_largest_gemma_scales_queries_by_features_per_head(
    tmp_path: Path, family: str, layers: int
) -> None:
    scale = 8 if layers == 4 else 16
    kinds = None
    if family == "gemma3":
        kinds = [
            "full_attention" if layer % 6 == 0 else "sliding_attention" for layer in range(1, 63)
        ]
    model = tiny_model(
        family,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        query_pre_attn_scalar=scale,
        layer_types=kinds,
        sliding_window=16,
    )
    caps: dict[str, Entry] = {}
    if family == "gemma2":
        caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    config = same_as_written(tmp_path / "own.gguf", model, caps)
    assert config.query_pre_attn_scalar == scale


def test_the_base_of_starcoder_2(tmp_path: Path) -> None:
    model = tiny_starcoder(rope_parameters={"rope_theta": 999_999.4375, "rope_type": "default"})
    config = same_as_written(tmp_path / "own.gguf", model, {})
    assert config.rope_parameters["rope_theta"] == 999_999.4375
    other = opened(write_tiny_gguf(tmp_path / "without.gguf", model, {"rope.freq_base": None}))
    assert (other(IDS).logits - model(IDS).logits).abs().max() > 1e-4


def test_the_tables_of_phi_3_and_the_share_of_a_head_that_turns(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 4.0],
        "attention_factor": 1.25,
        "original_max_position_embeddings": 32,
    }
    model = tiny_model(
        "phi3",
        rope_parameters=rope,
        original_max_position_embeddings=32,
        max_position_embeddings=128,
        sliding_window=24,
    )
    entries: dict[str, Entry] = {
        "rope.dimension_count": 4,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.attn_factor": 1.25,
        "attention.sliding_window": 24,
    }
    tables = {"rope_factors_long.weight": [2.0, 4.0], "rope_factors_short.weight": [1.0, 1.5]}
    config = same_as_written(tmp_path / "own.gguf", model, entries, tables)
    assert config.rope_parameters == rope
    assert config.original_max_position_embeddings == 32
    assert config.sliding_window == 24
    short = IDS[:, :20]
    found = opened(tmp_path / "own.gguf")
    torch.testing.assert_close(found(short).logits, model(short).logits, rtol=1e-5, atol=1e-5)
    lies_elsewhere(tmp_path / "without.gguf", model)
    found.save_pretrained(tmp_path / "saved")
    saved = AutoConfig.from_pretrained(tmp_path / "saved")
    assert saved.rope_parameters == rope
    del entries["rope.scaling.original_context_length"]
    path = write_tiny_gguf(tmp_path / "less.gguf", model, entries, tables)
    assert refusal_of(opened, path).subject == "rope_factors_long.weight"


@pytest.mark.parametrize(
    ("family", "key", "value", "shown"),
    [
        ("llama", "attention.causal", False, "llama.attention.causal = False"),
        ("llama", "logit_scale", 0.5, "llama.logit_scale = 0.5"),
        ("llama", "rope.scaling.type", "su", "llama.rope.scaling.type = 'su'"),
        ("llama", "rope.freq_base", "fast", "llama.rope.freq_base = 'fast'"),
        ("llama", "rope.freq_base", [True], "a list llama.rope.freq_base"),
        ("qwen2", "rope.dimension_count", 4, "qwen2.rope.dimension_count = 4"),
        ("qwen2", "attention.sliding_window", 16, "qwen2.attention.sliding_window = 16"),
        ("qwen2", "final_logit_softcapping", 30.0, "qwen2.final_logit_softcapping = 30.0"),
        (
            "gemma2",
            "attention.sliding_window_pattern",
            3,
            "gemma2.attention.sliding_window_pattern",
        ),
        ("gemma2", "rope.freq_base_swa", 5e5, "gemma2.rope.freq_base_swa = 500000.0"),
        ("gemma3", "attention.sliding_window", None, "no gemma3.attention.sliding_window"),
        ("phi3", "rope.scaling.factor", 4.0, "phi3.rope.scaling.factor = 4.0"),
        ("phi3", "rope.dimension_count", 16, "phi3.rope.dimension_count = 16"),
    ],
)
def test_what_has_no_place_in_a_configuration_is_refused(
    tmp_path: Path, family: str, key: str, value: Entry, shown: str
) -> None:
    path = write_tiny_gguf(tmp_path / "own.gguf", tiny_model(family), {key: value})
    refusal = refusal_of(opened, path)
    assert refusal.subject == f"{family}.{key}"
    assert f"{path} has {shown}" in str(refusal)
    assert str(refusal).endswith("; open the model's original folder of safetensors")


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        ("llama", {"attention.causal": True, "logit_scale": 0.0, "rope.dimension_count": 8}),
        ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 8.0}),
        ("llama", {"rope.scaling.type": "linear"}),
        ("qwen2", {"attention.sliding_window": 10**6}),
        ("gemma2", {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 10_000.0}),
        ("phi3", {"rope.scaling.original_context_length": 4096, "attention.sliding_window": 0}),
    ],
)
def test_what_changes_nothing_changes_nothing(
    tmp_path: Path, family: str, entries: Mapping[str, Entry]
) -> None:
    own: dict[str, Any] = {"query_pre_attn_scalar": 8} if family == "gemma2" else {}
    model = tiny_model(family, **own)
    same_as_written(tmp_path / "own.gguf", model, entries)
    plain = opened(write_tiny_gguf(tmp_path / "plain.gguf", model))
    assert opened(tmp_path / "own.gguf").config.to_dict() == plain.config.to_dict()


def without_tensors() -> gguf.GGUFReader:
    """A reader of a file that has no tensors, and that isn't there."""
    reader = gguf.GGUFReader.__new__(gguf.GGUFReader)
    reader.tensors = []
    return reader


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (
            "nemotron",
            {"attention.layer_norm_epsilon": 1e-3, "rope.dimension_count": 32},
            lambda config: (config.norm_eps, config.rope_parameters["partial_rotary_factor"]),
        ),
        (
            "stablelm",
            {"attention.layer_norm_epsilon": 1e-3, "rope.dimension_count": 32},
            lambda config: (config.layer_norm_eps, config.rope_parameters["partial_rotary_factor"]),
        ),
        (
            "falcon",
            {"attention.layer_norm_epsilon": 1e-3},
            lambda config: (config.layer_norm_epsilon, 0.25),
        ),
    ],
)
def test_what_transformers_drops_of_other_architectures(
    kind: str, values: Mapping[str, float], said: Callable[[Any], object]
) -> None:
    config = AutoConfig.for_model(kind, hidden_size=256, num_attention_heads=2)
    header = {f"{kind}.{key}": value for key, value in values.items()}
    adopt_settings(config, {"general.architecture": kind, **header}, without_tensors())
    assert said(config) == (1e-3, 0.25)


def test_capped_logits(tmp_path: Path) -> None:
    model = tiny_model(
        "gemma2",
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=None,
    )
    caps: dict[str, Entry] = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 0.0}
    config = same_as_written(tmp_path / "own.gguf", model, caps)
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (2.0, None)
