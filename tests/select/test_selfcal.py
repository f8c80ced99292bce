"""What the model writes from its start token alone."""

from dataclasses import replace

import pytest

from calibrant.data.select._generating import distinct
from calibrant.data.select.selfcal import SelfCal
from calibrant.errors import DataError
from calibrant.testing import tiny_tokenizer

from tests.select.contexts import context


def test_the_temperature_falls_in_a_straight_line() -> None:
    found = [SelfCal(t_initial=3.0, t_final=1.0, steps=4).temperature(step) for step in range(7)]
    assert found == [3.0, 2.5, 2.0, 1.5, 1.0, 1.0, 1.0]
    assert SelfCal(t_initial=3.0, t_final=0.7, steps=0).temperature(0) == 0.7


def test_hot_openings_differ_more() -> None:
    def openings(t_initial: float) -> float:
        rows = (
            SelfCal(t_initial=t_initial, max_tokens=16).select(replace(context(), tokens=1024)).rows
        )
        return distinct([list(row.text.encode()[:4]) for row in rows], 2)

    assert openings(5.0) > openings(0.4) + 0.1


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


def test_it_measures_nothing_and_has_draws_without_end() -> None:
    assert SelfCal().disjoint() is None
    with pytest.raises(DataError) as caught:
        SelfCal().measured()
    assert caught.value.subject == "selfcal"
