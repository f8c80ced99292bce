"""What a refusal is known by: the class of its error, and what it is about."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.models import Opened
from calibrant.testing import tiny_model, tiny_tokenizer


@contextmanager
def refused(error: type[CalibrantError], subject: object) -> Iterator[None]:
    """Whatever is done within is refused: with an error of this class, about this subject."""
    with pytest.raises(error) as caught:
        yield
    assert caught.value.subject == str(subject)


def overflowing(family: str = "llama") -> Opened:
    """A model whose outputs aren't finite."""
    model = tiny_model(family)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    return Opened(model, tiny_tokenizer(), "overflowing", "sha256:0", "", torch.float32)
