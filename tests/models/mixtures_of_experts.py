"""Tiny random models of architectures with experts: one of every way in which transformers lays
them out.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrant.testing.tiny import VOCABULARY

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
_WIDE: dict[str, Any] = {**SIZES, "intermediate_size": 64, "head_dim": 8, "num_experts_per_tok": 2}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {**_WIDE, "num_local_experts": 8},
    "qwen2_moe": {
        **_WIDE,
        "num_experts": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_moe": {**_WIDE, "num_experts": 8, "moe_intermediate_size": 16},
    "olmoe": {**_WIDE, "num_experts": 8},
    "deepseek_v3": {**_WIDE, **_LATENT, "n_routed_experts": 8, "moe_intermediate_size": 16},
    "gpt_oss": {**_WIDE, "num_local_experts": 8},
    "llama4_text": {**_WIDE, "num_local_experts": 8, "intermediate_size_mlp": 64},
    "granitemoe": {**_WIDE, "num_local_experts": 8},
    "phimoe": {**_WIDE, "num_local_experts": 8},
    "ernie4_5_moe": {**_WIDE, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 16},
    "jetmoe": {**_WIDE, "num_local_experts": 8, "kv_channels": 8},
}
"""In `deepseek_v3` and `ernie4_5_moe` the first block has no experts."""


def tiny_mixture(
    kind: str, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A random model of two blocks with eight experts, of which two are picked; biases and
    corrections of routers are random too.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **{**KINDS[kind], **overrides})
    ).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if (
            any(part in name for part in ("router", "gate", "moe_statics", "experts"))
            and "gate_proj" not in name
        ):
            tensor.data = 0.2 * torch.randn_like(tensor)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.set_experts_implementation("eager")
    return model
