import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from calibrant.errors import DataError
from calibrant.lab.stats import Estimate, contrast, detectable, t_quantile
from calibrant.lab.stats.crossed import (
    Independence,
    ItemValues,
    Pairs,
    Side,
    combination,
    share_kept,
    share_of,
)
from calibrant.lab.stats.estimate import needs
from calibrant.results import Measurement

from tests.stats.stores import RNG, documents, measured, values


def jackknife(statistic, n: int) -> float:
    """The delete-one standard error of `statistic(kept indices)`."""
    left_out = np.array([statistic(np.delete(np.arange(n), i)) for i in range(n)])
    return math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())


def bootstrap(statistic, n: int, times: int = 4000) -> float:
    rng = np.random.default_rng(1)
    return float(np.std([statistic(rng.integers(0, n, n)) for _ in range(times)], ddof=1))


# One number


def test_the_error_of_a_loss_agrees_with_jackknife_and_bootstrap():
    lengths, losses = documents(80)
    nats = lengths * losses
    found = contrast({"a": [measured(nats, lengths)]})
    assert found.value == pytest.approx(nats.sum() / lengths.sum(), rel=1e-12)
    assert found.stderr == pytest.approx(
        jackknife(lambda k: nats[k].sum() / lengths[k].sum(), 80), rel=0.03
    )
    assert found.stderr == pytest.approx(
        bootstrap(lambda k: nats[k].sum() / lengths[k].sum(), 80), rel=0.06
    )
    assert found.df == pytest.approx(79)


def test_the_error_of_a_paired_difference_agrees_with_jackknife_and_bootstrap():
    lengths, losses = documents(80)
    one, other = lengths * losses, lengths * (losses + 0.1 + RNG.normal(0, 0.05, 80))
    found = contrast({"x": [measured(other, lengths)]}, {"x": [measured(one, lengths)]})

    def difference(k: np.ndarray) -> float:
        return other[k].sum() / lengths[k].sum() - one[k].sum() / lengths[k].sum()

    assert found.value == pytest.approx(difference(np.arange(80)), rel=1e-9)
    assert found.stderr == pytest.approx(jackknife(difference, 80), rel=0.03)
    assert found.stderr == pytest.approx(bootstrap(difference, 80), rel=0.06)
    # Pairing is worth having: what both find hard is no part of the error.
    apart = contrast({"x": [measured(one, lengths)]})
    assert found.stderr is not None
    assert apart.stderr is not None
    assert found.stderr < apart.stderr / 4


def test_items_of_equal_weight_give_the_textbook_paired_t():
    a, b = np.array([4.0, 7.0, 5.5, 9.0]), np.array([3.0, 7.5, 4.0, 7.0])
    found = contrast({"x": [measured(a, [2.0] * 4)]}, {"x": [measured(b, [2.0] * 4)]})
    gaps = (a - b) / 2
    assert found.value == pytest.approx(gaps.mean())
    assert found.stderr == pytest.approx(gaps.std(ddof=1) / math.sqrt(4))
    low, high = found.interval() or (0, 0)
    assert (high - low) / 2 == pytest.approx(
        3.182 * gaps.std(ddof=1) / 2, rel=1e-3
    )  # t with 3 degrees of freedom


def test_items_are_paired_by_name_and_higher_is_better_turns_the_sign():
    a, b = measured([10, 20, 33], [5, 10, 11]), measured([11, 19, 30], [5, 10, 11])
    shuffled = replace(b, outcomes=b.outcomes[::-1])
    assert contrast({"x": [a]}, {"x": [shuffled]}) == contrast({"x": [a]}, {"x": [b]})
    better, worse = (
        {"t": [measured(right, [1] * 4, "task", **RIGHT)]} for right in ([1, 1, 0, 1], [1, 0, 0, 0])
    )
    assert contrast(worse, better).value == pytest.approx(0.5)
    assert contrast(better).value == pytest.approx(0.75)


def test_a_mean_over_measured_sets_adds_independent_errors():
    parts = {}
    for name, n in (("a", 30), ("b", 50)):
        lengths, losses = documents(n)
        parts[name] = (
            [measured(lengths * losses, lengths, documents=name)],
            [measured(lengths * (losses + RNG.normal(0.2, 0.1, n)), lengths, documents=name)],
        )
    each = [contrast({n: pruned}, {n: dense}) for n, (dense, pruned) in parts.items()]
    mean = contrast({n: p for n, (_, p) in parts.items()}, {n: d for n, (d, _) in parts.items()})
    assert mean.value == pytest.approx((each[0].value + each[1].value) / 2)
    assert mean.stderr == pytest.approx(math.hypot(*(e.stderr or 0 for e in each)) / 2)
    assert 29 < mean.df <= 29 + 49
    assert mean.items == 80


def test_draws_add_their_own_variance():
    lengths, losses = documents(40)
    shifts = np.array([0.0, 0.3, -0.1])
    draws = [measured(lengths * (losses + shift), lengths) for shift in shifts]
    dense = {"x": [measured(lengths * (losses - 0.5 + RNG.normal(0, 0.01, 40)), lengths)]}
    several, one = contrast({"x": draws}, dense), contrast({"x": draws[:1]}, dense)
    assert several.value == pytest.approx(0.5 + shifts.mean(), abs=0.01)
    assert one.stderr is not None
    assert several.stderr == pytest.approx(
        math.sqrt(one.stderr**2 + shifts.var(ddof=1) / 3), rel=1e-6
    )
    assert several.df == pytest.approx(2, abs=0.1)


def test_draws_of_several_measured_sets_move_together():
    """A draw that is good for one measured set may be good for the other: the draws' means over
    sets vary, not each set by itself.
    """
    lengths, losses = documents(40)
    up, down = (
        [measured(lengths * (losses + s), lengths) for s in shifts]
        for shifts in ((0.3, -0.3), (-0.3, 0.3))
    )
    cancelling, together = contrast({"x": up, "y": down}), contrast({"x": up, "y": up})
    item_error = contrast({"x": up[:1], "y": up[:1]}).stderr
    assert item_error is not None
    assert cancelling.stderr == pytest.approx(item_error)
    assert together.stderr == pytest.approx(math.sqrt(item_error**2 + 0.3**2))


def slow_variance(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """A, B and C of the difference of two sets (draws by items, equal weights), each from its
    definition and in a loop.
    """
    items = a.shape[1]
    gaps = [a[:, i].mean() - b[:, i].mean() for i in range(items)]
    over_items = sum((g - sum(gaps) / items) ** 2 for g in gaps) / (items - 1) / items
    over_draws = inner = 0.0
    for y in (a, b):
        draws = len(y)
        means = [row.mean() for row in y]
        over_draws += sum((m - sum(means) / draws) ** 2 for m in means) / (draws - 1) / draws
        squares = sum(
            (y[d, i] - y[d].mean() - y[:, i].mean() + y.mean()) ** 2
            for d in range(draws)
            for i in range(items)
        )
        inner += squares / ((draws - 1) * (items - 1)) / (draws * items)
    return over_items, over_draws, inner


def test_items_draws_and_their_interaction_are_told_apart():
    rng = np.random.default_rng(8)
    items = rng.normal(0, 1, 30)
    for spread in (0.0, 0.2):
        a, b = (
            items + rng.normal(0, spread, (draws, 1)) + rng.normal(0, 0.5, (draws, 30))
            for draws in (3, 4)
        )
        found = contrast(
            {"x": [measured(row, [1.0] * 30) for row in a]},
            {"x": [measured(row, [1.0] * 30) for row in b]},
        )
        over_items, over_draws, inner = slow_variance(a, b)
        alone = max(over_items - inner, 0.0)
        assert found.stderr == pytest.approx(
            math.sqrt(max(alone + over_draws, over_items)), rel=1e-9
        )
        assert found.draws_share == pytest.approx(over_draws / (alone + over_draws), rel=1e-9)
        assert found.over_draws
        assert found.dfs is not None
        assert found.dfs[0] == pytest.approx(29)
        assert 2 <= found.dfs[1] <= 5
        half = found.stderr * sum(
            w * float(student.ppf(0.975, df))
            for w, df in zip((1 - found.draws_share, found.draws_share), found.dfs, strict=True)
        )
        low, high = found.interval() or (0, 0)
        assert (high - low) / 2 == pytest.approx(half, rel=1e-9)


def test_all_pairs_at_once_are_what_each_is_alone():
    rng = np.random.default_rng(9)
    lengths = rng.integers(50, 500, 15).astype(float)
    score = {"metric": "accuracy", "unit": "share", "better": "higher"}
    sets = {
        name: {
            "x": [
                measured(lengths * rng.normal(3, 0.5, 15), lengths, "x", **score)
                for _ in range(draws)
            ],
            "y": [measured(rng.normal(3, 0.5, 9), [1.0] * 9, "y", **score) for _ in range(draws)],
        }
        for name, draws in (("a", 3), ("b", 4), ("c", 1))
    }
    sides = {
        name: {m: Side.of([ItemValues.of(d) for d in draws]) for m, draws in each.items()}
        for name, each in sets.items()
    }
    table = Pairs.of(sides, ["x", "y"])
    for a, b in itertools.permutations(sets, 2):
        one, other = contrast(sets[a], sets[b]), table.estimate(a, b)
        assert (other.items, other.over_draws) == (one.items, one.over_draws)
        assert [other.value, other.stderr, other.df, other.draws_share] == pytest.approx(
            [one.value, one.stderr, one.df, one.draws_share]
        )
        i, j = table.labels.index(a), table.labels.index(b)
        for comparisons in (1, 3, 30):
            assert table.worse(comparisons=comparisons)[i, j] == (
                one.significant(comparisons=comparisons) and one.value > 0
            )
    assert table.among(["c", "a"]).estimate("c", "a") == table.estimate("c", "a")


def test_one_text_that_is_measured_twice_is_as_its_mean_measured_once():
    rng = np.random.default_rng(10)
    weights = [1.0] * 25

    def drawn(draws: int) -> np.ndarray:
        """A set on two texts of the same documents, [draws, texts, documents]."""
        document, draw = rng.normal(0, 0.3, 25), rng.normal(0, 0.1, (draws, 1, 1))
        return 3 + document + draw + rng.normal(0, 0.2, (draws, 2, 25))

    def as_two(each: np.ndarray) -> dict[str, list[Measurement]]:
        return {
            "x": [measured(texts[0], weights) for texts in each],
            "y": [measured(texts[1], weights) for texts in each],
        }

    def as_one(each: np.ndarray) -> dict[str, list[Measurement]]:
        return {"mean": [measured(texts.mean(0), weights) for texts in each]}

    a, b = drawn(3), drawn(4)
    twice, once = contrast(as_two(a), as_two(b)), contrast(as_one(a), as_one(b))
    numbers = [(e.value, e.stderr, e.df, e.draws_share) for e in (twice, once)]
    assert numbers[0] == pytest.approx(numbers[1])
    assert twice.dfs == pytest.approx(once.dfs)
    sides = {
        name: {m: Side.of([ItemValues.of(d) for d in draws]) for m, draws in as_two(each).items()}
        for name, each in (("a", a), ("b", b))
    }
    of_table = Pairs.of(sides, ["x", "y"]).estimate("a", "b")
    assert (of_table.stderr, of_table.df) == pytest.approx((twice.stderr, twice.df))


def test_the_error_of_texts_that_share_some_documents_agrees_with_a_jackknife_over_documents():
    rng = np.random.default_rng(11)
    # The second text has half of the first's documents: what is hard in one is hard in both.
    lengths, losses = documents(120, rng)
    counts = {"x": 120, "y": 60}
    nats = {name: lengths * (losses + rng.normal(0, 0.1, 120)) for name in counts}
    found = contrast(
        {name: [measured(nats[name][:count], lengths[:count])] for name, count in counts.items()}
    )

    def mean(kept: np.ndarray) -> float:
        ratios = []
        for name, count in counts.items():
            own = kept[kept < count]
            ratios.append(nats[name][own].sum() / lengths[own].sum())
        return sum(ratios) / 2

    assert found.value == pytest.approx(mean(np.arange(120)))
    assert found.stderr == pytest.approx(jackknife(mean, 120), rel=0.03)


def test_draws_of_a_pool_that_share_rows_are_as_if_they_went_up_and_down_together():
    lengths, losses = documents(40)

    def side_of(shifts: Sequence[float], source: str) -> dict[str, Side]:
        each = [values(lengths * (losses + shift), lengths) for shift in shifts]
        return {"x": Side.of(each, source=source)}

    def variance(*sides: dict[str, Side]) -> float:
        found = combination([(side, {"x": 1 / len(sides)}) for side in sides])
        assert found.stderr is not None
        # All are equally hard on every document, so this is what documents alone add.
        items = float((sides[0]["x"].residuals ** 2).sum()) * 40 / 39
        return found.stderr**2 - items

    up, down = [0.0, 0.3, -0.1], [0.4, 0.1, 0.5]
    own = float(np.var(up, ddof=1)) / 3
    one = side_of(up, "gsm8k")
    assert variance(one, side_of(down, "svamp")) == pytest.approx(own / 2)
    # Which draws share rows isn't known: nothing that these happen to do narrows the error.
    assert variance(one, side_of(up, "gsm8k")) == pytest.approx(own)
    assert variance(one, side_of(down, "gsm8k")) == pytest.approx(own)
    found = combination([(one, {"x": 0.5}), (side_of([*down, 0.2], "gsm8k"), {"x": 0.5})])
    assert found.dfs is not None
    assert found.dfs[1] == pytest.approx(2)


def test_p_values_end_where_intervals_do():
    plain = Estimate(1.0, 0.4, 20.0, 21)
    assert plain.p_value() == pytest.approx(2 * student.sf(2.5, 20))
    mixed = Estimate(1.0, 0.4, 9.0, 21, True, 0.4, (20.0, 2.0))
    p = mixed.p_value() or 0.0
    assert 2 * student.sf(2.5, 20) < p < 2 * student.sf(2.5, 2)
    low, _ = mixed.interval(level=1 - p) or (1, 1)
    assert low == pytest.approx(0, abs=1e-9)
    assert Estimate(0.0, 0.4, 20.0, 21).p_value() == 1
    assert Estimate(0.0, 0.0, 20.0, 21).p_value() == 1
    assert Estimate(0.1, None, 0.0, 1).p_value() is None


@pytest.mark.parametrize(
    ("count", "comparisons", "is_sure"),
    [
        (2, 1, False),
        (5, 1, False),
        (6, 1, True),
        (6, 2, False),
        (15, 1000, False),
        (16, 1000, True),
    ],
)
def test_items_that_all_differ_by_the_same_are_tested_by_their_signs(
    count: int, comparisons: int, is_sure: bool
):
    wrong = {"quiz": [measured([1] * count, [1] * count)]}
    right = {"quiz": [measured([0] * count, [1] * count)]}
    found = contrast(wrong, right)
    assert (found.value, found.stderr) == (1, 0)
    assert found.p_value() == pytest.approx(2.0 ** (1 - count))
    assert found.significant(comparisons=comparisons) == is_sure
    assert (found.interval(comparisons=comparisons) is not None) == is_sure
    # Nothing varies, so nothing says what it would take.
    assert detectable(found) is None
    assert needs(found, 1, "share") == ""
    sides = {
        name: {"quiz": Side.of([ItemValues.of(one["quiz"][0])])}
        for name, one in (("wrong", wrong), ("right", right))
    }
    table = Pairs.of(sides, ["quiz"])
    assert table.worse(comparisons=comparisons).tolist() == [[False, is_sure], [False, False]]


def test_identical_runs_and_draws_are_never_told_apart_and_one_item_never_tells():
    lengths, losses = documents(20)
    same = {"x": [measured(lengths * losses, lengths)]}
    found = contrast(same, same)
    assert (found.value, found.stderr) == (0, 0)
    assert not found.significant()
    draws = [measured(lengths * (losses + shift), lengths) for shift in (0.0, 0.1, 0.4)]
    again = contrast({"x": draws}, {"x": list(draws)})
    assert (again.value, again.p_value()) == (0, 1)
    assert not again.significant(level=0.01)
    alone = contrast({"x": [measured([10], [5])]}, {"x": [measured([9], [5])]})
    assert alone.stderr is alone.interval() is None
    assert not alone.significant()


# Intervals


def test_quantiles_of_t():
    """Abramowitz and Stegun, table 26.10."""
    table = {
        (0.975, 1.0): 12.706,
        (0.975, 5.0): 2.571,
        (0.995, 10.0): 3.169,
        (0.95, 30.0): 1.697,
        (0.9995, 4.0): 8.610,
        (0.975, 1e9): 1.960,
    }
    for (p, df), quantile in table.items():
        assert t_quantile(p, df) == pytest.approx(quantile, abs=6e-4)


def test_more_looks_widen_the_interval():
    found = Estimate(1.0, 0.4, 20.0, 21)
    (one, _), (many, _) = found.interval() or (0, 0), found.interval(comparisons=10) or (0, 0)
    assert one == pytest.approx(1 - 2.0860 * 0.4, abs=1e-4)
    assert many == pytest.approx(1 - 3.1534 * 0.4, abs=1e-4)  # the 0.9975 quantile of t with 20
    assert found.significant()
    assert not found.significant(comparisons=10)


# What can't be paired

TWO = measured([1, 2], [4, 4])


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (measured([1, 2, 3], [4, 4, 4]), TWO, "item 002"),
        (TWO, measured([1, 2], [4, 5]), "9 tokens"),
        (TWO, measured([1, 2], [4, 4], facts={"length": 64}), "64"),
    ],
    ids=["items", "tokens", "context length"],
)
def test_what_was_measured_otherwise_is_refused(one: Measurement, other: Measurement, said: str):
    for sides in (({"x": [one]}, {"x": [other]}), ({"x": [one, other]},)):
        with pytest.raises(DataError) as raised:
            contrast(*sides)
        assert raised.value.subject == "wikitext:text"
        assert said in str(raised.value)


def test_other_measured_sets_and_nothing_measured_are_refused():
    with pytest.raises(DataError, match="'b'"):
        contrast({"a": [TWO]}, {"b": [TWO]})
    with pytest.raises(DataError) as raised:
        contrast({"a": [measured([0, 0], [0, 0])]})
    assert raised.value.subject == "wikitext:text"


RIGHT = {"metric": "acc", "unit": "share", "better": "higher", "chance": 0.25}


def side(
    draws: Sequence[np.ndarray], independence: Independence = "independent", **score: object
) -> Side:
    return Side.of(
        [ItemValues.of(measured(d.tolist(), [1.0] * len(d), **score)) for d in draws], independence
    )  # pyright: ignore[reportArgumentType]


def test_the_share_of_a_score_is_the_ratio_and_none_of_a_dense_model_at_chance():
    right, guessed = np.array([1.0, 1, 0, 0, 1, 0, 0, 1]), np.array([0.0, 1, 0, 0, 1, 0, 0, 0])
    assert (
        share_kept(
            {"x": side([right], **RIGHT)}, {"x": side([guessed], "no draws", **RIGHT)}, ["x"]
        )
        is None
    )
    words, points = (
        measured([1.0], [1.0], unit=unit, better=better).score
        for unit, better in (("words", "lower"), ("points", "higher"))
    )
    assert (share_of(8.0, 6.0, words) or (0,))[0] == pytest.approx(0.75)
    assert share_of(0.0, 6.0, words) is None
    assert (share_of(6.0, 8.0, points) or (0,))[0] == pytest.approx(0.75)


@pytest.mark.parametrize("score", [{}, RIGHT], ids=["loss", "accuracy"])
def test_its_error_is_that_of_a_jackknife(score: dict[str, object]):
    rng = np.random.default_rng(1)
    n = 120
    dense = (rng.random(n) < 0.8).astype(float) if score else rng.normal(3, 0.3, n)
    own = dense * (rng.random(n) < 0.85) if score else dense + rng.normal(0.2, 0.1, n)

    def share(keep: np.ndarray) -> float:
        a, b = own[keep].mean(), dense[keep].mean()
        return (a - 0.25) / (b - 0.25) if score else math.exp(b - a)

    found = share_kept(
        {"x": side([own], **score)}, {"x": side([dense], "no draws", **score)}, ["x"]
    )
    assert found is not None
    assert found.value == pytest.approx(share(np.arange(n)))
    assert found.stderr == pytest.approx(jackknife(share, n), rel=0.05)


def test_draws_are_in_its_error():
    rng = np.random.default_rng(2)
    dense = rng.normal(3, 0.3, 40)
    draws = [dense + shift for shift in (0.1, 0.3, 0.2)]
    found = share_kept({"x": side(draws)}, {"x": side([dense], "no draws")}, ["x"])
    assert found is not None
    assert found.over_draws
    assert found.stderr == pytest.approx(
        found.value * np.std([0.1, 0.3, 0.2], ddof=1) / math.sqrt(3), rel=1e-6
    )


def test_the_mean_over_sets_is_the_mean_of_shares():
    rng = np.random.default_rng(3)
    dense = {m: rng.normal(3, 0.3, n) for m, n in (("x", 40), ("y", 20))}
    sides = {
        m: side([d + 0.1 + 0.1 * (m == "y") + rng.normal(0, 0.05, len(d))], documents=m)
        for m, d in dense.items()
    }
    whole = {m: side([d], "no draws", documents=m) for m, d in dense.items()}
    each = {m: share_kept({m: sides[m]}, {m: whole[m]}, [m]) for m in dense}
    both = share_kept(sides, whole, ["x", "y"])
    assert both is not None
    shares = [e for e in each.values() if e]
    assert both.value == pytest.approx(sum(e.value for e in shares) / 2)
    assert both.stderr == pytest.approx(math.hypot(*(e.stderr or 0 for e in shares)) / 2)
