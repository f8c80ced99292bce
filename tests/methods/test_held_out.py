"""What is fitted is judged by what it wasn't fitted to: halves of different windows, and the
damping that errs least on the second.
"""

import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram, Seen
from calibrant.compress.rates import Rates, method_seconds
from calibrant.compress.room import CPU, Needs
from calibrant.methods import methods
from calibrant.methods.pruning.held_out import HalvedGram, HeldOut
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.models import ModelShape, view
from calibrant.targets import NofM, Sparsity, Target
from calibrant.testing import tiny_model

DAMPS = (0.001, 0.01, 0.1, 1.0, 10.0)


def batches(count: int, rows: int, features: int, seed: int = 0) -> list[Tensor]:
    """Inputs that lie near a plane of a fifth as many dimensions."""
    chance = torch.Generator().manual_seed(seed)
    plane = torch.randn(features // 5, features, generator=torch.Generator().manual_seed(99))
    return [
        torch.randn(rows, features // 5, generator=chance) @ plane
        + torch.randn(rows, features, generator=chance)
        for _ in range(count)
    ]


def added(of: list[Tensor]) -> HalvedGram:
    total = HalvedGram.of(of[0])
    for x in of[1:]:
        total = total + HalvedGram.of(x)
    return total


def close(gram: Gram | None, x: Tensor) -> bool:
    assert gram is not None
    return gram.tokens == len(x) == gram.mass and torch.allclose(
        gram.matrix.double(), x.double().T @ x.double(), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("count", [2, 7])
def test_micro_batches_are_counted_in_turn(count: int):
    of = batches(count, 9, 20)
    halves = added(of)
    assert close(halves.fitted, torch.cat(of[::2]))
    assert close(halves.measured, torch.cat(of[1::2]))
    assert close(halves.whole, torch.cat(of))
    assert torch.allclose(
        halves.norms().double(), torch.cat(of).double().square().sum(0), rtol=1e-5
    )
    assert (halves.tokens, halves.mass) == (9 * count, 9.0 * count)


def test_a_single_micro_batch_is_divided_in_its_middle_and_weights_of_tokens_count_in_both_halves():
    (x,), weights = batches(1, 9, 20), torch.linspace(0.5, 2, 9)
    halves, weighed = HalvedGram.of(x), HalvedGram.of(x, weights)
    assert close(halves.fitted, x[:5])
    assert close(halves.measured, x[5:])
    assert HalvedGram.of(x[:1]).measured is None
    assert torch.allclose(
        weighed.fitted.matrix, x[:5].T @ (x[:5] * weights[:5, None]), rtol=1e-5, atol=1e-4
    )
    assert weighed.mass == pytest.approx(float(weights.sum()))


def test_halves_of_several_sets_are_added_side_by_side():
    one, other = batches(4, 9, 20), batches(3, 9, 20, seed=1)
    mixed = added(one) * 0.25 + added(other) * 0.75
    assert mixed.measured is not None
    fitted, measured = (
        0.25 * a.T @ a + 0.75 * b.T @ b
        for a, b in ((torch.cat(one[i::2]), torch.cat(other[i::2])) for i in (0, 1))
    )
    assert torch.allclose(mixed.fitted.matrix, fitted, rtol=1e-5, atol=1e-4)
    assert torch.allclose(mixed.measured.matrix, measured, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_set_of_one_micro_batch_leaves_the_halves_of_another(swapped: bool):
    several = batches(5, 9, 20)
    (single,) = batches(1, 9, 20, seed=1)
    if swapped:
        halves = HalvedGram.of(single) + added(several)
    else:
        halves = added(several) + HalvedGram.of(single)
    assert close(halves.fitted, torch.cat(several[::2]))
    assert close(halves.measured, torch.cat([*several[1::2], single]))


@pytest.mark.parametrize(("target", "rows"), [(Sparsity(0.5), 8), (NofM(2, 4), 200)])
def test_the_damping_that_errs_least_on_the_other_half_is_taken(target: Target, rows: int):
    of, weight = (
        batches(6, rows, 40),
        torch.randn(24, 40, generator=torch.Generator().manual_seed(5)),
    )
    halves, measured = added(of), torch.cat(of[1::2]).double()
    errors = {
        damp: float(
            (
                (
                    weight
                    - SparseGPT(damp).compress(weight, Seen({Gram: halves.fitted}), target).weight
                ).double()
                @ measured.T
            )
            .square()
            .sum()
        )
        for damp in DAMPS
    }
    best = min(DAMPS, key=errors.__getitem__)
    found = HeldOut(damps=DAMPS).compress(weight, Seen({HalvedGram: halves}), target)
    assert found.notes["chosen_damp"] == best
    assert torch.equal(
        found.weight, SparseGPT(best).compress(weight, Seen({Gram: halves.whole}), target).weight
    )
    whole = float((weight.double() @ measured.T).square().sum())
    assert found.notes["held_out"] == pytest.approx(
        {f"{damp:g}": error / whole for damp, error in errors.items()}, rel=1e-4
    )
    unfitted = HeldOut(damps=DAMPS, refit=False).compress(
        weight, Seen({HalvedGram: halves}), target
    )
    assert torch.equal(
        unfitted.weight,
        SparseGPT(best).compress(weight, Seen({Gram: halves.fitted}), target).weight,
    )


def test_a_plan_counts_each_damping_and_the_grams_of_both_halves():
    shape = ModelShape.of(view(tiny_model("llama")))
    plain = SparseGPT()
    halved = HeldOut(damps=(0.01, 0.1, 1.0))
    rates = Rates(products=1e9, exact=1e9, grams=1e9, passes=1e9)
    once = method_seconds(shape, 64, 64, plain, rates)
    assert method_seconds(shape, 64, 64, halved, rates) == pytest.approx(4 * once)
    widest = max(matrix.inputs for matrix in shape.matrices)
    largest = max(matrix.numbers for matrix in shape.matrices)
    added = 4 * ((2 + 3) * widest**2 + 2 * largest)
    for device in (CPU, torch.device("cuda")):
        needs = Needs.of(shape, 64, torch.float32, plain, device=device)
        more = Needs.of(shape, 64, torch.float32, halved, device=device)
        assert more.work == needs.work + added


def test_a_plan_counts_the_work_of_the_method_that_is_tried():
    shape = ModelShape.of(view(tiny_model("llama")))
    rates = Rates(products=1e9, exact=1e9, grams=1e9, passes=1e9)
    within = methods.build("refined")
    held_out = HeldOut(method=within, damps=(0.1, 1.0), refit=False)
    once = method_seconds(shape, 64, 64, within, rates)
    assert method_seconds(shape, 64, 64, held_out, rates) == pytest.approx(2 * once)
