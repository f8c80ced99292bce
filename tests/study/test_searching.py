"""A study of methods that search keeps what they tried until their run is recorded, and then
their blocks, not their trials.
"""

from pathlib import Path
from typing import Any

import pytest

from calibrant.lab.study import Study
from calibrant.methods import methods
from calibrant.results import verify
from calibrant.results.outcomes import Journal
from calibrant.targets import parse_target

from tests.study.small import asked, journals, results


def study(given: dict[str, str]) -> Study:
    task = f"loss(source={given['verse']!r}, tokens=200, length=64)"
    methods = ["greedy(tokens=[48, 96])", "evop(tokens=[48, 96])"]
    return asked(given, data=["random_tokens"], methods=methods, targets=0.67, evaluate=task)


def test_a_search_that_was_killed_goes_on(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not study(given).run(tmp_path / "whole").failures
    measured: list[str] = []
    add, killed = Journal.add, False

    def deadly(journal: Journal, found: dict[str, Any]) -> None:
        nonlocal killed
        add(journal, found)
        if journal.question and all(
            " " in name and set(name) <= set("0123456789 ") for name in found
        ):
            measured.extend(f"{journal.question} {name}" for name in found)
            if len(measured) > 3 and not killed:
                killed = True
                raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", deadly)
    with pytest.raises(KeyboardInterrupt):
        study(given).run(tmp_path / "store")
    assert journals(tmp_path / "store") == [measured[-1].partition(" ")[0]]
    assert not study(given).run(tmp_path / "store").failures
    assert len(measured) == len(set(measured)) == 6, (
        "of two blocks, two by greedy and four by evop, and nothing twice"
    )
    assert results(tmp_path / "store") == results(tmp_path / "whole")
    assert not journals(tmp_path / "store")
    assert verify(tmp_path / "store") == []


def test_a_plan_counts_what_a_search_tries() -> None:
    tried = {
        name: methods.build(name).tried(30, parse_target(0.2))
        for name in ("short_gpt", "greedy", "evop", "evopress", "greedy(apart=true)")
    }
    assert tried["short_gpt"] == 0
    assert tried["greedy"] == (30 + 29 + 28 + 27 + 26 + 25) * 512 + 6 * 4 * 2048
    assert tried["evop"] == (165 + 2 * 8 + 16 * 16) * 512 + (8 + 16 * 6) * 2048
    assert tried["evopress"] == (64 + 96 * 33) * 512 + (1 + 96 * 3) * 2048
    assert tried["greedy(apart=true)"] == sum(range(49, 61)) * 512 + 12 * 4 * 2048
