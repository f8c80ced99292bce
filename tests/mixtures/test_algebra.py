"""The algebra of mixtures against what it stands for: explicit inputs, explicit masks, one pass
over all of them.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch

from calibrant.activations import FeatureNorms, Gram, Seen
from calibrant.lab.mixtures import (
    Errors,
    Sample,
    SharedInput,
    blended,
    only,
    rounded,
    shared_inputs,
    without,
)
from calibrant.methods.pruning.magnitude import Magnitude
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.methods.pruning.wanda import Wanda
from calibrant.models import view
from calibrant.targets import parse_target
from calibrant.testing import tiny_model

from tests.mixtures.made import both, world

METHODS = [Wanda(), SparseGPT(), Magnitude()]
named = pytest.mark.parametrize("method", METHODS, ids=str)


def shares_of(*numbers: float) -> tuple[Fraction, ...]:
    return rounded(np.array(numbers))


@named
@pytest.mark.parametrize("target", ["0.5", "2:4"])
@pytest.mark.parametrize("shares", [(1, 0, 0), (0.2, 0.3, 0.5)])
def test_errors_are_those_of_outputs_under_explicit_masks(
    method, target: str, shares: tuple[float, ...]
) -> None:
    made = world()
    found = made.errors(method, target)([shares_of(*shares)])
    assert found.shape == (1, 3)
    assert found[0] == pytest.approx(made.slowly(method, shares, target), rel=1e-9)


def test_shares_like_the_tokens_are_the_pooled_set() -> None:
    made = world(tokens=(40, 60, 100))
    pooled = both(torch.cat([x for x, _ in made.own]))
    mixed = blended(
        [both(x) for x, _ in made.own],
        (Fraction(1, 5), Fraction(3, 10), Fraction(1, 2)),
        made.masses,
    )
    assert mixed is not None
    torch.testing.assert_close(
        mixed[FeatureNorms].norms(), pooled[FeatureNorms].norms(), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(mixed[Gram].matrix, pooled[Gram].matrix, rtol=1e-12, atol=1e-12)
    assert (mixed.tokens, mixed[Gram].mass) == (pooled.tokens, pytest.approx(pooled[Gram].mass))


@named
@pytest.mark.parametrize("place", [0, 2])
def test_all_the_weight_on_one_source_is_that_source_to_the_bit(method, place: int) -> None:
    made = world(dtype=torch.float32)
    seen = [both(x) for x, _ in made.own]
    mixed = blended(seen, only(place, 3), made.masses)
    assert mixed is seen[place]
    weight, target = made.weights[0], parse_target("0.5")
    assert torch.equal(
        method.compress(weight, mixed, target).weight,
        method.compress(weight, both(made.own[place][0]), target).weight,
    )


def test_a_part_without_weight_is_left_out_and_one_that_saw_nothing_too() -> None:
    made = world()
    one, other = both(made.own[0][0]), both(made.own[1][0])
    half = (Fraction(1, 2), Fraction(1, 2), Fraction(0))
    both_of = blended([one, other, None], half, made.masses)
    alone = blended([one, None, None], half, made.masses)
    assert both_of is not None
    assert alone is not None
    assert both_of.tokens == one.tokens + other.tokens
    torch.testing.assert_close(
        alone[FeatureNorms].norms(), one[FeatureNorms].norms() * (0.5 * 100 / 40)
    )
    assert blended([None, None, other], half, made.masses) is None


def test_a_matrix_that_the_mixture_never_reached_stays_as_it_is() -> None:
    made = world()
    group = SharedInput(
        ("a",),
        made.weights[:1],
        (parse_target("0.5"),),
        (None, both(made.own[1][0])),
        (Gram.of(made.held_out[0][0]), None),
    )
    found = Errors([group], Wanda(), made.masses[:2])([only(0, 2), only(1, 2)])
    assert found[0, 0] == 0
    assert found[1, 0] > 0
    assert np.isnan(found[:, 1]).all(), "a judge without tokens has nothing to say"


def test_a_block_s_matrices_stand_together_where_they_read_one_input() -> None:
    block = view(tiny_model("llama")).blocks[0]
    widths = {w.name.rpartition(".")[2]: w.shape[1] for w in block.weights}
    inputs = {
        "q_proj": 0,
        "k_proj": 0,
        "v_proj": 0,
        "o_proj": 1,
        "gate_proj": 2,
        "up_proj": 2,
        "down_proj": 3,
    }
    several = {}
    for weight in block.weights:
        short = weight.name.rpartition(".")[2]
        several.setdefault(inputs[short], Seen({Gram: Gram(torch.eye(widths[short]), 3, 3.0)}))
    seen = {w: several[inputs[w.name.rpartition(".")[2]]] for w in block.weights}
    half = parse_target("0.5")
    groups = list(shared_inputs([(block, seen)], [(block, seen)], Sample(1, 5), half))
    assert [[n.rpartition(".")[2] for n in g.names] for g in groups] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert all(rows.shape[0] == 5 for group in groups for rows in group.rows)
    # Under inputs that are alike everywhere the error is the share of the squares that is lost.
    lost = Errors(groups, Magnitude(), [3.0])([only(0, 1)])
    assert 0 < lost[0, 0] < 0.5
    assert list(shared_inputs([(block, {})], [(block, {})], Sample(1, 5), half)) == []
    sample = Sample(blocks=3, rows=4)
    assert (sample.of_blocks(30), sample.of_blocks(2), sample.of_rows(8)) == (
        [5, 15, 25],
        [0, 1],
        [1, 3, 5, 7],
    ), "spread evenly"


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=str)
def test_leaving_out_one_of_two_alike_changes_nothing(method) -> None:
    made = world(sources=2)
    twice = type(made)(
        made.weights,
        (made.own[0], made.own[0], made.own[1]),
        (made.held_out[0], made.held_out[0], made.held_out[1]),
    )
    errors = twice.errors(method)
    assert without(0, shares_of(0.5, 0.2, 0.3)) == (0, Fraction(2, 5), Fraction(3, 5)), (
        "what is left keeps its proportions"
    )
    pair = shares_of(0.5, 0.5, 0)
    np.testing.assert_allclose(errors([without(1, pair)]), errors([pair]), rtol=1e-6)
    # Where the twin keeps what its double had, nothing changes either; the other source is missed.
    whole, moved, less = errors([shares_of(0.25, 0.25, 0.5), shares_of(0.5, 0, 0.5), only(0, 3)])
    np.testing.assert_allclose(moved, whole, rtol=1e-6)
    assert less[2] > 1.2 * whole[2]
