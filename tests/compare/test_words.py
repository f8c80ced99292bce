"""What sets kept of words, from scores as a store has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrant.compare import Results, kept_words, kept_words_in
from calibrant.errors import DataError, OutputError
from calibrant.store import Cell, Measurement, Score, Store


def score(kept: dict[str, float], /, **changes: Any) -> Measurement:
    columns = {"word": list(kept), "count": [len(word) for word in kept], "kept": list(kept.values()), **changes}
    return Measurement(Score("wikipedia:text", "kept", 0.5, 0.1, 8, "share", "higher", 0.0, {"words": columns}))


def results(**kept: Measurement) -> Results:
    """A cell for each name, which is a set's name and the number of its draw."""
    cells = [Cell("small", name[:-1], "wanda", "0.5", int(name[-1]), f"run-{name}", {"words()": "m"}, "arrival") for name in kept]
    scores = {f"run-{name}": {"m": one} for name, one in kept.items()}
    return Results(tuple(cells), {}, scores, {}, {}, {}, frozenset())


def test_words_by_sets_are_means_over_draws_and_the_worst_come_first() -> None:
    (of,) = kept_words_in(
        results(
            c0=score({"onion": 0.5, "peel": 0.9}),
            c1=score({"onion": 0.7, "peel": 0.7, "late": 0.2}),
            g0=score({"onion": 0.3, "peel": 0.81}),
        )
    )
    assert of.words == ("late", "onion", "peel")
    assert of.sets == ("c", "g")
    assert of.draws == (2, 1)
    assert of.counts == (4, 5, 4)
    assert of.kept[0] == pytest.approx((0.2, 0.6, 0.8))
    assert of.kept[1] == pytest.approx((float("nan"), 0.3, 0.81), nan_ok=True)
    assert of.best == ("c", "c", "g")
    assert of.means == pytest.approx((0.2, 0.45, 0.805))
    plain = of.to_json()
    assert plain["words"][0] == {"word": "late", "count": 4, "best": "c", "kept": {"c": pytest.approx(0.2), "g": None}}
    assert (plain["measured"], plain["draws"]) == ("wikipedia:text", {"c": 2, "g": 1})


def test_a_run_that_answers_two_cells_is_one_draw() -> None:
    both = results(c0=score({"onion": 0.5}), c1=score({"onion": 0.9}))
    same = replace(both, cells=tuple(replace(cell, run="run-c0") for cell in both.cells))
    (of,) = kept_words_in(same)
    assert (of.draws, of.kept) == ((1,), ((0.5,),))


@pytest.mark.parametrize(
    "columns",
    [{"kept": [0.5]}, {"kept": "0.5"}, {"word": [1, 2]}, {"kept": [float("nan"), 1.0]}, {"count": ["a", 2]}, {"kept": None}],
    ids=str,
)
def test_columns_of_another_shape_are_no_words(columns: dict[str, Any]) -> None:
    assert kept_words_in(results(c0=score({"onion": 0.5, "peel": 0.9}, **columns))) == ()
    assert kept_words_in(results(c0=Measurement(Score("w", "loss", 1.0, 0.1, 8, "nats/token", "lower")))) == ()


def test_a_folder_without_words_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no results"):
        kept_words(tmp_path)
    with Store(tmp_path / "empty") as store:
        store.write_cells([])
    with pytest.raises(DataError, match=r"holds no measurement of words .*; add words\(source=…\)"):
        kept_words(tmp_path / "empty")


def test_sets_that_share_a_run_are_both_there() -> None:
    both = results(c0=score({"onion": 0.5}), g0=score({"onion": 0.9}))
    (of,) = kept_words_in(replace(both, cells=tuple(replace(cell, run="run-c0") for cell in both.cells)))
    assert (of.sets, of.kept) == (("c", "g"), ((0.5,), (0.5,)))
