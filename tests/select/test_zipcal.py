"""Greedy coverage, against the same said slowly with sets."""

import numpy as np
import pytest

from calibrant.data.select.zipcal import covering, types_of
from calibrant.testing import tiny_tokenizer

from tests.select.contexts import built, check_order, context, pieces


def slowly(texts: list[set[int]], pool: int, chance: np.random.Generator) -> tuple[list[int], int]:
    """What a greedy by sets chooses, everything counted anew at each step; and when the first
    count was full.
    """
    left, chosen, covered, full = (
        [i for i, own in enumerate(texts) if own],
        list[int](),
        set[int](),
        0,
    )
    while left:
        adding = [i for i in left if texts[i] - covered]
        if not adding:
            full, covered = full or len(chosen), set()
            continue
        looked_at = (
            adding if len(adding) <= pool else chance.choice(adding, pool, replace=False).tolist()
        )
        best = min(looked_at, key=lambda i: (-len(texts[i] - covered), -len(texts[i]), i))
        chosen.append(best)
        left.remove(best)
        covered |= texts[best]
    return chosen + [i for i, own in enumerate(texts) if not own], full or len(chosen)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pool", [1, 7, 1000])
def test_it_is_the_slow_greedy(seed: int, pool: int) -> None:
    chance = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, 41)
    texts = [
        np.unique(chance.choice(40, size=chance.integers(0, 15), p=frequency / frequency.sum()))
        for _ in range(60)
    ]
    fast = covering(texts, pool, np.random.default_rng([seed, 1]))
    assert fast == slowly(
        [set(own.tolist()) for own in texts], pool, np.random.default_rng([seed, 1])
    )


def test_types_are_of_letters_without_case_and_of_no_spaces() -> None:
    found = types_of(["Aa B", "b a", " \n", "", "ab" * 50 + "c"], tiny_tokenizer(), 100)
    assert [own.tolist() for own in found] == [[0, 1], [0, 1], [], [], [0, 1]]


def test_a_small_pool_is_drawn_anew_for_each_draw() -> None:
    several = list(pieces("python_docs", 80))
    selector = built("zipcal(source=python_docs, pool=5)")
    assert check_order(selector, several, context(0, model=False)) != check_order(
        selector, several, context(1, model=False)
    )
    whole = built("zipcal(source=python_docs)")
    assert check_order(whole, several, context(0, model=False)) == check_order(
        whole, several, context(1, model=False)
    )
