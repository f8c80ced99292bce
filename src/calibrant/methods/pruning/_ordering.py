"""The order in which SparseGPT takes the inputs: those that will lose most first, while many
others can still make up for it (ROSE).
"""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.methods._elimination import choose, spans
from calibrant.targets import NofM, Removal

UNEVEN: Final = 0.5
"""Blocks are reordered where the largest loss of one and the smallest are further apart than
this share of the largest.
"""


def by_loss(
    scores: Float[Tensor, "out in"], target: Removal, block: int
) -> Int[Tensor, "in"] | None:
    """Return the inputs in the order of what they will lose; None where blocks lose about alike,
    and nothing is gained by an order.

    What an input will lose is the sum of its scores that are the lowest of its block of columns, as
    many as the target removes there. Blocks come by falling loss, and so do the inputs of a block.
    For N:M a block is a group, which stays as it is. Equal ones stay in order.
    """
    parts = spans(scores.shape[1], target, target.m if isinstance(target, NofM) else block)
    losses = torch.cat(
        [
            (here := scores[:, p.start : p.stop]).where(choose(here, target, p), 0).sum(0)
            for p in parts
        ]
    )
    each = torch.stack([losses[part.start : part.stop].sum() for part in parts])
    if not float(each.max() - each.min()) > UNEVEN * float(each.max()):
        return None
    inside = [
        losses[p.start : p.stop].argsort(descending=True, stable=True)
        if not p.group
        else torch.arange(p.stop - p.start)
        for p in parts
    ]
    return torch.cat(
        [
            parts[i].start + inside[i].to(scores.device)
            for i in each.argsort(descending=True, stable=True).tolist()
        ]
    )
