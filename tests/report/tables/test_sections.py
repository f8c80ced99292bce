from dataclasses import replace

from calibrant.compare import Comparison, compare
from calibrant.report.sentences import ONLY_MEASURED, finding
from calibrant.report.tables.sections import Section, agreement_table, contrast_table, sections

from tests.compare.stores import LOSSES, results_of
from tests.report.made import AGREEMENTS, CONTRASTS, EVERYTHING, OPEN, plain


def titled(comparison: Comparison, title: str) -> Section:
    (found,) = [section for section in sections(comparison) if section.title == title]
    return found


def test_contrasts_as_a_table():
    table = contrast_table(CONTRASTS)
    found = [[str(f) for f in line.figures] for line in table.rows]
    assert found[0] == ["-0.123", "-0.169 to -0.077", "0.004", "0.055", "better"]
    assert found[1][2] == "< 0.001"
    assert [row[-1] for row in found] == ["better", "worse", "not significant", "one draw only", "not computed"]
    assert found[3][2] == "—"
    assert found[4][:4] == ["—"] * 4
    assert [line.name for line in table.rows][:2] == ["own data", "gsm8k:icl against c4"]
    assert [line.figures[-1].best for line in table.rows] == [True, True, False, False, False]
    named = replace(OPEN, name="gsm8k:icl against c4")
    assert contrast_table([named]).rows == contrast_table([OPEN]).rows, "a contrast is not named twice"


def test_agreements_the_least_first():
    table = agreement_table(AGREEMENTS)
    assert [[str(f) for f in line.figures] for line in table.rows] == [
        ["-0.10", "—", "6"],
        ["+0.20", "-0.10 to +0.50", "6"],
        ["+0.87", "+0.50 to +1.00", "6"],
    ]
    by_method, by_sparsity = titled(EVERYTHING, "Do the rankings agree?").sentences[-2:]
    assert "+0.20 to +0.87 over 2 pairs; the interval lies above zero for 1" in by_method
    assert "-0.10 for the one pair" in by_sparsity


def test_sections_come_in_the_order_they_are_read():
    told = list(sections(EVERYTHING, notes={"smollm2": "a note"}))
    assert plain(told[0].title) == "smollm2 (a note), wanda at 60 % sparsity, dense propagation"
    assert [s.title for s in told[1:]] == ["Primary contrasts", "Do the rankings agree?", "What is missing", "How far to trust it"]
    assert told[3].items == ("pile (draw 0) on loss(source='docs'): DataError: no rows",)
    stale, looks = told[4].sentences
    assert stale.startswith("2 records are")
    assert "63 comparisons" in looks
    assert titled(Comparison(stale=1), "How far to trust it").sentences[0].startswith("1 record is")
    (nothing,) = sections(Comparison())
    assert "nothing to rank" in nothing.sentences[0]


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
    assert [one.only_measured for one in (measured, compare(results_of(LOSSES)), Comparison())] == [True, False, False]


def test_thousands_of_holes_are_counted():
    holes = tuple(f"c4 (draw {i}) on loss: not computed yet" for i in range(1200))
    missing = titled(Comparison(missing=holes), "What is missing")
    assert missing.items[:100] == holes[:100]
    assert len(missing.items) == 101
    assert "1,100" in missing.items[100]
