import json

import pytest
import torch

from calibrant.packed import Codes, from_stored, to_stored
from calibrant.targets import Grid, parse_target


def test_a_code_stands_for_its_distance_from_the_zero_point_times_the_scale():
    codes = torch.tensor([[-8, 0, 7, 1], [3, -1, 0, 2]], dtype=torch.int8)
    scales = torch.tensor([[0.5, 2.0], [1.0, 0.25]])
    plain = Codes(Grid(4, 2), codes, scales)
    assert plain.dense().tolist() == [[-4.0, 0.0, 14.0, 2.0], [3.0, -1.0, 0.0, 0.5]]
    zeros = torch.tensor([[-8, 0], [3, 2]], dtype=torch.int8)
    shifted = Codes(Grid(4, 2, symmetric=False), codes, scales, zeros)
    assert shifted.dense().tolist() == [[0.0, 4.0, 14.0, 2.0], [0.0, -4.0, -0.5, 0.0]]


def test_the_farthest_distances_are_exact_in_narrow_types():
    codes, zeros = (
        torch.tensor([[127, -128]], dtype=torch.int8),
        torch.tensor([[-128]], dtype=torch.int8),
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found = Codes(
            Grid(8, None, symmetric=False), codes, torch.ones(1, 1, dtype=dtype), zeros
        ).dense()
        assert (found.dtype, found.tolist()) == (dtype, [[255.0, 0.0]])


def test_a_record_counts_codes_scales_and_zero_points():
    codes = torch.zeros(3, 8, dtype=torch.int8)
    scales, zeros = torch.ones(3, 2, dtype=torch.bfloat16), torch.zeros(3, 2, dtype=torch.int8)
    assert Codes(Grid(3, 4), codes, scales).facts() == {"bits_a_weight": 7.0, "bytes": 21}
    assert Codes(Grid(3, 4, symmetric=False), codes, scales, zeros).facts() == {
        "bits_a_weight": 7.75,
        "bytes": 24,
    }


@pytest.mark.parametrize("target", ["w4g2", "w3a"])
def test_what_was_kept_is_the_same_again(target: str):
    grid = parse_target(target)
    assert isinstance(grid, Grid)
    codes, groups = (
        torch.tensor([[-2, 0, 3, 1], [3, -1, 0, 2]], dtype=torch.int8),
        4 // grid.width(4),
    )
    zeros = None if grid.symmetric else torch.ones(2, groups, dtype=torch.int8)
    first = Codes(grid, codes, torch.rand(2, groups), zeros)
    facts, tensors = to_stored(first)
    assert json.loads(json.dumps(facts)) == facts == {"form": "codes", "grid": target}
    again = from_stored(facts, tensors)
    assert isinstance(again, Codes)
    assert (again.grid, again.facts()) == (grid, first.facts())
    assert torch.equal(again.dense(), first.dense())


@pytest.mark.parametrize(
    "facts", [{}, {"form": "runes"}, {"form": "codes"}, {"form": "codes", "grid": "0.5"}]
)
def test_what_is_no_packed_form_is_refused(facts: dict[str, str]):
    with pytest.raises((KeyError, ValueError)):
        from_stored(facts, {})
