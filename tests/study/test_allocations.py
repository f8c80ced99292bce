"""Allocations as an axis of a study: what is equal keeps its ids and labels, all else is `wanda
+ owl`.
"""

from pathlib import Path

from calibrant.lab.report import report
from calibrant.lab.report.page.parts import command
from calibrant.lab.study import Study, plan
from calibrant.results import Store

from tests.study.small import asked

OWL = "owl(times=2.0)"


def small(given: dict[str, str], **changes: object) -> Study:
    one = {
        "data": [given["prose"], "random_tokens"],
        "evaluate": f"loss(source={given['verse']!r}, tokens=200, length=64)",
    }
    return asked(
        given,
        **{**one, "methods": ["wanda", "magnitude"], "allocation": ["uniform", OWL], **changes},
    )


def test_each_method_has_each_allocation(given: dict[str, str]):
    cells = [(of.data != "", of.way) for of in small(given).labels()]
    ways = ("wanda", f"wanda + {OWL}", f"magnitude + {OWL}")
    # Magnitude looks at no data, and has one run; with an allocation that does it has one for each
    # set.
    assert sorted(cells) == sorted(
        [(False, "none"), (False, "magnitude"), *(2 * [(True, way) for way in ways])]
    )


def test_equal_shares_keep_their_ids_and_a_finished_study_has_nothing_left(
    given: dict[str, str], tmp_path: Path
):
    small(given, allocation="uniform").run(tmp_path / "before")
    study = small(given)
    assert not study.run(tmp_path / "store").failures
    before, after = (
        {(c.data, c.method, c.target): c.run for c in Store(tmp_path / name, create=False).cells()}
        for name in ("before", "store")
    )
    assert before.items() <= after.items()
    assert len(set(after.values())) == len(after) == len(before) + 4
    planned = plan(study, tmp_path / "store", probed=False)
    assert (planned.runs.asked, planned.runs.left, planned.measurements.left) == (8, 0, 0)
    assert study.run(tmp_path / "store").computed == 0
    assert f"wanda + {OWL}" in str(report(tmp_path / "store"))
    store = Store(tmp_path / "store", create=False)
    records = {record.run.id: record for record in store.records()}
    commands = {cell.method: command(cell, records[cell.run], {}) for cell in store.cells()}
    assert "--method wanda --target 0.5" in commands["wanda"]
    assert "--allocation" not in commands["wanda"]
    assert "--method wanda --target 0.5" in commands[f"wanda + {OWL}"]
    assert "--allocation 'owl(spread=0.08, times=2.0)'" in commands[f"wanda + {OWL}"]
    assert small(given, allocation=[OWL]).run(tmp_path / "store").computed == 0
