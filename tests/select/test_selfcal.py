"""What the model writes from its start token alone."""

from dataclasses import replace

import pytest

from calibrant.data import CalibrationSet
from calibrant.errors import DataError
from calibrant.select import resolved, selectors
from calibrant.select._generating import distinct
from calibrant.select.selfcal import SelfCal
from calibrant.testing import tiny_tokenizer

from tests.select.contexts import context, opened


def test_the_temperature_falls_in_a_straight_line() -> None:
    found = [SelfCal(t_initial=3.0, t_final=1.0, steps=4).temperature(step) for step in range(7)]
    assert found == [3.0, 2.5, 2.0, 1.5, 1.0, 1.0, 1.0]
    assert SelfCal(t_initial=3.0, t_final=0.7, steps=0).temperature(0) == 0.7


def test_the_same_draw_has_the_same_texts_and_another_has_others() -> None:
    given = replace(context(), tokens=128)
    one, again, other = (SelfCal().select(replace(given, draw=draw)) for draw in (0, 0, 1))
    assert one == again
    assert not {row.key for row in one.rows} & {row.key for row in other.rows}
    assert SelfCal().disjoint() is None


def test_hot_openings_differ_more() -> None:
    def openings(t_initial: float) -> float:
        rows = SelfCal(t_initial=t_initial, max_tokens=16).select(replace(context(), tokens=512)).rows
        return distinct([list(row.text.encode()[:4]) for row in rows], 2)

    assert openings(5.0) > openings(0.4) + 0.1


def test_it_stands_where_a_source_stands() -> None:
    asked = CalibrationSet("selfcal(t_initial=1.5)", tokens=300, length=64)
    batch = resolved(asked, opened()).tokens(tiny_tokenizer())
    assert int(batch.mask.sum()) == 300
    assert str(selectors.build("selfcal(t_initial=1.5)")) == "selfcal(t_initial=1.5)"


def test_without_a_start_token_the_end_token_stands_for_it_and_without_either_it_says_so() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    given = replace(context(), tokenizer=tokenizer, tokens=64)
    selector = SelfCal(batch=3)
    assert selector.select(given).rows
    tokenizer.eos_token = None
    with pytest.raises(DataError) as caught:
        selector.select(given)
    assert caught.value.subject == str(selector)


def test_it_measures_nothing() -> None:
    with pytest.raises(DataError) as caught:
        SelfCal().measured()
    assert caught.value.subject == "selfcal"
