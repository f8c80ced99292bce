import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrant.compare import LEVEL, Estimate, Ranking, contrast, rankings, source_name, t_quantile, tidy
from calibrant.errors import DataError
from calibrant.store import Cell, Measurement, Outcome, Record, Run, Score, Store

RNG = np.random.default_rng(0)


def measured(values: Sequence[float], weights: Sequence[float], name: str = "wikitext:text", **score: object) -> Measurement:
    outcomes = tuple(Outcome(f"item {i:03}", float(v), float(w)) for i, (v, w) in enumerate(zip(values, weights, strict=True)))
    facts = {"length": 512}
    plain = Score(name, "loss", float(sum(values) / (sum(weights) or 1)), None, len(outcomes), "nats/token", "lower", facts=facts)
    return Measurement(replace(plain, **score), outcomes)  # pyright: ignore[reportArgumentType]


def documents(n: int, rng: np.random.Generator = RNG) -> tuple[np.ndarray, np.ndarray]:
    """Document lengths, and losses per token that depend on the length: what makes a ratio differ from a mean of ratios."""
    lengths = rng.integers(50, 500, n).astype(float)
    return lengths, 2.5 + 0.001 * lengths + rng.normal(0, 0.4, n)


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
    assert found.stderr == pytest.approx(jackknife(lambda k: nats[k].sum() / lengths[k].sum(), 80), rel=0.03)
    assert found.stderr == pytest.approx(bootstrap(lambda k: nats[k].sum() / lengths[k].sum(), 80), rel=0.06)
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
    assert (high - low) / 2 == pytest.approx(3.182 * gaps.std(ddof=1) / 2, rel=1e-3)  # t with 3 degrees of freedom


def test_items_are_paired_by_name_and_not_by_place():
    a = measured([10, 20, 33], [5, 10, 11])
    b = measured([11, 19, 30], [5, 10, 11])
    shuffled = replace(b, outcomes=b.outcomes[::-1])
    assert contrast({"x": [a]}, {"x": [shuffled]}) == contrast({"x": [a]}, {"x": [b]})


def test_a_mean_over_measured_sets_adds_independent_errors():
    parts = {}
    for name, n in (("a", 30), ("b", 50)):
        lengths, losses = documents(n)
        parts[name] = ([measured(lengths * losses, lengths)], [measured(lengths * (losses + RNG.normal(0.2, 0.1, n)), lengths)])
    each = [contrast({n: pruned}, {n: dense}) for n, (dense, pruned) in parts.items()]
    mean = contrast({n: p for n, (_, p) in parts.items()}, {n: d for n, (d, _) in parts.items()})
    assert mean.value == pytest.approx((each[0].value + each[1].value) / 2)
    assert mean.stderr == pytest.approx(math.hypot(*(e.stderr or 0 for e in each)) / 2)
    assert 29 < mean.df <= 29 + 49
    assert mean.items == 80


def test_higher_is_better_turns_the_sign():
    right, wrong = [1, 1, 0, 1], [1, 0, 0, 0]
    score = {"metric": "accuracy", "unit": "share", "better": "higher"}
    better, worse = ({"t": [measured(v, [1] * 4, "task", **score)]} for v in (right, wrong))
    assert contrast(worse, better).value == pytest.approx(0.5)
    assert contrast(better).value == pytest.approx(0.75)


def test_draws_add_their_own_variance():
    lengths, losses = documents(40)
    draws = [[measured(lengths * (losses + shift), lengths)] for shift in (0.0, 0.3, -0.1)]
    dense = {"x": [measured(lengths * (losses - 0.5 + RNG.normal(0, 0.01, 40)), lengths)]}
    several = contrast({"x": [m for (m,) in draws]}, dense)
    one = contrast({"x": draws[0]}, dense)
    shifts = np.array([0.0, 0.3, -0.1])
    assert several.value == pytest.approx(0.5 + shifts.mean(), abs=0.01)
    assert one.stderr is not None
    assert several.stderr == pytest.approx(math.sqrt(one.stderr**2 + shifts.var(ddof=1) / 3), rel=1e-6)
    assert several.df == pytest.approx(2, abs=0.1)


def test_draws_of_several_measured_sets_move_together():
    """A draw that is good for one measured set may be good for the other: the draws' means over sets vary, not each set by itself."""
    lengths, losses = documents(40)
    up = [measured(lengths * (losses + s), lengths) for s in (0.3, -0.3)]
    down = [measured(lengths * (losses - s), lengths) for s in (0.3, -0.3)]
    cancelling = contrast({"x": up, "y": down})
    together = contrast({"x": up, "y": up})
    item_error = contrast({"x": up[:1], "y": up[:1]}).stderr
    assert cancelling.stderr == pytest.approx(item_error)
    assert item_error is not None
    assert together.stderr == pytest.approx(math.sqrt(item_error**2 + 0.3**2))


def test_one_item_leaves_no_interval():
    found = contrast({"x": [measured([10], [5])]}, {"x": [measured([9], [5])]})
    assert found.stderr is None
    assert found.interval() is None
    assert not found.apart()


def test_identical_runs_are_never_told_apart():
    lengths, losses = documents(20)
    same = {"x": [measured(lengths * losses, lengths)]}
    found = contrast(same, same)
    assert (found.value, found.stderr) == (0, 0)
    assert not found.apart()


# Intervals


@pytest.mark.parametrize(
    ("p", "df", "quantile"),
    # Abramowitz and Stegun, table 26.10
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 5, 2.571),
        (0.995, 10, 3.169),
        (0.95, 30, 1.697),
        (0.975, 120, 1.980),
        (0.9995, 4, 8.610),
        (0.975, 1e9, 1.960),
    ],
)
def test_quantiles_of_t(p: float, df: int | float, quantile: float):
    assert t_quantile(p, float(df)) == pytest.approx(quantile, abs=6e-4)


def test_quantiles_of_t_agree_with_simulation_where_degrees_are_not_whole():
    rng = np.random.default_rng(2)
    t = rng.standard_normal(400_000) / np.sqrt(rng.chisquare(6.5, 400_000) / 6.5)
    assert t_quantile(0.975, 6.5) == pytest.approx(np.quantile(t, 0.975), rel=0.01)


def test_more_looks_widen_the_interval():
    found = Estimate(1.0, 0.4, 20.0, 21)
    one, many = found.interval(), found.interval(looks=10)
    assert one is not None
    assert many is not None
    assert one[0] == pytest.approx(1 - 2.0860 * 0.4, abs=1e-4)
    assert many[0] == pytest.approx(1 - 3.1534 * 0.4, abs=1e-4)  # the 0.9975 quantile of t with 20
    assert found.apart()
    assert not found.apart(looks=10)


def test_intervals_cover_a_known_effect_at_their_rate():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1000):
        n = 15
        lengths = rng.integers(100, 500, n).astype(float)
        hard = rng.normal(3, 0.5, n)
        gap = 0.2 + rng.normal(0, 0.1, n)
        found = contrast({"x": [measured(lengths * (hard + gap), lengths)]}, {"x": [measured(lengths * hard, lengths)]})
        low, high = found.interval() or (0, 0)
        hits += low <= 0.2 <= high
    # 95 % within three binomial standard errors, with a point of room for the linearisation at fifteen documents
    assert 0.92 <= hits / 1000 <= 0.975


def test_under_the_null_the_best_is_rarely_told_apart_from_anything(tmp_path: Path):
    """Six equal sets, the best picked from the same numbers: some set is wrongly called worse in at most 5 % of studies."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(400):
        lengths = rng.integers(100, 500, 20).astype(float)
        sets = [{"x": [measured(lengths * (3 + rng.normal(0, 0.1, 20)), lengths)]} for _ in range(6)]
        best = min(sets, key=lambda s: contrast(s).value)
        wrong += any(contrast(s, best).apart(LEVEL, looks=15) for s in sets if s is not best)
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


# What can't be paired


def test_other_items_are_refused():
    a, b = measured([1, 2, 3], [1, 1, 1]), measured([1, 2], [1, 1])
    with pytest.raises(DataError, match="item 002"):
        contrast({"x": [a]}, {"x": [b]})


def test_draws_on_other_items_are_refused():
    with pytest.raises(DataError, match="3 and 2 items"):
        contrast({"x": [measured([1, 2, 3], [1, 1, 1]), measured([1, 2], [1, 1])]})


def test_other_tokens_of_the_same_items_are_refused():
    with pytest.raises(DataError, match="8 and 9 tokens"):
        contrast({"x": [measured([1, 2], [4, 4])]}, {"x": [measured([1, 2], [4, 5])]})


def test_other_context_lengths_are_refused():
    with pytest.raises(DataError, match="context length 512 and loss in nats/token at context length 64"):
        contrast({"x": [measured([1, 2], [4, 4])]}, {"x": [measured([1, 2], [4, 4], facts={"length": 64})]})


def test_other_measured_sets_are_refused():
    with pytest.raises(DataError, match="'b'"):
        contrast({"a": [measured([1, 2], [4, 4])]}, {"b": [measured([1, 2], [4, 4])]})


def test_nothing_measured_is_refused():
    with pytest.raises(DataError, match="wikitext:text"):
        contrast({"a": [measured([0, 0], [0, 0])]})


# Rankings of a store


def store_of(folder: Path, losses: dict[str, list[list[float]]], measures: Sequence[str] = ("docs", "code"), missing: Sequence[str] = ()) -> Store:
    """A store whose labels ("dense", "magnitude" or a set) have, a draw each, one loss per measured set; documents differ a little."""
    store, rng, cells = Store(folder), np.random.default_rng(5), []
    lengths = {m: rng.integers(100, 300, 12).astype(float) for m in measures}
    hard = {m: rng.normal(0, 0.5, 12) for m in measures}
    for label, draws in losses.items():
        for seed, values in enumerate(draws):
            baseline = {"dense": "none", "magnitude": "magnitude"}.get(label)
            run = Run(
                "sha256:m",
                "tiny",
                "" if baseline else label,
                f"{label}{seed}",
                {"spec": baseline or "wanda"},
                "0.0" if label == "dense" else "0.5",
                {},
                "",
                "float32",
                seed,
            )
            store.add_record(Record(run, 0.5))
            ids = {}
            for m, value in zip(measures, values, strict=True):
                text = f"loss(source={m!r})"
                ids[text] = "sha256:none"
                if f"{label}/{m}" not in missing:
                    noise = rng.normal(0, 0.01, 12)
                    nats = lengths[m] * (value + hard[m] + noise - noise.mean())
                    ids[text] = store.add_measurement(run.id, {"spec": "loss", "source": m}, measured(nats, lengths[m], f"{m}:text"))
            cells.append(Cell("tiny", run.data, str(run.method["spec"]), run.target, seed, run.id, ids))
    store.write_cells(cells)
    return store


LOSSES = {"dense": [[3.0, 2.0]], "magnitude": [[5.0, 4.0]], "c4": [[3.5, 2.6]], "gsm8k:cot": [[3.9, 2.1]], "full_stops": [[6.0, 6.0]]}


def only(store: Store) -> Ranking:
    (ranking,) = rankings(store)
    return ranking


def test_a_ranking_orders_sets_by_their_mean_increase(tmp_path: Path):
    ranking = only(store_of(tmp_path, LOSSES))
    assert [e.name for e in ranking.entries] == ["gsm8k:cot", "c4", "full_stops"]
    assert [e.name for e in ranking.baselines] == ["magnitude"]
    assert ranking.measured == ranking.averaged == ("docs:text", "code:text")
    assert ranking.dense is not None
    assert ranking.dense.losses["docs:text"].value == pytest.approx(3.0, abs=0.5)
    best, second, worst = ranking.entries
    assert best.to_best is None
    assert not best.tied
    assert second.to_best is not None
    assert second.to_best.value == pytest.approx(second.mean.value - best.mean.value)
    assert second.tied is not second.to_best.apart(ranking.level, ranking.looks)
    assert worst.control
    assert not best.control
    assert not worst.tied
    assert (best.draws, ranking.baselines[0].draws) == (1, 0)
    assert ranking.looks == 6  # pairs of four
    assert ranking.one_draw
    assert ranking.missing == ()


def test_sets_that_differ_by_noise_are_tied(tmp_path: Path):
    ranking = only(store_of(tmp_path, {"dense": [[3.0, 2.0]], "a": [[3.5, 2.5]], "b": [[3.5005, 2.5005]]}))
    assert ranking.entries[1].tied


def test_without_a_dense_model_the_loss_itself_is_ranked(tmp_path: Path):
    ranking = only(store_of(tmp_path, {k: v for k, v in LOSSES.items() if k != "dense"}))
    assert ranking.dense is None
    assert ranking.best.increases == {}
    assert ranking.best.mean.value == pytest.approx(sum(e.value for e in ranking.best.losses.values()) / 2)


def test_a_set_without_all_its_measures_is_left_out_and_named(tmp_path: Path):
    store = store_of(tmp_path, LOSSES, missing=["c4/code"])
    store.add_failure("sha256:none", {"error": "the loss is nan"})
    ranking = only(store)
    assert [e.name for e in ranking.entries] == ["gsm8k:cot", "full_stops"]
    assert ranking.missing == ("c4 (draw 0) on loss(source='code'): the loss is nan",)


def test_a_failed_run_is_named_by_its_labels(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    store.write_cells([*store.cells(), Cell("tiny", "pile", "wanda", "0.5", 0, "")])
    store.add_failure("sha256:p", {"cell": ["tiny", "pile", "wanda", "0.5", 0], "error": "no such file"})
    assert only(store).missing == tuple(f"pile (draw 0) on loss(source={m!r}): no such file" for m in ("docs", "code"))


def test_a_run_that_answers_several_seeds_is_one_draw(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    again = [replace(c, seed=1) for c in store.cells() if c.data == "full_stops"]
    store.write_cells([*store.cells(), *again])
    assert {e.name: e.draws for e in only(store).entries} == {"gsm8k:cot": 1, "c4": 1, "full_stops": 1}


def test_several_draws_are_averaged(tmp_path: Path):
    ranking = only(
        store_of(tmp_path, {**LOSSES, "c4": [[3.5, 2.6], [3.7, 2.8]], "gsm8k:cot": [[3.9, 2.2], [3.9, 2.3]], "full_stops": [[6, 6], [6, 6.1]]})
    )
    assert [e.draws for e in ranking.entries] == [2, 2, 2]
    assert not ranking.one_draw
    c4 = next(e for e in ranking.entries if e.name == "c4")
    assert c4.mean.value == pytest.approx(((3.6 - 3) + (2.7 - 2)) / 2, abs=0.01)


def test_measures_of_another_unit_are_shown_and_not_averaged(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    cells = []
    for n, cell in enumerate(store.cells()):
        right = measured([1, 0, n % 2, 1], [1] * 4, "quiz", metric="accuracy", unit="share", better="higher")
        cells.append(replace(cell, measures={**cell.measures, "task": store.add_measurement(cell.run, {"spec": "task"}, right)}))
    store.write_cells(cells)
    ranking = only(store)
    assert ranking.measured == ("docs:text", "code:text", "quiz")
    assert ranking.averaged == ("docs:text", "code:text")


def test_the_same_source_measured_twice_keeps_two_columns(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    cells = []
    for cell in store.cells():
        extra = store.add_measurement(cell.run, {"spec": "loss", "length": 64}, measured([40, 50], [10, 10], "docs:text", facts={"length": 64}))
        cells.append(replace(cell, measures={**cell.measures, "loss(length=64)": extra}))
    store.write_cells(cells)
    assert only(store).measured == ("docs:text [loss(source='docs')]", "code:text", "docs:text [loss(length=64)]")


def test_each_method_and_target_has_its_own_ranking(tmp_path: Path):
    store = store_of(tmp_path, LOSSES)
    other = [replace(c, target="2:4") for c in store.cells() if c.data]
    store.write_cells([*store.cells(), *other])
    assert [(r.method, r.target, [b.name for b in r.baselines]) for r in rankings(store)] == [("wanda", "0.5", ["magnitude"]), ("wanda", "2:4", [])]


def test_an_empty_store_has_no_ranking(tmp_path: Path):
    assert rankings(Store(tmp_path)) == []
    assert tidy(Store(tmp_path)) == []


def test_the_tidy_table_has_a_row_for_each_score(tmp_path: Path):
    rows = tidy(store_of(tmp_path, LOSSES))
    assert len(rows) == 10
    row = next(r for r in rows if r["data"] == "c4" and r["measured"] == "docs:text")
    assert (row["method"], row["target"], row["seed"], row["n"], row["unit"]) == ("wanda", "0.5", 0, 12, "nats/token")


def test_the_source_of_an_expression():
    assert [source_name(e) for e in ("c4", "gsm8k:cot", "full_stops@one", "gsm8k:cot@many")] == ["c4", "gsm8k", "full_stops", "gsm8k"]
