"""What must not change, as far as no model is opened: ids of published results, what texts mean,
and what a study says."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tools.freeze import EXACT, NEARLY, README, Frozen, add, difference, freeze, read, same

from tests.frozen import comparison, requests, stores, texts

HOW = "run make generate for what is new, python -m tools.freeze --revision REASON for a change"
SAMPLED = 200


def test_published_results_have_the_ids_that_they_had():
    frozen = read("stores.json")
    now = dict(stores.sums())
    assert not difference(frozen, now), f"{difference(frozen, now)}; {HOW}"
    assert dict(stores.digits()) == read("ids.json.xz"), (
        "which one is another is found in the digits"
    )


def test_a_sample_of_ids_is_that_of_its_content():
    counted = read("stores.json").values()
    total = sum(found["runs"] + found["measurements"] for found in counted)
    wrong = list[str]()
    for folder in stores.committed():
        wrong += stores.wrong_ids(folder, every=total // SAMPLED)
    assert wrong == []


def test_requests_have_the_ids_that_they_had():
    frozen = read("requests.json")
    now = dict(requests.ids())
    assert not difference(frozen, now), f"{difference(frozen, now)}; {HOW}"
    assert now["run"] == now["run with other labels"], "labels decide nothing"
    assert len(set(now.values())) == len(now) - 1


@pytest.mark.parametrize("kind", sorted(texts.READERS))
def test_texts_mean_what_they_meant(kind: str):
    every = read("texts.json")
    frozen = {key: known for key, known in every.items() if key.partition(" ")[0] == kind}
    assert {type(known) for known in frozen.values()} == {str, list}, (
        "one is refused and another is read"
    )
    now = {key: texts.meaning(key) for key in frozen}
    assert not difference(frozen, now), f"{difference(frozen, now)}; {HOW}"


def test_every_name_has_a_text():
    """A new file in a folder needs `make generate`, which adds its texts."""
    frozen = read("texts.json")
    for key in texts.corpus():
        assert key in frozen, "run make generate"


def test_a_published_study_says_what_it_said():
    frozen = read("comparison.json.xz")
    now = dict(comparison.told())
    assert not difference(frozen, now, NEARLY), f"{difference(frozen, now, NEARLY)}; {HOW}"


# The script


def given(**entries: Any) -> Callable[[], Iterable[tuple[str, Any]]]:
    return lambda: iter(entries.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / README).write_text("| date | file | why |\n| --- | --- | --- |\n")
    freeze([Frozen("one.json", given(a=1, b=[2.0])), Frozen("two.json.xz", given(c="3"))], tmp_path)
    return tmp_path


@pytest.mark.parametrize("changed", [{"a": 2, "b": [2.0]}, {"a": 1}])
def test_what_would_be_another_thing_is_overwritten_with_a_reason_alone(
    folder: Path, changed: dict[str, Any]
):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    files = [Frozen("one.json", given(**changed)), Frozen("two.json.xz", given(c="3", d="new"))]
    with pytest.raises(SystemExit) as refused:
        freeze(files, folder)
    assert "one.json" in str(refused.value)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before, "nothing half-written"
    freeze(files, folder, "a better rule")
    assert read("one.json", folder) == changed
    assert read("two.json.xz", folder) == {"c": "3", "d": "new"}
    assert "a better rule" in (folder / README).read_text().splitlines()[-1]


def test_what_is_new_is_added_and_where_something_else_changed_it_says_what_to_do(folder: Path):
    new = [Frozen("one.json", given(a=1, b=[2.0], d=4)), Frozen("two.json.xz", given(c="3"))]
    assert add(new, folder) == []
    assert read("one.json", folder) == {"a": 1, "b": [2.0], "d": 4}
    before = (folder / "one.json").read_bytes()
    for name, other in (("a", {"b": [2.0], "d": 4}), ("b", {"a": 1, "b": [3.0], "d": 4})):
        assert add([Frozen("one.json", given(**other))], folder) == [], "the tests tell of that"
        (sentence,) = add([Frozen("one.json", given(**other, e="new"))], folder)
        assert "one.json" in sentence
        assert repr(name) in sentence
        assert "'e'" in sentence
        assert "--revision" in sentence
        assert (folder / "one.json").read_bytes() == before


def test_numbers_are_the_same_within_their_tolerance_alone():
    assert same({"a": [1.0]}, {"a": [1.0 + 1e-12]}, NEARLY)
    assert not same({"a": [1.0]}, {"a": [1.0 + 1e-12]}, EXACT)
    assert not same({"a": [1.0]}, {"a": [1.0 + 1e-6]}, NEARLY)
    assert not same({"a": 1}, {"b": 1}, NEARLY)
    assert not same([1], [1, 2], NEARLY)
    assert not same(1, 1.0, NEARLY)
    assert not same(1, True, NEARLY)
