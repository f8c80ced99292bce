import numpy as np
import pytest

from calibrant.evaluators._base import ratio


def test_equal_weights_give_the_mean_and_its_textbook_error() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    mean, stderr = ratio(values, [1.0] * 4)
    assert mean == 4.0
    assert stderr == pytest.approx(np.std(values, ddof=1) / 2)


def test_the_error_of_a_ratio_agrees_with_a_bootstrap() -> None:
    random = np.random.default_rng(0)
    weights = random.integers(5, 200, 300).astype(float)
    values = weights * random.normal(2.0, 0.3, 300)
    mean, stderr = ratio(values.tolist(), weights.tolist())
    picks = random.integers(0, 300, (4000, 300))
    resampled = values[picks].sum(1) / weights[picks].sum(1)
    assert mean == pytest.approx(values.sum() / weights.sum())
    assert stderr == pytest.approx(resampled.std(), rel=0.06)


def test_one_item_has_no_error() -> None:
    assert ratio([3.0], [2.0]) == (1.5, None)
