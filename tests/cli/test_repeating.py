"""The command that the page shows for a run makes that run again: the same identity, the same
numbers.
"""

import shlex
from pathlib import Path

import pytest

from calibrant.lab.report import report
from calibrant.lab.report.page.parts import budget_of, command
from calibrant.results import Run, Store

from tests.cli.conftest import Ask
from tests.study.small import asked, texts

IN_TOKENS = {"samples": 128, "tokens": 100}
"""A budget in tokens; 128 windows are the usual number, which says nothing beside it."""


@pytest.mark.parametrize("budgeted", [pytest.param({}, marks=pytest.mark.slow), IN_TOKENS])
def test_every_run_can_be_repeated_by_its_command(
    ask: Ask, tmp_path: Path, budgeted: dict[str, int]
):
    given = texts(tmp_path / "data")
    groups = {"removed": {}, "rounded": {"method": "rtn", "target": ["w4g16", "w8a"]}}
    data = [given["prose"]]
    if not budgeted:
        data.append(f"{given['prose']}@one")
    study = asked(given, data=data, seeds=[1], targets=["0.5", "2:4"], groups=groups, **budgeted)
    found = report(study.run(tmp_path / "results"))
    store, asked_for = Store(tmp_path / "results", create=False), budget_of(found.facts)
    methods = set()
    for number, cell in enumerate(store.cells()):
        record = store.record(cell.run)
        assert record is not None
        lines = [shlex.split(line) for line in command(cell, record, asked_for).splitlines()]
        lines = [
            [f"{word}-{number}" if word in ("pruned", "quantized") else word for word in line]
            for line in lines
        ]
        methods.add(cell.method)
        if len(lines) == 2:
            answer = ask(*lines[0][1:], "--json")
            assert answer.code == 0, answer.err
            assert answer.json["run"]["tokens"] == record.run.tokens
            assert Run(**answer.json["run"]).id == record.run.id
        answer = ask(*lines[-1][1:], "--json", "--allow-leak")
        assert answer.code == 0, answer.err
        again = [score["value"] for score in answer.json]
        assert again == [store.scores(cell.run)[i].score.value for i in cell.measures.values()]
    assert methods == {"none", "magnitude", "wanda", "sparsegpt", "rtn"}
