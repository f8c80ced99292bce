"""A study that goes on on another processor, where a model that writes or chooses its text may take another one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrant.compress import costs
from calibrant.select.longest import Longest
from calibrant.store import Store
from calibrant.study import Study, StudyResult, driver

from tests.study.small import asked, results, tables, texts


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two runs that look at texts which are chosen, one that looks at nothing."""
    given = texts(tmp_path / "texts")
    return asked(given, data=[f"longest(source={given['prose']!r}, candidates=20)"], methods=["wanda", "sparsegpt"])


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a study as on a processor of this name, where `turned` chooses the other texts first."""
    order = Longest.order

    def chosen(self: Longest, texts: Sequence[str], context: Any) -> tuple[Sequence[int], str]:
        first, note = order(self, texts, context)
        return first[::-1], note

    def run(study: Study, store: Path, name: str, turned: bool = False) -> StudyResult:
        for place in (costs, driver):
            monkeypatch.setattr(place, "processor", lambda: name)
        monkeypatch.setattr(Longest, "order", chosen if turned else order)
        return study.run(store)

    return run


def test_what_was_measured_on_another_processor_stands(study: Study, on: Any, tmp_path: Path):
    store = tmp_path / "store"
    on(study, store, "one")
    before = results(store), tables(store)
    assert on(study, store, "other", turned=True).computed == 0
    assert (results(store), tables(store)) == before


def test_what_is_asked_more_is_measured_on_the_model_that_is_there(study: Study, on: Any, tmp_path: Path):
    store = tmp_path / "store"
    measures: Any = study.evaluate
    on(replace(study, evaluate=measures[:1]), store, "one")
    assert on(study, store, "other", turned=True).computed == 3, "of each run the second measurement"
    with Store(store) as found:
        assert len(found.ids()) == 3
        assert all(set(cell.measures.values()) <= found.measured(cell.run) for cell in found.cells())


def test_other_tokens_on_the_same_processor_are_another_run(study: Study, on: Any, tmp_path: Path):
    store = tmp_path / "store"
    on(study, store, "one")
    assert on(study, store, "one", turned=True).computed == 2 + 4, "two runs and what is measured on them"


@pytest.mark.parametrize("change", [{"samples": 3}, {"length": 16}, {"seeds": [1]}])
def test_what_was_asked_otherwise_is_another_run(study: Study, on: Any, tmp_path: Path, change: dict[str, Any]):
    store = tmp_path / "store"
    on(study, store, "one")
    assert on(replace(study, **change), store, "other").computed == 2 + 4


def test_text_that_no_model_chooses_is_what_it_is(study: Study, on: Any, tmp_path: Path):
    """Other tokens of a file are another file."""
    given = texts(tmp_path / "texts")
    plain, store = replace(study, data=[given["prose"]]), tmp_path / "store"
    on(plain, store, "one")
    lines = Path(given["prose"]).read_text().splitlines()
    Path(given["prose"]).write_text("\n".join(reversed(lines[:-1])))
    assert on(plain, store, "other").computed >= 2
