import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrant.compare import Estimate, rankings
from calibrant.compare.comparison import regret, significantly_different

from tests.compare.stores import store_of
from tests.report.made import entry, ranking

LOSSES = {"dense": [[3.0, 2.0]], "c4": [[3.5, 2.9]], "gsm8k:cot": [[3.9, 2.1]], "c4 + gsm8k:cot": [[3.6, 2.2]]}


def test_each_column_is_counted_from_its_own_best(tmp_path: Path):
    (found,) = rankings(store_of(tmp_path, LOSSES))
    table = regret(found)
    assert table.sets == ("c4 + gsm8k:cot", "gsm8k:cot", "c4")
    assert table.measured == ("docs:text", "code:text")
    assert table.best == ("c4", "gsm8k:cot")
    by = dict(zip(table.sets, table.by.tolist(), strict=True))
    assert by["c4"] == pytest.approx([0.0, 0.8], abs=0.005)
    assert by["gsm8k:cot"] == pytest.approx([0.4, 0.0], abs=0.005)
    assert by["c4 + gsm8k:cot"] == pytest.approx([0.1, 0.1], abs=0.005)
    assert table.worst.tolist() == pytest.approx([0.1, 0.4, 0.8], abs=0.005)
    told = table.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["sets"]["c4"]["code:text"] == {"regret": pytest.approx(0.8, abs=0.005), "significant": True}
    assert told["sets"]["c4"]["docs:text"] == {"regret": 0.0, "significant": False}


def test_what_is_better_when_higher_is_turned_round():
    made = ranking(entry("a", (0.1, 0.2), None), entry("b", (0.2, 0.1), 0.1), better={"docs:text": "higher", "code:text": "lower"})
    table = regret(made)
    assert table.best == ("b", "b")
    assert table.by[table.sets.index("a")].tolist() == pytest.approx([0.1, 0.1])


def test_holes_stay_holes():
    whole, holed = entry("a", (0.2, 0.2), None), entry("b", (0.1, 0.1), None)
    holed = replace(holed, losses={"docs:text": holed.losses["docs:text"]})
    table = regret(ranking(whole, partial=(holed,)))
    assert (table.sets, table.best) == (("a", "b"), ("b", "a"))
    assert np.isnan(table.by[1, 1])
    assert math.isnan(table.worst[1])
    assert "code:text" not in table.to_json()["sets"]["b"]
    nothing = regret(ranking(replace(whole, losses={"docs:text": Estimate(1.0, None, 0.0, 0)})))
    assert nothing.best == ("a", "")
    assert regret(ranking()).sets == ()


@pytest.mark.parametrize(
    ("a", "b", "different"), [("a", "b", True), ("ab", "bc", False), ("a[53]", "[53]", False), ("[53]", "[54]", True), ("", "a", False)]
)
def test_letters_that_are_shared(a: str, b: str, different: bool):
    first, second = (replace(entry("x", (0.1, 0.1), None), letters={"docs:text": text}) for text in (a, b))
    assert significantly_different(first, second, "docs:text") == different
