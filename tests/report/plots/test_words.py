import math

import pytest

from calibrant.compare import Estimate
from calibrant.report.plots.placing import around, spaced
from calibrant.report.plots.words import cut, ends, share, signed, stem


def test_numbers_are_written_with_their_sign_and_no_interval_of_what_is_no_number():
    told = {0.4123: "+0.412", -0.0312: "−0.031", 0.0: "0.000", -0.0001: "0.000", math.inf: "+∞", -math.inf: "−∞", 1e9: "+1.00e+09"}
    assert {value: signed(value) for value in told} == told
    assert share(0.9312) == "93.1\u202f%"
    assert ends(Estimate(math.nan, 0.1, 5.0, 5), 0.95) is ends(Estimate(1.0, None, 5.0, 5), 0.95) is None


def test_names_are_cut_in_the_middle():
    assert cut("short") == "short"
    long = cut("beginning" + "x" * 300 + "end")
    assert len(long) == 26
    assert (long[:5], long[-3:]) == ("begin", "end")
    assert len(cut("abcdefgh", 1)) == 3
    assert len(cut("本" * 50)) == 13
    assert cut("a\0b\u202e") == r"a\x00b\u202e", "what no file may hold is shown as text"


def test_stems_are_for_every_file_system():
    assert stem("forest", "sparsegpt(damp=0.02)", "2:4") == "forest-sparsegpt-damp-0.02-2-4"
    assert stem("../../etc") == "etc"
    assert stem("本") == "plot"
    assert len(stem("x" * 500)) == 80


def test_labels_are_spread_stay_inside_and_do_not_overlap_around_points():
    places = spaced([50.0, 50.0, 52.0, 10.0], 0.0, 100.0)
    assert places[3] == 10.0
    assert sorted(places)[1:] == pytest.approx([50 + 2 / 3 - 12, 50 + 2 / 3, 50 + 2 / 3 + 12])
    tight = spaced([0.0] * 50, 0.0, 100.0)
    assert (min(tight), max(tight)) == (pytest.approx(0, abs=1e-9), pytest.approx(100))
    found = around([(100.0, 100.0)] * 6, ["a name"] * 6, 300, 300)
    boxes = [(label.x - 36 if label.right else label.x, label.y) for label in found if label]
    assert len(boxes) == 6
    assert all(abs(a[0] - b[0]) >= 36 or abs(a[1] - b[1]) >= 12 for i, a in enumerate(boxes) for b in boxes[:i])
