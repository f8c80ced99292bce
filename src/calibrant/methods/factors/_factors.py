"""Products of two factors in the place of matrices: W ≈ UV, with one U that several matrices share
and a V of each matrix's own, perhaps sparse.

A matrix is looked at as [stream, unit]: as it is where it writes to the residual stream, transposed
where it reads it. So one U, [stream, rank], fits all matrices of a feed-forward network. With H the
damped Gram of a matrix's inputs the error of its outputs, ‖(W - UV)X‖², is tr(EᵀHE) where it reads,
and tr(EHEᵀ) where it writes, E = W - UV: exact, without the activations. For one factor fixed,
either is quadratic in the other.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Final, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.packed import exact_factor
from calibrant.system.products import in_float64
from calibrant.targets import keep_highest

SETTLED_ROUNDS: Final = 2
"""The last rounds: in these the own factors keep the zeros that they have."""

LAST_FACTOR: Final = 4
"""How many times more steps the last fit takes, that to the shared factor as it is stored."""


class Factored(NamedTuple):
    """The shared factor and, in the order of the matrices, their own; in the type they are
    stored in, and rounded as `exact_factor` says.
    """

    shared: Float[Tensor, "stream rank"]
    own_factors: tuple[Float[Tensor, "rank unit"], ...]


@final
class Member:
    """A matrix that shares a factor, with what is needed to compute its error.

    `weight` is W as [stream, unit]. `hessian` is H, the damped Gram of its inputs; None stands for
    the identity. `importance` is what its error is multiplied with in a sum: with `relative` an
    error counts as a share of the outputs' energy.
    """

    def __init__(
        self,
        weight: Float[Tensor, "stream unit"],
        hessian: Float[Tensor, "in in"] | None,
        reads: bool,
        relative: bool = False,
    ) -> None:
        self.weight = weight
        self.hessian = hessian
        self.reads = reads
        self.hessian_weight = self.through(weight)
        energy = float((weight * self.hessian_weight).sum())
        self.importance = 1.0
        if relative and energy > 0:
            self.importance = 1 / energy

    def through(self, matrix: Float[Tensor, "stream unit"]) -> Float[Tensor, "stream unit"]:
        """Return HM where it reads, MH where it writes."""
        if self.hessian is None:
            return matrix
        if self.reads:
            return self.hessian @ matrix
        return matrix @ self.hessian

    def error(self, product: Float[Tensor, "stream unit"]) -> float:
        """Return tr(EᵀHE), or tr(EHEᵀ) where it writes, with E = W - `product`."""
        error = self.weight - product
        return float((error * self.through(error)).sum())


class Quadratic(NamedTuple):
    """The quadratic form ½⟨x, Ax⟩ - ⟨b, x⟩ of a matrix x.

    `times` is x ↦ Ax and `linear` is b. `diagonal` is that of A, in the shape of x. Entries along
    `joint_dimensions` take a step of one length; along the others lie problems that don't depend on
    each other.
    """

    times: Callable[[Tensor], Tensor]
    linear: Float[Tensor, "row column"]
    diagonal: Float[Tensor, "row column"]
    joint_dimensions: tuple[int, ...] = (0, 1)

    def descended(
        self, start: Tensor, steps: int, keep: Bool[Tensor, "row column"] | None = None
    ) -> Tensor:
        """Return `start` after so many steps of conjugate gradients towards the minimum,
        preconditioned by the diagonal. Entries that `keep` leaves out stay as they are.
        """
        scale = (1 / self.diagonal).where(self.diagonal > 0, 0)
        if keep is not None:
            scale = scale.masked_fill(~keep, 0)
        solution = start
        residual = self.linear - self.times(start)
        preconditioned = residual * scale
        direction = preconditioned
        # Half of it is what the form would decrease by, if A were its diagonal.
        decrease = (residual * preconditioned).sum(self.joint_dimensions, keepdim=True)
        # Below this the residual is rounding, and leads nowhere.
        floor = decrease * torch.finfo(decrease.dtype).eps ** 2
        for _ in range(steps):
            mapped = self.times(direction)
            curvature = (direction * mapped).sum(self.joint_dimensions, keepdim=True)
            moving = (curvature > 0) & (decrease > floor)
            if not bool(moving.any()):
                break
            length = (decrease / curvature).where(moving, 0)
            solution = solution + length * direction
            residual = residual - length * mapped
            preconditioned = residual * scale
            next_decrease = (residual * preconditioned).sum(self.joint_dimensions, keepdim=True)
            share = (next_decrease / decrease).where(moving, 0)
            direction = preconditioned + share * direction
            decrease = next_decrease
        return solution

    def worth(self, entries: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
        """Return twice what each entry lowers the form by, at its best value while the others stay,
        beside a zero in its place.

        So an entry that is zero now is judged like one that isn't, and may come back.
        """
        tiny = torch.finfo(entries.dtype).tiny
        residual = self.linear - self.times(entries)
        best = entries + residual / self.diagonal.clamp_min(tiny)
        return best.square() * self.diagonal


def error_by_own_factor(member: Member, shared: Float[Tensor, "stream rank"]) -> Quadratic:
    """Return the error of a matrix as a quadratic form of its own factor, the shared one fixed."""
    hessian = member.hessian
    linear = shared.T @ member.hessian_weight
    if member.reads or hessian is None:
        # H is on the stream's side, so each column of the own factor is a problem of its own.
        hessian_shared = shared if hessian is None else hessian @ shared
        left_matrix = shared.T @ hessian_shared
        units = member.weight.shape[1]
        diagonal = left_matrix.diagonal()[:, None].expand(-1, units)
        return Quadratic(partial(torch.matmul, left_matrix), linear, diagonal, (0,))
    left_matrix = shared.T @ shared

    def times(own_factor: Tensor) -> Tensor:
        return left_matrix @ (own_factor @ hessian)

    diagonal = torch.outer(left_matrix.diagonal(), hessian.diagonal())
    return Quadratic(times, linear, diagonal)


def error_by_shared_factor(
    members: Sequence[Member], own_factors: Sequence[Float[Tensor, "rank _unit"]]
) -> Quadratic:
    """Return the sum of the errors of all matrices as a quadratic form of the shared factor, the
    own ones fixed.
    """
    rank = len(own_factors[0])
    linear = own_factors[0].new_zeros(len(members[0].weight), rank)
    right = own_factors[0].new_zeros(rank, rank)
    # Those that see the same inputs are one term: Σ H U (Σ VVᵀ) + U (Σ VHVᵀ).
    hessians: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}
    for member, own_factor in zip(members, own_factors, strict=True):
        linear = linear + member.importance * (member.hessian_weight @ own_factor.T)
        hessian = member.hessian
        if hessian is None:
            right = right + member.importance * (own_factor @ own_factor.T)
        elif not member.reads:
            right = right + member.importance * ((own_factor @ hessian) @ own_factor.T)
        else:
            key = id(hessian)
            if key not in hessians:
                hessians[key] = hessian
                squares[key] = torch.zeros_like(right)
            squares[key] = squares[key] + member.importance * (own_factor @ own_factor.T)
    diagonal = right.diagonal()[None].expand(len(linear), -1)
    for key, hessian in hessians.items():
        diagonal = diagonal + torch.outer(hessian.diagonal(), squares[key].diagonal())

    def times(shared: Tensor) -> Tensor:
        product = shared @ right
        for key, hessian in hessians.items():
            product = product + hessian @ (shared @ squares[key])
        return product

    return Quadratic(times, linear, diagonal)


def leading(members: Sequence[Member], rank: int, aware: bool) -> Float[Tensor, "stream rank"]:
    """Return the shared factor of the best dense own ones, with columns of length 1: of a truncated
    singular value decomposition.

    If not `aware`, it is the decomposition of all W side by side. If `aware`, it is the one that is
    best for the outputs where that has a closed form: where all matrices write, and where all read
    the same inputs. Where all read different inputs, the sum of their Grams stands for each of
    them. Where some read and some write, it is again that of all W side by side.
    """
    # In float64: eigenvectors of nearly equal eigenvalues would depend on the order of sums.
    weights = [in_float64(member.weight) for member in members]
    if aware and not any(member.reads for member in members):
        products: list[Tensor] = []
        for member, weight in zip(members, weights, strict=True):
            products.append(weight @ in_float64(member.hessian_weight).T)
        return _top(products, rank)
    hessians: list[Tensor] = []
    for member in members:
        if member.reads and member.hessian is not None:
            hessians.append(in_float64(member.hessian))
    if not aware or len(hessians) < len(members):
        return _top([weight @ weight.T for weight in weights], rank)
    root = torch.linalg.cholesky(reduce(add, hessians))
    # In whitened inputs the error of the outputs is a plain sum of squares.
    whitened = [root.T @ weight for weight in weights]
    top = _top([white @ white.T for white in whitened], rank)
    factor = torch.linalg.solve_triangular(root.T, top, upper=True)
    return factor / factor.norm(dim=0)


def best_own_factor(
    member: Member, shared: Float[Tensor, "stream rank"]
) -> Float[Tensor, "rank unit"]:
    """Return the dense own factor that errs least with this shared one; its columns must be
    independent.
    """
    columns = in_float64(shared)
    left_matrix = columns
    if member.reads and member.hessian is not None:
        left_matrix = in_float64(member.hessian) @ columns
    linear = left_matrix.T @ in_float64(member.weight)
    best = torch.linalg.solve(columns.T @ left_matrix, linear)
    return best.to(member.weight)


def truncated(members: Sequence[Member], rank: int, aware: bool, dtype: torch.dtype) -> Factored:
    """Return factors of singular value decompositions, the own ones dense: each fits its matrix
    best with the shared one as it is stored.
    """
    leading_factor = leading(members, rank, aware).to(members[0].weight)
    shared = _stored(leading_factor, dtype)
    own_factors: list[Tensor] = []
    for member in members:
        best = best_own_factor(member, shared)
        own_factors.append(exact_factor(best, 0, rank, dtype))
    return Factored(shared.to(dtype), tuple(own_factors))


def alternated(
    members: Sequence[Member],
    rank: int,
    kept: Sequence[int],
    rounds: int,
    steps: int,
    dtype: torch.dtype,
) -> Factored:
    """Return factors whose own ones have `kept` numbers each, by alternating least squares from a
    truncated singular value decomposition.

    In each of the `rounds` the own factors and then the shared one take `steps` of conjugate
    gradients. How many numbers stay falls like a cube, and which ones is chosen anew by what each
    is worth, so that one that went may come back.
    """
    shared = leading(members, rank, aware=False).to(members[0].weight)
    own_factors = [best_own_factor(member, shared) for member in members]
    keep: list[Tensor | None] = [None] * len(members)
    # The rounds in which the own factors become sparse.
    sparse_rounds = max(1, rounds - SETTLED_ROUNDS)
    for number in range(1, rounds + 1):
        for place, member in enumerate(members):
            form = error_by_own_factor(member, shared)
            own_factor = own_factors[place]
            to_remove = own_factor.numel() - kept[place]
            if to_remove > 0 and number <= sparse_rounds:
                share_left = (1 - number / sparse_rounds) ** 3
                not_yet = int(to_remove * share_left)
                keep[place] = _chosen(form, own_factor, kept[place] + not_yet)
            own_factors[place] = _fitted(member, form, shared, own_factor, keep[place], steps)
        form = error_by_shared_factor(members, own_factors)
        shared = form.descended(shared, steps)
        shared, own_factors = _balanced(shared, own_factors)
    # The own factors are fitted once more to the numbers that are stored.
    shared = _stored(shared, dtype)
    for place, member in enumerate(members):
        form = error_by_own_factor(member, shared)
        last_steps = LAST_FACTOR * steps
        fitted = _fitted(member, form, shared, own_factors[place], keep[place], last_steps)
        own_factors[place] = exact_factor(fitted, 0, rank, dtype)
    return Factored(shared.to(dtype), tuple(own_factors))


def _chosen(form: Quadratic, own_factor: Tensor, count: int) -> Tensor:
    """Which `count` numbers are worth most."""
    worth = form.worth(own_factor).reshape(1, -1)
    keep = keep_highest(worth, own_factor.numel() - count)
    return keep.reshape(own_factor.shape)


def _fitted(
    member: Member,
    form: Quadratic,
    shared: Tensor,
    own_factor: Tensor,
    keep: Tensor | None,
    steps: int,
) -> Tensor:
    """The own factor that errs least; with a mask `keep`, after some steps towards it."""
    # A dense one has a closed form. Where numbers are zeros, each column would have its own.
    if keep is None:
        return best_own_factor(member, shared)
    return form.descended(own_factor.masked_fill(~keep, 0), steps, keep)


def _stored(shared: Tensor, dtype: torch.dtype) -> Tensor:
    """The shared factor with the numbers that it is stored with, in the type that is computed
    in.
    """
    return exact_factor(shared, 1, shared.shape[1], dtype).to(shared.dtype)


def _balanced(shared: Tensor, own_factors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Factors of the same products, with columns of length 1 in the shared one."""
    length = shared.norm(dim=0)
    # The scale is a degree of freedom: without this one factor would grow and the other shrink.
    length = length.where(length > 0, 1)
    scaled = [own_factor * length[:, None] for own_factor in own_factors]
    return shared / length, scaled


def _top(parts: Sequence[Tensor], rank: int) -> Tensor:
    """The eigenvectors of the sum of symmetric matrices with the largest eigenvalues, largest
    first.
    """
    # Made symmetric, since products may round the two triangles differently.
    total = torch.stack(list(parts)).sum(0)
    symmetric = (total + total.T) / 2
    smallest_first = torch.linalg.eigh(symmetric).eigenvectors
    return smallest_first.flip(1)[:, :rank]
