"""Little repetition on every level of perplexity."""

from collections import Counter

import pytest

from calibrant.data.select._reading import nats
from calibrant.testing import tiny_tokenizer

from tests.select.contexts import built, check_order, context, opened, pieces

POOL = [*pieces("python_docs", 14), *pieces("python_code", 9), "so it goes, and " * 7, "abc"]


def slow_repetition(ids: list[int]) -> float:
    runs = [tuple(ids[at : at + 4]) for at in range(len(ids) - 3)]
    return sum(count - 1 for count in Counter(runs).values()) / len(runs)


@pytest.mark.parametrize("strata", [1, 4])
def test_each_turn_takes_the_least_repetitive_of_each_level(strata: int) -> None:
    order = check_order(built(f"igsp(source=python_docs, strata={strata})"), POOL, context())
    ids = [tiny_tokenizer()(text)["input_ids"][:128] for text in POOL]
    losses = nats(opened(), ids)
    judged = sorted(range(len(POOL) - 1), key=lambda i: losses[i])
    assert order[-1] == len(POOL) - 1, "a text without two runs comes last"
    size, more = divmod(len(judged), strata)
    levels: list[list[int]] = []
    for number in range(strata):
        begin = number * size + min(number, more)
        levels.append(judged[begin : begin + size + (number < more)])
    for turn in range(size):
        taken = order[turn * strata : (turn + 1) * strata]
        for level, one in zip(levels, taken, strict=True):
            least = min(slow_repetition(ids[i]) for i in level)
            assert slow_repetition(ids[one]) == pytest.approx(least)
            level.remove(one)
