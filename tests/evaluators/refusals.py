"""A model that measures refuse."""

import torch

from calibrant.models import Opened
from calibrant.testing import tiny_model, tiny_tokenizer


def overflowing(family: str = "llama") -> Opened:
    """A model whose outputs aren't finite."""
    model = tiny_model(family)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    return Opened(model, tiny_tokenizer(), "overflowing", "sha256:0", "", torch.float32)
