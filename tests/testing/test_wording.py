"""The sentences that an author of a method or an architecture most likely meets."""

from collections.abc import Callable

import pytest

from calibrant.errors import CalibrantError
from calibrant.methods import methods
from calibrant.targets import Sparsity
from calibrant.testing import tiny_model
from calibrant.testing.methods import check_method

from tests.models.refused import refused
from tests.testing.test_methods import HALF, Plain, Posing, Scripted


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: check_method(Plain(), HALF), "Plain can't be typed: no method is called 'Plain'; give it the entry point plain = '"),
        (lambda: check_method(Posing(), HALF), "wanda is read back as wanda, which is calibrant.methods.wanda:Wanda and not "),
        (lambda: check_method(Scripted("count"), HALF), "asked for 0.5 of [5, 160] in float32: 401 weights are zero, asked were 400"),
        (lambda: check_method(methods.build("rtn"), [Sparsity(0.5)]), "can't be asked for 0.5: it accepts a grid of 2 to 8 bits"),
        (lambda: tiny_model("lama"), "there is no tiny model of 'lama', did you mean 'llama'? (known: llama, mistral"),
    ],
)
def test_what_is_said(ask: Callable[[], object], sentence: str) -> None:
    assert sentence in str(refused(ask, kind=CalibrantError))
