"""Small random models of every family that transformers' own list of causal language models names.

A configuration has dozens of sizes; the ones that make a model large are set to small ones here by
their names, which families share. What is not small enough then, or doesn't fit together, has a
line of its own in `_OWN`.
"""

import dataclasses
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES: Final = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

MOST: Final = 7_000_000
"""Numbers that a small model has at most."""

_BY_SIZE: Final = {
    1: """
        n_group topk_group n_shared_experts moe_num_shared_experts num_shared_experts
        first_k_dense_replace num_dense_layers max_window_layers
    """,
    2: """
        num_experts_per_tok moe_topk moe_k moe_top_k num_selects linear_num_key_heads index_n_heads
        swa_num_key_value_heads mamba_n_groups n_groups num_global_key_value_heads
        sliding_window_pattern num_random_blocks num_key_value_heads attention_num_kv_heads
    """,
    3: """
        num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers
        num_encoder_layers num_decoder_layers
    """,
    4: """
        num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads
        decoder_attention_heads o_groups num_encoder_attention_heads num_decoder_attention_heads
        swa_num_attention_heads linear_num_value_heads linear_num_heads mamba_n_heads
        mamba_num_heads n_mamba_heads num_local_experts num_experts n_routed_experts moe_num_experts
        zero_expert_num rotary_dim index_block_size index_topk_blocks gated_norm_rank laurel_rank
    """,
    8: """
        head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim
        linear_value_head_dim linear_head_dim index_head_dim kv_channels dim_head swa_head_dim
        attention_head_size mamba_head_dim state_size ssm_state_size mamba_d_state d_rel qk_head_dim
        global_head_dim sliding_window sliding_window_size adapter_rank index_topk mamba_d_head
        loop_gate_rank attention_chunk_size hidden_size_per_layer_input dt_rank time_step_rank
        chunk_size mamba_chunk_size
    """,
    16: """
        q_lora_rank kv_lora_rank o_lora_rank embedding_size input_embedding_size
        moe_intermediate_size expert_ffn_hidden_size router_hidden_size dim_model_base hc_lowrank
    """,
    32: """
        hidden_size d_model n_embd emb_dim word_embed_proj_dim output_embedding_size
        linear_hidden_size lru_width backbone_hidden_size mamba_d_ssm
    """,
    64: """
        intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner dff dim_ff ffn_hidden_size
        shared_expert_intermediate_size n_inner feed_forward_size shared_intermediate_size
        intermediate_size_mlp dense_intermediate_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size block_ff_dim vocab_size_per_layer_input
        max_position_embeddings n_positions max_seq_len n_ctx context_length max_target_positions
        max_source_positions
    """,
    100: """
        vocab_size unpadded_vocab_size
    """,
}
_SIZES: Final = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
_TOKENS: Final = {
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "initializer_range": 0.1,
    "init_std": 0.1,
}
_KINDS: Final = ("sliding_attention", "full_attention")
_DOTS: Final = {
    "swa_qk_rope_head_dim": 8,
    "swa_head_dim": 16,
    "head_dim": 16,
    "swa_num_key_value_heads": 4,
}
_OWN: Final[dict[str, dict[str, Any]]] = {
    "bamba": {"mamba_n_heads": 8},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "blt.encoder_config": {"hidden_size_global": 64},
    "blt.decoder_config": {"hidden_size_global": 64},
    "blt.global_config": {"hidden_size": 64},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
            for kind in _KINDS
        }
    },
    "dbrx.attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
    "gemma4.text_config": {"vocab_size_per_layer_input": 100},
    "gemma4_assistant.text_config": {
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 100},
    "gemma4_unified.vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 16},
    "gemma3n_text": {
        "altup_num_inputs": 3,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "inkling2_loop_text": {
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
        "loop_num_passes": 2,
    },
    "dots3_note_text": {f"swa_{name}": size for name, size in _SIZES.items()} | _DOTS,
    "dots3_note.text_config": {f"swa_{name}": size for name, size in _SIZES.items()} | _DOTS,
    "dots3_note.audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note.vision_config": {
        "pyramid_num_routed": [-1, 4],
        "adapter_in_dim": 32,
        "adapter_out_dim": 32,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 8,
    },
    "kolibri1_1": {
        "head_dim": 16,
        "layer_types": ["sliding_attention", "indexed_attention", "indexed_attention"],
        "mlp_only_layers": [0],
        "index_num_heads": 1,
        "index_compression": 2,
        "index_num_local_tokens": 2,
        "index_num_sink_tokens": 1,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": {"qk_head_dim": 16},
    "mamba2": {"num_heads": 8},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh", "local"],
        "num_buckets": 4,
        "hash_seed": 0,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 10,
        "shape_vocab_size": 10,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xglm": {"init_std": 0.1},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
_ONLY_FLOAT32: Final = ("xglm", "xlnet")
"""Families whose forward fails in float64."""
_LATENT: Final = "kv_lora_rank"
"""What a family has whose attention expands each key from a latent: there are as many of them as
heads then.
"""


def small_config(family: str) -> PreTrainedConfig:
    """A configuration of `family` whose model has three blocks and 32 features."""
    return _small(CONFIG_MAPPING[family], family)


def _small(kind: type[PreTrainedConfig], path: str) -> PreTrainedConfig:
    names = {field.name for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {
        name: value for name, value in (_SIZES | _TOKENS).items() if name in names
    }
    if "vision" in path or "audio" in path:
        given |= {"num_hidden_layers": 2} if "num_hidden_layers" in names else {}
    if _LATENT in names or "index_head_dim" in names or "dots3" in path:
        given["num_key_value_heads"] = 4
    for name, spec in (
        getattr(kind, "sub_configs_defaults", None) or kind.sub_configs or {}
    ).items():
        inner = getattr(spec, "config_class", spec)
        inner = CONFIG_MAPPING[spec.model_type] if inner is AutoConfig else inner
        if name in names and dataclasses.is_dataclass(inner):
            given[name] = _small(inner, f"{path}.{name}")
    return kind(**{**given, **_OWN.get(path, {})})


def small_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of `family` in float64, in evaluation mode. Raises what transformers raises
    where it can't make one.
    """
    config, dtype = (
        small_config(family),
        torch.float32 if family in _ONLY_FLOAT32 else torch.float64,
    )
    with torch.device("meta"):
        numbers = sum(
            p.numel() for p in AutoModelForCausalLM.from_config(config, dtype=dtype).parameters()
        )
    assert numbers < MOST, f"{family} has {numbers:,} numbers; give its configuration small sizes"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
