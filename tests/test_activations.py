"""Statistics against a float64 loop over tokens."""

import math

import numpy as np
import pytest
import torch

from calibrant.activations import (
    CHUNK,
    BlockChange,
    FeatureMaxima,
    FeatureMoments,
    FeatureNorms,
    FeatureSizes,
    Gram,
    MagnitudeCounts,
    Routing,
    Seen,
)


def rows(
    tokens: int, features: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("kind", [FeatureNorms, FeatureSizes, FeatureMoments, FeatureMaxima])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_feature_norms_are_the_weighted_sum_of_squares(
    dtype: torch.dtype, kind: type[FeatureNorms | FeatureSizes | FeatureMoments | FeatureMaxima]
) -> None:
    x, weights = rows(7, dtype=dtype), [1.0, 0.5, 2.0, 1.0, 0.25, 3.0, 1.0]
    by_hand = [
        sum(w * float(row[i]) ** 2 for row, w in zip(x.double(), weights, strict=True))
        for i in range(5)
    ]
    seen = kind.of(x, torch.tensor(weights))
    assert (seen.tokens, seen.mass) == (7, pytest.approx(sum(weights)))
    assert seen.norms().tolist() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gram_is_the_weighted_sum_of_outer_products(dtype: torch.dtype) -> None:
    x, weights = rows(6, dtype=dtype), torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25, 3.0])
    untouched = x.clone()
    by_hand = sum(
        float(w) * np.outer(row, row) for row, w in zip(x.double().numpy(), weights, strict=True)
    )
    seen = Gram.of(x, weights)
    assert np.allclose(seen.matrix.double().numpy(), by_hand, rtol=1e-5, atol=1e-6)
    assert seen.norms().tolist() == pytest.approx(np.diag(by_hand).tolist(), rel=1e-5)
    parts = Gram.of(x[:2], weights[:2]) + Gram.of(x[2:], weights[2:])
    assert np.allclose(parts.matrix.double().numpy(), by_hand, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, untouched)
    ones = torch.ones(3000, 1, dtype=dtype)  # a bfloat16 running sum of ones stops at 256
    assert float(Gram.of(ones).matrix) == float(FeatureNorms.of(ones).norms()) == 3000


@pytest.mark.parametrize("kind", [FeatureNorms, Gram])
def test_sums_of_parts_are_the_sum_over_the_whole(kind: type[FeatureNorms] | type[Gram]) -> None:
    x, weights = (
        rows(2 * CHUNK + 3, dtype=torch.float64),
        torch.rand(2 * CHUNK + 3, generator=torch.Generator().manual_seed(1)),
    )
    whole = kind.of(x, weights)
    parts = kind.of(x[:100], weights[:100]) + kind.of(x[100:], weights[100:])
    assert (parts.tokens, parts.mass) == (whole.tokens, pytest.approx(whole.mass))
    assert torch.allclose(parts.norms(), whole.norms(), rtol=1e-12)
    doubled = whole * 2.0
    assert torch.allclose(doubled.norms(), whole.norms() * 2)
    assert doubled.mass == pytest.approx(2 * whole.mass)


@pytest.mark.parametrize("tiles", [False, True])
def test_a_gram_of_bfloat16_rows_is_as_exact_with_factors_of_that_type(
    tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without tiles, where the setting is emulated or ignored; it is back afterwards, and
    isn't used for rows that are weighted.
    """
    monkeypatch.setattr("calibrant.activations.has_tiles", lambda: tiles)
    x, before = (
        rows(2 * CHUNK + 3, 400, dtype=torch.bfloat16),
        torch.backends.mkldnn.matmul.fp32_precision,
    )
    exact = x.double().T @ x.double()
    scale = exact.diagonal().sqrt().outer(exact.diagonal().sqrt())
    assert float(((Gram.of(x).matrix - exact) / scale).abs().max()) < 2e-6
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(1))
    weighted = x.double().T @ (x.double() * weights[:, None])
    assert float(((Gram.of(x, weights).matrix - weighted) / scale).abs().max()) < 2e-6
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_a_gram_that_another_is_added_to_in_place_is_their_sum_and_forgets_what_was_cached() -> (
    None
):
    x = rows(50, 700, dtype=torch.float64)
    total = Seen({Gram: Gram.of(x[:20])})
    total[Gram].cached("factor", lambda: 1)
    total += Seen({Gram: Gram.of(x[20:])})
    gram = total[Gram]
    assert torch.allclose(gram.upper.triu(), (x.T @ x).triu())
    assert torch.allclose(gram.matrix, x.T @ x)
    assert (gram.tokens, gram.mass) == (50, 50)
    assert gram.cached("factor", lambda: 2) == 2


def test_a_cached_result_is_computed_once() -> None:
    gram, calls = Gram.of(rows(3)), []
    first = gram.cached("factor", lambda: calls.append(1) or len(calls))
    assert gram.cached("factor", lambda: calls.append(1) or len(calls)) == first
    assert len(calls) == 1


def test_block_change_is_one_minus_the_cosine() -> None:
    before, after = rows(4, seed=1), rows(4, seed=2)
    by_hand = [
        1 - float(a @ b / (a.norm() * b.norm()))
        for a, b in zip(before.double(), after.double(), strict=True)
    ]
    change = BlockChange.of(before, after, torch.tensor([1.0, 2.0, 0.5, 1.0]))
    assert change.total == pytest.approx(
        by_hand[0] + 2 * by_hand[1] + 0.5 * by_hand[2] + by_hand[3], rel=1e-5
    )
    assert (change + change).total == pytest.approx(2 * change.total)


def routed(seed: int, tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, 6, generator=generator).argsort(1)[:, :2], torch.rand(
        tokens, 2, generator=generator
    )


def test_routing_counts_gates_and_pairs_as_one_would_by_hand() -> None:
    (chosen, gates), weights = routed(0), torch.rand(20)
    routing = Routing.of(chosen, gates, 6, weights)
    for expert in range(6):
        sent = [t for t in range(20) if expert in chosen[t].tolist()]
        assert float(routing.counts[expert]) == pytest.approx(float(weights[sent].sum()))
        given = sum(float(weights[t] * gates[t][chosen[t] == expert]) for t in sent)
        assert float(routing.gates[expert]) == pytest.approx(given)
        for other in range(6):
            both = [t for t in sent if other in chosen[t].tolist()]
            assert float(routing.together[expert, other]) == pytest.approx(
                float(weights[both].sum())
            )
    assert torch.equal(routing.together.diagonal(), routing.counts)
    assert (routing.tokens, routing.mass) == (20, pytest.approx(float(weights.sum())))


def test_routing_adds_up_and_is_scaled() -> None:
    (first, given), (second, more) = routed(0), routed(1)
    one, both = (
        Routing.of(first, given, 6),
        Routing.of(torch.cat([first, second]), torch.cat([given, more]), 6),
    )
    added = one + Routing.of(second, more, 6)
    for name in ("counts", "gates", "together"):
        assert torch.allclose(getattr(added, name), getattr(both, name))
        assert torch.equal(getattr(one * 0.5, name), getattr(one, name) * 0.5)
    assert (added.tokens, added.mass, (one * 0.5).mass) == (40, 40.0, 10.0)
    left_out = Routing.of(torch.tensor([[0, -1], [6, 2], [6, 6]]), torch.ones(3, 2), 6)
    assert left_out.counts.tolist() == left_out.gates.tolist() == [1, 0, 1, 0, 0, 0]
    assert float(left_out.together.sum()) == 2


def test_seen_adds_kind_by_kind_and_counts_tokens() -> None:
    first, second = rows(3, seed=1), rows(4, seed=2)
    one, other = (
        Seen({FeatureNorms: FeatureNorms.of(x), Gram: Gram.of(x)}) for x in (first, second)
    )
    both = one + other
    assert both.tokens == 7
    whole = torch.cat([first, second])
    assert torch.allclose(both[Gram].matrix, Gram.of(whole).matrix)
    assert torch.allclose(both[FeatureNorms].norms(), FeatureNorms.of(whole).norms())
    assert Seen({}).tokens == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_noticed(bad: float) -> None:
    x = rows(3)
    x[1, 2] = bad
    assert not FeatureNorms.of(x).finite()
    assert not FeatureMaxima.of(x).finite()
    assert not Gram.of(x).finite()
    assert Gram.of(rows(3)).finite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feature_sizes_are_weighted_sums_of_sizes_and_squares(dtype: torch.dtype) -> None:
    x, weights = rows(7, dtype=dtype), [1.0, 0.5, 2.0, 1.0, 0.25, 3.0, 1.0]
    seen = FeatureSizes.of(x, torch.tensor(weights))
    by_hand = [
        sum(w * abs(float(row[i])) for row, w in zip(x.double(), weights, strict=True))
        for i in range(5)
    ]
    assert seen.sums.tolist() == pytest.approx(by_hand, rel=1e-6)
    assert seen.means().tolist() == pytest.approx(
        [total / sum(weights) for total in by_hand], rel=1e-6
    )
    parts = (
        FeatureSizes.of(x[:3], torch.tensor(weights[:3])) * 0.5
        + FeatureSizes.of(x[3:], torch.tensor(weights[3:])) * 0.5
    )
    assert torch.allclose(parts.sums, seen.sums / 2)
    assert torch.allclose(parts.means(), seen.means())
    assert parts.tokens == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feature_moments_are_weighted_means_and_variances(dtype: torch.dtype) -> None:
    x, weights = rows(7, dtype=dtype), [1.0, 0.5, 2.0, 1.0, 0.25, 3.0, 1.0]
    seen = FeatureMoments.of(x, torch.tensor(weights))
    means = [
        sum(w * float(row[i]) for row, w in zip(x.double(), weights, strict=True)) / sum(weights)
        for i in range(5)
    ]
    spreads = [
        sum(w * (float(row[i]) - means[i]) ** 2 for row, w in zip(x.double(), weights, strict=True))
        / sum(weights)
        for i in range(5)
    ]
    assert seen.means().tolist() == pytest.approx(means, rel=1e-5, abs=1e-6)
    assert seen.variances().tolist() == pytest.approx(spreads, rel=1e-5)
    parts = (
        FeatureMoments.of(x[:3], torch.tensor(weights[:3])) * 0.5
        + FeatureMoments.of(x[3:], torch.tensor(weights[3:])) * 0.5
    )
    assert torch.allclose(parts.sums, seen.sums / 2)
    assert torch.allclose(parts.variances(), seen.variances())
    assert parts.tokens == 7
    constant = FeatureMoments.of(torch.full((1000, 3), 0.1)).variances()
    assert 0 <= constant.min() <= constant.max() < 1e-8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_feature_maxima_are_the_largest_sizes_whatever_tokens_weigh(dtype: torch.dtype) -> None:
    x, weights = rows(CHUNK + 7, dtype=dtype), torch.rand(CHUNK + 7)
    by_hand = [max(abs(float(row[i])) for row in x.double()) for i in range(5)]
    seen = FeatureMaxima.of(x, weights)
    assert seen.maxima.tolist() == by_hand
    assert seen.largest() == max(by_hand)
    parts = (
        FeatureMaxima.of(x[:300], weights[:300]) * 0.25
        + FeatureMaxima.of(x[300:], weights[300:]) * 0.25
    )
    assert parts.maxima.tolist() == by_hand
    assert torch.allclose(parts.norms(), seen.norms() / 4)
    assert (parts.tokens, parts.mass) == (CHUNK + 7, pytest.approx(float(weights.sum()) / 4))
    assert FeatureMaxima.of(x[:0]).maxima.tolist() == [0.0] * 5


def test_magnitudes_are_counted_one_at_a_time_and_added_exactly():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(300, 7, generator=generator) * torch.logspace(-14, 14, 7)
    x[3] = 0
    weights = torch.randint(1, 4, (300,), generator=generator).float()
    seen = MagnitudeCounts.of(x, weights)
    counts = [0.0] * 2048
    for row, weight in zip(x.double().tolist(), weights.tolist(), strict=True):
        for value in row:
            place = 0
            if value:
                octave = math.floor(math.log2(abs(value)))
                place = 32 * (octave + 32) + math.floor(32 * (abs(value) / 2.0**octave - 1))
            counts[min(2047, max(0, place))] += weight
    assert seen.counts.tolist() == counts
    assert seen.norms().tolist() == pytest.approx(
        (x.double().square() * weights[:, None]).sum(0).tolist()
    )
    halves = MagnitudeCounts.of(x[:100], weights[:100]) + MagnitudeCounts.of(x[100:], weights[100:])
    assert torch.equal(halves.counts, seen.counts)
    assert torch.equal((seen * 0.5).counts * 2, seen.counts)
    near_one = torch.randn(300, 7, generator=generator)
    sizes = near_one.abs().flatten().sort().values
    plain = MagnitudeCounts.of(near_one)
    for share in (0.1, 0.5, 0.99):
        exact = float(sizes[int(share * len(sizes))])
        assert exact <= plain.quantile(share) <= exact * (1 + 2 / 32)
