"""What a measurement becomes on its way into a store."""

from dataclasses import replace

import numpy as np
import pytest

from calibrant.results import Measurement, Outcome
from calibrant.results.keeping import as_kept

from tests.results.samples import ESSAY, LOSS, MEASURED, QUIZ, QUIZZED, WRITTEN


@pytest.mark.parametrize(("evaluator", "measured"), [(LOSS, MEASURED), (QUIZ, QUIZZED)])
def test_what_is_plain_stays_as_it_is(evaluator: dict[str, object], measured: Measurement):
    assert as_kept(evaluator, measured) == measured


def test_numbers_of_numpy_become_pythons_own():
    items = [
        Outcome("one", np.float64(1.5), np.float64(1), {"hit": np.bool_(True)}),
        Outcome("two", np.float64(2.5), np.float64(1), {"hit": np.bool_(False)}),
    ]
    score = replace(QUIZZED.score, value=np.float64(2.0), facts={"perplexity": np.float64(2)})
    kept = as_kept(QUIZ, Measurement(score, tuple(items)))
    numbers = [kept.score.value, kept.score.facts["perplexity"]]
    for outcome in kept.outcomes:
        numbers += [outcome.value, outcome.weight, outcome.facts["hit"]]
    assert numbers == [2.0, 2.0, 1.5, 1.0, True, 2.5, 1.0, False]
    assert {type(number) for number in numbers} == {float, bool}


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="no number"):
        as_kept(ESSAY, WRITTEN)
