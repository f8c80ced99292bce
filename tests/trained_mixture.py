"""A tiny mixture of experts that has learnt something, and truths that are planted in it: an expert
that does nothing, and two that do the same.

A Qwen2-MoE of bytes, four blocks with one shared and sixteen routed experts, of which two are
picked; trained as `tests.trained` trains its llama, with the loss that balances routers.
`studies/experts/byte_mixture.py` says what it has learnt.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrant.models import expert_layers, view
from calibrant.testing.tiny import VOCABULARY

from tests.trained import kept, trained

SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "qkv_bias": False,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.01,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}
STEPS: Final = 420

Place = tuple[int, int]
"""A block and the number of one of its experts."""


def untrained_mixture(**overrides: Any) -> PreTrainedModel:
    """The model before it has learnt anything, with sizes of its own where `overrides` says so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("qwen2_moe", **{**SIZES, **overrides})
        ).eval()
    model.set_experts_implementation("eager")
    return model


@cache
def mixture_folder() -> Path:
    """A folder with the model and the tokenizer of bytes. Trained once on a machine, in about a
    minute.
    """
    return kept("mixture", Path(__file__), _trained_mixture)


def trained_mixture() -> PreTrainedModel:
    """The model, in float32 and evaluation mode; a fresh one at each call."""
    model = AutoModelForCausalLM.from_pretrained(mixture_folder(), dtype=torch.float32).eval()
    model.set_experts_implementation("eager")
    return model


def _trained_mixture() -> PreTrainedModel:
    model = untrained_mixture(
        output_router_logits=True
    )  # only with these does the loss have its part that balances routers
    trained(model, STEPS)
    model.config.output_router_logits = False
    return model.eval()


def plant(
    model: PreTrainedModel, dead: Iterable[Place] = (), doubled: Iterable[tuple[int, int, int]] = ()
) -> PreTrainedModel:
    """Make experts do nothing, and others the same, in place.

    A `dead` one has zeros for numbers, and for its row of the router the mean of the others' rows:
    its score is the mean of the others', so that hardly any token picks it. Of a `doubled` block,
    expert and other expert, the other becomes a copy of the first, row of the router included: a
    token whose first choice they are gets both, and one whose second choice they are gets either.
    """
    layers = {layer.block: layer for layer in expert_layers(view(model))}
    with torch.no_grad():
        for block, expert, other in doubled:
            for mine, copied in zip(
                layers[block].experts[expert], layers[block].experts[other], strict=True
            ):
                copied.set(mine.get())
            rows = layers[block].matrix.stored
            rows[other] = rows[expert]
        for block, expert in dead:
            for matrix in layers[block].experts[expert]:
                matrix.set(torch.zeros(matrix.shape))
            rows = layers[block].matrix.stored
            rows[expert] = rows[
                [number for number in range(layers[block].count) if number != expert]
            ].mean(0)
    return model
