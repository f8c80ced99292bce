"""Parameters that are the same memory, such as a head that is the embedding, and how they are
untied.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models.residence import place_of


def tied(model: PreTrainedModel) -> tuple[tuple[str, ...], ...]:
    """Return the names of parameters that share their numbers, one tuple for each memory that
    has several names, in the model's order.
    """
    names: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault((place_of(parameter), parameter.shape, parameter.stride()), []).append(
            name
        )
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def untie(model: PreTrainedModel) -> bool:
    """Give the head numbers of its own, and say so in the configuration: saved, the model opens
    with plain transformers and computes the same.

    Returns False, and changes nothing, where the head shares nothing. Raises `ModelError`, and
    changes nothing, for a model without a head, and for an architecture whose head is always its
    embedding.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module) or not isinstance(
        getattr(head, "weight", None), nn.Parameter
    ):
        raise ModelError(
            f"{type(model).__name__} has no head that could be untied; give a model that predicts the next token",
            subject="head",
        )
    path = next(name for name, module in model.named_modules() if module is head)
    mine = next((group for group in tied(model) if f"{path}.weight" in group), ())
    if not mine:
        return False
    if not _can_be_untied(model, path):
        others = ", ".join(name for name in mine if name != f"{path}.weight")
        raise ModelError(
            f"{path}.weight is always {others} in a {type(model).__name__}, whatever its configuration says",
            subject=f"{path}.weight",
        )
    before = head.get_parameter("weight")
    head.register_parameter(
        "weight", nn.Parameter(before.detach().clone(), requires_grad=before.requires_grad)
    )
    _say(model.config)
    known = getattr(model, "all_tied_weights_keys", None)
    if isinstance(known, Mapping):
        model.all_tied_weights_keys = {
            name: of for name, of in known.items() if f"{path}.weight" not in (name, of)
        }
    return True


def _say(config: Any) -> None:
    config.tie_word_embeddings = False
    config.get_text_config(decoder=True).tie_word_embeddings = False


def _can_be_untied(model: PreTrainedModel, path: str) -> bool:
    """Build the untied model from its configuration, without numbers, and look whether its head
    is a parameter of its own.
    """
    config = copy.deepcopy(model.config)
    _say(config)
    with torch.device("meta"):
        other = type(model)(config)
    other.tie_weights()
    named = [
        (name, parameter) for name, parameter in other.named_parameters(remove_duplicate=False)
    ]
    head = dict(named)[f"{path}.weight"]
    return all(parameter is not head for name, parameter in named if name != f"{path}.weight")
