"""Near-duplicates against comparing every pair."""

import hashlib
import random

import pytest

from calibrant.data._words import number_of, words
from calibrant.data.inspect.overlap import near_duplicates
from calibrant.errors import DataError


def variants(seed: int, families: int) -> list[str]:
    """Texts of 20 to 300 words in families: each of a family is the first with up to three words
    replaced.
    """
    numbers = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(3_000)]
    found = []
    for _ in range(families):
        first = numbers.choices(vocabulary, k=numbers.randint(20, 300))
        for _ in range(numbers.randint(1, 5)):
            other = list(first)
            for _ in range(numbers.randint(0, 3)):
                other[numbers.randrange(len(other))] = numbers.choice(vocabulary)
            found.append(" ".join(other))
    numbers.shuffle(found)
    return found


def test_what_is_reported_is_true_and_hardly_a_pair_is_missed():
    texts = variants(seed=1, families=40)
    spoken = [words(text) for text in texts]
    sets = [{tuple(one[i : i + 5]) for i in range(max(1, len(one) - 4))} for one in spoken]
    every = {
        (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        for j in range(len(texts))
        for i in range(j)
    }
    near = {pair for pair, likeness in every.items() if likeness >= 0.9}
    assert len(near) > 15
    for threshold in (0.5, 0.8, 0.9):
        true = {pair: likeness for pair, likeness in every.items() if likeness >= threshold}
        found = {(i, j): likeness for i, j, likeness in near_duplicates(texts, threshold)}
        assert {pair: true.get(pair) for pair in found} == found
        assert len(near & found.keys()) >= 0.95 * len(near)
        assert len(found) >= 0.95 * len(true)
        assert list(found) == sorted(found)


def test_the_same_words_are_the_same_text():
    texts = ["A b, c!", "x y", "a  B c", "", "!!", "!!", "  ", "x y z"]
    assert near_duplicates(texts) == [(0, 2, 1.0), (3, 6, 1.0), (4, 5, 1.0)]
    assert near_duplicates(texts, 1.0) == near_duplicates(texts)
    assert near_duplicates([]) == near_duplicates(["alone"]) == []
    one = " ".join(f"w{i}" for i in range(12))  # 8 runs; with two more words 10
    assert near_duplicates([one, one + " and more"], 0.8) == [(0, 1, 0.8)], (
        "a pair just at the threshold is in"
    )
    assert near_duplicates([one, one + " and still more"], 0.8) == []
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(DataError) as caught:
            near_duplicates(["a"], threshold)
        assert caught.value.subject == "threshold"


def test_other_scripts():
    assert near_duplicates(
        ["今天天气很好我们一起去公园散步吧朋友", "今天天气很好,我们一起去公园散步吧,朋友们"]
    )[0][:2] == (0, 1)
    assert near_duplicates(["\ud800\x00 one two three four five", "one two three four five"]) == [
        (0, 1, 1.0)
    ]


def test_a_text_that_recurs_all_the_time_costs_no_square():
    found = near_duplicates(["the same again and again"] * 500)
    assert {j for _, j, _ in found} == set(range(1, 500))
    assert {j for i, j, _ in found if i == 0} == set(range(1, 500))
    assert len(found) < 500 * 22


def test_every_process_finds_the_same():
    """The numbers come of a hash that is the same everywhere, and of nothing else: these were
    found by another process.
    """
    assert (number_of("shift 0"), number_of("日本")) == (9776045514583464501, 4223062404410717160)
    texts = [" ".join(f"w{i // 3 + j * (1 + (i % 3) // 2)}" for j in range(40)) for i in range(60)]
    found = near_duplicates(texts, 0.3)
    assert (len(found), hashlib.sha256(str(found).encode()).hexdigest()[:16]) == (
        767,
        "6b6048308be3d0a1",
    )
