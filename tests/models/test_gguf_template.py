"""A file whose metadata are copied must say of how the model computes what its configuration says:
else the file that is written would be another model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest

from calibrant.errors import ModelError, OutputError
from calibrant.models import view
from calibrant.models.gguf_writing import check_template, plain, write_gguf
from calibrant.testing import tiny_model

from tests.models.gguf_files import Entry, write_tiny_gguf
from tests.models.refused import refusal_of
from tests.models.test_gguf_settings import LINEAR, LLAMA3, YARN, llama3_table

LINEAR_ROPE = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 64,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
}
LENGTHS = {"original_max_position_embeddings": 32, "max_position_embeddings": 1024}
LONG_TABLES = {
    "rope_factors_long.weight": LONG_ROPE["long_factor"],
    "rope_factors_short.weight": LONG_ROPE["short_factor"],
}
LONG: dict[str, Entry] = {
    "rope.scaling.original_context_length": 32,
    "rope.scaling.attn_factor": 2**0.5,  # the root of 1 + log 32 / log 32
}


@pytest.mark.parametrize(
    ("family", "own", "entries", "tables"),
    [
        ("llama", {}, {}, {}),
        ("llama", {}, {"rope.dimension_count": 8}, {"rope_freqs.weight": [1.0] * 4}),
        ("llama", {"rope_parameters": LLAMA3}, {}, {"rope_freqs.weight": llama3_table(8.0)}),
        (
            "llama",
            {"rope_parameters": {**LLAMA3, "factor": 16.0}},
            {},
            {"rope_freqs.weight": llama3_table(16.0)},
        ),
        ("qwen2", {"rope_parameters": LINEAR_ROPE}, LINEAR, {}),
        ("qwen3", {"rope_parameters": {**YARN_ROPE, "beta_fast": 32.0}}, YARN, {}),
        ("phi3", {"rope_parameters": LONG_ROPE, **LENGTHS}, LONG, LONG_TABLES),
        ("gemma3", {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 3}, {}, {}),
    ],
)
def test_a_file_that_says_the_same(
    tmp_path: Path,
    family: str,
    own: dict[str, Any],
    entries: Mapping[str, Entry],
    tables: Mapping[str, list[float]],
) -> None:
    model = tiny_model(family, **own)
    path = write_tiny_gguf(tmp_path / "like.gguf", model, entries, tables)
    check_template(view(model), path)


@pytest.mark.parametrize(
    ("family", "own", "entries", "said"),
    [
        ("llama", {}, {"rope.freq_base": 5e5}, "rope_theta is 10000.0 in the model and 500000.0"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            {"rope.freq_base": None},
            "rope_theta is 500000.0 in the model and 10000.0",
        ),
        ("llama", {}, LINEAR, "rope_type is 'default' in the model and 'linear'"),
        ("llama", {"rope_parameters": LINEAR_ROPE}, {}, "'linear' in the model and 'default'"),
        (
            "llama",
            {"rope_parameters": LINEAR_ROPE},
            {**LINEAR, "rope.scaling.factor": 4.0},
            "factor is 8.0 in the model and 4.0",
        ),
        ("llama", {"rope_parameters": LLAMA3}, {}, "(which has no rope_freqs.weight)"),
        (
            "qwen2",
            {"rope_parameters": {**YARN_ROPE, "beta_fast": 16.0}},
            YARN,
            "beta_fast is 16.0 in the model and 32.0",
        ),
        (
            "qwen2",
            {"rope_parameters": {**YARN_ROPE, "attention_factor": 1.0}},
            YARN,
            "attention_factor is 1.0 in the model and 1.138",
        ),
        (
            "llama",
            {},
            {"attention.layer_norm_rms_epsilon": 1e-3},
            "rms_norm_eps is 1e-06 in the model and 0.001",
        ),
        (
            "llama",
            {},
            {"attention.head_count": 2},
            "num_attention_heads is 4 in the model and 2",
        ),
        (
            "llama",
            {},
            {"attention.head_count_kv": 1},
            "num_key_value_heads is 2 in the model and 1",
        ),
        ("qwen3", {}, {"attention.key_length": 16}, "head_dim is 8 in the model and 16"),
        (
            "phi3",
            {},
            {"attention.sliding_window": 24},
            "sliding_window is None in the model and 24",
        ),
        ("gemma2", {}, {}, "query_pre_attn_scalar is 256 in the model and 8"),
        ("llama", {}, {"attention.causal": False}, "has llama.attention.causal = False, and the"),
        (
            "phi3",
            {"rope_parameters": LONG_ROPE, **LENGTHS},
            {},
            "(which has no rope_factors_long.weight)",
        ),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path,
    family: str,
    own: dict[str, Any],
    entries: Mapping[str, Entry],
    said: str,
) -> None:
    model = tiny_model(family, **own)
    path = write_tiny_gguf(tmp_path / "like.gguf", model, entries)
    refusal = refusal_of(check_template, view(model), path, kind=OutputError)
    assert said in str(refusal)
    assert str(path) in str(refusal)
    assert str(refusal).endswith("; name a file of the same model")


def test_experts_are_counted(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe")
    usual: dict[str, Entry] = {"expert_count": 32, "expert_used_count": 2}
    check_template(view(model), write_tiny_gguf(tmp_path / "like.gguf", model, usual))
    other = write_tiny_gguf(tmp_path / "other.gguf", model, {**usual, "expert_used_count": 4})
    refusal = refusal_of(check_template, view(model), other, kind=OutputError)
    assert refusal.subject == "qwen3moe.expert_used_count"
    assert "num_experts_per_tok is 2 in the model and 4" in str(refusal)


def with_a_list(path: Path, kind: int, count: int, behind: bytes = b"") -> Path:
    """The file with a list in place of the size of its feed-forward networks."""
    content = path.read_bytes()
    key = b"llama.feed_forward_length"
    place = content.index(key) + len(key)
    # In the file a list is its type, 9, that of its items, their number and the items.
    numbers = (9).to_bytes(4, "little") + kind.to_bytes(4, "little") + count.to_bytes(8, "little")
    # All tensors move by what was added; a multiple of the alignment would be none at all.
    added = numbers + behind
    path.write_bytes(content[:place] + added + content[place + 8 :] + bytes(64))
    return path


def test_an_empty_list_is_not_copied(tmp_path: Path) -> None:
    model = tiny_model("llama")
    path = with_a_list(write_tiny_gguf(tmp_path / "like.gguf", model), kind=8, count=0)
    check_template(view(model), path)
    written = tmp_path / "written.gguf"
    kind = gguf.GGMLQuantizationType.F32
    write_gguf(view(model), path, written, lambda part: plain(part, kind), {})
    reader = gguf.GGUFReader(written)
    assert reader.get_field("llama.feed_forward_length") is None
    assert reader.get_field("llama.block_count") is not None


def test_metadata_that_cannot_be_read_are_refused_before_the_job(tmp_path: Path) -> None:
    model = tiny_model("llama")
    text = (3).to_bytes(8, "little") + b"\xff\xfe\xfd"  # no UTF-8
    path = write_tiny_gguf(tmp_path / "like.gguf", model)
    with_a_list(path, kind=8, count=1, behind=text)
    refusal = refusal_of(check_template, view(model), path, kind=ModelError)
    assert refusal.subject == str(path)
    assert "truncated or damaged" in str(refusal)
