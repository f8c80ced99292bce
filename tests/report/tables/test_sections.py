from dataclasses import replace

from calibrant.lab.report.sentences import ONLY_MEASURED, finding
from calibrant.lab.report.tables.sections import contrast_table, in_short, sections
from calibrant.lab.stats import Comparison, compare

from tests.report.made import BETTER, EVERYTHING
from tests.stats.stores import LOSSES, results_of


def test_models_that_were_only_measured_are_shown_and_not_ranked():
    measured = compare(results_of({"dense": [[3.0, 2.0]]}))
    first, table, *_ = sections(measured)
    assert first.sentences == (ONLY_MEASURED,)
    assert table.table is not None
    (row,) = table.table.rows
    assert measured.unranked[0].dense is not None
    losses = [f"{loss.value:.3f}" for loss in measured.unranked[0].dense.losses.values()]
    assert (row.name, [figure.value for figure in row.figures][1:]) == ("dense", losses)
    assert finding(measured.unranked[0]) == ONLY_MEASURED
    assert [one.only_measured for one in (measured, compare(results_of(LOSSES)), Comparison())] == [
        True,
        False,
        False,
    ]


def test_contrasts_in_two_propagations_are_told_apart():
    contrasts = [replace(BETTER, propagate=propagate) for propagate in ("dense", "arrival")]
    first, second = contrast_table(contrasts, 2).rows
    assert "dense" in first.note
    assert "arrival" in second.note


def test_a_summary_counts_targets_that_were_not_reached():
    said = [f"On m with {method}, less went." for method in ("one", "two")]
    for shortfalls, told in ((said[:1], said[0]), (said, "2 targets were not reached; ")):
        *_, section = in_short(Comparison(), {}, shortfalls=shortfalls)
        (sentence,) = section.sentences
        assert sentence.startswith(told)


def test_one_result_that_is_missing_is_one():
    (said,) = [
        sentence
        for section in in_short(EVERYTHING, {})
        for sentence in section.sentences
        if "missing" in sentence
    ]
    assert said == "1 result of the grid is missing or failed."
