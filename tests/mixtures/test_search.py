"""The search over mixtures: on made-up landscapes whose bottom is known, and on matrices."""

from fractions import Fraction

import numpy as np
import pytest

from calibrant.errors import SpecError
from calibrant.lab.mixtures import Objective, Search, only, parse_objective, rounded, uniform
from calibrant.lab.mixtures.algebra import typical
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.methods.pruning.wanda import Wanda

from tests.mixtures.made import world


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 1, 1), (34, 33, 33)),
        ((0.126, 0.874), (13, 87)),
        ((2, 0, 2), (50, 0, 50)),
        ((0.005, 0.005, 0.99), (1, 0, 99)),
        ((7,), (100,)),
    ],
)
def test_shares_are_whole_hundredths_and_one_in_all(
    weights: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    shares = rounded(np.array(weights, dtype=float))
    assert shares == tuple(Fraction(n, 100) for n in expected)
    assert sum(shares) == 1
    assert rounded(np.array(shares, dtype=float)) == shares


def bowl(bottom: np.ndarray, scales: np.ndarray):
    """Judges whose errors are squared distances from a point of each."""

    def errors(mixtures) -> np.ndarray:
        at = np.array([[float(share) for share in shares] for shares in mixtures])
        return (scales * ((at[:, None] - bottom) ** 2).sum(2)) + 0.01

    return errors


@pytest.mark.parametrize(("count", "seed"), [(2, 0), (3, 1), (6, 2), (10, 0)])
def test_the_bottom_of_a_bowl_is_found(count: int, seed: int) -> None:
    bottom = np.random.default_rng(seed).dirichlet(np.full(count, 0.5))
    errors = bowl(bottom[None], np.ones(1))
    search = Search(errors, lambda found: found[:, 0], count, 200)
    search.begin()
    search.descend()
    best, start = (
        search.known[search.ranked[0]][0] - 0.01,
        min(errors([uniform(count)])[0, 0], errors([only(0, count)])[0, 0]) - 0.01,
    )
    assert best <= 0.1 * start + 1e-4
    assert len(search.known) <= 200


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (Wanda(), "worst"),
        (SparseGPT(), "mean"),
        pytest.param(SparseGPT(), "worst", marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_is_found_is_no_worse_than_any_source_and_the_uniform_mixture(
    method, kind: str, seed: int
) -> None:
    made = world(seed=seed)
    errors, objective = made.errors(method), Objective(kind)
    search = Search(errors, lambda found: objective.values(found, 3, ["a", "b", "c"]), 3, 60)
    search.begin()
    search.play(typical(made.groups()), moves=kind == "worst")
    search.descend()
    value = objective.values(
        errors([search.ranked[0], *(only(place, 3) for place in range(3)), uniform(3)]),
        3,
        ["a", "b", "c"],
    )
    assert value[0] <= value[1:].min()
    # Near the best of a grid, every point of which was judged with its real masks.
    grid = [
        rounded(np.array([a, b, 10 - a - b], dtype=float)) for a in range(11) for b in range(11 - a)
    ]
    assert value[0] <= 1.02 * objective.values(errors(grid), 3, ["a", "b", "c"]).min()


def test_objectives_are_read_and_written() -> None:
    assert parse_objective(" worst ") == Objective("worst")
    assert str(parse_objective("target = gsm8k:cot")) == "target=gsm8k:cot"
    errors = np.array([[1.0, 3.0, 9.0], [2.0, 2.5, 0.0]])
    judges = ["a", "b", "mine"]
    assert Objective("mean").values(errors, 2, judges).tolist() == [2.0, 2.25]
    assert Objective("worst").values(errors, 2, judges).tolist() == [3.0, 2.5]
    assert Objective("target", "mine").values(errors, 2, judges).tolist() == [9.0, 0.0]
    for wrong in ("target", "target=", "mean=c4", ""):
        with pytest.raises(SpecError):
            parse_objective(wrong)
