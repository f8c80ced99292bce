import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from calibrant.lab.stats import MEAN, Results, Sensitivity, compare
from calibrant.lab.stats.crossed import Pairs, Side
from calibrant.lab.stats.estimate import t_quantile
from calibrant.lab.stats.sensitivity import (
    DocumentErrors,
    _gap,
    _over_documents,
    cross_fitted,
    variance_ratio,
    worth_by_chance,
)

from tests.stats.stores import DRAWN, LOSSES, results_of, values


def only(results: Results) -> Sensitivity:
    (found,) = compare(results).sensitivities
    return found


def test_one_measured_set_is_analysis_of_variance():
    rng = np.random.default_rng(0)
    sets = [rng.normal(mean, 1, (4, 1)) for mean in (0, 2, 5)]
    ratio, interval, p = variance_ratio(sets)
    assert ratio is not None
    assert interval is not None
    anova = stats.f_oneway(*(draws[:, 0] for draws in sets))
    assert p == pytest.approx(anova.pvalue)
    assert ratio == pytest.approx((anova.statistic - 1) / 4)
    low, high = (anova.statistic / stats.f(2, 9).ppf(q) for q in (0.975, 0.025))
    assert interval == pytest.approx(((low - 1) / 4, (high - 1) / 4))


def test_draws_that_do_not_vary_have_no_ratio():
    assert variance_ratio([np.full((3, 2), 1.0), np.full((3, 2), 2.0)]) == (None, None, None)
    # The mean of three 0.1 isn't 0.1: what rounding leaves is no variance.
    assert variance_ratio([np.full((3, 1), each) for each in (0.1, 0.3, 0.7)]) == (None, None, None)


RATIOS = ((0, 0, 0), (4, 0, 0), (4, 0, 0.9), (4, 0.9, 0), (1, 0, 1))
"""Further variances between sets, and how much of them and of the draws' variance the measured
sets share.
"""


def test_sets_may_have_different_numbers_of_draws():
    rng = np.random.default_rng(2)
    sets = [rng.normal(mean, 1, (count, 1)) for mean, count in ((0, 2), (2, 3), (5, 6))]
    ratio, _, p = variance_ratio(sets)
    anova = stats.f_oneway(*(draws[:, 0] for draws in sets))
    each = (11 - (4 + 9 + 36) / 11) / 2
    assert (ratio, p) == pytest.approx(((anova.statistic - 1) / each, anova.pvalue))


@pytest.mark.parametrize(
    ("true", "alike", "sets_alike"),
    [(0, 0.9, 0), (4, 0.9, 0.9), *(pytest.param(*each, marks=pytest.mark.slow) for each in RATIOS)],
)
def test_the_interval_of_the_ratio_holds_it_and_equal_sets_are_seldom_significant(
    true: float, alike: float, sets_alike: float
):
    # Seven sets, three draws, six measured sets whose draws share a part `alike` of their variance,
    # and what sets differ by another one.
    rng = np.random.default_rng(3)
    held = significant = 0
    for _ in range(500):
        over_draws = rng.normal(0, alike**0.5, (7, 3, 1)) + rng.normal(
            0, (1 - alike) ** 0.5, (7, 3, 6)
        )
        between = rng.normal(0, sets_alike**0.5, (7, 1, 1)) + rng.normal(
            0, (1 - sets_alike) ** 0.5, (7, 1, 6)
        )
        drawn = over_draws + true**0.5 * between
        ratio, interval, p = variance_ratio(list(drawn))
        assert ratio is not None
        assert interval is not None
        assert p is not None
        held += interval[0] <= true <= interval[1]
        significant += p < 0.05
    assert held / 500 > 0.92
    if true == 0:
        assert significant / 500 < 0.075
    else:
        assert significant / 500 > (0.95 if true == 4 else 0.75)


def drawn(
    means: Mapping[str, float],
    rng: np.random.Generator,
    over_draws: float,
    over_items: float,
    draws: int = 3,
) -> dict[str, dict[str, Side]]:
    """Sets with these true means, on twenty documents that all share, and that a set's own draws
    and documents move.
    """
    lengths, hard = rng.integers(50, 500, 20).astype(float), rng.normal(0, 0.5, 20)
    sides: dict[str, dict[str, Side]] = {}
    for name, mean in means.items():
        own = rng.normal(0, over_items, 20)
        each = [
            values(
                lengths * (mean + hard + own + rng.normal(0, over_draws) + rng.normal(0, 0.02, 20)),
                lengths,
            )
            for _ in range(draws)
        ]
        sides[name] = {"text": Side.of(each)}
    return sides


def test_it_is_the_worst_less_the_best_and_its_interval_that_of_all_pairs():
    sides = drawn({"a": 1.0, "b": 1.1, "c": 1.4}, np.random.default_rng(4), 0.01, 0.05)
    own = {name: side["text"].value for name, side in sides.items()}
    found = _gap(Pairs.of(sides, ["text"], pooled=True), 0.95, 3)
    assert (found.best, found.worst) == (
        min(own, key=own.__getitem__),
        max(own, key=own.__getitem__),
    )
    assert found.value == pytest.approx(max(own.values()) - min(own.values()))
    # By hand: items from the documents' residuals, draws pooled over all sets, Cochran's quantile.
    variance = np.mean([np.var(side["text"].draws, ddof=1) for side in sides.values()])
    lows, highs = [], []
    for a, b in itertools.permutations(sides, 2):
        one, other = sides[a]["text"], sides[b]["text"]
        items = float(((one.residuals - other.residuals) ** 2).sum()) * 20 / 19
        alone, over = max(0.0, items - one.interaction - other.interaction), 2 * variance / 3
        share = over * 1 / (alone + over)
        quantile = (1 - share) * t_quantile(1 - 0.05 / 6, 19.0) + share * t_quantile(
            1 - 0.05 / 6, 6.0
        )
        half = max(alone + over, items) ** 0.5 * quantile
        lows.append(own[a] - own[b] - half)
        highs.append(own[a] - own[b] + half)
    assert found.interval == pytest.approx((max(0.0, *lows), max(highs)))
    assert found.significant
    assert max(lows) > 0


@pytest.mark.parametrize(
    ("over_draws", "over_items"),
    [
        (0.05, 0.1),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0.1, 0.01), (0.01, 0.2))),
    ],
)
def test_sets_that_are_alike_seldom_lie_further_apart_than_the_floor(
    over_draws: float, over_items: float
):
    rng = np.random.default_rng(5)
    above = significant = 0
    for _ in range(300):
        found = _gap(
            Pairs.of(
                drawn(dict.fromkeys("abcdefg", 1.0), rng, over_draws, over_items),
                ["text"],
                pooled=True,
            ),
            0.95,
            21,
        )
        above += found.value > found.floor
        significant += found.significant
        assert found.interval[0] <= found.value <= found.interval[1]
    assert above / 300 < 0.08
    assert significant / 300 < 0.08


@pytest.mark.parametrize(("count", "interval"), [(2, (0.0, math.inf)), (12, (1.0, 1.0))])
def test_a_difference_that_is_the_same_on_all_documents_is_certain_only_over_enough_of_them(
    count: int, interval: tuple[float, float]
):
    sides: dict[str, dict[str, Side]] = {}
    for name, loss in (("better", 1.0), ("worse", 2.0), ("as bad", 2.0)):
        draw = values(np.full(count, loss), np.ones(count))
        sides[name] = {"text": Side.of([draw, draw])}
    found = _gap(Pairs.of(sides, ["text"], pooled=True), 0.95, 3)
    assert (found.best, found.worst, found.value) == ("better", "worse", 1.0)
    assert found.interval == interval
    assert found.significant == (count == 12)
    draws = [row_sides["text"].draws[:, None] for row_sides in sides.values()]
    by_chance = worth_by_chance(draws, _over_documents(sides, ["text"]))
    assert by_chance == 0
    setting = {"model": "tiny", "method": "wanda", "target": "0.5", "propagate": "arrival"}
    choice = Sensitivity(
        **setting,
        unit="nats/token",
        sets=tuple(sides),
        draws=2,
        increase=None,
        ratio=None,
        ratio_interval=None,
        p=None,
        gaps={"text": found},
        by_chance=by_chance,
    )
    assert choice.beyond_chance == (count == 12)


def test_it_leaves_out_controls_and_baselines():
    ranked = {
        **DRAWN,
        "random_tokens": [[6.0, 6.0], [6.1, 6.1], [6.2, 6.2]],
        "magnitude": [[9.0, 9.0]],
    }
    found = only(results_of(ranked))
    assert set(found.sets) == {"c4", "gsm8k:icl", "svamp:icl"}
    assert found.draws == 3
    assert set(found.gaps) == {"docs:text", "code:text", MEAN}
    docs, code = found.gaps["docs:text"], found.gaps["code:text"]
    assert (docs.best, docs.worst) == ("c4", "gsm8k:icl")
    assert docs.value == pytest.approx(0.4, abs=0.02)
    assert found.worth == pytest.approx((docs.value + code.value) / 2)
    assert found.worth_interval == pytest.approx(
        [(docs.interval[i] + code.interval[i]) / 2 for i in (0, 1)]
    )
    assert found.floor == pytest.approx((docs.floor + code.floor) / 2)
    assert found.worth_interval[0] > found.floor / 2 > 0
    assert found.ratio is not None
    assert found.ratio > 100
    assert found.p is not None
    assert found.p < 1e-6


def test_what_helps_here_and_harms_there_cancels_in_the_mean_alone():
    found = only(
        results_of(
            {
                "a": [[3.0, 2.0], [3.01, 2.01]],
                "b": [[2.5, 2.5], [2.51, 2.51]],
                "c": [[2.75, 2.25], [2.76, 2.26]],
            }
        )
    )
    assert found.gaps[MEAN].value < 0.02
    assert found.worth == pytest.approx(0.5, abs=0.02)


def test_sets_drawn_once_or_on_one_document_say_nothing_and_those_with_overlap_are_left_out():
    assert compare(results_of(LOSSES)).sensitivities == ()
    assert compare(results_of(DRAWN, items=1)).sensitivities == ()
    assert compare(results_of(DRAWN, items=2)).sensitivities
    assert set(only(results_of(DRAWN, overlap={"c4": 0.5})).sets) == {"gsm8k:icl", "svamp:icl"}


def slow_chance(
    sets: list[np.ndarray], documents: np.ndarray, documents_df: np.ndarray, studies: int
) -> float:
    """The same quantile, a study at a time and a set at a time."""
    rng = np.random.default_rng(6)
    counts = [len(draws) for draws in sets]
    df = sum(counts) - len(sets)
    covariance = sum(np.cov(draws.T) * (len(draws) - 1) for draws in sets) / df
    per_mean = float(np.mean([1 / count for count in counts]))

    def error(drawn: np.ndarray, over_documents: np.ndarray) -> float:
        return float(np.mean(np.sqrt(np.diag(drawn) * per_mean + over_documents)))

    ratios = []
    for _ in range(studies):
        drawn = [
            rng.multivariate_normal(np.zeros(len(covariance)), covariance, count)
            for count in counts
        ]
        over_documents = rng.normal(0, np.sqrt(documents), (len(sets), len(documents)))
        means = np.stack([draws.mean(0) for draws in drawn]) + over_documents
        apart = np.mean([max(column) - min(column) for column in means.T])
        within = sum(np.cov(draws.T) * (len(draws) - 1) for draws in drawn) / df
        estimated = documents * rng.chisquare(documents_df) / documents_df
        ratios.append(apart / error(within, estimated))
    return float(np.quantile(ratios, 0.95)) * error(covariance, documents)


def apart(variances: np.ndarray, degrees: np.ndarray) -> DocumentErrors:
    """Of measured sets that share no document."""
    return DocumentErrors(
        variances, np.diag(np.sqrt(variances)), np.arange(len(variances)), degrees
    )


def test_what_chance_gives_is_that_of_studies_simulated_one_by_one():
    rng = np.random.default_rng(7)
    mixing = rng.normal(0, 1, (3, 3))
    sets = [rng.normal(0, 1, (count, 3)) @ mixing + set_ for set_, count in enumerate((3, 3, 2, 4))]
    documents, df = np.array([0.2, 0.0, 1.0]), np.array([12.0, 12.0, 30.0])
    want = slow_chance(sets, documents, df, 4000)
    assert worth_by_chance(sets, apart(documents, df)) == pytest.approx(want, rel=0.04)


def test_what_chance_gives_on_one_measured_set_is_the_studentized_range():
    rng = np.random.default_rng(8)
    sets = [rng.normal(0, 1, (3, 1)) for _ in range(7)]
    error = np.sqrt(np.mean([draws.var(ddof=1) for draws in sets]) / 3)
    want = stats.studentized_range.ppf(0.95, 7, 14) * error
    found = worth_by_chance(sets, apart(np.zeros(1), np.ones(1)))
    assert found == pytest.approx(want, rel=0.02)
    assert worth_by_chance([np.ones((3, 2))] * 4, apart(np.zeros(2), np.ones(2))) == 0.0


@pytest.mark.parametrize(("alike", "documents"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.3)])
def test_sets_that_are_alike_are_seldom_worth_more_than_chance_gives(
    alike: float, documents: float
):
    # The measured sets share a part `alike` of the draws' variance.
    rng = np.random.default_rng(9)
    above = 0
    df = np.full(6, 60.0)
    for _ in range(200):
        shared = rng.normal(0, alike**0.5, (7, 3, 1))
        drawn = shared + rng.normal(0, (1 - alike) ** 0.5, (7, 3, 6))
        drawn += rng.normal(0, documents**0.5, (7, 1, 6))
        means = drawn.mean(1)
        worth = float((means.max(0) - means.min(0)).mean())
        estimated = documents * rng.chisquare(df) / df
        above += worth > worth_by_chance(list(drawn), apart(estimated, df))
    assert 0 < above / 200 < 0.1


def test_cross_fitted_is_measured_on_the_draw_that_did_not_choose():
    rng = np.random.default_rng(10)
    sets = [rng.normal(0, 1, (3, 2)) for _ in range(5)]
    each = []
    for held, column in itertools.product(range(3), range(2)):
        others = [draw for draw in range(3) if draw != held]
        means = [float(draws[others, column].mean()) for draws in sets]
        worst, best = means.index(max(means)), means.index(min(means))
        each.append(sets[worst][held, column] - sets[best][held, column])
    assert cross_fitted(sets) == pytest.approx(np.mean(each))


def test_sets_that_are_alike_are_worth_nothing_when_cross_fitted():
    rng = np.random.default_rng(11)
    found = [cross_fitted([rng.normal(0, 1, (3, 6)) for _ in range(7)]) for _ in range(300)]
    assert abs(np.mean(found)) < 0.1
    assert cross_fitted([np.full((2, 1), each) for each in (1.0, 3.0, 2.0)]) == pytest.approx(2.0)


def test_documents_count_where_draws_do_not_show_them_already():
    rng = np.random.default_rng(12)
    alike = drawn(dict.fromkeys("abcdefg", 1.0), rng, 0.05, 0.0)
    own = drawn(dict.fromkeys("abcdefg", 1.0), rng, 0.05, 0.3)
    few, many = (_over_documents(sides, ["text"]) for sides in (alike, own))
    assert few.variances[0] < many.variances[0] / 10
    # Twenty documents of other lengths, on each of which a set's own part varies by 0.3.
    assert many.variances[0] == pytest.approx(0.3**2 / 20, rel=0.5)
    assert many.degrees[0] == 6 * 19


def test_documents_that_two_texts_share_vary_together():
    rng = np.random.default_rng(13)
    rows = drawn(dict.fromkeys("abcde", 1.0), rng, 0.05, 0.3)
    others = drawn(dict.fromkeys("abcde", 1.0), rng, 0.05, 0.3)
    for name, sides in rows.items():
        sides["again"] = sides["text"]
        other = others[name]["text"]
        sides["other"] = replace(other, items=tuple(f"other {item}" for item in other.items))
    found = _over_documents(rows, ["text", "again", "other"])
    variance, _, other = found.variances
    covariance = [[variance, variance, 0], [variance, variance, 0], [0, 0, other]]
    np.testing.assert_allclose(found.root.T @ found.root, covariance, atol=1e-9)
    assert found.groups.tolist() == [0, 0, 1]
    assert found.degrees.tolist() == [76, 76]
    # Gaps of texts that go up and down together vary more, so chance makes more of their mean.
    sets = [np.full((2, 3), [0.0, 0.0, 0.0]) + rng.normal(0, 1e-3, (2, 1)) for _ in rows]
    together = worth_by_chance(sets, found)
    assert together > 1.02 * worth_by_chance(sets, apart(found.variances, np.full(3, 76.0)))


def test_a_study_says_what_chance_gives_and_what_is_left():
    found = only(results_of(DRAWN))
    assert 0 < found.by_chance < found.floor
    assert found.beyond_chance
    assert found.cross_fitted == pytest.approx(found.worth, abs=0.02)
