import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from calibrant.lab.stats import Ranking, RankingEntry, Results, rankings
from calibrant.lab.stats.crossed import Pairs, Side
from calibrant.lab.stats.ranking import compact_letters
from calibrant.lab.stats.results import narrowed
from calibrant.results import Cell, Measurement

from tests.stats.stores import (
    DRAWN,
    LOSSES,
    measured,
    measured_too,
    rarely,
    results_of,
    values,
    with_cells,
)


def only(results: Results) -> Ranking:
    (ranking,) = rankings(results)
    return ranking


def test_a_ranking_orders_sets_by_their_mean_increase():
    ranking = only(results_of(LOSSES))
    assert [e.name for e in ranking.entries] == ["gsm8k:cot", "c4", "full_stops"]
    assert [(e.name, e.draws) for e in ranking.baselines] == [("magnitude", 0)]
    assert ranking.measured == ranking.averaged == ("docs:text", "code:text")
    best, second, worst = ranking.entries
    assert (best.to_best, best.tied, best.control, best.draws) == (None, False, False, 1)
    assert second.to_best is not None
    assert second.to_best.value == pytest.approx(second.mean.value - best.mean.value)
    assert second.tied is not second.to_best.significant(ranking.level, ranking.comparisons)
    assert (worst.tied, worst.control) == (False, True)
    assert ranking.comparisons == 6  # pairs of four
    assert (ranking.one_draw, ranking.missing) == (True, ())
    assert ranking.dense is not None
    assert ranking.dense.losses["docs:text"].value == pytest.approx(3.0, abs=0.5)
    c4 = rows(ranking)["c4"]
    assert c4.share_kept["docs:text"].value == pytest.approx(
        math.exp(-c4.increases["docs:text"].value)
    )
    assert c4.share_kept["mean"].value == pytest.approx(
        sum(c4.share_kept[m].value for m in ranking.measured) / 2
    )
    assert ranking.dense.share_kept["docs:text"].value == 1


def test_without_a_dense_model_the_loss_itself_is_ranked():
    ranking = only(results_of({k: v for k, v in LOSSES.items() if k != "dense"}))
    assert ranking.dense is None
    assert ranking.best.increases == ranking.best.share_kept == {}
    assert ranking.best.mean.value == pytest.approx(
        sum(e.value for e in ranking.best.losses.values()) / 2
    )
    (entry,) = only(results_of({"a": [[3.5, 2.5]]})).entries
    assert (entry.best_on, entry.ranks, entry.letters["mean"]) == (frozenset(), (1, 1), "a"), (
        "alone it is better than nothing"
    )
    assert rankings(results_of({})) == []


def test_what_failed_is_left_out_and_named():
    results = results_of(LOSSES, missing=["c4/code"])
    ranking = only(replace(results, failures={"sha256:none": {"error": "the loss is nan"}}))
    assert [e.name for e in ranking.entries] == ["gsm8k:cot", "full_stops"]
    assert ranking.missing == (
        "tiny, wanda 0.5: c4 (draw 0) on loss(source='code'): the loss is nan",
    )
    failed = with_cells(results_of(LOSSES), Cell("tiny", "pile", "wanda", "0.5", 0, ""))
    failures = {"sha256:p": {"cell": ["tiny", "pile", "wanda", "0.5", 0], "error": "no such file"}}
    assert only(replace(failed, failures=failures)).missing == tuple(
        f"tiny, wanda 0.5: pile (draw 0) on loss(source={m!r}): no such file"
        for m in ("docs", "code")
    )


def test_the_failure_of_one_measurement_is_no_reason_for_another():
    results = results_of(LOSSES, missing=["c4/code"])
    (cell,) = [cell for cell in results.cells if cell.data == "c4"]
    labels = [cell.model, cell.data, cell.method, cell.target, cell.seed]
    other = cell.measures["loss(source='docs')"]
    failures = {other: {"cell": labels, "error": "the disk is full"}}
    assert only(replace(results, failures=failures)).missing == (
        "tiny, wanda 0.5: c4 (draw 0) on loss(source='code'): not computed yet",
    )


def test_the_failure_of_one_measurement_is_no_reason_for_another_that_is_shown_alone():
    results = results_of(LOSSES, missing=["c4/code"])
    (cell,) = [cell for cell in results.cells if cell.data == "c4"]
    failure = {"cell": list(cell.labels), "error": "the disk is full"}
    failures = {cell.measures["loss(source='docs')"]: failure}
    shown = narrowed(replace(results, failures=failures), "code")
    assert only(shown).missing == (
        "tiny, wanda 0.5: c4 (draw 0) on loss(source='code'): not computed yet",
    )


@pytest.mark.parametrize("labelled", [5, 6])
def test_the_failure_of_a_cell_is_no_reason_for_one_of_another_propagation(labelled: int):
    failed = Cell("tiny", "pile", "wanda", "0.5", 0, "sha256:known", propagate="arrival")
    waiting = replace(failed, run="sha256:planned", propagate="dense")
    results = with_cells(results_of({"dense": LOSSES["dense"]}), failed, waiting)
    failure = {"cell": list(failed.labels[:labelled]), "error": "no memory"}
    why: list[tuple[str, list[str]]] = []
    # The first is of a run that is known, the second came before its run was known.
    for failed_id in ("sha256:known", "sha256:provisional"):
        for ranking in rankings(replace(results, failures={failed_id: failure})):
            reasons = [sentence.rpartition(": ")[2] for sentence in ranking.missing]
            why.append((ranking.propagate, reasons))
    lost = ["no memory"] * 2
    not_yet = ["not computed yet"] * 2
    expected = [("arrival", lost), ("dense", not_yet), ("arrival", lost)]
    assert why == [*expected, ("dense", lost if labelled == 5 else not_yet)]


def test_several_draws_are_averaged_and_one_run_is_one_draw():
    results = results_of(
        {**LOSSES, "c4": [[3.5, 2.6], [3.7, 2.8]], "gsm8k:cot": [[3.9, 2.2], [3.9, 2.3]]}
    )
    ranking = only(
        with_cells(results, *(replace(c, seed=1) for c in results.cells if c.data == "full_stops"))
    )
    drawn = {e.name: e for e in ranking.entries}
    assert {name: e.draws for name, e in drawn.items()} == {
        "gsm8k:cot": 2,
        "c4": 2,
        "full_stops": 1,
    }
    assert drawn["c4"].mean.value == pytest.approx(((3.6 - 3) + (2.7 - 2)) / 2, abs=0.01)
    assert not only(results_of(DRAWN)).one_draw


def test_measures_of_another_unit_are_shown_and_not_averaged():
    def right(number: int) -> Measurement:
        return measured(
            [1, 0, number % 2, 1], [1] * 4, "quiz", metric="accuracy", unit="share", better="higher"
        )

    ranking = only(measured_too(results_of(LOSSES), "task", right))
    assert ranking.measured == ("docs:text", "code:text", "quiz")
    assert ranking.averaged == ("docs:text", "code:text")


def test_each_target_and_propagation_has_its_own_ranking():
    results = results_of(LOSSES)
    drawn = [c for c in results.cells if c.data]
    found = rankings(
        with_cells(
            results,
            *(replace(c, target="2:4") for c in drawn),
            *(replace(c, propagate="dense") for c in drawn),
        )
    )
    told = {(r.method, r.target, r.propagate): [b.name for b in r.baselines] for r in found}
    assert told == {
        ("wanda", "0.5", ""): ["magnitude"],
        ("wanda", "2:4", ""): [],
        ("wanda", "0.5", "dense"): ["magnitude"],
    }


def rows(ranking: Ranking) -> dict[str, RankingEntry]:
    return {entry.name: entry for entry in (*ranking.entries, *ranking.baselines)}


def test_the_best_is_marked_where_it_is_surely_better_than_all():
    found = rows(only(results_of({**DRAWN, "magnitude": [[5.0, 4.0]]})))
    assert found["c4"].best_on == {"docs:text", "code:text", "mean"}
    assert all(not entry.best_on for name, entry in found.items() if name != "c4")
    assert found["c4"].letters == {"docs:text": "a", "code:text": "a", "mean": "a"}
    assert found["gsm8k:icl"].letters["code:text"] == found["svamp:icl"].letters["code:text"] == "b"
    assert found["c4"].ranks == (1, 1)
    assert found["gsm8k:icl"].ranks[1] == 3
    assert found["magnitude"].ranks == (0, 0)


def test_where_two_share_the_best_nothing_is_marked():
    found = rows(
        only(
            results_of(
                {
                    "dense": [[3.0, 2.0]],
                    "a": [[3.5, 2.5]],
                    "b": [[3.5005, 2.5005]],
                    "c": [[4.0, 3.0]],
                }
            )
        )
    )
    assert all(not entry.best_on for entry in found.values())
    assert found["b"].tied
    assert [found[name].letters["mean"] for name in "abc"] == ["a", "a", "b"]
    assert [found[name].ranks for name in "abc"] == [(1, 2), (1, 2), (3, 3)]


def test_draws_that_overlap_leave_their_variance_out():
    drawn = {**DRAWN, "c4": [[3.4, 2.5], [3.6, 2.7], [3.5, 2.6]]}
    apart, alike = (
        rows(only(results_of(drawn, overlap={"c4": share})))["c4"] for share in (0.05, 0.2)
    )
    assert (apart.overlapping, apart.mean.over_draws) == (False, True)
    assert (alike.overlapping, alike.mean.over_draws) == (True, False)
    assert 0 < (alike.mean.stderr or 0.0) < (apart.mean.stderr or 0.0) / 5


def test_a_set_with_holes_keeps_its_row():
    ranking = only(results_of(LOSSES, missing=["c4/code", "magnitude/docs"]))
    magnitude, c4 = sorted(ranking.partial, key=lambda e: e.name, reverse=True)
    assert (c4.name, list(c4.losses), list(c4.increases), list(c4.share_kept)) == (
        "c4",
        ["docs:text"],
        ["docs:text"],
        ["docs:text"],
    )
    assert math.isnan(c4.mean.value)
    assert (c4.to_best, c4.tied, c4.letters, c4.ranks) == (None, False, {}, (0, 0))
    assert list(magnitude.losses) == ["code:text"]
    begun = only(
        results_of(
            LOSSES,
            missing=[
                f"{label}/{m}" for label in LOSSES if label != "dense" for m in ("docs", "code")
            ],
        )
    )
    assert begun.entries == ()
    assert {e.name for e in begun.partial} == {"magnitude", "c4", "gsm8k:cot", "full_stops"}


def test_where_more_is_better_the_largest_comes_first():
    def right(number: int) -> Measurement:
        answers = [float(i < (10, 30)[number]) for i in range(40)]
        return measured(
            answers, [1.0] * 40, "quiz", metric="accuracy", unit="share", better="higher"
        )

    ranking = only(
        narrowed(measured_too(results_of({"a": [[0, 0]], "b": [[0, 0]]}), "task", right), ["task"])
    )
    assert [(e.name, e.mean.value) for e in ranking.entries] == [("b", 0.75), ("a", 0.25)]
    assert ranking.entries[1].to_best is not None
    assert ranking.entries[1].to_best.value == 0.5
    assert (ranking.better, ranking.units, ranking.metrics) == (
        {"quiz": "higher"},
        {"quiz": "share"},
        {"quiz": "accuracy"},
    )


def test_equal_sets_share_a_letter_in_most_studies():
    """Six equal sets: some two are wrongly called different in at most 5 % of studies, at three
    draws each.
    """
    rng, wrong, times = np.random.default_rng(6), 0, 100
    for _ in range(times):
        hard, tokens = rng.normal(3, 0.3, 20), np.ones(20)
        sides = {}
        for label in "abcdef":
            draws = [
                values(hard + rng.normal(0, 0.05) + rng.normal(0, 0.1, 20), tokens)
                for _ in range(3)
            ]
            sides[label] = {"x": Side.of(draws)}
        wrong += bool(Pairs.of(sides, ["x"]).worse(comparisons=15).any())
    assert wrong / times <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)


def letters_of(count: int, apart: set[tuple[int, int]]) -> list[str]:
    table = np.zeros((count, count), dtype=bool)
    for i, j in apart:
        table[i, j] = table[j, i] = True
    return compact_letters(table)


@pytest.mark.parametrize("share", [0.3, 0.7, *rarely(0.1, 0.5, 0.9)])
def test_letters_say_exactly_what_differs_on_random_graphs(share: float):
    """Against the definition itself: two share a letter if and only if they aren't apart; no
    letter can be spared.
    """
    rng = np.random.default_rng(int(share * 10))
    for _ in range(150):
        count = int(rng.integers(2, 11))
        apart = {pair for pair in itertools.combinations(range(count), 2) if rng.random() < share}
        found = [set(s) for s in letters_of(count, apart)]
        alike = {
            pair
            for pair in itertools.combinations(range(count), 2)
            if found[pair[0]] & found[pair[1]]
        }
        assert alike == set(itertools.combinations(range(count), 2)) - apart
        assert all(found)
        for letter in set.union(*found):
            without = [s - {letter} for s in found]
            assert not all(without) or any(not without[i] & without[j] for i, j in alike)
