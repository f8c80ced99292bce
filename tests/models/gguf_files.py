"""Tiny GGUF files whose headers say what a test wants."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrant.models import view
from calibrant.models.gguf_writing import architecture_of, parts_of
from calibrant.testing import tiny_tokenizer
from calibrant.testing.tiny import VOCABULARY

Entry = str | float | bool | Sequence[bool] | None


def tiny_starcoder(**overrides: Any) -> PreTrainedModel:
    """A random StarCoder2."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model("starcoder2", **settings, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def write_tiny_gguf(
    path: Path,
    model: PreTrainedModel,
    entries: Mapping[str, Entry] | None = None,
    tables: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Write a model with the tiny tokenizer as plain floats. `entries` of its header stand beside
    or in place of the usual ones; None leaves one out. `tables` are further tensors.
    """
    architecture = architecture_of(model)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**usual_entries(model.config), **(entries or {})}.items():
        add_entry(writer, f"{architecture}.{key}", value)
    tokens = tiny_tokenizer().convert_ids_to_tokens(list(range(VOCABULARY)))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 256)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for part in parts_of(view(model)):
        writer.add_tensor(part.name, part.numbers())
    for name, numbers in (tables or {}).items():
        writer.add_tensor(name, np.array(numbers, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def usual_entries(config: Any) -> dict[str, Entry]:
    """What llama.cpp's converter writes for every model."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    entries: dict[str, Entry] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": size,
        "vocab_size": config.vocab_size,
    }
    if hasattr(config, "norm_epsilon"):
        entries["attention.layer_norm_epsilon"] = float(config.norm_epsilon)
    else:
        entries["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    if config.model_type.startswith("gemma"):
        entries["attention.sliding_window"] = config.sliding_window
    rope = config.rope_parameters
    entries["rope.freq_base"] = float(rope.get("full_attention", rope)["rope_theta"])
    return entries


def add_entry(writer: gguf.GGUFWriter, name: str, value: Entry) -> None:
    """Add an entry of the type that its value has."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_array(name, list(value))
