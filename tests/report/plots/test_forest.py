import math
from dataclasses import replace
from itertools import pairwise

import pytest

from calibrant.lab.report.plots import evidence, forest, formats
from calibrant.lab.stats import Estimate, PaperQuestion, RankingEntry

from tests.report.made import ASKED, BEST, DENSE, LAST, MAGNITUDE, SECOND, piece, ranking, renamed
from tests.report.plots.seen import Seen, bold, drawn, mapping, number, said, seen, texts


def against(entry: RankingEntry, *differences: float, spread: float = 0.02) -> RankingEntry:
    """`entry`, so much worse than the baseline on average and on each measured set."""
    return replace(
        entry,
        to_baseline={
            m: Estimate(d, spread, 20.0, 21)
            for m, d in zip(("mean", *DENSE), differences, strict=True)
        },
    )


BASED = ranking(
    against(BEST, -0.1, -0.15, 0.004),
    replace(SECOND, to_baseline={}),
    against(LAST, 4.8, 4.5, 5.1),
    baselines=(against(MAGNITUDE, 3.6, 3.5, 3.6),),
)
BASED = replace(BASED, baseline="c4")


def panels(svg: str) -> list[tuple[float, float, float, float]]:
    """Of each panel where it begins and ends, and slope and start of its axis."""
    starts = sorted(t.x for t in texts(svg) if t.look.get("font-weight") == "bold")
    axis = max(t.y for t in texts(svg) if number(t.text) == 0)
    found = []
    for start, end in pairwise((*starts, math.inf)):
        ticks = [
            (v, t.x)
            for t in texts(svg)
            if abs(t.y - axis) < 0.1
            and start - 9 <= t.x < end - 9
            and (v := number(t.text)) is not None
        ]
        found.append((start, end, *mapping(ticks)))
    return found


def row(svg: str, name: str) -> list[Seen]:
    """What is drawn of a set of running text beside its name."""
    place = next(t.y for t in texts(svg) if t.text == name and t.look.get("text-anchor") == "end")
    return [
        s for s in seen(svg) if abs(s.y - place) < 8 and s.look.get("stroke") == "var(--f-corpus)"
    ]


def test_marks_and_intervals_stand_where_the_axis_says():
    _, svg = drawn(forest(BASED))
    assert bold(svg) == ["mean", "docs", "code"]
    for (start, end, slope, zero), value in zip(panels(svg), (-0.1, -0.15, 0.004), strict=True):
        of_panel = [s for s in row(svg, "python_docs") if start <= s.x < end]
        mark = next(s for s in of_panel if s.tag == "path")
        line = next(s for s in of_panel if s.tag == "line")
        assert mark.x == pytest.approx(zero + slope * value, abs=0.6)
        low, high = Estimate(value, 0.02, 20.0, 21).interval(0.95, 3)  # pyright: ignore[reportGeneralTypeIssues]
        assert sorted((line.x, line.x + line.to[0])) == pytest.approx(
            [zero + slope * low, zero + slope * high], abs=0.6
        )


def test_hollow_is_what_cannot_be_told_apart():
    plot, svg = drawn(forest(BASED))
    fills = [
        s.look["fill"]
        for s in sorted(row(svg, "python_docs"), key=lambda s: s.x)
        if s.tag == "path"
    ]
    assert fills == ["var(--f-corpus)", "var(--f-corpus)", "var(--card)"]
    assert "Hollow: not significantly different from c4." in plot.caption
    for part in (
        "python_docs −0.100 (−0.152 to −0.048)",
        "python_docs +0.004 (−0.048 to 0.056)*",
        "c4 is the baseline",
        "full_stops +4.800",
    ):
        assert part in plot.description


def test_holes_are_dashes_endless_values_arrows_and_nothing_no_plot():
    odd = {"mean": Estimate(math.nan, None, 0.0, 0), "docs:text": Estimate(math.inf, None, 0.0, 1)}
    plot, svg = drawn(
        forest(replace(BASED, entries=(replace(BEST, to_baseline=odd), *BASED.entries[1:])))
    )
    assert said(svg).count("—") == 2
    assert "+∞" in said(svg)
    assert "no number for python_docs" in plot.description
    assert forest(ranking()) is formats(BASED) is None
    names = ("gsm8k:icl", "gsm8k:cot@many", "c4")
    _, svg = drawn(
        formats(ranking(*(renamed(e, n) for e, n in zip((BEST, SECOND, LAST), names, strict=True))))
    )
    assert {"icl", "cot@many", "gsm8k"} <= set(said(svg)), "formats of a source stand together"
    assert "c4" not in said(svg)


def test_evidence_has_marks_verdicts_and_intervals():
    plot, svg = drawn(evidence(ASKED))
    axis = max(t.y for t in texts(svg) if number(t.text) is not None)
    slope, zero = mapping(
        [
            (v, t.x)
            for t in texts(svg)
            if abs(t.y - axis) < 0.1 and (v := number(t.text)) is not None
        ]
    )
    for value, verdict, colour in (
        (-0.2, "better", "var(--better)"),
        (0.1, "worse", "var(--worse)"),
        (0.01, "not significant", "var(--untold)"),
    ):
        place = next(t for t in texts(svg) if t.text == verdict)
        mark = next(
            s
            for s in seen(svg)
            if s.tag == "path" and s.look.get("stroke") == colour and abs(s.y + 3.5 - place.y) < 5
        )
        assert abs(mark.x - zero - slope * value) < 0.6
        assert (mark.look["fill"] == "var(--card)") == (verdict == "not significant")
    assert "−0.200 nats/token (−0.250 to −0.150), better" in plot.description


def asked(*pieces: object) -> PaperQuestion:
    return PaperQuestion("own", "?", "yes", "", pieces)  # pyright: ignore[reportArgumentType]


def test_runs_stand_one_below_the_other_and_units_do_not_share_an_axis():
    _, svg = drawn(
        evidence(
            asked(
                piece(0.1, "worse", "run one"),
                piece(0.1, "worse", "run two"),
                piece(0.2, "worse", "run one", "x"),
            )
        )
    )
    assert [said(svg).count(text) for text in ("run one", "run two", "gsm8k:icl against c4")] == [
        1,
        1,
        1,
    ]
    _, svg = drawn(evidence(asked(piece(0.1, "worse"), piece(10.0, "worse", unit="points"))))
    assert [text.rpartition(", ")[2] for text in said(svg) if text.startswith("←")] == [
        "nats/token",
        "points",
    ]


def test_very_much_evidence_is_narrowed_to_the_mean_and_none_is_no_plot():
    plot, _ = drawn(
        evidence(
            asked(*(piece(0.1, "worse", f"run {i}", "x" if i % 3 else "mean") for i in range(90)))
        )
    )
    assert "30 rows of 90" in plot.description
    assert evidence(asked()) is evidence(asked(piece(math.nan, "not significant"))) is None
