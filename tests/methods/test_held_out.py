"""What is fitted is judged by what it wasn't fitted to: halves of different windows, and the
damping that errs least on the second.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calibrant.activations import Gram, Propagation, Seen
from calibrant.compress.rates import Rates, method_seconds
from calibrant.compress.room import CPU, Needs
from calibrant.data import TokenBatch
from calibrant.job import Job
from calibrant.methods import methods
from calibrant.methods._arrivals import arrivals
from calibrant.methods.pruning.held_out import HalvedGram, HeldOut
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.models import ModelShape, Opened, view
from calibrant.targets import NofM, Sparsity, Target, parse_target
from calibrant.testing import tiny_model
from calibrant.walk.walking import tokens_per_pass_of

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


def test_where_one_half_saw_no_token_that_counts_nothing_is_measured_on_the_other():
    (x,), weight = batches(1, 8, 20), torch.randn(6, 20)
    nothing = HalvedGram.of(x, torch.zeros(8))
    everything = HalvedGram.of(x)
    method = methods.build("held_out")
    for first, second in ((nothing, everything), (everything, nothing)):
        seen = Seen({HalvedGram: HalvedGram(first.whole, second.whole, 2)})
        found = method.compress(weight, seen, parse_target("0.5"))
        assert "held_out" not in found.notes
        assert float((found.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


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


def windows(count: int, seed: int) -> TokenBatch:
    """So many windows of 512 random tokens, of one source."""
    ids = torch.randint(3, 259, (count, 512), generator=torch.Generator().manual_seed(seed))
    facts = {"parts": [{"sequences": count, "share": 1.0}]}
    return TokenBatch(ids, torch.ones_like(ids).bool(), torch.ones(ids.shape), str(seed), facts)


def summed(one: TokenBatch, other: TokenBatch) -> TokenBatch:
    parts = [*one.facts["parts"], *other.facts["parts"]]
    ids = torch.cat([one.ids, other.ids])
    mask = torch.cat([one.mask, other.mask])
    weights = torch.cat([one.weights, other.weights])
    return TokenBatch(ids, mask, weights, "sum", {"parts": parts})


def seen_first(batch: TokenBatch, propagate: Propagation) -> tuple[HalvedGram, HalvedGram]:
    """What the first matrix of a tiny model sees as `held_out` wants it, and in a plain walk."""
    model = tiny_model("llama")
    its_view = view(model)
    opened = Opened(model, None, "tiny", "sha256:0", "", torch.float32)
    targets = dict.fromkeys(its_view.named, Sparsity(0.5))
    job = Job(opened, its_view, batch, Sparsity(0.5), targets, propagate)
    with torch.no_grad():
        _, halved = next(arrivals(HeldOut(), job))
        _, plain = next(job.walk(HeldOut.observes))
    return halved[HalvedGram], plain[HalvedGram]


def inputs_of_first(batch: TokenBatch) -> Tensor:
    """The inputs of that matrix in float64, token by token."""
    model = tiny_model("llama").double()
    found: list[Tensor] = []
    first = model.model.layers[0].self_attn.q_proj
    first.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=batch.ids)
    return found[0]


@pytest.mark.parametrize("propagate", ["arrival", "dense"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_every_source_of_a_sum_or_a_mix_is_on_both_sides(
    propagate: Propagation, mixed: bool, times: int
):
    """A source of one micro-batch, and one of as many or two."""
    in_a_pass = tokens_per_pass_of(propagate) // 512
    one = windows(in_a_pass, 1)
    other = windows(times * in_a_pass, 2)
    batch = summed(one, other)
    factor = 1.0
    if mixed:
        factor = 1 / times
        weights = batch.weights.clone()
        weights[in_a_pass:] = factor
        batch = replace(batch, weights=weights, mixed=((1.0, one), (factor, other)))
    halves, _ = seen_first(batch, propagate)
    x_one = inputs_of_first(one)
    x_other = inputs_of_first(other)
    for gram, x, y in zip(
        (halves.fitted, halves.measured), x_one.chunk(2), x_other.chunk(2), strict=True
    ):
        assert gram is not None
        exact = x.T @ x + factor * y.T @ y
        assert torch.allclose(gram.matrix.double(), exact, rtol=1e-4, atol=1e-2)
        assert gram.mass == pytest.approx(len(x) + factor * len(y))


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
def test_a_single_source_is_halved_by_its_micro_batches_alone(propagate: Propagation):
    halved, plain = seen_first(windows(17, 1), propagate)
    assert halved.measured is not None
    assert plain.measured is not None
    assert torch.equal(halved.fitted.matrix, plain.fitted.matrix)
    assert torch.equal(halved.measured.matrix, plain.measured.matrix)


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
