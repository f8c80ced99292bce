import math
from dataclasses import replace
from itertools import pairwise

import pytest

from calibrant.compare import Estimate, PaperQuestion, Ranking, RankingEntry
from calibrant.report.plots import evidence, forest, formats, inline
from calibrant.report.plots.panels import Mark, span_of, ticks

from tests.report.made import ASKED, BEST, DENSE, LAST, MAGNITUDE, SECOND, piece, ranking, renamed
from tests.report.plots.seen import mapping, number, seen, texts

CROSSED = "M-.9,-.5L"


def against(entry: RankingEntry, *differences: float, spread: float = 0.02) -> RankingEntry:
    """`entry`, so much worse than the baseline on average and on each measured set."""
    return replace(entry, to_baseline={m: Estimate(d, spread, 20.0, 21) for m, d in zip(("mean", *DENSE), differences, strict=True)})


BASED = ranking(
    against(BEST, -0.1, -0.15, 0.004), replace(SECOND, to_baseline={}), against(LAST, 4.8, 4.5, 5.1), baselines=(against(MAGNITUDE, 3.6, 3.5, 3.6),)
)
BASED = replace(BASED, baseline="c4")


def drawn(made: Ranking) -> str:
    plot = forest(made)
    assert plot is not None
    return inline(plot, "k")


def test_marks_and_intervals_stand_where_the_axis_says():
    svg = drawn(BASED)
    titles = {t.text: t.x for t in texts(svg) if t.look.get("font-weight") == "bold"}
    assert list(titles) == ["mean", "docs", "code"]
    names = {t.text: t.y for t in texts(svg) if t.look.get("text-anchor") == "end" and t.text in ("python_docs", "c4")}
    baseline = max(t.y for t in texts(svg) if number(t.text) == 0)
    starts = sorted(titles.values())
    for panel, (start, value) in enumerate(zip(starts, (-0.1, -0.15, 0.004), strict=True)):
        end = starts[panel + 1] if panel < 2 else math.inf
        ticks = [(v, t.x) for t in texts(svg) if abs(t.y - baseline) < 0.1 and start - 9 <= t.x < end - 9 and (v := number(t.text)) is not None]
        slope, zero = mapping(ticks)
        row = [s for s in seen(svg) if abs(s.y - names["python_docs"]) < 8 and start <= s.x < end and s.look.get("stroke") == "var(--f-corpus)"]
        mark = next(s for s in row if s.tag == "path")
        line = next(s for s in row if s.tag == "line")
        assert mark.x == pytest.approx(zero + slope * value, abs=0.6)
        low, high = Estimate(value, 0.02, 20.0, 21).interval(0.95, 3)  # pyright: ignore[reportGeneralTypeIssues]
        assert sorted((line.x, line.x + line.to[0])) == pytest.approx([zero + slope * low, zero + slope * high], abs=0.6)


def test_hollow_is_what_cannot_be_told_apart():
    svg = drawn(BASED)
    row = next(t.y for t in texts(svg) if t.text == "python_docs" and t.look.get("text-anchor") == "end")
    fills = [s.look["fill"] for s in seen(svg) if s.tag == "path" and abs(s.y - row) < 8 and s.look.get("stroke") == "var(--f-corpus)"]
    assert sorted(fills) == ["var(--card)", "var(--f-corpus)", "var(--f-corpus)"]
    plot = forest(BASED)
    assert plot is not None
    assert "Hollow: not significantly different from c4." in plot.caption


def test_what_is_far_beyond_the_sets_becomes_an_arrow_with_its_number():
    svg = drawn(BASED)
    said = [t.text for t in texts(svg)]
    assert {"+4.800", "+4.500", "+5.100", "+3.600", "+3.500"} <= set(said)
    assert not any(s.d.startswith(CROSSED) and s.y < 100 for s in seen(svg))


def test_the_zero_line_has_the_name_of_the_baseline():
    svg = drawn(BASED)
    assert [t.text for t in texts(svg)].count("c4") == 4  # its row, and below each panel
    assert any("worse than c4" in t.text and "nats/token" in t.text for t in texts(svg))


def test_without_a_baseline_the_dense_model_is_zero_and_without_that_nothing_is():
    plot = forest(ranking(BEST, SECOND))
    assert plot is not None
    assert "Increase over the dense model" in plot.title
    assert "python_docs +1.600" in plot.description
    bare = ranking(*(replace(e, increases={}) for e in (BEST, SECOND)), dense=None)
    svg = drawn(bare)
    assert not [s for s in seen(svg) if s.look.get("stroke") == "var(--ink)"]
    assert "hollow" not in svg


def test_a_panel_of_another_unit_has_an_axis_and_a_unit_of_its_own():
    mixed = replace(BASED, averaged=("docs:text",), units={"docs:text": "nats/token", "code:text": "points"})
    plot = forest(mixed)
    assert plot is not None
    said = [t.text for t in texts(inline(plot, "k"))]
    assert said.count("← better · worse than c4 →") == 1
    assert {"nats/token", "points"} <= set(said)
    assert "in the unit below each panel" in plot.caption


def test_panels_stand_in_the_tables_order_also_where_one_reaches_many_times_as_far():
    far = ranking(against(BEST, -0.1, 3.0, -0.15), replace(SECOND, to_baseline={}), against(LAST, 0.2, -4.0, 0.1))
    plot = forest(replace(far, baseline="c4"))
    assert plot is not None
    svg = inline(plot, "k")
    assert [t.text for t in texts(svg) if t.look.get("font-weight") == "bold"] == ["mean", "docs", "code"]
    assert "have an axis of their own" in plot.caption
    axis = max(t.y for t in texts(svg) if number(t.text) == 0)
    starts = sorted(t.x for t in texts(svg) if t.look.get("font-weight") == "bold")
    slopes = []
    for start, end in zip(starts, (*starts[1:], math.inf), strict=True):
        ticks_of = [(v, t.x) for t in texts(svg) if abs(t.y - axis) < 0.1 and start - 9 <= t.x < end - 9 and (v := number(t.text)) is not None]
        slopes.append(mapping(ticks_of)[0])
    assert slopes[0] == pytest.approx(slopes[2], rel=0.01)
    assert slopes[0] > 4 * slopes[1]


def test_a_narrow_one_has_the_first_panel_alone():
    plot = forest(BASED, narrow=True)
    assert plot is not None
    svg = inline(plot, "k")
    assert [t.text for t in texts(svg) if t.look.get("font-weight") == "bold"] == ["mean"]
    assert float(svg.partition('viewBox="')[2].split()[2]) < 420
    assert "Here the mean alone; the table has all." in plot.caption


def test_long_titles_stand_in_two_lines_and_within_their_panels():
    measured = tuple(f"commonsense_qa_{i} (3-shot)" for i in range(9))
    spread = {m: Estimate(0.1, 0.02, 20.0, 21) for m in measured}
    made = ranking(replace(BEST, to_baseline=spread), replace(SECOND, to_baseline={}), measured=measured, averaged=measured, baseline="c4")
    svg = drawn(made)
    bold = [t for t in texts(svg) if t.look.get("font-weight") == "bold"]
    for line in {t.y for t in bold}:
        row = sorted((t.x, t.text) for t in bold if t.y == line)
        for (x, text), (after, _) in pairwise(row):
            assert x + 12 * 0.62 * len(text) < after + 8, text


@pytest.mark.parametrize(("low", "high", "wanted", "asked"), [(-18.0, 18.0, 2, 3), (-1.0, 1.0, 2, 2), (-0.2, 0.1, 5, 5), (3.1, 3.9, 2, 3)])
def test_an_axis_has_two_ticks_or_more(low: float, high: float, wanted: int, asked: int):
    assert ticks(low, high, wanted) == asked


def test_holes_are_dashes_and_endless_values_arrows():
    odd = {"mean": Estimate(math.nan, None, 0.0, 0), "docs:text": Estimate(math.inf, None, 0.0, 1)}
    plot = forest(replace(BASED, entries=(replace(BEST, to_baseline=odd), *BASED.entries[1:])))
    assert plot is not None
    said = [t.text for t in texts(inline(plot, "k"))]
    assert said.count("—") == 2
    assert "+∞" in said
    assert "no number for python_docs" in plot.description


def test_the_description_has_every_number():
    plot = forest(BASED)
    assert plot is not None
    for part in (
        "python_docs −0.100 (−0.152 to −0.048)",
        "python_docs +0.004 (−0.048 to 0.056)*",
        "c4 is the baseline",
        "full_stops +4.800",
        "95\u00a0%",
    ):
        assert part in plot.description


def test_nothing_to_draw():
    assert forest(ranking()) is None
    assert formats(BASED) is None


def test_formats_of_a_source_stand_together():
    made = ranking(*(renamed(e, n) for e, n in zip((BEST, SECOND, LAST), ("gsm8k:icl", "gsm8k:cot@many", "c4"), strict=True)))
    plot = formats(made)
    assert plot is not None
    said = texts(inline(plot, "k"))
    assert [t.text for t in said if t.look.get("text-anchor") == "end" and number(t.text) is None] == ["icl", "cot@many", "gsm8k"] or {
        "icl",
        "cot@many",
        "gsm8k",
    } <= {t.text for t in said}
    assert "c4" not in {t.text for t in said}


def test_an_axis_holds_every_set_but_not_every_control():
    inner = [Mark(0.1, (0.0, 0.2), "code"), Mark(-0.2, (-0.3, -0.1), "code")]
    low, high = span_of([*inner, Mark(5.0, None, "control", aside=True)])
    assert low < -0.3
    assert 0.2 < high < 0.3
    assert span_of([*inner, Mark(0.45, None, "control", aside=True)])[1] > 0.45
    assert span_of([]) == (-1.0, 1.0)
    assert span_of([Mark(math.inf, None, "code")]) == (-1.0, 1.0)
    assert span_of([Mark(0.0, (0.0, 0.0), "code")]) == (-1.0, 1.0)


def test_one_endless_interval_does_not_flatten_the_others():
    low, high = span_of([*(Mark(0.1 * i, (0.1 * i - 0.1, 0.1 * i + 0.1), "code") for i in range(5)), Mark(0.1, (-90.0, 90.0), "code")])
    assert -2 < low < 0 < high < 2


def test_evidence_has_marks_verdicts_and_intervals():
    plot = evidence(ASKED)
    assert plot is not None
    assert plot.name == "in-context"
    svg = inline(plot, "k")
    axis = max(t.y for t in texts(svg) if number(t.text) is not None)
    slope, zero = mapping([(v, t.x) for t in texts(svg) if abs(t.y - axis) < 0.1 and (v := number(t.text)) is not None])
    for value, verdict, colour in ((-0.2, "better", "var(--better)"), (0.1, "worse", "var(--worse)"), (0.01, "not significant", "var(--untold)")):
        row = next(t for t in texts(svg) if t.text == verdict)
        mark = next(s for s in seen(svg) if s.tag == "path" and s.look.get("stroke") == colour and abs(s.y + 3.5 - row.y) < 5)
        assert abs(mark.x - zero - slope * value) < 0.6
        assert (mark.look["fill"] == "var(--card)") == (verdict == "not significant")
    assert "−0.200 nats/token (−0.250 to −0.150), better" in plot.description
    assert "Answer: it depends." in plot.description


def test_runs_stand_one_below_the_other_and_what_is_the_same_is_said_once():
    asked = PaperQuestion(
        "own", "?", "yes", "", (piece(0.1, "worse", "run one"), piece(0.1, "worse", "run two"), piece(0.2, "worse", "run one", "x"))
    )
    plot = evidence(asked)
    assert plot is not None
    said = [t.text for t in texts(inline(plot, "k"))]
    assert said.count("run one") == said.count("run two") == 1
    assert said.count("gsm8k:icl against c4") == 1


def test_units_of_evidence_do_not_share_an_axis():
    plot = evidence(PaperQuestion("cot", "?", "yes", "", (piece(0.1, "worse"), piece(10.0, "worse", unit="points"))))
    assert plot is not None
    assert [t.text for t in texts(inline(plot, "k")) if t.text.startswith("←")] == ["← better · worse →, nats/token", "← better · worse →, points"]


def test_very_much_evidence_is_narrowed_to_the_mean():
    plot = evidence(PaperQuestion("own", "?", "yes", "", tuple(piece(0.1, "worse", f"run {i}", "x" if i % 3 else "mean") for i in range(90))))
    assert plot is not None
    assert "30 rows of 90" in plot.description


def test_without_evidence_there_is_none():
    assert evidence(PaperQuestion("own", "?", "not covered", "")) is None
    assert evidence(PaperQuestion("own", "?", "yes", "", (piece(math.nan, "not significant"),))) is None
