"""The arithmetic of the benchmarks, and that the page about speed says what their records say."""

import math
from typing import Any

import pytest
from benchmarks import growth, machine, peers, table


def test_the_pages_about_speed_are_made_of_the_records():
    texts = [path.read_text() for path in table.PAGES]
    for name in table.TABLES:
        assert "".join(texts).count(f"<!-- {name} -->") == 1, name
    for text in texts:
        assert table.page(text) == text


def test_a_difference_has_an_error_where_there_are_draws():
    assert peers.difference([1.0], [3.0]) == (-2.0, None)
    mean, error = peers.difference([1.0, 2.0, 6.0], [0.0, 0.0, 0.0])
    assert (mean, error) == (3.0, pytest.approx(math.sqrt(7) / math.sqrt(3)))


def rounds() -> list[dict[str, Any]]:
    """Two pairs, of which bfloat16 has the lower floor."""
    products = {dtype: [[2, 3, 1e9], [3, 2, 2e9]] for dtype in machine.DTYPES}
    shared = {"peak": 100.0, "peak_in_all": 120.0, "dtype": "float32", "propagate": "arrival"}
    return [
        {
            "calibrant": {**shared, "seconds": 2.0 * n, "whole": 4.0},
            "llmcompressor": {**shared, "seconds": 8.0, "whole": 12.0, "peak": 100.0 * n},
            "floor": {"float32": 2.0, "bfloat16": 1.0 * n},
            "products": products,
        }
        for n in (1, 2)
    ]


def test_ratios_are_those_of_pairs():
    found = peers.summary(rounds(), ("llmcompressor", "calibrant"))
    assert found["ratios"] == {"llmcompressor": [4.0, 2.0]}
    assert found["whole_ratios"] == {"llmcompressor": [3.0, 3.0]}
    assert found["peaks"] == {"llmcompressor": 200.0, "calibrant": 100.0}
    assert (found["floor_dtype"], found["of_floor"]) == ("bfloat16", [2.0, 2.0])


def test_of_repeated_points_the_least_stands_and_a_line_says_how_far_its_worst_point_is_off():
    rounds = [
        [{"tokens": 1, "seconds": 3.0}, {"tokens": 2, "seconds": 4.0}],
        [{"tokens": 1, "seconds": 2.0}, {"tokens": 2, "seconds": 9.0}],
    ]
    assert growth.least(rounds) == [
        {"tokens": 1, "seconds": 2.0, "taken": [3.0, 2.0]},
        {"tokens": 2, "seconds": 4.0, "taken": [4.0, 9.0]},
    ]
    line = growth.straight([0, 1, 2], [1.0, 2.0, 6.0])
    assert line == {
        "start": pytest.approx(0.5),
        "slope": pytest.approx(2.5),
        "worst": pytest.approx(0.5),
    }
