from dataclasses import replace

import pytest

from calibrant.lab.report.tables.table import ranked
from calibrant.lab.report.tables.terminal import LISTED
from calibrant.lab.stats import Ranking

from tests.report.made import (
    AGREEMENTS,
    BEST,
    EVERYTHING,
    FULL,
    PLAIN,
    SECOND,
    entry,
    ranking,
    reported,
)

MANY = ranking(
    *(entry(f"0.5*c4 + 0.5*source_{i}:cot", (1.0, 1.0 + i), float(i) or None) for i in range(4))
)


@pytest.mark.parametrize("made", [PLAIN, FULL, MANY])
def test_it_fits_any_terminal_and_loses_no_figure(made: Ranking):
    for width in (50, 80, 160):
        text = reported(replace(EVERYTHING, rankings=(made,))).table(width)
        assert max(map(len, text.splitlines())) <= width
        for line in ranked(made).rows:
            for figure in line.figures[:-1]:
                assert figure.value in text


def test_names_cant_steer_the_terminal():
    hostile = replace(BEST, name="[bold red]x[/] \x1b[2J\u202e")
    text = reported(replace(EVERYTHING, rankings=(ranking(hostile, SECOND),))).table(140)
    assert "[bold red]x[/] \\x1b[2J\\u202e" in text
    assert not {"\x1b", "\u202e"} & set(text)


def test_long_lists_are_counted():
    holes = tuple(f"c4 (draw {i}) on loss: not computed yet" for i in range(LISTED + 30))
    pairs = tuple(replace(AGREEMENTS[0], b=f"method {i}") for i in range(20))
    text = reported(replace(EVERYTHING, missing=holes, agreements=pairs)).table(120)
    assert text.count("not computed yet") == LISTED
    assert "and 30 more" in text
    assert "and 8 more" in text
