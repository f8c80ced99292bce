import math
from collections.abc import Sequence

import numpy as np
import pytest

from calibrant.compare.crossed import Independence, ItemValues, Side, share_kept, share_of

from tests.compare.stores import measured

RIGHT = {"metric": "acc", "unit": "share", "better": "higher", "chance": 0.25}


def side(draws: Sequence[np.ndarray], independence: Independence = "independent", **score: object) -> Side:
    return Side.of([ItemValues.of(measured(d.tolist(), [1.0] * len(d), **score)) for d in draws], independence)  # pyright: ignore[reportArgumentType]


def test_of_a_loss_the_share_is_that_of_the_probability_of_each_token():
    rng = np.random.default_rng(0)
    dense = rng.normal(3, 0.3, 40)
    found = share_kept({"x": side([dense + 0.2])}, {"x": side([dense], "no draws")}, ["x"])
    assert found is not None
    assert found.value == pytest.approx(math.exp(-0.2))
    probabilities = np.exp(-(dense + 0.2)), np.exp(-dense)
    assert found.value == pytest.approx(math.exp(np.log(probabilities[0]).mean()) / math.exp(np.log(probabilities[1]).mean()))


def test_of_an_accuracy_the_share_is_of_what_lies_above_chance():
    right, dense = np.array([1.0, 1, 0, 0, 1, 0, 0, 1]), np.array([1.0, 1, 1, 0, 1, 1, 0, 1])
    found = share_kept({"x": side([right], **RIGHT)}, {"x": side([dense], "no draws", **RIGHT)}, ["x"])
    assert found is not None
    assert found.value == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))


def test_a_dense_model_at_chance_leaves_nothing_to_keep():
    right, dense = np.array([1.0, 0, 0, 0]), np.array([0.0, 1, 0, 0])
    assert share_kept({"x": side([right], **RIGHT)}, {"x": side([dense], "no draws", **RIGHT)}, ["x"]) is None


def test_of_anything_else_it_is_the_ratio():
    score = measured([1.0], [1.0], unit="words", better="lower").score
    assert (share_of(8.0, 6.0, score) or (0,))[0] == pytest.approx(0.75)
    assert share_of(0.0, 6.0, score) is None
    assert (share_of(6.0, 8.0, measured([1.0], [1.0], unit="points", better="higher").score) or (0,))[0] == pytest.approx(0.75)


@pytest.mark.parametrize("score", [{}, RIGHT], ids=["loss", "accuracy"])
def test_its_error_is_that_of_a_jackknife(score: dict[str, object]):
    rng = np.random.default_rng(1)
    n = 120
    dense = (rng.random(n) < 0.8).astype(float) if score else rng.normal(3, 0.3, n)
    own = dense * (rng.random(n) < 0.85) if score else dense + rng.normal(0.2, 0.1, n)

    def share(keep: np.ndarray) -> float:
        a, b = own[keep].mean(), dense[keep].mean()
        return (a - 0.25) / (b - 0.25) if score else math.exp(b - a)

    found = share_kept({"x": side([own], **score)}, {"x": side([dense], "no draws", **score)}, ["x"])
    left_out = np.array([share(np.delete(np.arange(n), i)) for i in range(n)])
    assert found is not None
    assert found.value == pytest.approx(share(np.arange(n)))
    assert found.stderr == pytest.approx(math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()), rel=0.05)


def test_draws_are_in_its_error():
    rng = np.random.default_rng(2)
    dense = rng.normal(3, 0.3, 40)
    draws = [dense + shift for shift in (0.1, 0.3, 0.2)]
    found = share_kept({"x": side(draws)}, {"x": side([dense], "no draws")}, ["x"])
    assert found is not None
    assert found.over_draws
    assert found.stderr == pytest.approx(found.value * np.std([0.1, 0.3, 0.2], ddof=1) / math.sqrt(3), rel=1e-6)


def test_the_mean_over_sets_is_the_mean_of_shares():
    rng = np.random.default_rng(3)
    dense = {m: rng.normal(3, 0.3, n) for m, n in (("x", 40), ("y", 20))}
    sides = {m: side([d + 0.1 + 0.1 * (m == "y") + rng.normal(0, 0.05, len(d))], measured=m) for m, d in dense.items()}
    whole = {m: side([d], "no draws", measured=m) for m, d in dense.items()}
    each = {m: share_kept({m: sides[m]}, {m: whole[m]}, [m]) for m in dense}
    both = share_kept(sides, whole, ["x", "y"])
    assert both is not None
    shares = [e for e in each.values() if e]
    assert both.value == pytest.approx(sum(e.value for e in shares) / 2)
    assert both.stderr == pytest.approx(math.hypot(*(e.stderr or 0 for e in shares)) / 2)
