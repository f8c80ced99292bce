import pytest

from calibrant.compare import MEAN, Comparison, Gap, Sensitivity
from calibrant.report.plots import inline, plots, worth
from calibrant.report.tables.sections import sections, sensitivity

from tests.report.plots.seen import mapping, number, seen, texts


def of(method: str, worth: float, low: float, floor: float, increase: float | None = 1.0, model: str = "tiny") -> Sensitivity:
    """A method whose worst set is so much worse than the best."""
    one = Gap("c4", "code", worth, (low, 2 * worth - low), floor)
    sets, gaps = ("c4", "code", "pile"), {"docs": one, MEAN: one}
    return Sensitivity(model, method, "w3g64", "arrival", "nats/token", sets, 3, increase, 4.0, (1.5, 60.0), 0.001, gaps)


GPTQ, RTN = of("gptq", 0.6, 0.4, 0.1), of("rtn", 0.05, 0.0, 0.1, 0.8)


def test_each_method_stands_at_what_the_choice_is_worth():
    plot = worth([RTN, GPTQ])
    assert plot is not None
    svg = inline(plot, "k")
    said = texts(svg)
    names = [t for t in said if t.text.startswith(("gptq", "rtn"))]
    assert [t.text for t in sorted(names, key=lambda t: t.y)] == ["gptq w3g64", "rtn w3g64"], "what matters most stands first"
    assert {"worst less best set", "as a share of the increase", "nats/token", "%"} <= {t.text for t in said}
    first = [t for t in said if number(t.text) is not None and t.x < max(t.x for t in said) / 2]
    slope, start = mapping([(v, t.x) for t in first if (v := number(t.text)) is not None])
    marks = [(m.x - start) / slope for m in seen(svg) if m.tag == "path" and m.look.get("stroke") == "var(--accent)"]
    assert sorted(marks)[:2] == [pytest.approx(0.05, abs=0.005), pytest.approx(0.6, abs=0.005)]


def test_chance_is_shaded_and_what_is_not_significant_hollow():
    plot = worth([RTN, GPTQ])
    assert plot is not None
    records = plot.spec["datasets"]["rows"]
    shaded = {(r["p"], r["r"]): (r["v"], r["w"]) for r in records if r["k"] == "shade"}
    assert shaded == {(0, 0): (0.0, 0.1), (0, 1): (0.0, 0.1), (1, 0): (0.0, 10.0), (1, 1): (0.0, 12.5)}
    assert {(r["k"], r["r"]) for r in records if r["k"] in ("mark", "hollow")} == {("mark", 0), ("hollow", 1)}
    assert "gptq w3g64 0.600 (0.400 to 0.800), chance 0.100, 60.0\u202f% of the increase" in plot.description


def test_a_narrow_one_has_the_first_panel_alone():
    wide, narrow, unknown = worth([RTN, GPTQ]), worth([RTN, GPTQ], narrow=True), worth([of("rtn", 0.1, 0.0, 0.1, None)])
    panels = [{r["p"] for r in plot.spec["datasets"]["rows"]} for plot in (wide, narrow, unknown) if plot is not None]
    assert panels == [{0, 1}, {0}, {0}], "without a dense model there is no share"


def test_nothing_drawn_twice_is_no_plot():
    assert worth([]) is None


def test_each_model_has_its_own():
    drawn = plots(Comparison(sensitivities=(GPTQ, RTN, of("gptq", 0.2, 0.1, 0.1, model="other"))), [], {})
    assert [(plot.name, plot.title.rpartition(" ")[2]) for plot in drawn] == [("sensitivity-tiny", "tiny"), ("sensitivity-other", "other")]


def test_a_table_says_the_same():
    (part,) = sensitivity(Comparison(sensitivities=(RTN, GPTQ)))
    assert part.table is not None
    first, second = part.table.rows
    assert first.name == "gptq at 3 bits in groups of 64 (w3g64)"
    assert [str(f) for f in first.figures] == ["0.600", "0.400 to 0.800", "0.100", "60\u00a0%", "4.0", "1.5 to 60.0", "0.001"]
    assert second.name == "rtn at 3 bits in groups of 64 (w3g64)"
    assert part.sentences[0] == "Some two sets differ significantly in 1 of 2 combinations of model, method and target."
    assert part.title in [section.title for section in sections(Comparison(sensitivities=(RTN,)))]
    assert not list(sensitivity(Comparison()))
