"""How a refusal is tested: by its class and its subject. The sentences themselves are tested in
the files test_wording.py. And a model that measures refuse.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.models import Opened
from calibrant.testing import tiny_model, tiny_tokenizer


@contextmanager
def refused(error: type[CalibrantError], subject: object) -> Iterator[None]:
    """What happens inside is refused with this error, about this."""
    with pytest.raises(error) as caught:
        yield
    assert caught.value.subject == str(subject)
    assert "\n" not in str(caught.value)


def overflowing(family: str = "llama") -> Opened:
    """A model whose outputs aren't finite."""
    model = tiny_model(family)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    return Opened(model, tiny_tokenizer(), "overflowing", "sha256:0", "", torch.float32)
