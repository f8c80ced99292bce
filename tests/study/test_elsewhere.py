"""A study that goes on on another processor, where a model that writes or chooses its text may
take another one.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrant.compress import costs
from calibrant.data.select.least_perplexity import LeastPerplexity
from calibrant.lab.study import Study, StudyResult, driver
from calibrant.results import Store

from tests.study.small import asked, results, tables


@pytest.fixture
def study(given: dict[str, str]) -> Study:
    """The dense model, and two runs that look at texts which the model chooses; what is made of
    them isn't kept.
    """
    evaluate = [
        f"loss(source={given[name]!r}, tokens=60, length=32)" for name in ("verse", "prose")
    ]
    return asked(
        given,
        data=[f"least_perplexity(source={given['prose']!r}, candidates=20)"],
        methods=["wanda", "sparsegpt"],
        masks=False,
        evaluate=evaluate,
    )


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a study as on a processor of this name, where `turned` has the model choose the other
    texts first.
    """
    order = LeastPerplexity.order

    def turned_order(
        self: LeastPerplexity, texts: Sequence[str], context: Any
    ) -> tuple[Sequence[int], str]:
        first, note = order(self, texts, context)
        return first[::-1], note

    def run(study: Study, store: Path, name: str, turned: bool = False) -> StudyResult:
        for place in (costs, driver):
            monkeypatch.setattr(place, "processor", lambda: name)
        monkeypatch.setattr(LeastPerplexity, "order", turned_order if turned else order)
        # Each processor is a machine of its own, with its own cache.
        monkeypatch.setattr(
            "calibrant.data.select._base.cache_folder",
            lambda: store.parent / f"cache of {name} {turned}",
        )
        return study.run(store)

    return run


@pytest.mark.parametrize("beside", [[], ["verse"]])
def test_what_was_measured_on_another_processor_stands(
    given: dict[str, str], study: Study, on: Any, tmp_path: Path, beside: list[str]
):
    """Also where text that a model chose is a part of the set, beside a file that is the same."""
    store, parts = (
        tmp_path / "store",
        [
            f"least_perplexity(source={given['prose']!r}, candidates=20)",
            *(repr(given[name]) for name in beside),
        ],
    )
    study = replace(study, data=[" + ".join(f"{1 / len(parts)}*{part}" for part in parts)])
    on(study, store, "one")
    before = results(store), tables(store)
    assert on(study, store, "other", turned=True).computed == 0
    assert (results(store), tables(store)) == before


def test_a_run_that_lacks_a_measurement_is_made_anew(study: Study, on: Any, tmp_path: Path):
    """Else what is lacking would be measured on a model that was made with other text."""
    store = tmp_path / "store"
    measures: Any = study.evaluate
    on(replace(study, evaluate=measures[:1]), store, "one")
    assert on(study, store, "other", turned=True).computed == 1 + 2 + 4, (
        "the dense model's second measurement, two runs and their measurements"
    )
    assert on(study, store, "one").computed == 2, "what its own runs lack"


IN_TOKENS = {"samples": 128, "tokens": 120}
"""A budget in tokens; 128 windows are the usual number, which says nothing beside it."""


def test_other_tokens_on_the_same_processor_and_what_was_asked_otherwise_are_other_runs(
    study: Study, on: Any, tmp_path: Path
):
    store = tmp_path / "store"
    on(study, store, "one")
    assert on(study, store, "one", turned=True).computed == 2 + 4
    for change in ({"samples": 3}, {"length": 16}, {"seeds": [1]}, IN_TOKENS):
        assert on(replace(study, **change), store, "other").computed == 2 + 4, change


@pytest.mark.parametrize(
    "way",
    [
        "longest(source={file}, candidates=40)",
        "0.5*least_perplexity(source=python_docs, candidates=20) + 0.5*{file}",
    ],
)
def test_text_that_no_model_chooses_is_what_it_is(
    given: dict[str, str], study: Study, on: Any, tmp_path: Path, way: str
):
    """Where it is another one, alone or beside text that a model chose, the file has changed."""
    file, store = tmp_path / "file.jsonl", tmp_path / "store"
    file.write_text(Path(given["prose"]).read_text())
    asked_of_file = replace(study, data=[way.format(file=repr(str(file)))])
    on(asked_of_file, store, "one")
    file.write_text(Path(given["verse"]).read_text())
    assert on(asked_of_file, store, "other").computed == 2 + 4


def test_a_record_that_cannot_be_read_stands_for_nothing(study: Study, on: Any, tmp_path: Path):
    store = tmp_path / "store"
    on(study, store, "one")
    with Store(store) as found:
        (damaged, _) = sorted(cell.run for cell in found.cells() if cell.data)
        with found.live.database.writing("harm it") as connection:
            connection.execute("UPDATE runs SET provenance = '{' WHERE id = ?", (damaged,))
    assert on(study, store, "other", turned=True).computed == 1 + 2
