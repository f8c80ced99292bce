import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import nct

from calibrant.lab.stats import Estimate
from calibrant.lab.stats.estimate import detectable, draws_needed, items_needed, needs, smallest_p

BY_DRAWS = Estimate(0.05, 0.04, 5.0, 200, True, 0.9, (199.0, 4.0))
BY_ITEMS = Estimate(0.05, 0.04, 150.0, 200, True, 0.1, (199.0, 4.0))


@pytest.mark.parametrize(("draws", "against"), [(2, 2), (3, 3), (5, 3), (1, 4)])
def test_the_smallest_p_of_a_permutation(draws: int, against: int):
    """The largest draws on one side and far from the rest, every way to divide them counted: the
    share whose means lie as far apart.
    """
    values = np.arange(draws + against, dtype=float)
    values[draws:] += 100
    seen = values[:draws].mean() - values[draws:].mean()
    means = [
        values[list(c)].mean() - np.delete(values, list(c)).mean()
        for c in combinations(range(draws + against), draws)
    ]
    found = smallest_p(draws, against)
    assert found is not None
    assert found[0] == pytest.approx(np.mean(np.abs(means) >= abs(seen) - 1e-12))


def test_the_smallest_p_of_a_flip_of_signs():
    assert [(smallest_p(*draws) or (None,))[0] for draws in ((5, 0), (0, 1), (0, 0))] == [
        0.0625,
        1.0,
        None,
    ]


@pytest.mark.parametrize("df", [4.0, 10.0, 60.0])
def test_what_is_detectable_is_found_four_times_in_five(df: float):
    least = detectable(Estimate(0.0, 0.3, df, 20)) or 0.0
    cut = Estimate(0.0, 0.3, df, 20).quantile(0.975)
    power = nct.sf(cut, df, least / 0.3) + nct.cdf(-cut, df, least / 0.3)
    assert power == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("seen", "of"), [(BY_DRAWS, "draws"), (BY_ITEMS, "items")])
def test_more_draws_or_items_are_counted_until_they_suffice(seen: Estimate, of: str):
    wanted = {"draws": 0.1, "items": 0.08}[of]
    count = draws_needed(seen, 5, wanted) if of == "draws" else items_needed(seen, wanted)
    assert count is not None

    def least(count: int) -> float:
        draws, items = (count, 200) if of == "draws" else (5, count)
        alone = (1 - seen.draws_share) * 0.04**2 * 200 / items
        over = seen.draws_share * 0.04**2 * 5 / draws
        spread = Estimate(
            0.0,
            math.sqrt(alone + over),
            9.0,
            items,
            True,
            over / (alone + over),
            (199.0 * items / 200, draws - 1.0),
        )
        return detectable(spread) or 0.0

    assert least(count) <= wanted < least(count - 1)


def test_no_number_of_draws_makes_up_for_items():
    assert (
        draws_needed(BY_ITEMS, 5, 0.05)
        is items_needed(BY_DRAWS, 0.05)
        is draws_needed(Estimate(0.05, 0.04, 19.0, 20), 1, 0.05)
        is None
    )


def test_what_holds_it_up_is_named():
    said = needs(BY_DRAWS, 5, "nats/token")
    assert all(
        told in said
        for told in ("0.05 nats/token", "draws a set", str(draws_needed(BY_DRAWS, 5, 0.05)))
    )
    by_items = Estimate(0.05, 0.04, 199.0, 200)
    assert f"{items_needed(by_items, 0.05)} items" in needs(by_items, 0, "").replace(",", "")
    assert "neither" in needs(Estimate(0.01, 0.04, 9.0, 200, True, 0.5, (199.0, 4.0)), 5, "")
    assert "suffices" in needs(Estimate(1.0, 0.04, 199.0, 200), 0, "")
    assert needs(Estimate(0.0, 0.04, 199.0, 200), 0, "") == ""
    assert needs(Estimate(0.1, None, 0.0, 1), 0, "") == ""
