"""The factors of FiPS and its relatives against slow calculations in float64 that know the
activations themselves.
"""

import math

import pytest
import torch
from torch import Tensor

from calibrant.errors import TargetError
from calibrant.methods.factors._factors import (
    Member,
    alternated,
    best_own_factor,
    error_by_own_factor,
    leading,
    truncated,
)
from calibrant.methods.factors._sharing import Budget
from calibrant.targets import Share

STREAM, UNITS, TOKENS = 10, 14, 60
KINDS = (True, False, True)
"""Two matrices that read the stream, and one that writes to it."""


def inputs(width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(TOKENS, width, generator=generator, dtype=torch.float64) @ torch.randn(
        width, width, generator=generator, dtype=torch.float64
    )
    return mixed * torch.logspace(-1, 0.5, width, dtype=torch.float64)


def weight(seed: int, stream: int = STREAM, units: int = UNITS) -> Tensor:
    return torch.randn(
        stream, units, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64
    )


def members(
    kinds: tuple[bool, ...] = KINDS, relative: bool = False
) -> tuple[list[Member], list[Tensor]]:
    """Matrices, and the activations [token, in] that they see."""
    seen = [inputs(STREAM if reads else UNITS, number) for number, reads in enumerate(kinds)]
    made = [
        Member(weight(n), x.T @ x, reads, relative)
        for n, (x, reads) in enumerate(zip(seen, kinds, strict=True))
    ]
    return made, seen


def slow_error(member: Member, x: Tensor, product: Tensor) -> float:
    """‖(W - P)X‖² by the outputs of every token."""
    difference = member.weight - product
    return float(
        sum(
            (difference.T @ token if member.reads else difference @ token).square().sum()
            for token in x
        )
    )


def random_factors(rank: int, count: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(7)
    shared = torch.randn(STREAM, rank, generator=generator, dtype=torch.float64)
    return shared, [
        torch.randn(rank, UNITS, generator=generator, dtype=torch.float64) for _ in range(count)
    ]


def test_an_error_from_grams_is_that_of_the_outputs():
    made, seen = members()
    shared, own = random_factors(4, 3)
    for member, x, v in zip(made, seen, own, strict=True):
        assert member.error(shared @ v) == pytest.approx(
            slow_error(member, x, shared @ v), rel=1e-12
        )
    relative, _ = members(relative=True)
    for member, x in zip(relative, seen, strict=True):
        assert member.importance == pytest.approx(
            1 / slow_error(member, x, torch.zeros(STREAM, UNITS)), rel=1e-12
        )


def on_a_mask(member: Member, x: Tensor, shared: Tensor, keep: Tensor) -> Tensor:
    """The best own factor with numbers where `keep` says: least squares over the outputs of all
    tokens at once.
    """
    places = keep.reshape(-1).nonzero().flatten()
    columns: list[Tensor] = []
    for place in places.tolist():
        unit = torch.zeros(keep.numel(), dtype=torch.float64)
        unit[place] = 1
        product = shared @ unit.reshape(keep.shape)
        columns.append((x @ product if member.reads else x @ product.T).reshape(-1))
    goal = (x @ member.weight if member.reads else x @ member.weight.T).reshape(-1, 1)
    found = torch.zeros(keep.numel(), dtype=torch.float64)
    found[places] = torch.linalg.lstsq(torch.stack(columns, 1), goal).solution[:, 0]
    return found.reshape(keep.shape)


@pytest.mark.parametrize("number", range(3))
def test_steps_come_to_the_best_numbers_on_a_mask(number: int):
    made, seen = members()
    shared, own = random_factors(4, 3)
    keep = torch.rand(4, UNITS, generator=torch.Generator().manual_seed(3)) < 0.5
    wanted = on_a_mask(made[number], seen[number], shared, keep)
    found = error_by_own_factor(made[number], shared).descended(
        own[number].masked_fill(~keep, 0), 400, keep
    )
    assert bool((found[~keep] == 0).all())
    assert torch.allclose(found, wanted, atol=1e-6 * float(wanted.abs().max()))


def tail(matrix: Tensor, rank: int) -> float:
    """What the best product of that rank leaves: the singular values that it lacks."""
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum())


@pytest.mark.parametrize(("reads", "rank"), [(True, 4), (False, 1)])
def test_one_matrix_alone_is_decomposed_as_well_as_can_be(reads: bool, rank: int):
    (member,), (x,) = members((reads,))
    outputs = x @ (member.weight if reads else member.weight.T)
    aware = truncated([member], rank, True, torch.float64)
    assert slow_error(member, x, aware.shared @ aware.own_factors[0]) == pytest.approx(
        tail(outputs, rank), rel=1e-4
    )
    plain = truncated([Member(member.weight, None, reads)], rank, False, torch.float64)
    assert float(
        (member.weight - plain.shared @ plain.own_factors[0]).square().sum()
    ) == pytest.approx(tail(member.weight, rank), rel=1e-4)


@pytest.mark.parametrize("reads", [True, False])
def test_a_basis_of_matrices_that_see_the_same_is_the_best_there_is(reads: bool):
    if reads:
        x = inputs(STREAM, 0)
        gram = x.T @ x
        made = [Member(weight(n), gram, True) for n in range(3)]
        stacked = torch.cat([x @ member.weight for member in made], 1)
    else:  # of such as write, whatever they see
        made, seen = members((False, False, False))
        stacked = torch.cat([x @ member.weight.T for member, x in zip(made, seen, strict=True)])
    found = truncated(made, 4, True, torch.float64)
    errors = sum(
        member.error(found.shared @ own)
        for member, own in zip(made, found.own_factors, strict=True)
    )
    assert errors == pytest.approx(tail(stacked, 4), rel=1e-4)


def test_a_dense_own_factor_is_that_of_least_squares():
    made, seen = members()
    shared, _ = random_factors(4, 0)
    for member, x in zip(made, seen, strict=True):
        wanted = on_a_mask(member, x, shared, torch.ones(4, UNITS, dtype=torch.bool))
        assert torch.allclose(best_own_factor(member, shared), wanted, atol=1e-8)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.bfloat16, 1e-4)])
def test_all_of_the_rank_and_of_the_numbers_is_the_matrix(dtype: torch.dtype, within: float):
    """The share of the outputs' squares that is lost."""
    made, seen = members(relative=True)
    full = STREAM * UNITS
    for found in (
        alternated(made, STREAM, (full,) * 3, 4, 3, dtype),
        truncated(made, STREAM, True, dtype),
    ):
        assert {each.dtype for each in (found.shared, *found.own_factors)} == {dtype}
        for member, x, own in zip(made, seen, found.own_factors, strict=True):
            assert (
                slow_error(member, x, found.shared.double() @ own.double()) * member.importance
                < within
            )


def summed(made: list[Member], seen: list[Tensor], rank: int, kept: int, rounds: int = 8) -> float:
    """The sum of the members' errors, of which each keeps exactly so many numbers."""
    found = alternated(made, rank, (kept,) * len(made), rounds, 3, torch.float64)
    assert [int(own.count_nonzero()) for own in found.own_factors] == [kept] * len(made)
    assert torch.allclose(found.shared.norm(dim=0), torch.ones(rank, dtype=torch.float64))
    return sum(
        member.importance * slow_error(member, x, found.shared @ own)
        for member, x, own in zip(made, seen, found.own_factors, strict=True)
    )


def test_rounds_take_off_what_the_first_decomposition_left():
    """Beside one that is cut to the same numbers by size, without a look at the inputs, and then
    fitted to them once, in float64.
    """
    made, seen = members(relative=True)
    kept = 70
    shared = leading(made, STREAM, aware=False)
    start = 0.0
    for member, x in zip(made, seen, strict=True):
        own = shared.T @ member.weight
        keep = own.abs() >= own.abs().flatten().sort(descending=True).values[kept - 1]
        start += member.importance * slow_error(
            member, x, shared @ on_a_mask(member, x, shared, keep)
        )
    assert summed(made, seen, STREAM, kept, 20) < 0.8 * start


def budget(
    shapes: tuple[tuple[int, int], ...], fraction: float, bits: int = 16, indices: bool = False
) -> Budget:
    return Budget(shapes, Share("numbers", fraction), bits, indices, "these")


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("fraction", [0.2, 0.33])
@pytest.mark.parametrize(
    "shapes", [((576, 1536),) * 6, ((64, 192), (64, 384), (64, 100)), ((30, 30),)]
)
def test_what_remains_is_what_was_asked_and_hardly_less(
    shapes: tuple[tuple[int, int], ...], fraction: float, indices: bool
):
    stream, units = shapes[0][0], sum(p for _, p in shapes)
    allowed = stream * units - math.floor(round(stream * units * fraction, 6))
    for ask in (None, max(1, stream // 3), 0.5, 1.0):
        how = budget(shapes, fraction, indices=indices)
        try:
            plan = how.with_density(ask) if isinstance(ask, float) else how.with_rank(ask)
        except TargetError:
            continue
        dense = all(few == plan.rank * p for (_, p), few in zip(shapes, plan.kept, strict=True))
        places = 0 if dense else plan.rank * units
        taken = stream * plan.rank + sum(plan.kept)
        assert plan.left == pytest.approx(taken / (stream * units), rel=1e-5)
        assert plan.with_indices == pytest.approx(
            (taken + places / 16) / (stream * units), rel=1e-5
        )
        counted = taken + (math.ceil(places / 16) if indices else 0)
        one_more = (stream + units * (1 + 1 / 16)) if isinstance(ask, float) else len(shapes) + 1
        assert allowed - one_more <= counted <= allowed
