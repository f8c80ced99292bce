"""What the tests of selectors are given: the tiny model that has learnt something, and texts of
the languages that it knows.
"""

from functools import cache

import torch

from calibrant.data.select import Context, Picking, selectors
from calibrant.models import Opened
from calibrant.testing import tiny_tokenizer

from tests.trained import texts, trained_model

TROUBLE = {
    "nothing": [],
    "one": ["def f(x): return x + 1  # as it was"],
    "empty": ["", "", ""],
    "blank": [" ", "\n", "a"],
    "equal": ["the same words again and again"] * 5,
    "scripts": ["Ünïcödé — çà et là", "数を数える人", "x", "🙂🙂🙂🙂🙂🙂"],
}
"""Candidates that a careless selector falls over."""


@cache
def opened() -> Opened:
    """The trained model; nobody may change it."""
    return Opened(trained_model(), tiny_tokenizer(), "trained", "sha256:trained", "", torch.float32)


def context(draw: int = 0, length: int = 128, model: bool = True) -> Context:
    return Context(tiny_tokenizer(), opened() if model else None, draw, 4 * length, length)


def built(spec: str) -> Picking:
    """The selector that a text describes; it picks from what the test hands it, whatever its
    source.
    """
    found = selectors.build(spec)
    assert isinstance(found, Picking)
    return found


@cache
def pieces(language: str, count: int, letters: int = 120) -> tuple[str, ...]:
    """`count` stretches of a language, no two from the same place."""
    found = [
        text[at : at + letters]
        for text in texts(language)
        for at in range(0, len(text) - letters, letters)
    ]
    step = len(found) // count
    return tuple(found[: count * step : step])


def check_order(selector: Picking, candidates: list[str], given: Context) -> list[int]:
    """The order, after what must hold of any: every candidate once, plain numbers, and the same
    when it is asked for again.
    """
    order, note = selector.order(candidates, given)
    assert sorted(order) == list(range(len(candidates)))
    assert all(type(one) is int for one in order)
    assert (list(order), note) == tuple(selector.order(candidates, given))
    return list(order)
