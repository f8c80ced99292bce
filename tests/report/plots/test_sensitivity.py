import pytest

from calibrant.lab.report.plots import worth
from calibrant.lab.stats import MEAN, Gap, Sensitivity

from tests.report.plots.seen import drawn, mapping, number, said, seen, texts


def of(
    method: str,
    worth: float,
    low: float,
    floor: float,
    increase: float | None = 1.0,
    model: str = "tiny",
) -> Sensitivity:
    """A method whose worst set is so much worse than the best."""
    one = Gap("c4", "code", worth, (low, 2 * worth - low), floor)
    sets, gaps = ("c4", "code", "pile"), {"docs": one, MEAN: one}
    return Sensitivity(
        model,
        method,
        "w3g64",
        "arrival",
        "nats/token",
        sets,
        3,
        increase,
        4.0,
        (1.5, 60.0),
        0.001,
        gaps,
        by_chance=floor,
    )


GPTQ, RTN = of("gptq", 0.6, 0.4, 0.1), of("rtn", 0.05, 0.0, 0.1, 0.8)


def test_each_method_stands_at_what_the_choice_is_worth():
    plot, svg = drawn(worth([RTN, GPTQ]))
    names = [t for t in texts(svg) if t.text.startswith(("gptq", "rtn"))]
    assert [t.text for t in sorted(names, key=lambda t: t.y)] == ["gptq w3g64", "rtn w3g64"], (
        "what matters most stands first"
    )
    assert {"nats/token", "%"} <= set(said(svg))
    first = [
        t
        for t in texts(svg)
        if number(t.text) is not None and t.x < max(t.x for t in texts(svg)) / 2
    ]
    slope, start = mapping([(v, t.x) for t in first if (v := number(t.text)) is not None])
    marks = [
        (m.x - start) / slope
        for m in seen(svg)
        if m.tag == "path" and m.look.get("stroke") == "var(--accent)"
    ]
    assert sorted(marks)[:2] == [pytest.approx(0.05, abs=0.005), pytest.approx(0.6, abs=0.005)]
    assert (
        "gptq w3g64 0.600 (0.400 to 0.800), chance 0.100, 60.0\u202f% of the increase"
        in plot.description
    )
    narrow, unknown = (
        drawn(worth([RTN, GPTQ], narrow=True))[0],
        drawn(worth([of("rtn", 0.1, 0.0, 0.1, None)]))[0],
    )
    panels = [{r["p"] for r in one.spec["datasets"]["rows"]} for one in (plot, narrow, unknown)]
    assert panels == [{0, 1}, {0}, {0}], "without a dense model there is no share"
    assert worth([]) is None
