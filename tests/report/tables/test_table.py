from dataclasses import replace

import pytest

from calibrant.compare import Ranking
from calibrant.report.tables.table import HOLE, Figure, Table, ranked

from tests.report.made import BEST, FULL, HOLED, LAST, NOTHING, PLAIN, SECOND, plain, ranking


def heads(table: Table) -> list[str]:
    return [c.head for c in table.columns]


def figures(table: Table, name: str) -> list[str]:
    (line,) = [line for line in table.rows if line.name == name]
    return [str(f) for f in line.figures]


def test_every_line_has_a_figure_for_each_column():
    for made in (PLAIN, FULL):
        for table in ranked(made).shortened():
            assert {len(line.figures) for line in table.rows} == {len(table.columns)}


def test_sets_then_holes_then_what_looks_at_no_data_then_the_dense_model():
    assert [(line.name, line.note, line.part) for line in ranked(FULL).rows] == [
        ("python_docs", "", "set"),
        ("c4", "", "set"),
        ("full_stops", "control", "set"),
        ("pile", "incomplete", "partial"),
        ("magnitude", "no data", "baseline"),
        ("dense", "its own loss", "dense"),
    ]


def test_figures_with_errors_ranks_and_verdicts():
    table = ranked(FULL)
    assert heads(table) == ["rank", "mean", "docs", "code", "worse than the best"]
    assert figures(table, "python_docs") == ["1", "+1.600 ± 0.020", "+1.400 ± 0.020", "+1.800 ± 0.020", "the best"]
    assert figures(table, "c4")[0] == "2–3"
    assert figures(table, "c4")[-1] == "+0.100 ± 0.020 not significant"
    assert figures(table, "magnitude") == ["", "+5.250 ± 0.020", "+5.000 ± 0.020", "+5.500 ± 0.020", "+3.650 ± 0.020"]
    assert figures(table, "dense") == ["", "", "2.600", "2.300", ""]
    assert [f.letters for f in table.rows[1].figures] == ["", "ab", "ab", "ab", ""]


def test_only_what_is_really_better_is_marked():
    table = ranked(FULL)
    assert [f.best for f in table.rows[0].figures] == [False, True, True, False, False]
    assert [line.best for line in table.rows] == [True, False, False, False, False, False]
    assert not any(f.best for line in ranked(PLAIN).rows for f in line.figures), "the smallest number alone is no reason"


def test_a_hole_keeps_what_is_known():
    assert figures(ranked(FULL), "pile") == ["", HOLE, HOLE, "+1.900 ± 0.020", HOLE]
    assert figures(ranked(FULL, "kept"), "pile")[1:4] == [HOLE, HOLE, HOLE]
    assert any(part.startswith(HOLE) for part in ranked(FULL).legend)
    assert not any(part.startswith(HOLE) for part in ranked(PLAIN).legend)


def test_other_ways_to_show_a_figure():
    assert figures(ranked(FULL, "loss"), "python_docs")[2:4] == ["4.000 ± 0.020", "4.100 ± 0.020"]
    assert heads(ranked(FULL, "loss"))[1] == "mean increase"
    kept = figures(ranked(FULL, "kept"), "python_docs")
    assert kept[2:4] == ["24.7% ± 1.0%", "16.5% ± 1.0%"]
    assert kept[1] == "+1.600 ± 0.020", "the mean share isn't known here"
    shared = replace(BEST, share_kept={"docs:text": replace(BEST.mean, value=0.5), "mean": replace(BEST.mean, value=0.4)})
    assert heads(ranked(ranking(shared), "kept"))[0] == "mean"
    assert figures(ranked(ranking(shared), "kept"), "python_docs")[0] == "40.0% ± 2.0%"


def test_without_a_dense_model_figures_are_the_sets_own():
    alone = ranking(replace(BEST, increases={}, mean=BEST.losses["docs:text"]), dense=None)
    assert figures(ranked(alone), "python_docs")[:2] == ["4.000 ± 0.020", "4.000 ± 0.020"]
    assert ranked(alone).legend[0] == "each set's own number in nats/token"


def test_what_is_better_when_higher_falls():
    accuracy: Ranking = ranking(BEST, SECOND, unit="share right", better=dict.fromkeys(BEST.losses, "higher"))
    assert figures(ranked(accuracy), "python_docs")[:3] == ["-1.600 ± 0.020", "-1.400 ± 0.020", "-1.800 ± 0.020"]
    assert figures(ranked(accuracy), "c4")[-1].startswith("+0.100"), "worse than the best stays worse"
    assert ranked(accuracy).legend[0] == "difference to the dense model in share right, higher is better"
    assert ranked(accuracy).rows[-1].note == "its own score"


def test_measures_of_two_kinds_say_which_way_is_better():
    mixed = ranking(
        BEST,
        averaged=("docs:text",),
        units={"docs:text": "nats/token", "code:text": "share right"},
        better={"docs:text": "lower", "code:text": "higher"},
    )
    assert heads(ranked(mixed)) == ["docs ↓", "code ↑", "worse than the best"]
    assert figures(ranked(mixed), "python_docs")[:2] == ["+1.400 ± 0.020", "-1.800 ± 0.020"]
    assert ranked(mixed).legend[0] == ("difference to the dense model (docs in nats/token, lower is better; code in share right, higher is better)")


def test_one_measured_set_has_no_column_of_means():
    assert heads(ranked(ranking(BEST, SECOND, measured=("docs:text",), averaged=("docs:text",)))) == ["docs", "worse than the best"]


def test_a_single_item_has_no_error():
    assert str(Figure("+1.000")) == "+1.000"
    bare = replace(BEST, mean=replace(BEST.mean, stderr=None))
    assert figures(ranked(ranking(bare)), "python_docs")[0] == "+1.600"
    assert figures(ranked(ranking(replace(BEST, mean=NOTHING))), "python_docs")[0] == HOLE


def test_a_table_gives_way_in_steps():
    whole, fewer, bare, least = ranked(FULL).shortened()
    assert figures(fewer, "c4") == ["2–3", "+1.700 ± 0.020", "+1.500", "+1.900", "+0.100 ± 0.020"]
    assert figures(bare, "c4") == ["2–3", "+1.700", "+1.500", "+1.900", "+0.100"]
    assert heads(least) == heads(whole)[:-1]
    assert "± one standard error" in whole.key
    assert "±" not in bare.key
    assert "rank:" in bare.key
    assert "rank:" not in bare.only([1, 2]).key
    assert figures(ranked(ranking(BEST, replace(SECOND, tied=True))).shortened()[2], "c4")[-1] == "+0.100 not significant", "no letters say it"


def test_the_title_says_what_it_is_about():
    assert plain(ranked(FULL, note="dequantized from Q4_1").title) == "smollm2 (dequantized from Q4_1), wanda at 60 % sparsity, dense propagation"
    assert plain(ranked(PLAIN).title) == "smollm2, wanda at 60 % sparsity"


def test_a_ranking_of_holes_alone_is_drawn():
    assert figures(ranked(ranking(partial=(HOLED,))), "pile") == [HOLE, HOLE, "+1.900 ± 0.020", HOLE]


@pytest.mark.parametrize("made", [PLAIN, FULL, ranking(BEST, LAST)])
def test_the_key_is_one_sentence(made: Ranking):
    key = ranked(made).key
    assert key[0].isupper()
    assert key.endswith(".")
