from dataclasses import replace
from pathlib import Path

from calibrant.lab.report.reporting import report
from calibrant.lab.report.tables.sections import without_data
from calibrant.lab.report.tables.table import HOLE, Table, ranked
from calibrant.lab.stats import Ranking

from tests.report.made import BEST, FULL, HOLED, NOTHING, PLAIN, SECOND, ranking, store_of


def heads(table: Table) -> list[str]:
    return [c.head for c in table.columns]


def figures(table: Table, name: str) -> list[str]:
    (line,) = [line for line in table.rows if line.name == name]
    return [str(f) for f in line.figures]


def test_sets_then_holes_then_what_looks_at_no_data_then_the_dense_model():
    table = ranked(FULL)
    assert [(line.name, line.part) for line in table.rows] == [
        ("python_docs", "set"),
        ("c4", "set"),
        ("full_stops", "set"),
        ("pile", "partial"),
        ("magnitude", "baseline"),
        ("dense", "dense"),
    ]
    assert heads(table) == ["rank", "mean", "docs", "code", "worse than the best"]
    assert figures(table, "python_docs")[:4] == [
        "1",
        "+1.600 ± 0.020",
        "+1.400 ± 0.020",
        "+1.800 ± 0.020",
    ]
    assert figures(table, "c4")[0] == "2–3"
    assert figures(table, "c4")[-1] == "+0.100 ± 0.020 not significant"
    assert figures(table, "pile") == ["", HOLE, HOLE, "+1.900 ± 0.020", HOLE]
    assert figures(table, "magnitude") == [
        "",
        "+5.250 ± 0.020",
        "+5.000 ± 0.020",
        "+5.500 ± 0.020",
        "+3.650 ± 0.020",
    ]
    assert figures(table, "dense") == ["", "", "2.600", "2.300", ""]
    assert [f.letters for f in table.rows[1].figures] == ["", "ab", "ab", "ab", ""]
    for made in (PLAIN, FULL):
        for shorter in ranked(made).shortened():
            assert {len(line.figures) for line in shorter.rows} == {len(shorter.columns)}


def test_only_what_is_really_better_is_marked():
    table = ranked(FULL)
    assert [f.best for f in table.rows[0].figures] == [False, True, True, False, False]
    assert [line.best for line in table.rows] == [True, False, False, False, False, False]
    assert not any(f.best for line in ranked(PLAIN).rows for f in line.figures), (
        "the smallest number alone is no reason"
    )


def test_other_ways_to_show_a_figure():
    assert figures(ranked(FULL, "loss"), "python_docs")[2:4] == ["4.000 ± 0.020", "4.100 ± 0.020"]
    kept = figures(ranked(FULL, "kept"), "python_docs")
    assert kept[2:4] == ["24.7% ± 1.0%", "16.5% ± 1.0%"]
    assert kept[1] == "+1.600 ± 0.020", "the mean share isn't known here"
    assert figures(ranked(FULL, "kept"), "pile")[1:4] == [HOLE, HOLE, HOLE]
    shared = replace(
        BEST,
        share_kept={
            "docs:text": replace(BEST.mean, value=0.5),
            "mean": replace(BEST.mean, value=0.4),
        },
    )
    assert figures(ranked(ranking(shared), "kept"), "python_docs")[0] == "40.0% ± 2.0%"


def test_the_column_of_means_has_figures_of_one_kind_and_says_which(tmp_path: Path):
    shared = replace(BEST, share_kept={"mean": replace(BEST.mean, value=0.4)})
    mixed = ranked(ranking(shared, SECOND), "kept")
    assert heads(mixed)[0] == "mean increase"
    assert figures(mixed, "python_docs")[0] == "+1.600 ± 0.020"
    assert figures(mixed, "c4")[0] == "+1.700 ± 0.020"
    # Nothing was calibrated: the method alone, in a table of its own.
    folder = store_of(tmp_path / "results", {})
    (section,) = without_data(report(folder, way="kept").comparison, "kept")
    assert section.table is not None
    assert heads(section.table)[0] == "mean"
    assert figures(section.table, "magnitude 0.6")[0].startswith("13.6% ± ")


def test_what_is_better_when_higher_falls():
    accuracy: Ranking = ranking(
        BEST, SECOND, unit="share right", better=dict.fromkeys(BEST.losses, "higher")
    )
    assert figures(ranked(accuracy), "python_docs")[:3] == [
        "-1.600 ± 0.020",
        "-1.400 ± 0.020",
        "-1.800 ± 0.020",
    ]
    assert figures(ranked(accuracy), "c4")[-1].startswith("+0.100"), (
        "worse than the best stays worse"
    )
    assert "share right, higher is better" in ranked(accuracy).key
    kinds = {
        "units": {"docs:text": "nats/token", "code:text": "share right"},
        "better": {"docs:text": "lower", "code:text": "higher"},
    }
    mixed = ranked(ranking(BEST, averaged=("docs:text",), **kinds))
    assert heads(mixed)[:2] == ["docs ↓", "code ↑"]
    assert figures(mixed, "python_docs")[:2] == ["+1.400 ± 0.020", "-1.800 ± 0.020"]
    assert "code in share right, higher is better" in mixed.key


def test_what_is_lacking_leaves_the_rest():
    alone = ranked(ranking(replace(BEST, increases={}, mean=BEST.losses["docs:text"]), dense=None))
    assert figures(alone, "python_docs")[:2] == ["4.000 ± 0.020", "4.000 ± 0.020"], (
        "without a dense model the set's own"
    )
    one = ranked(ranking(BEST, SECOND, measured=("docs:text",), averaged=("docs:text",)))
    assert heads(one) == ["docs", "worse than the best"], "one measured set needs no mean"
    bare = replace(BEST, mean=replace(BEST.mean, stderr=None))
    assert figures(ranked(ranking(bare)), "python_docs")[0] == "+1.600", (
        "a single item has no error"
    )
    assert figures(ranked(ranking(replace(BEST, mean=NOTHING))), "python_docs")[0] == HOLE
    assert figures(ranked(ranking(partial=(HOLED,))), "pile") == [
        HOLE,
        HOLE,
        "+1.900 ± 0.020",
        HOLE,
    ]
