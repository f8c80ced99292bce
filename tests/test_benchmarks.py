"""The arithmetic of the benchmarks, and that the page about speed says what their records say."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import growth, imatrix, machine, peers, table

from calibrant.models import view
from calibrant.testing import tiny_model

PROJECT = Path(__file__).parents[1]


def test_the_page_about_speed_is_made_of_the_records():
    text = (PROJECT / "docs/speed.md").read_text()
    assert table.page(text) == text


@pytest.mark.parametrize("heads", [4, 2])
def test_shapes_are_those_of_the_models_blocks(heads: int):
    model = tiny_model("llama", num_key_value_heads=heads)
    counted: dict[tuple[int, int], int] = {}
    for weight in view(model).weights:
        counted[weight.shape] = counted.get(weight.shape, 0) + 1
    assert machine.shapes_of(model.config.to_dict()) == counted


def test_the_floor_is_each_product_once_at_its_peak():
    shapes, peaks_ = {(2, 3): 4, (5, 7): 1}, {(2, 3): 6.0, (5, 7): 35.0}
    assert machine.floor(shapes, peaks_, 10) == pytest.approx(4 * (2 * 10 * 2 * 3) / 6 + (2 * 10 * 5 * 7) / 35)


def test_agreement_is_the_mean_over_matrices_not_over_weights():
    names = ("model.layers.0.a.weight", "model.layers.1.a.weight", "model.layers.10.a.weight")
    one = {name: torch.ones(2, 4 * (at + 1), dtype=torch.bool) for at, name in enumerate(names)}
    other = {name: mask.clone() for name, mask in one.items()}
    other[names[0]][0, 0] = False
    other[names[2]][0] = False
    assert peers.agreement(names, one, other) == {"mean": pytest.approx((7 / 8 + 1 + 1 / 2) / 3), "lowest": 1 / 2, "first": 7 / 8}


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
    rounds = [[{"tokens": 1, "seconds": 3.0}, {"tokens": 2, "seconds": 4.0}], [{"tokens": 1, "seconds": 2.0}, {"tokens": 2, "seconds": 9.0}]]
    assert growth.least(rounds) == [{"tokens": 1, "seconds": 2.0, "taken": [3.0, 2.0]}, {"tokens": 2, "seconds": 4.0, "taken": [4.0, 9.0]}]
    line = growth.straight([0, 1, 2], [1.0, 2.0, 6.0])
    assert line == {"start": pytest.approx(0.5), "slope": pytest.approx(2.5), "worst": pytest.approx(0.5)}


def test_sums_are_compared_only_of_the_same_tokens(tmp_path: Path):
    for way, values in (("calibrant", [1.0, 2.0]), ("llama_cpp", [1.0, 2.5])):
        np.savez(tmp_path / f"{way}.npz", **{"blk.0.attn_q.weight": np.array(values)})
    same = {way: {"counts": {"blk.0.attn_q.weight": 8}} for way in imatrix.WAYS}
    assert imatrix.apart(tmp_path, same) == (pytest.approx(0.1), pytest.approx(0.2))
    with pytest.raises(AssertionError):
        imatrix.apart(tmp_path, {**same, "llama_cpp": {"counts": {"blk.0.attn_q.weight": 9}}})
