"""Rank correlations against scipy's."""

import numpy as np
import pytest
from scipy import stats

from calibrant.evaluators._forgotten import Relation, correlation, ranks


def test_ranks_and_their_correlation_are_scipy_s() -> None:
    chance = np.random.default_rng(0)
    for _ in range(20):
        a, b = chance.integers(0, 12, (2, 30)).astype(float)
        assert ranks(a) + 1 == pytest.approx(stats.rankdata(a))
        assert correlation(ranks(a), ranks(b)) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert correlation(np.ones(5), np.arange(5.0)) is None


def table(groups: int, slope: float, documents: int = 40) -> Relation:
    """Groups whose loss rises by `slope` times their damage, and noise; frequent groups are
    damaged less.
    """
    chance = np.random.default_rng(1)
    damage = chance.uniform(0, 1, groups)
    tokens = chance.poisson(2 + 8 * (1 - damage), (documents, groups)).astype(float)
    raised = tokens * (slope * damage) + np.sqrt(tokens) * chance.normal(0, 0.3, tokens.shape)
    return Relation(tokens, tokens * (1 - damage), raised, tokens, tokens)


def test_a_relation_that_is_there_is_found_and_one_that_is_not_is_not() -> None:
    there, none = table(60, 1.0).facts("x", 0), table(60, 0.0).facts("x", 0)
    assert there["x_low"] > 0.8
    assert there["x_at_equal_frequency"] > 0.3
    assert none["x_low"] < 0 < none["x_high"]
    assert there["x_low"] <= there["x"] <= there["x_high"] + 0.05
    assert table(5, 1.0).facts("x", 0) == {}, "of five groups nothing is said"
    alone = table(60, 1.0, documents=1).facts("x", 0)
    assert alone["x"] is not None
    assert (alone["x_low"], alone["x_high"]) == (None, None), (
        "one document has no interval over documents"
    )


def test_at_equal_frequency_is_the_partial_correlation() -> None:
    relation = table(50, 0.5)
    damage, loss, frequency = (ranks(each) for each in relation.columns(np.ones(40)))
    r = np.corrcoef([damage, loss, frequency])
    partial = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert relation.facts("x", 0)["x_at_equal_frequency"] == pytest.approx(partial, abs=1e-6)
