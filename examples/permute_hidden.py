"""A transform: the hidden units of every feed-forward network in another order, which computes
the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from calibrant.activations import Seen
from calibrant.errors import ModelError
from calibrant.models import ModelView, overwrite
from calibrant.transforms import Transform


@dataclass(frozen=True, repr=False)
class PermuteHidden(Transform):
    """Puts the hidden units of each feed-forward network into an order chosen by chance."""

    seed: int = 0

    def apply(self, view: ModelView, seen: Mapping[str, Seen]) -> Mapping[str, Any]:
        networks = [getattr(block.module, "mlp", None) for block in view.blocks]
        if not all(
            hasattr(network, name)
            for network in networks
            for name in ("gate_proj", "up_proj", "down_proj")
        ):
            raise ModelError(
                "permute_hidden knows networks of gate_proj, up_proj and down_proj, and "
                f"{type(view.model).__name__} has others"
            )
        chance = torch.Generator().manual_seed(self.seed)
        for network in networks:
            order = torch.randperm(network.down_proj.in_features, generator=chance)
            for rows in (network.gate_proj, network.up_proj):
                overwrite(rows.weight, rows.weight[order])
            overwrite(network.down_proj.weight, network.down_proj.weight[:, order])
        return {"networks": len(networks)}
