import re

import pytest

from calibrant.report.forest import Mark, cut, forest, span_of, ticks


def test_marks_lie_in_proportion_on_one_axis():
    drawn = forest([Mark("a", 0.0, None), Mark("b", 1.0, None), Mark("c", 2.0, (1.5, 2.5))], "t", "d", "dense")
    xs = [float(x) for x in re.findall(r'<circle class="mark" cx="([\d.]+)"', drawn)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    low, high = map(float, re.findall(r'class="interval" d="M([\d.]+) [\d.]+H([\d.]+)', drawn)[0])
    assert xs[2] - low == pytest.approx(high - xs[2], abs=0.11)
    assert high - low == pytest.approx(xs[1] - xs[0], abs=0.11)
    zero = float(re.findall(r'class="zero" x1="([\d.]+)"', drawn)[0])
    assert zero == xs[0]


def test_kinds_differ_in_shape_and_ties_are_hollow():
    drawn = forest([Mark("a", 1.0, None), Mark("b", 1.0, None, "control"), Mark("c", 1.0, None, "baseline", hollow=True)], "t", "d", "")
    groups = re.findall(r'<g class="row ([\w ]+)">.*?<(circle|path|rect) class="mark"', drawn)
    assert groups == [("set", "circle"), ("control", "path"), ("baseline hollow", "rect")]


def test_what_is_far_beyond_the_sets_becomes_an_arrow_with_its_number():
    drawn = forest([Mark("a", 1.0, (0.9, 1.1)), Mark("b", 9.0, (8.0, 10.0), "control")], "t", "d", "dense")
    assert drawn.count('class="mark"') == 1
    assert "+9.000" in drawn
    low, high = span_of([Mark("a", 1.0, (0.9, 1.1)), Mark("b", 9.0, (8.0, 10.0), "control"), Mark("c", 1.5, None, "control")])
    assert low < 0
    assert 1.5 < high < 2


def test_sets_are_always_inside():
    low, high = span_of([Mark("a", 0.1, None), Mark("b", -3.0, (-4.0, 50.0))])
    assert low < -4
    assert high > 50
    assert span_of([]) == (-1.0, 1.0)
    assert span_of([Mark("only", 9.0, None, "control")])[1] > 9


def test_names_are_text():
    drawn = forest([Mark("<b>&'\"", 1.0, None)], "<t>", "<d>", "<r>")
    assert "<b>" not in drawn
    assert "<t>" not in drawn
    assert "&lt;b&gt;&amp;" in drawn


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.2, 7.3), (-1e-6, 3e-6), (0, 1234)])
def test_ticks_are_round_and_inside(low: int | float, high: int | float):
    found = ticks(float(low), float(high))
    assert 3 <= len(found) <= 7
    assert all(low - 1e-12 <= t <= high for t in found)
    step = found[1] - found[0]
    assert f"{step:.0e}"[0] in "125"


def test_long_names_are_cut_in_the_middle():
    assert cut("short") == "short"
    assert len(cut("x" * 50)) == 26
    assert cut("beginning" + "x" * 50 + "end").startswith("begin")
    assert cut("beginning" + "x" * 50 + "end").endswith("end")
