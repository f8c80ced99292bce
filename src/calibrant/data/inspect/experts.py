"""Which experts of a mixture a calibration set reaches, and which it leaves with too little to
say anything of their inputs.
"""

from typing import Any

import torch

from calibrant.activations import Routing
from calibrant.data import TokenBatch
from calibrant.errors import ModelError
from calibrant.models import ModelView, expert_layers
from calibrant.system.progress import Progress, silent
from calibrant.walk import walk_blocks
from calibrant.walk.block_statistics import TokenKinds, coverage


@torch.no_grad()
def expert_coverage(
    view: ModelView, batch: TokenBatch, tokens: int, progress: Progress = silent
) -> dict[str, Any] | None:
    """Return what the experts of every layer get of `batch`, and would get of a set of so many
    `tokens` like it; None for a model without experts.

    By layer, in `layers`: what `coverage` says, with `counts` for the whole set, and `kinds`, how
    many kinds of tokens of the batch each got. `unseen` and `starved` count experts of all layers.
    Where a router can't be told, `why` says so, and there are no layers.
    """
    try:
        layers = {layer.block: layer for layer in expert_layers(view)}
    except ModelError as error:
        return {
            "tokens": 0,
            "of": tokens,
            "experts": 0,
            "unseen": 0,
            "starved": 0,
            "why": str(error),
            "layers": {},
        }
    if not layers:
        return None
    looked, found = int((batch.weights > 0).sum()), dict[str, Any]()
    for block, seen in walk_blocks(view, batch, (Routing, TokenKinds)):
        if block.index in layers:
            layer, routing = layers[block.index], seen[Routing]
            # A weight counts here as in statistics, so counts are those of a set whose tokens all
            # weigh the same.
            scaled = routing * (tokens / routing.mass)
            kinds = seen[TokenKinds].counts().tolist()
            found[layer.name] = {
                **coverage(scaled, layer.matrix.shape[1]),
                "inputs": layer.matrix.shape[1],
                "kinds": kinds,
            }
        progress("experts", block.index + 1, len(view.blocks))
    totals = {name: sum(len(one[name]) for one in found.values()) for name in ("unseen", "starved")}
    experts = sum(one["experts"] for one in found.values())
    return {
        "tokens": looked,
        "of": tokens,
        "experts": experts,
        **totals,
        "why": "",
        "layers": found,
    }
