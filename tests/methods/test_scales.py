"""How scales are chosen, against a search over every grid in plain Python."""

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen
from calibrant.methods import MatrixMethod, methods
from calibrant.methods.quantization._rounding import scales_by
from calibrant.packed import Codes
from calibrant.spec import canonical
from calibrant.targets import Grid, parse_target

SHARES = {
    "mse": [1 - i / 100 for i in range(80)],
    "importance": [1 - 0.95 * i / 20 for i in range(20)],
}
POWER = {"mse": 2.4, "importance": 3.0}


def random(rows: int, columns: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return (
        torch.randn(
            rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        ** 3
    ).to(dtype)


def error_of(
    members: list[float],
    weights: list[float],
    scale: float,
    zero: float,
    low: int,
    high: int,
    power: float,
) -> float:
    total = 0.0
    for member, weight in zip(members, weights, strict=True):
        code = min(max(round(member / scale + zero), low), high)
        total += weight * abs((code - zero) * scale - member) ** power
    return total


def candidates(
    members: list[float], how: str, bits: int, symmetric: bool
) -> list[tuple[float, float]]:
    """Every scale and zero point that the rule tries for a group."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least, most, found = min(*members, 0.0), max(*members, 0.0), list[tuple[float, float]]()
    for share in SHARES[how]:
        scale = (
            max(-least, most) * share / ((high - low) / 2)
            if symmetric
            else (most - least) * share / (high - low)
        )
        found.append(
            (
                scale,
                0.0
                if symmetric
                else float(min(max(round(low - least * share / scale), low), high)),
            )
        )
    return found


@pytest.mark.parametrize("text", ["w2g8", "w3g16", "w4g8a", "w3"])
@pytest.mark.parametrize("how", ["mse", "importance"])
def test_a_searched_scale_is_the_best_of_those_that_are_tried(how: str, text: str):
    weight, grid, sizes = random(6, 48), parse_target(text), random(1, 48, seed=5)[0].square()
    assert isinstance(grid, Grid)
    found, width = scales_by(how, weight, grid, sizes), grid.width(48)
    for r in range(6):
        for g in range(48 // width):
            members, counted = (
                weight[r, g * width : (g + 1) * width].tolist(),
                sizes[g * width : (g + 1) * width].tolist(),
            )
            weights = counted if how == "importance" else [1.0] * width
            tried = candidates(members, how, grid.bits, grid.symmetric)
            errors = [
                error_of(members, weights, scale, zero, grid.lowest, grid.highest, POWER[how])
                for scale, zero in tried
            ]
            zero = 0.0 if found.zeros is None else float(found.zeros[r, g])
            chosen = error_of(
                members,
                weights,
                float(found.scales[r, g]),
                zero,
                grid.lowest,
                grid.highest,
                POWER[how],
            )
            assert chosen == pytest.approx(min(errors), rel=1e-9)


def packed(method: str, weight: Tensor, target: str, seen: Seen) -> Codes:
    built = methods.build(method)
    assert isinstance(built, MatrixMethod)
    found = built.compress(weight, seen, parse_target(target)).packed
    assert isinstance(found, Codes)
    return found


def test_inputs_that_were_always_zero_keep_the_whole_reach():
    weight, x = random(3, 16, torch.float32), torch.randn(50, 16)
    x[:, :8] = 0
    found = packed(
        "rtn(scales=importance)", weight, "w4g8", Seen({FeatureNorms: FeatureNorms.of(x)})
    )
    assert torch.equal(found.scales[:, 0], weight[:, :8].abs().amax(1) / 7.5)


def test_the_rule_is_part_of_the_identity_and_only_importance_looks_at_data():
    assert (
        canonical(methods.build("rtn"))
        == canonical(methods.build("rtn(scales=absmax)"))
        == {"spec": "rtn", "revision": 1}
    )
    assert canonical(methods.build("rtn(scales=mse)")) == {
        "spec": "rtn",
        "revision": 1,
        "scales": "mse",
    }
    assert [
        methods.build(f"rtn(scales={rule})").looks for rule in ("absmax", "mse", "importance")
    ] == [False, False, True]


def test_a_matrix_of_zeros_has_scales_too():
    assert not packed("rtn(scales=mse)", torch.zeros(2, 8), "w4g8", Seen({})).dense().any()
