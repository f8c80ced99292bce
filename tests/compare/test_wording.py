"""What the messages that a user most likely meets say: each names what was given, and what there is instead or what to do."""

from collections.abc import Callable
from typing import Any

import pytest

from calibrant.compare import compare, contrast, draws, kept_words
from calibrant.errors import InputError
from calibrant.store import Store

from tests.compare.stores import LOSSES, measured, results_of, store_of

RESULTS = results_of(LOSSES)
TWO = measured([1, 2], [4, 4])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read and never written."""
    return store_of(tmp_path_factory.mktemp("wording") / "study", LOSSES)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda _: compare(RESULTS, ["wiki"]), "begins with 'wiki' (measured: loss(source='docs'), loss(source='code')); name one of these"),
        (lambda _: compare(RESULTS, baseline="pile"), "is called 'pile' (there are: c4, gsm8k:cot, full_stops); name one of these"),
        (lambda store: draws(store, data="c5"), "data 'c5' fits no cell of the store"),
        (lambda store: draws(store, seed=0), "seed 0 fits cells that differ in data and method and target; say which"),
        (lambda store: draws(store, set="c4"), "no label 'set'; its labels are model, data, method, target, seed, propagate"),
        (lambda _: contrast({"a": [TWO]}, {"b": [TWO]}), "['a'] can't be compared with ['b']"),
        (lambda _: contrast({"a": [TWO]}, {"a": [measured([1], [4])]}), "2 and 1 items, 1 of them in one alone (such as 'item 001')"),
        (lambda _: contrast({"a": [TWO]}, {"a": [measured([1, 2], [4, 5])]}), "8 and 9 tokens"),
        (lambda store: kept_words(store.folder), "holds no measurement of words with a calibration set; add words(source=…)"),
        (lambda store: kept_words(store.folder.parent / "none"), "holds no results"),
    ],
)
def test_a_message_says_what_was_given_and_what_to_do(store: Store, asked: Callable[[Store], Any], said: str):
    with pytest.raises(InputError) as raised:
        asked(store)
    assert said in str(raised.value)
