"""What the model writes from its start token alone."""

from dataclasses import replace
from typing import Any

import pytest

from calibrant.data import CalibrationSet
from calibrant.errors import DataError, SpecError
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
    one, again, other = (SelfCal().select(context(draw)) for draw in (0, 0, 1))
    assert one == again
    assert not {row.key for row in one.rows} & {row.key for row in other.rows}
    assert SelfCal().disjoint() is None


def test_hot_openings_differ_more() -> None:
    def openings(t_initial: float) -> float:
        rows = SelfCal(t_initial=t_initial, max_tokens=16).select(replace(context(), tokens=1024)).rows
        return distinct([list(row.text.encode()[:4]) for row in rows], 2)

    assert openings(5.0) > openings(0.4) + 0.1


def test_it_stands_where_a_source_stands() -> None:
    asked = CalibrationSet("selfcal(t_initial=1.5)", tokens=300, length=64)
    batch = resolved(asked, opened()).tokens(tiny_tokenizer())
    assert int(batch.mask.sum()) == 300
    assert "distinct-1/2/3" in batch.facts["parts"][0]["note"]
    assert str(selectors.build("selfcal(t_initial=1.5)")) == "selfcal(t_initial=1.5)"


def ids_without(tokenizer: Any, *names: str) -> Any:
    for name in names:
        setattr(tokenizer, name, None)
    return tokenizer


def test_without_a_start_token_the_end_token_stands_for_it() -> None:
    tokenizer = ids_without(tiny_tokenizer(), "bos_token")
    assert SelfCal().select(replace(context(), tokenizer=tokenizer)).rows


def test_without_either_it_says_so() -> None:
    tokenizer = ids_without(tiny_tokenizer(), "bos_token", "eos_token")
    with pytest.raises(DataError, match=r"selfcal\(batch=3\) begins with the start token, and this tokenizer has neither"):
        SelfCal(batch=3).select(replace(context(), tokenizer=tokenizer))


def test_it_measures_nothing_and_needs_the_model() -> None:
    with pytest.raises(DataError, match="selfcal has no source"):
        SelfCal().measured()
    with pytest.raises(DataError, match="selfcal needs the model"):
        SelfCal().select(context(model=False))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("t_initial=0.0", r"t_initial=0\.0\): it must be at least 0\.001"),
        ("t_final=-1.0", r"t_final=-1\.0\): it must be at least"),
        ("steps=-1", r"steps=-1\): it must be at least 0"),
        ("top_k=-2", r"top_k=-2"),
        ("top_p=1.5", r"top_p=1\.5\): it must be between 0\.001 and 1"),
        ("repetition_penalty=0.0", r"repetition_penalty=0\.0"),
        ("batch=0", r"batch=0"),
        ("max_tokens=0", r"max_tokens=0"),
        ("prefix=wikipedia", "no parameter 'prefix'"),
    ],
)
def test_what_makes_no_sense_is_refused(given: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        selectors.build(f"selfcal({given})")
