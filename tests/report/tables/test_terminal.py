from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from calibrant.report.tables.sections import sections
from calibrant.report.tables.table import ranked
from calibrant.report.tables.terminal import LISTED, fitted, lines

from tests.report.made import AGREEMENTS, BEST, EVERYTHING, FULL, PLAIN, SECOND, entry, ranking, reported

MANY = ranking(*(entry(f"0.5*c4 + 0.5*source_{i}:cot", (1.0, 1.0 + i), float(i) or None) for i in range(4)))


@pytest.mark.parametrize("width", [50, 60, 80, 110, 160])
@pytest.mark.parametrize("made", [PLAIN, FULL, MANY])
def test_it_fits_any_terminal_and_loses_no_figure(made: object, width: int):
    comparison = replace(EVERYTHING, rankings=(made,))
    text = reported(comparison).table(width)
    assert max(map(len, text.splitlines())) <= width
    for line in ranked(made).rows:  # pyright: ignore[reportArgumentType]
        for figure in line.figures[:-1]:
            assert figure.value in text


def test_the_fullest_that_fits_is_drawn():
    table = ranked(FULL)
    whole, fewer, bare, least = table.shortened()
    assert list(fitted(table, 160)) == [whole]
    assert list(fitted(table, 86)) == [fewer]
    assert list(fitted(table, 70)) == [bare]
    assert list(fitted(table, 60)) == [least]
    pieces = list(fitted(table, 40))
    assert [c.head for piece in pieces for c in piece.columns] == [c.head for c in table.columns]
    assert len(pieces) > 1


def test_numbers_stand_under_one_another_with_letters_behind():
    rows = [line for line in reported().table(120).splitlines() if line.startswith(("python_docs", "c4", "full_stops"))][:3]
    assert len({row.index("± 0.020") for row in rows}) == 1
    assert rows[1].split("+1.700 ± 0.020")[1].startswith(" ab")


def test_only_the_really_best_is_bold():
    out = StringIO()
    reported().show(Console(file=out, width=120, color_system="standard", force_terminal=True))
    assert "\x1b[1m+1.600 ± 0.020" in out.getvalue()
    assert "\x1b[1m+1.700" not in out.getvalue()


def test_names_cant_steer_the_terminal():
    hostile = replace(BEST, name="[bold red]x[/] \x1b[2J\u202e")
    text = reported(replace(EVERYTHING, rankings=(ranking(hostile, SECOND),))).table(140)
    assert "[bold red]x[/] \\x1b[2J\\u202e" in text


def test_doubts_are_set_off():
    odd = ranking(entry("random_tokens", (1.0, 1.0), None), SECOND)
    shown = list(lines(list(sections(replace(EVERYTHING, rankings=(odd,)))), 100))
    (doubt,) = [x for x in shown if str(x).startswith("Doubtful")]
    assert "yellow" in str(doubt.style)  # pyright: ignore[reportAttributeAccessIssue]


def test_long_lists_are_counted():
    holes = tuple(f"c4 (draw {i}) on loss: not computed yet" for i in range(LISTED + 30))
    pairs = tuple(replace(AGREEMENTS[0], b=f"method {i}") for i in range(20))
    text = reported(replace(EVERYTHING, missing=holes, agreements=pairs)).table(120)
    assert text.count("not computed yet") == LISTED
    assert "… and 30 more, which --format json lists" in text
    assert "… and 8 more" in text
