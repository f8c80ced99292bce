"""Removing whole blocks so that what is left is still a model of its architecture."""

import copy
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel

from calibrant.errors import ModelError

PER_LAYER: Final = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "attention_layers",
)
LAYER_INDICES: Final = ("mlp_only_layers",)


def drop(model: PreTrainedModel, layers: str, indices: Sequence[int]) -> None:
    """Remove the blocks `indices` from the list called `layers`, and number the rest anew, in the
    configuration and in the modules.

    Raises `ModelError`, and changes nothing, for an index that doesn't exist, if no block is left,
    or if the configuration can't describe the remaining blocks (their kinds follow from their
    places).
    """
    blocks = model.get_submodule(layers)
    assert isinstance(blocks, nn.ModuleList)
    strangers = [i for i in indices if not 0 <= i < len(blocks)]
    if strangers:
        raise ModelError(
            f"there is no block {strangers[0]}: the model has blocks 0 to {len(blocks) - 1}",
            subject=str(strangers[0]),
        )
    remaining = [i for i in range(len(blocks)) if i not in set(indices)]
    if not remaining:
        raise ModelError(
            f"dropping blocks {sorted(set(indices))} would leave none; keep at least one",
            subject=layers,
        )
    _check_describable(model, layers, remaining)
    _renumber_config(model.config.get_text_config(decoder=True), remaining)
    for i in reversed(range(len(blocks))):
        if i not in remaining:
            del blocks[i]
    for place, block in enumerate(blocks):
        for module in block.modules():
            if "layer_idx" in vars(module):
                module.layer_idx = place  # pyright: ignore[reportArgumentType]  # a plain attribute: the cache's key


def _renumber_config(config: Any, remaining: list[int]) -> None:
    """Leave in `config` only what is about the `remaining` blocks."""
    for name in PER_LAYER:
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and len(kinds) == config.num_hidden_layers:
            setattr(config, name, [kinds[i] for i in remaining])
    for name in LAYER_INDICES:
        places = getattr(config, name, None)
        if isinstance(places, list | tuple):
            setattr(config, name, [new for new, old in enumerate(remaining) if old in places])
    config.num_hidden_layers = len(remaining)


def _check_describable(model: PreTrainedModel, layers: str, remaining: list[int]) -> None:
    """Build the smaller model from its configuration, without numbers, and compare names and
    shapes.
    """
    config = copy.deepcopy(model.config)
    _renumber_config(config.get_text_config(decoder=True), remaining)
    with torch.device("meta"):
        described = {name: p.shape for name, p in type(model)(config).named_parameters()}
    actual = {}
    for name, parameter in model.named_parameters():
        head, _, rest = name.removeprefix(f"{layers}.").partition(".")
        if not name.startswith(f"{layers}."):
            actual[name] = parameter.shape
        elif int(head) in remaining:
            actual[f"{layers}.{remaining.index(int(head))}.{rest}"] = parameter.shape
    odd = sorted(n for n in {*described, *actual} if described.get(n) != actual.get(n))
    if odd:
        raise ModelError(
            f"with only blocks {remaining} left, the configuration would ask for another {odd[0]}; drop other blocks",
            subject=odd[0],
        )
