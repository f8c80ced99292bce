"""Rules that take a set, on cases worked out by hand."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from studies.sensitivity import recommended
from studies.sensitivity.recommended import Case, predicted_best, raced

from tests.compare.stores import measured


def case(values: Mapping[str, Sequence[float]], predicted: Mapping[str, Sequence[float]], method: str = "wanda", target: str = "race") -> Case:
    """A case whose draws of a set diverge by `values`, on twenty documents that hardly differ."""
    chance = np.random.default_rng(0)
    shape, weights = chance.normal(0, 0.001, 20), np.full(20, 100.0)
    each = {data: [measured(100 * (value + shape - shape.mean()), weights, metric="kl") for value in of] for data, of in values.items()}
    return Case(method, target, each, predicted)


ONE = case(
    {"c4": [1.0, 1.0, 1.1], "pile": [0.9, 1.2, 1.2], "race:icl": [0.8, 0.7, 0.8]},
    {"c4": [0.3, 0.1, 0.3], "pile": [0.1, 0.2, 0.2], "race:icl": [0.2, 0.3, 0.1]},
)


def test_a_rule_sees_one_draw():
    assert [predicted_best(ONE, draw) for draw in range(3)] == ["pile", "c4", "race:icl"]
    assert [raced(ONE, draw) for draw in range(3)] == ["race:icl"] * 3


def test_only_the_best_predicted_are_raced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recommended, "ARMS", 1)
    assert [raced(ONE, draw) for draw in range(3)] == ["pile", "c4", "race:icl"]


def test_own_text_is_among_the_sets_or_it_is_not():
    assert ONE.own == "race:icl"
    assert case({"c4": [1.0] * 3}, {"c4": [0.1] * 3}).own == ""
    assert case({"c4": [1.0] * 3, "gsm8k:icl": [1.0] * 3}, {}, target="gsm8k:cot").own == "gsm8k:icl"


def test_regret_is_judged_by_the_draws_that_were_not_seen():
    found = recommended._regrets([ONE], predicted_best)
    # pile by the last two draws, c4 by the first and the last, race by the first two, each less race by the same.
    assert found == {"race": pytest.approx(np.mean([1.2 - 0.75, 1.05 - 0.8, 0.0]))}
    assert recommended._regrets([case({"c4": [1.0] * 3}, {"c4": [0.1] * 3})], lambda of, _: of.own) == {}


def test_what_was_measured_on_the_target_does_not_say_what_is_best_elsewhere(monkeypatch: pytest.MonkeyPatch):
    other = case({"c4": [1.0] * 3, "pile": [0.5] * 3, "esnli:icl": [0.1] * 3}, {}, target="esnli")
    same, else_ = case({"c4": [1.0] * 3, "pile": [2.0] * 3}, {}), case({"c4": [1.0] * 3, "pile": [9.0] * 3}, {}, "gptq", "esnli")
    monkeypatch.setattr(recommended, "cases", lambda: (same, other, else_))
    assert recommended.elsewhere(same, 0) == "pile"
    assert recommended.elsewhere(other, 0) == "c4"


def test_pairs_are_told_apart_by_what_was_predicted():
    assert recommended._correlation(ONE) == pytest.approx(-0.5)
    gaps = dict(recommended._gaps(ONE))
    assert list(gaps) == pytest.approx([0.7 / 0.5 - 1, 0.7 / 0.6 - 1, 0.6 / 0.5 - 1])
    assert list(gaps.values()) == [False, True, False]


def test_what_is_surely_worse_than_the_best():
    assert ONE.best() == "race:icl"
    assert recommended._surely_worse(ONE, "c4")
    assert not recommended._surely_worse(ONE, "race:icl")
    close = case({"c4": [1.0, 1.1, 0.9], "pile": [1.01, 1.11, 0.89]}, {})
    assert not recommended._surely_worse(close, "pile")
