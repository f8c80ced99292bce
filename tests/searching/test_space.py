"""Choices keep their sums, whatever is done to them, and what is drawn is all that there is."""

from collections import Counter
from itertools import combinations, product
from random import Random

import pytest

from calibrant.errors import SpecError
from calibrant.methods._searching import Choice, Space

LEVELS = Space(groups=(0, 0, 1, 1, 1, 0), sums=(4, 3), most=3)


def allowed(space: Space) -> set[Choice]:
    """All choices, from all that there could be."""
    every = product(range(space.most + 1), repeat=len(space.groups))
    return {
        c
        for c in every
        if all(
            sum(c[u] for u, of in enumerate(space.groups) if of == g) == s
            for g, s in enumerate(space.sums)
        )
    }


def test_drawn_crossed_and_exchanged_choices_have_the_sums_that_they_must_have() -> None:
    chance, there = Random(0), allowed(LEVELS)
    drawn = [LEVELS.drawn(chance) for _ in range(300)]
    children = [
        LEVELS.crossed(one, other, chance)
        for one, other in zip(drawn, reversed(drawn), strict=True)
    ]
    for before in (*drawn, *children):
        after = LEVELS.exchanged(before, chance)
        assert {before, after} <= there
        assert LEVELS.fits(after)
        moved = [(u, b - a) for u, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert sorted(step for _, step in moved) == [-1, 1], (
            "one level moves from one unit to another of its group"
        )
        assert len({LEVELS.groups[u] for u, _ in moved}) == 1


def test_everything_is_drawn_and_a_subset_no_more_often_than_another() -> None:
    chance, space = Random(1), Space.of(5, 2)
    counts = Counter(space.drawn(chance) for _ in range(5000))
    assert (
        set(counts)
        == {tuple(int(u in two) for u in range(5)) for two in combinations(range(5), 2)}
        == allowed(space)
    )
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_with_nothing_to_exchange_the_choice_stays_and_a_sum_no_levels_have_is_refused() -> None:
    assert Space.of(3, 3).exchanged((1, 1, 1), Random(0)) == (1, 1, 1)
    assert Space(groups=(0, 1), sums=(1, 0)).exchanged((1, 0), Random(0)) == (1, 0)
    with pytest.raises(SpecError, match="7; 6"):
        Space(groups=(0, 0, 0), sums=(7,), most=2)
