import math
from dataclasses import replace
from itertools import pairwise

import pytest

from calibrant.compare import Estimate, PaperQuestion, RankingEntry
from calibrant.report.plots import evidence, forest, formats
from calibrant.report.plots.panels import Mark, span_of

from tests.report.made import ASKED, BEST, DENSE, LAST, MAGNITUDE, SECOND, piece, ranking, renamed
from tests.report.plots.seen import Seen, bold, drawn, mapping, number, said, seen, texts

CROSSED = "M-.9,-.5L"


def against(entry: RankingEntry, *differences: float, spread: float = 0.02) -> RankingEntry:
    """`entry`, so much worse than the baseline on average and on each measured set."""
    return replace(entry, to_baseline={m: Estimate(d, spread, 20.0, 21) for m, d in zip(("mean", *DENSE), differences, strict=True)})


BASED = ranking(
    against(BEST, -0.1, -0.15, 0.004), replace(SECOND, to_baseline={}), against(LAST, 4.8, 4.5, 5.1), baselines=(against(MAGNITUDE, 3.6, 3.5, 3.6),)
)
BASED = replace(BASED, baseline="c4")


def panels(svg: str) -> list[tuple[float, float, float, float]]:
    """Of each panel where it begins and ends, and slope and start of its axis."""
    starts = sorted(t.x for t in texts(svg) if t.look.get("font-weight") == "bold")
    axis = max(t.y for t in texts(svg) if number(t.text) == 0)
    found = []
    for start, end in pairwise((*starts, math.inf)):
        ticks = [(v, t.x) for t in texts(svg) if abs(t.y - axis) < 0.1 and start - 9 <= t.x < end - 9 and (v := number(t.text)) is not None]
        found.append((start, end, *mapping(ticks)))
    return found


def row(svg: str, name: str) -> list[Seen]:
    """What is drawn of a set of running text beside its name."""
    place = next(t.y for t in texts(svg) if t.text == name and t.look.get("text-anchor") == "end")
    return [s for s in seen(svg) if abs(s.y - place) < 8 and s.look.get("stroke") == "var(--f-corpus)"]


def test_marks_and_intervals_stand_where_the_axis_says():
    _, svg = drawn(forest(BASED))
    assert bold(svg) == ["mean", "docs", "code"]
    for (start, end, slope, zero), value in zip(panels(svg), (-0.1, -0.15, 0.004), strict=True):
        of_panel = [s for s in row(svg, "python_docs") if start <= s.x < end]
        mark = next(s for s in of_panel if s.tag == "path")
        line = next(s for s in of_panel if s.tag == "line")
        assert mark.x == pytest.approx(zero + slope * value, abs=0.6)
        low, high = Estimate(value, 0.02, 20.0, 21).interval(0.95, 3)  # pyright: ignore[reportGeneralTypeIssues]
        assert sorted((line.x, line.x + line.to[0])) == pytest.approx([zero + slope * low, zero + slope * high], abs=0.6)


def test_hollow_is_what_cannot_be_told_apart():
    plot, svg = drawn(forest(BASED))
    fills = [s.look["fill"] for s in sorted(row(svg, "python_docs"), key=lambda s: s.x) if s.tag == "path"]
    assert fills == ["var(--f-corpus)", "var(--f-corpus)", "var(--card)"]
    assert "Hollow: not significantly different from c4." in plot.caption
    for part in ("python_docs −0.100 (−0.152 to −0.048)", "python_docs +0.004 (−0.048 to 0.056)*", "c4 is the baseline", "full_stops +4.800"):
        assert part in plot.description


def test_what_is_far_beyond_the_sets_becomes_an_arrow_with_its_number():
    _, svg = drawn(forest(BASED))
    assert {"+4.800", "+4.500", "+5.100", "+3.600", "+3.500"} <= set(said(svg))
    assert not any(s.d.startswith(CROSSED) and s.y < 100 for s in seen(svg))
    assert said(svg).count("c4") == 4, "its row, and the zero line of each panel"
    assert any("worse than c4" in text and "nats/token" in text for text in said(svg))


def test_without_a_baseline_the_dense_model_is_zero_and_without_that_nothing_is():
    plot, _ = drawn(forest(ranking(BEST, SECOND)))
    assert "Increase over the dense model" in plot.title
    assert "python_docs +1.600" in plot.description
    _, mixed = drawn(forest(replace(BASED, averaged=("docs:text",), units={"docs:text": "nats/token", "code:text": "points"})))
    assert {"nats/token", "points"} <= set(said(mixed)), "a panel of another unit has its own"
    _, svg = drawn(forest(ranking(*(replace(e, increases={}) for e in (BEST, SECOND)), dense=None)))
    assert not [s for s in seen(svg) if s.look.get("stroke") == "var(--ink)"]
    assert "hollow" not in svg


def test_panels_stand_in_the_tables_order_also_where_one_reaches_many_times_as_far():
    far = ranking(against(BEST, -0.1, 3.0, -0.15), replace(SECOND, to_baseline={}), against(LAST, 0.2, -4.0, 0.1))
    _, svg = drawn(forest(replace(far, baseline="c4")))
    assert bold(svg) == ["mean", "docs", "code"]
    slopes = [slope for _, _, slope, _ in panels(svg)]
    assert slopes[0] == pytest.approx(slopes[2], rel=0.01)
    assert slopes[0] > 4 * slopes[1]
    _, narrow = drawn(forest(BASED, narrow=True))
    assert bold(narrow) == ["mean"]


def test_holes_are_dashes_endless_values_arrows_and_nothing_no_plot():
    odd = {"mean": Estimate(math.nan, None, 0.0, 0), "docs:text": Estimate(math.inf, None, 0.0, 1)}
    plot, svg = drawn(forest(replace(BASED, entries=(replace(BEST, to_baseline=odd), *BASED.entries[1:]))))
    assert said(svg).count("—") == 2
    assert "+∞" in said(svg)
    assert "no number for python_docs" in plot.description
    assert forest(ranking()) is formats(BASED) is None
    names = ("gsm8k:icl", "gsm8k:cot@many", "c4")
    _, svg = drawn(formats(ranking(*(renamed(e, n) for e, n in zip((BEST, SECOND, LAST), names, strict=True)))))
    assert {"icl", "cot@many", "gsm8k"} <= set(said(svg)), "formats of a source stand together"
    assert "c4" not in said(svg)


def test_an_axis_holds_every_set_but_not_every_control_nor_endless_intervals():
    inner = [Mark(0.1, (0.0, 0.2), "code"), Mark(-0.2, (-0.3, -0.1), "code")]
    low, high = span_of([*inner, Mark(5.0, None, "control", aside=True)])
    assert low < -0.3
    assert 0.2 < high < 0.3
    assert span_of([]) == span_of([Mark(math.inf, None, "code")]) == (-1.0, 1.0)
    assert span_of([*inner, Mark(0.45, None, "control", aside=True)])[1] > 0.45
    low, high = span_of([*(Mark(0.1 * i, (0.1 * i - 0.1, 0.1 * i + 0.1), "code") for i in range(5)), Mark(0.1, (-90.0, 90.0), "code")])
    assert -2 < low < 0 < high < 2


def test_evidence_has_marks_verdicts_and_intervals():
    plot, svg = drawn(evidence(ASKED))
    axis = max(t.y for t in texts(svg) if number(t.text) is not None)
    slope, zero = mapping([(v, t.x) for t in texts(svg) if abs(t.y - axis) < 0.1 and (v := number(t.text)) is not None])
    for value, verdict, colour in ((-0.2, "better", "var(--better)"), (0.1, "worse", "var(--worse)"), (0.01, "not significant", "var(--untold)")):
        place = next(t for t in texts(svg) if t.text == verdict)
        mark = next(s for s in seen(svg) if s.tag == "path" and s.look.get("stroke") == colour and abs(s.y + 3.5 - place.y) < 5)
        assert abs(mark.x - zero - slope * value) < 0.6
        assert (mark.look["fill"] == "var(--card)") == (verdict == "not significant")
    assert "−0.200 nats/token (−0.250 to −0.150), better" in plot.description


def asked(*pieces: object) -> PaperQuestion:
    return PaperQuestion("own", "?", "yes", "", pieces)  # pyright: ignore[reportArgumentType]


def test_runs_stand_one_below_the_other_and_units_do_not_share_an_axis():
    _, svg = drawn(evidence(asked(piece(0.1, "worse", "run one"), piece(0.1, "worse", "run two"), piece(0.2, "worse", "run one", "x"))))
    assert [said(svg).count(text) for text in ("run one", "run two", "gsm8k:icl against c4")] == [1, 1, 1]
    _, svg = drawn(evidence(asked(piece(0.1, "worse"), piece(10.0, "worse", unit="points"))))
    assert [text.rpartition(", ")[2] for text in said(svg) if text.startswith("←")] == ["nats/token", "points"]


def test_very_much_evidence_is_narrowed_to_the_mean_and_none_is_no_plot():
    plot, _ = drawn(evidence(asked(*(piece(0.1, "worse", f"run {i}", "x" if i % 3 else "mean") for i in range(90)))))
    assert "30 rows of 90" in plot.description
    assert evidence(asked()) is evidence(asked(piece(math.nan, "not significant"))) is None
