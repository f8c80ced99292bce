import math

from calibrant.compare import Estimate, Evidence, PaperQuestion
from calibrant.report.plots import evidence, inline

from tests.report.plots.seen import mapping, number, seen, texts


def piece(value: float, verdict: str, where: str = "wanda at 0.6", on: str = "mean", half: float = 0.05, unit: str = "nats/token") -> Evidence:
    return Evidence("gsm8k:icl against c4", where, on, Estimate(value, half / 2, 9.0, 9), (value - half, value + half), verdict, unit)  # pyright: ignore[reportArgumentType]


ASKED = PaperQuestion(
    "icl",
    "Do examples help?",
    "it depends",
    "They do once.",
    (piece(-0.2, "better"), piece(0.1, "worse", on="x"), piece(0.01, "not significant", on="y")),
)


def test_marks_verdicts_and_intervals():
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


def test_units_do_not_share_an_axis():
    plot = evidence(PaperQuestion("cot", "?", "yes", "", (piece(0.1, "worse"), piece(10.0, "worse", unit="points"))))
    assert plot is not None
    assert [t.text for t in texts(inline(plot, "k")) if t.text.startswith("←")] == ["← better · worse →, nats/token", "← better · worse →, points"]


def test_very_much_evidence_is_narrowed_to_the_mean():
    plot = evidence(PaperQuestion("own", "?", "yes", "", tuple(piece(0.1, "worse", f"run {i}", "x" if i % 3 else "mean") for i in range(90))))
    assert plot is not None
    assert "30 rows of 90" in plot.description


def test_no_evidence():
    assert evidence(PaperQuestion("own", "?", "not covered", "")) is None
    assert evidence(PaperQuestion("own", "?", "yes", "", (piece(math.nan, "not significant"),))) is None
