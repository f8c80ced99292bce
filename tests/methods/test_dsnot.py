"""DSnoT against loops over rows, one swap after the other, in Python's own float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureMoments, FeatureNorms, Seen
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.methods import methods
from calibrant.methods.dsnot import DSnoT
from calibrant.methods.magnitude import Magnitude
from calibrant.methods.ria import RIA
from calibrant.methods.wanda import Wanda
from calibrant.targets import NofM, Sparsity, Target

TARGETS = [Sparsity(0.5), Sparsity(0.29), Sparsity(0.9), NofM(2, 4), NofM(1, 4), NofM(4, 8)]


def inputs(tokens: int, features: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features whose means are no zeros, and of different sizes."""
    return (torch.randn(tokens, features, dtype=dtype) + torch.randn(features, dtype=dtype)) * (0.1 + torch.rand(features, dtype=dtype))


def seen(x: Tensor, weights: Tensor | None = None) -> Seen:
    return Seen({FeatureNorms: FeatureNorms.of(x, weights), FeatureMoments: FeatureMoments.of(x, weights)})


def row_by_loops(
    row: list[float], kept: list[bool], mean: list[float], variance: list[float], score: list[float], group: int, swaps: int, tolerance: float
) -> list[bool]:
    """Swap one row's weights as the paper says it."""
    stays, effect, width = list(kept), [w * m for w, m in zip(row, mean, strict=True)], range(len(row))
    lost = math.fsum(effect[i] for i in width if not kept[i])
    fresh = set(width)
    for _ in range(swaps):
        if abs(lost) <= tolerance:
            break
        sign = 1 if lost > 0 else -1
        back = [i for i in width if not kept[i] and i in fresh and sign * effect[i] > 0]
        if not back:
            break
        grown = max(back, key=lambda i: (sign * effect[i] / variance[i], -i))
        if group:
            first = grown // group * group
            out = [i for i in range(first, first + group) if kept[i] and i in fresh]
        else:
            out = [i for i in width if kept[i] and i in fresh and sign * effect[i] < 0]
        fresh.discard(grown)
        if not out:
            if group:
                continue
            break
        dropped = min(out, key=lambda i: (score[i], i))
        after = lost + effect[dropped] - effect[grown]
        if group and after * lost <= 0:
            break
        fresh.discard(dropped)
        stays[grown], stays[dropped], lost = True, False, after
    return stays


def mask_by_loops(weight: Tensor, x: Tensor, target: Target, swaps: int = 50, tolerance: float = 5e-5, start: Any = None) -> Tensor:
    columns = x.T.tolist()
    mean = [math.fsum(column) / len(column) for column in columns]
    variance = [math.fsum((value - m) ** 2 for value in column) / len(column) for column, m in zip(columns, mean, strict=True)]
    length = [math.sqrt(math.fsum(value**2 for value in column)) for column in columns]
    kept = (start or Wanda()).compress(weight, seen(x), target).weight != 0
    group = target.m if isinstance(target, NofM) else 0
    rows = []
    for row, mask in zip(weight.tolist(), kept.tolist(), strict=True):
        score = [abs(w) * size for w, size in zip(row, length, strict=True)]
        rows.append(row_by_loops(row, mask, mean, variance, score, group, swaps, tolerance))
    return torch.tensor(rows)


def lost(weight: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    return ((weight * ~mask) @ x.mean(0)).abs()


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("swaps", [1, 5, 50])
def test_the_mask_is_exactly_that_of_the_loops(target: Target, swaps: int):
    weight, x = torch.randn(40, 96, dtype=torch.float64), inputs(150, 96)
    result = DSnoT(swaps=swaps).compress(weight, seen(x), target).weight
    expected = mask_by_loops(weight, x, target, swaps)
    assert torch.equal(result != 0, expected)
    assert torch.equal(result, weight * expected)


@pytest.mark.parametrize("start", [Magnitude(), RIA()], ids=str)
def test_it_starts_from_the_mask_of_another_method(start: Any):
    weight, x = torch.randn(40, 96, dtype=torch.float64), inputs(150, 96)
    result = DSnoT(start=start).compress(weight, seen(x), Sparsity(0.5)).weight
    assert torch.equal(result != 0, mask_by_loops(weight, x, Sparsity(0.5), start=start))


def test_more_rows_than_are_ordered_at_a_time(monkeypatch: pytest.MonkeyPatch):
    weight, x = torch.randn(23, 32, dtype=torch.float64), inputs(60, 32)
    whole = DSnoT().compress(weight, seen(x), Sparsity(0.5))
    monkeypatch.setattr("calibrant.methods._mean_swaps.ROWS", 5)
    parts = DSnoT().compress(weight, seen(x), Sparsity(0.5))
    assert torch.equal(whole.weight, parts.weight)
    assert whole.notes == parts.notes


@pytest.mark.parametrize("target", [Sparsity(0.6), NofM(2, 4)], ids=str)
def test_outputs_lose_less_on_average_and_the_notes_say_how_much(target: Target):
    """Of many inputs, so that a swap is small beside what an output loses."""
    weight, x = torch.randn(60, 1024, dtype=torch.float64), inputs(200, 1024)
    before, after = (m.compress(weight, seen(x), target) for m in (Wanda(), DSnoT(swaps=20)))
    means = [float(lost(weight, one.weight != 0, x).mean()) for one in (before, after)]
    assert means[1] < 0.7 * means[0]
    assert [after.notes["before"], after.notes["after"]] == pytest.approx(means, rel=1e-4)
    changed = ((before.weight != 0) & (after.weight == 0)).sum(1).double().mean()
    assert after.notes["swaps"] == pytest.approx(float(changed), rel=1e-4)
    assert changed > 1


def test_without_swaps_it_is_the_start():
    weight, x = torch.randn(8, 32), inputs(60, 32, torch.float32)
    assert torch.equal(*(m.compress(weight, seen(x), Sparsity(0.5)).weight for m in (DSnoT(swaps=0), Wanda())))


def test_inputs_whose_mean_is_zero_move_nothing():
    weight, x = torch.randn(8, 32), torch.cat([half := inputs(60, 32, torch.float32), -half])
    assert torch.equal(*(m.compress(weight, seen(x), Sparsity(0.5)).weight for m in (DSnoT(tolerance=1e-4), Wanda())))


def test_token_weights_count():
    weight, x = torch.randn(20, 32, dtype=torch.float64), inputs(30, 32)
    repeated = DSnoT().compress(weight, seen(torch.cat([x, x[:10]])), Sparsity(0.5)).weight
    counted = torch.ones(30, dtype=torch.float64)
    counted[:10] = 2
    assert torch.equal(DSnoT().compress(weight, seen(x, counted), Sparsity(0.5)).weight, repeated)


def test_a_start_is_written_as_a_spec():
    built = methods.build("dsnot(start=ria(power=1.0), swaps=10)")
    assert built == DSnoT(start=RIA(power=1.0), swaps=10)
    assert repr(built) == "dsnot(start=ria(power=1.0), swaps=10)"
    assert repr(methods.build("dsnot(start=wanda)")) == "dsnot"


@pytest.mark.parametrize("start", ["sparsegpt", "none()", "rtn", "dsnot", "short_gpt", "nobody"])
def test_a_start_of_another_kind_is_refused(start: str):
    with pytest.raises(SpecError, match=rf"dsnot\(start={start.strip('()')}\): .*; write wanda, ria or magnitude"):
        methods.build(f"dsnot(start={start})")


@pytest.mark.parametrize(
    ("parameters", "said"), [({"swaps": -1}, "swaps must be 0 or more"), ({"tolerance": math.nan}, "tolerance must be 0 or more")]
)
def test_parameters_are_checked(parameters: dict[str, Any], said: str):
    with pytest.raises(SpecError, match=said):
        DSnoT(**parameters)


def test_what_has_no_numbers_or_no_fit_is_refused():
    weight = torch.ones(2, 4)
    with pytest.raises(NumericsError, match=r"the weight holds NaN or infinity \(1 of 8 numbers\)"):
        DSnoT().compress(weight.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(math.nan)), seen(torch.ones(3, 4)), Sparsity(0.5))
    with pytest.raises(NumericsError, match=r"no token reached the matrix \(0 tokens, weight 0\)"):
        DSnoT().compress(weight, seen(torch.ones(0, 4)), Sparsity(0.5))
    with pytest.raises(TargetError, match="6 inputs, and 2:4"):
        DSnoT().compress(torch.rand(4, 6), seen(torch.rand(5, 6)), NofM(2, 4))
