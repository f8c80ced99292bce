"""A dense model's feed-forward networks split into experts by which neurons are active together
(MoEfication, arXiv 2110.01786), for `upcycled.py`.

A gated network is a sum over its hidden units (neurons), so it can be split into networks of fewer
neurons without changing what it computes. The neurons that are active for most tokens become the
shared expert. The others are clustered by what they are active with, into experts of one size, and
a linear router learns from the dense network which experts give most for a token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

ROUNDS: Final = 3
"""Rounds of the balanced clustering; in each, neurons are assigned to the nearest centres that
have room.
"""
STEPS: Final = 300
"""Steps of a router's training."""
ROWS: Final = 512
"""Tokens of a step."""
RATE: Final = 1e-2
DECAY: Final = 1e-4
"""Weight decay of a router."""
SAME: Final = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "hidden_act",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""What the mixture's configuration has of the dense model's."""
SHARPNESS: Final = (0.0, 0.03, 0.1, 0.3, 1.0)
"""What a router's scores are multiplied with; the one is taken with which the layer's output
errs least.
"""


@dataclass(frozen=True)
class Split:
    """How many experts, of how many neurons, of which how many are picked; `shared` neurons are
    in the expert of every token.
    """

    experts: int
    picked: int
    shared: int


def layers(model: Any) -> Iterator[nn.Module]:
    """The feed-forward networks of a llama."""
    return (block.mlp for block in model.model.layers)


def moe_config(dense: Any, split: Split) -> Any:
    """Return the configuration of a Qwen2-MoE that has the sizes of the llama `dense`."""
    config = dense.to_dict()
    neurons = dense.intermediate_size - split.shared
    if neurons % split.experts:
        raise ValueError(
            f"{neurons} neurons can't be divided among {split.experts} experts of one size"
        )
    same = {name: config[name] for name in SAME if config.get(name) is not None}
    return AutoConfig.for_model(
        "qwen2_moe",
        **same,
        qkv_bias=False,
        num_experts=split.experts,
        num_experts_per_tok=split.picked,
        norm_topk_prob=True,
        moe_intermediate_size=neurons // split.experts,
        shared_expert_intermediate_size=split.shared,
        intermediate_size=dense.intermediate_size,
    )


@torch.no_grad()
def upcycled(
    dense: PreTrainedModel, inputs: list[Float[Tensor, "token hidden"]], split: Split, seed: int = 0
) -> tuple[PreTrainedModel, list[Any]]:
    """Return the mixture that a llama becomes, and facts of each layer; `inputs` are what its
    feed-forward networks read.

    The router's gates of the picked experts add up to one, so that their down projections are
    multiplied with how many are picked; the shared expert's gate is a sigmoid of 0, so its own are
    doubled.
    """
    config = moe_config(dense.config, split)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.set_experts_implementation("eager")
    outside: dict[str, Tensor] = {}
    for name, weight in dense.state_dict().items():
        if ".mlp." not in name:
            outside[name] = weight.float()
    missing, strangers = model.load_state_dict(outside, strict=False)
    if strangers:
        raise ValueError(f"a Qwen2-MoE has no {strangers[0]}")
    lacking = [name for name in missing if ".mlp." not in name]
    if lacking:
        raise ValueError(f"the dense model has no {lacking[0]}")
    facts: list[Any] = []
    for network, block, read in zip(layers(dense), layers(model), inputs, strict=True):
        facts.append(_convert(network, block, read, split, seed))
    return model, facts


def _convert(
    network: Any, block: Any, x: Float[Tensor, "token hidden"], split: Split, seed: int
) -> dict[str, Any]:
    """Fill one layer of experts with a network's neurons, and train its router on the first half
    of the tokens; the error is of the second.
    """
    gate = network.gate_proj.weight.float()
    up = network.up_proj.weight.float()
    down = network.down_proj.weight.float()
    hidden = network.act_fn(x @ gate.T) * (x @ up.T)
    half = len(x) // 2
    shared, experts = clustered(hidden[:half], down, split, seed)
    for place, neurons in enumerate(experts):
        block.experts.gate_up_proj[place] = torch.cat([gate[neurons], up[neurons]])
        block.experts.down_proj[place] = split.picked * down[:, neurons]
    block.shared_expert.gate_proj.weight.copy_(gate[shared])
    block.shared_expert.up_proj.weight.copy_(up[shared])
    block.shared_expert.down_proj.weight.copy_(2 * down[:, shared])
    block.shared_expert_gate.weight.zero_()
    outputs = torch.stack([hidden[:, neurons] @ down[:, neurons].T for neurons in experts], 1)
    rows = _router(x[:half], outputs[:half].square().sum(-1), seed)
    whole = hidden[:half] @ down.T
    errors: dict[float, float] = {}
    for sharpness in SHARPNESS:
        scores = sharpness * x[:half] @ rows.T
        errors[sharpness] = _error(scores, outputs[:half], whole, split)
    sharpness = min(errors, key=lambda each: errors[each])
    # With 0 all would be alike, and whoever comes first be picked.
    factor = sharpness or 1e-4
    block.gate.weight.copy_(factor * rows)
    outputs_after, whole_after = outputs[half:], hidden[half:] @ down.T
    error = _error(factor * x[half:] @ rows.T, outputs_after, whole_after, split)
    largest = 1e9 * outputs_after.square().sum(-1)
    error_of_the_largest = _error(largest, outputs_after, whole_after, split, equal=True)
    picked = (x @ rows.T).topk(split.picked).indices.flatten()
    return {
        "sharpness": sharpness,
        "error": round(error, 4),
        "error_of_the_largest": round(error_of_the_largest, 4),
        "load": torch.bincount(picked, minlength=split.experts).tolist(),
    }


def clustered(
    hidden: Float[Tensor, "token neuron"],
    down: Float[Tensor, "hidden neuron"],
    split: Split,
    seed: int,
) -> tuple[Tensor, list[Tensor]]:
    """Return the neurons of the shared expert and those of each other one: balanced k-means of the
    neurons by the tokens they are active for.

    How active a neuron is for a token is the size of what it adds to the output.
    """
    active = hidden.abs() * down.norm(dim=0)
    order = active.mean(0).argsort(descending=True, stable=True)
    shared = order[: split.shared].sort().values
    others = order[split.shared :].sort().values
    features = _features(active[:, others], seed)
    size = len(others) // split.experts
    chance = torch.Generator().manual_seed(seed)
    first = torch.randperm(len(others), generator=chance)[: split.experts]
    places = _assigned(features, features[first], size)
    for _ in range(ROUNDS):
        before = places
        means = [features[places == expert].mean(0) for expert in range(split.experts)]
        places = _assigned(features, torch.stack(means), size)
        if torch.equal(before, places):
            break
    return shared, [others[places == expert] for expert in range(split.experts)]


def _features(
    active: Float[Tensor, "token neuron"], seed: int, width: int = 64
) -> Float[Tensor, "neuron feature"]:
    """Activities over tokens as fewer numbers, of length one: a random projection keeps their
    cosines.
    """
    chance = torch.Generator().manual_seed(seed)
    centred = active - active.mean(0)
    projected = centred.T @ torch.randn(len(active), width, generator=chance) / width**0.5
    return torch.nn.functional.normalize(projected, dim=1)


def _assigned(
    features: Float[Tensor, "neuron feature"], centres: Float[Tensor, "expert feature"], size: int
) -> Int[Tensor, "neuron"]:
    """Which expert each neuron belongs to, so that every one has `size` and the sum of squared
    distances is the least.
    """
    costs = torch.cdist(features, centres).square().repeat_interleave(size, 1)
    rows, columns = linear_sum_assignment(costs.double().numpy())
    places = torch.empty(len(features), dtype=torch.long)
    places[torch.from_numpy(rows)] = torch.from_numpy(np.asarray(columns) // size)
    return places


@torch.enable_grad()
def _router(
    x: Float[Tensor, "token hidden"], sizes: Float[Tensor, "token expert"], seed: int
) -> Float[Tensor, "expert hidden"]:
    """Train the rows of a router to foresee, as a distribution, each expert's share of the
    squared size of the outputs.
    """
    shares = sizes / sizes.sum(1, keepdim=True)
    rows = nn.Parameter(torch.zeros(sizes.shape[1], x.shape[1]))
    optimizer = torch.optim.AdamW([rows], lr=RATE, weight_decay=DECAY)
    chance = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        drawn = torch.randint(len(x), (ROWS,), generator=chance)
        loss = torch.nn.functional.cross_entropy(x[drawn] @ rows.T, shares[drawn])
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows.detach()


def _error(
    scores: Float[Tensor, "token expert"],
    outputs: Float[Tensor, "token expert hidden"],
    whole: Float[Tensor, "token hidden"],
    split: Split,
    equal: bool = False,
) -> float:
    """‖what the unpicked would have given, and gates took‖² as a share of the squared size of
    the network's output.
    """
    best = scores.topk(split.picked)
    if equal:
        gates = torch.full_like(best.values, 1.0)
    else:
        gates = split.picked * best.values.softmax(-1)
    kept = torch.zeros_like(scores).scatter_(1, best.indices, gates)
    missing = torch.einsum("te,teh->th", 1 - kept, outputs)
    return float(missing.square().sum() / whole.square().sum())
