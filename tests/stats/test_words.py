"""What sets kept of words, from scores as a store has them."""

from dataclasses import replace
from typing import Any

import pytest

from calibrant.lab.stats import Results, kept_words_in
from calibrant.results import Cell, Measurement, Score


def score(kept: dict[str, float], /, **changes: Any) -> Measurement:
    columns = {
        "word": list(kept),
        "count": [len(word) for word in kept],
        "kept": list(kept.values()),
        **changes,
    }
    return Measurement(
        Score("wikipedia:text", "kept", 0.5, 0.1, 8, "share", "higher", 0.0, {"words": columns})
    )


def results(**kept: Measurement) -> Results:
    """A cell for each name, which is a set's name and the number of its draw."""
    cells = [
        Cell(
            "small",
            name[:-1],
            "wanda",
            "0.5",
            int(name[-1]),
            f"run-{name}",
            {"words()": "m"},
            "arrival",
        )
        for name in kept
    ]
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
    assert plain["words"][0] == {
        "word": "late",
        "count": 4,
        "best": "c",
        "kept": {"c": pytest.approx(0.2), "g": None},
    }
    assert (plain["measured"], plain["draws"]) == ("wikipedia:text", {"c": 2, "g": 1})


def test_a_run_that_answers_two_cells_is_one_draw_of_each_of_their_sets() -> None:
    for names, sets, kept in (
        (("c0", "c1"), ("c",), ((0.5,),)),
        (("c0", "g0"), ("c", "g"), ((0.5,), (0.5,))),
    ):
        both = results(**{name: score({"onion": 0.5 + i}) for i, name in enumerate(names)})
        same = replace(both, cells=tuple(replace(cell, run="run-c0") for cell in both.cells))
        (of,) = kept_words_in(same)
        assert (of.sets, of.kept) == (sets, kept)
        assert set(of.draws) == {1}


@pytest.mark.parametrize(
    "columns",
    [
        {"kept": [0.5]},
        {"kept": "0.5"},
        {"word": [1, 2]},
        {"kept": [float("nan"), 1.0]},
        {"count": ["a", 2]},
        {"kept": None},
    ],
    ids=str,
)
def test_columns_of_another_shape_are_no_words(columns: dict[str, Any]) -> None:
    assert kept_words_in(results(c0=score({"onion": 0.5, "peel": 0.9}, **columns))) == ()
    assert (
        kept_words_in(
            results(c0=Measurement(Score("w", "loss", 1.0, 0.1, 8, "nats/token", "lower")))
        )
        == ()
    )
