"""Rules that take a set, on cases worked out by hand, and their tables on stores that are made
here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from studies.sensitivity import recommended
from studies.sensitivity.recommended import (
    COMMON,
    MIXTURE,
    RULES,
    TARGETS,
    WAYS,
    Case,
    by_chance,
    elsewhere,
    raced,
)

from calibrant.data import CalibrationSet
from calibrant.results import Measurement

from tests.stats.stores import measured


def diverging(
    value: float, seed: int = 0, source: str = "race:text", items: int = 20
) -> Measurement:
    """A divergence of `value` on documents that hardly differ, with a loss that is twice as
    high.
    """
    shape = np.random.default_rng(seed).normal(0, 0.001, items)
    found = measured(
        100 * (value + shape - shape.mean()), np.full(items, 100.0), source, metric="kl"
    )
    return replace(
        found, outcomes=tuple(replace(o, facts={"nats": 2 * o.value}) for o in found.outcomes)
    )


def case(
    values: Mapping[str, Sequence[float]],
    predicted: Mapping[str, Sequence[float]],
    method: str = "wanda",
    target: str = "race",
) -> Case:
    return Case(
        method,
        target,
        {data: [diverging(value) for value in of] for data, of in values.items()},
        predicted,
    )


ONE = case(
    {"c4": [1.0, 1.0, 1.1], "pile": [0.9, 1.2, 1.2], "race:icl": [0.8, 0.7, 0.8]},
    {"c4": [0.3, 0.1, 0.3], "pile": [0.1, 0.2, 0.2], "race:icl": [0.2, 0.3, 0.1]},
)


def test_a_rule_looks_at_one_draw_and_is_judged_by_the_others():
    assert [RULES["best predicted"](ONE, (draw, 0)) for draw in range(3)] == [
        ["pile"],
        ["c4"],
        ["race:icl"],
    ]
    assert [raced(ONE, way) for way in WAYS] == [["race:icl"]] * 6
    assert ONE.loss("pile", (0, 1)) == pytest.approx(1.8, abs=0.01)
    assert ONE.judged("pile", (0, 1)) == pytest.approx(1.2, abs=0.001)
    assert ONE.regret("pile", (0, 1)) == pytest.approx(100 * (1.2 / 0.75 - 1), abs=0.5)
    assert ONE.regret("race:icl", (0, 1)) == 0


def test_no_document_is_seen_by_both_the_rule_and_its_judge():
    whole = diverging(1.0)
    for half in range(2):
        seen = {o.item for o in sorted(whole.outcomes, key=lambda o: o.item)[half::2]}
        changed = replace(
            whole,
            outcomes=tuple(
                replace(o, value=9.0, facts={"nats": 9.0}) if o.item in seen else o
                for o in whole.outcomes
            ),
        )
        usual, other = (
            Case("wanda", "race", {"c4": [each] * 3}, {"c4": [0.1] * 3})
            for each in (whole, changed)
        )
        assert other.judged("c4", (0, half)) == usual.judged("c4", (0, half))
        assert other.loss("c4", (0, half)) != usual.loss("c4", (0, half))
        assert other.judged("c4", (0, 1 - half)) != usual.judged("c4", (0, 1 - half))


def test_only_the_best_predicted_are_raced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recommended, "RACED", 1)
    assert [raced(ONE, (draw, 0)) for draw in range(3)] == [["pile"], ["c4"], ["race:icl"]]
    assert by_chance(ONE, (0, 0)) == ["pile", "race:icl"]


def test_what_was_measured_on_the_target_does_not_say_what_is_best_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
):
    sets = {data: [1.0] * 3 for data in COMMON}
    same, other = (
        case({**sets, "pile": [2.0] * 3}, {}),
        case({**sets, "pile": [0.5] * 3, "esnli:icl": [0.1] * 3}, {}, target="esnli"),
    )
    else_ = case({**sets, "pile": [9.0] * 3}, {}, "gptq", "esnli")
    monkeypatch.setattr(recommended, "cases", lambda: (same, other, else_))
    assert elsewhere(same, (0, 0)) == ["pile"]
    assert elsewhere(other, (0, 0)) == ["c4"]
    assert elsewhere(else_, (0, 0)) == []


def test_what_is_surely_worse_than_the_best():
    assert ONE.best == "race:icl"
    found, sure = ONE.worse["c4"]
    assert found.value == pytest.approx(3.1 / 3 - 2.3 / 3)
    assert sure
    assert not ONE.worse["race:icl"][1]
    assert not case({"c4": [1.0, 1.1, 0.9], "pile": [1.01, 1.11, 0.89]}, {}).worse["pile"][1]


def test_the_tables_of_a_prediction_that_is_always_right(monkeypatch: pytest.MonkeyPatch):
    """The mixture is best by ten per cent, and predicted to be; the target's own text is the
    next. C4 is the last.
    """
    order = [MIXTURE, "", *(data for data in COMMON if data not in (MIXTURE, "c4")), "c4"]
    sets = {
        target: {
            data or str(CalibrationSet(target)): 1.0 + 0.1 * place
            for place, data in enumerate(order)
        }
        for target in TARGETS
    }
    drawn = {
        target: {data: [value, value + 0.01, value - 0.01] for data, value in of.items()}
        for target, of in sets.items()
    }
    predicted = {
        target: {data: [value] * 3 for data, value in of.items()} for target, of in sets.items()
    }
    made = tuple(
        case(drawn[target], predicted[target], target=target)
        for target, of in sets.items()
        if set(COMMON) < of.keys()
    )
    monkeypatch.setattr(recommended, "cases", lambda: made)
    monkeypatch.setattr(recommended, "TARGETS", dict.fromkeys(each.target for each in made))
    told = recommended.tables()
    rows = {
        row.split(" | ")[0].strip("| "): [cell.strip(" |*") for cell in row.split(" | ")[1:]]
        for row in told["rules"].splitlines()
    }
    assert rows[recommended.FIRST][0] == rows["always the mixture"][0] == "100%"
    assert rows["own text"][:3] == ["0%", "10.0", "0%"]
    assert rows["always the mixture"][1] == "", "no way is far from the best"
    assert rows["always the mixture"][4].startswith("+0.0")
    assert rows["always C4"][4].startswith("+70.")
    assert all(row.count("|") == 2 + len(made) for row in told["rules by target"].splitlines())
