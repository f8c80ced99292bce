"""What the matrices of a tiny model see of a little text: made once a family, for every test of
allocations.
"""

from functools import cache

import torch

from calibrant.activations import FeatureNorms, Gram, Seen
from calibrant.data import TokenBatch
from calibrant.models import Weight, view
from calibrant.testing import tiny_model
from calibrant.walk import walk


def batch(rows: int = 6, length: int = 40) -> TokenBatch:
    """Tokens by a formula."""
    ids = (torch.arange(rows * length).reshape(rows, length) * 37 + 11) % 200 + 3
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones(rows, length), "", {})


@cache
def matrices(family: str = "llama", blocks: int = 3, **sizes: int) -> dict[Weight, Seen]:
    """Every matrix with its norms and its Gram, nothing where no token arrived."""
    layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
    model = tiny_model(family, **{layers: blocks}, **sizes)
    for number, block in enumerate(view(model).blocks):  # so that blocks differ, by outliers too
        for weight in block.weights:
            weight.get()[: number + 1, ::7] *= 4 + 3 * number
    seen_by = view(model)
    seen = dict(walk(seen_by, batch(), (FeatureNorms, Gram), "dense"))
    return {weight: seen.get(weight, Seen({})) for weight in seen_by.weights}


def size(weight: Weight) -> int:
    return weight.shape[0] * weight.shape[1]
