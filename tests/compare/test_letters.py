import itertools
import re

import numpy as np
import pytest

from calibrant.compare.ranking import compact_letters


def letters_of(count: int, apart: set[tuple[int, int]]) -> list[str]:
    table = np.zeros((count, count), dtype=bool)
    for i, j in apart:
        table[i, j] = table[j, i] = True
    return compact_letters(table)


def test_sets_that_are_alike_share_the_one_letter():
    assert letters_of(3, set()) == ["a", "a", "a"]


def test_sets_that_all_differ_have_a_letter_each():
    assert letters_of(3, {(0, 1), (0, 2), (1, 2)}) == ["a", "b", "c"]


def test_being_alike_need_not_be_transitive():
    assert letters_of(3, {(0, 2)}) == ["a", "ab", "b"]


def test_one_set_and_none():
    assert letters_of(1, set()) == ["a"]
    assert letters_of(0, set()) == []


def test_after_the_letters_come_numbers():
    found = letters_of(54, set(itertools.combinations(range(54), 2)))
    assert found[25:27] == ["z", "A"]
    assert found[-2:] == ["[53]", "[54]"]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_letters_say_exactly_what_differs_on_random_graphs(share: float):
    """Against the definition itself: two share a letter if and only if they aren't apart; no letter can be spared."""
    rng = np.random.default_rng(int(share * 10))
    for _ in range(150):
        count = int(rng.integers(2, 11))
        apart = {pair for pair in itertools.combinations(range(count), 2) if rng.random() < share}
        found = [set(s) for s in letters_of(count, apart)]
        alike = {pair for pair in itertools.combinations(range(count), 2) if found[pair[0]] & found[pair[1]]}
        assert alike == set(itertools.combinations(range(count), 2)) - apart
        assert all(found)
        for letter in set.union(*found):
            without = [s - {letter} for s in found]
            assert not all(without) or any(not without[i] & without[j] for i, j in alike)


def test_hundreds_of_sets_take_no_exponential_time():
    """Thirty threes of which any two from different threes are alike: 3³⁰ maximal groups, of which few are needed."""
    apart = {(3 * k + i, 3 * k + j) for k in range(30) for i, j in ((0, 1), (0, 2), (1, 2))}
    found = [set(re.findall(r"\[\d+\]|[A-Za-z]", s)) for s in letters_of(90, apart)]
    assert all(bool(found[i] & found[j]) == ((i, j) not in apart) for i, j in itertools.combinations(range(90), 2))
