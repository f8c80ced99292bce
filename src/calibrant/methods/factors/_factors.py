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
from calibrant.targets import keep_highest

SETTLED: Final = 2
"""The last rounds, before which the own factors are as sparse as they will be: in these, which
numbers stay doesn't change.
"""

LAST: Final = 4
"""Times as many steps fit the own factors to the shared one as it is stored."""


class Factored(NamedTuple):
    """The shared factor and, in the order of the matrices, their own; in the type they are
    stored in, and rounded as `exact_factor` says.
    """

    shared: Float[Tensor, "stream rank"]
    own: tuple[Float[Tensor, "rank unit"], ...]


@final
class Member:
    """A matrix that shares a factor: W as [stream, unit], and H; None stands for inputs that are
    all alike.

    With `relative` its error counts as a share of its outputs.
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
        self.pulled = self.through(weight)
        energy = float((weight * self.pulled).sum())
        self.share = 1 / energy if relative and energy > 0 else 1.0

    def through(self, matrix: Float[Tensor, "stream unit"]) -> Float[Tensor, "stream unit"]:
        """Return HM where it reads, MH where it writes."""
        if self.hessian is None:
            return matrix
        return self.hessian @ matrix if self.reads else matrix @ self.hessian

    def error(self, product: Float[Tensor, "stream unit"]) -> float:
        """Return tr(EᵀHE), or tr(EHEᵀ) where it writes, with E = W - `product`."""
        error = self.weight - product
        return float((error * self.through(error)).sum())


class Quadratic(NamedTuple):
    """½⟨x, Ax⟩ - ⟨b, x⟩ of a matrix x: `times` is x ↦ Ax, `linear` b, `diagonal` what an entry of x
    is multiplied with to give itself.

    What lies along the dimensions `together` takes a step of one length.
    """

    times: Callable[[Tensor], Tensor]
    linear: Float[Tensor, "row column"]
    diagonal: Float[Tensor, "row column"]
    together: tuple[int, ...] = (0, 1)

    def descended(
        self, start: Tensor, steps: int, keep: Bool[Tensor, "row column"] | None = None
    ) -> Tensor:
        """Return `start` after so many steps of conjugate gradients, preconditioned by the
        diagonal; what isn't kept stays as it is.
        """
        scale = (1 / self.diagonal).where(self.diagonal > 0, 0)
        if keep is not None:
            scale = scale.masked_fill(~keep, 0)
        found = start
        pull = self.linear - self.times(start)
        scaled = pull * scale
        direction = scaled
        force = (pull * scaled).sum(self.together, keepdim=True)
        # What is left below is rounding, and leads nowhere.
        floor = force * torch.finfo(force.dtype).eps ** 2
        for _ in range(steps):
            bent = self.times(direction)
            curvature = (direction * bent).sum(self.together, keepdim=True)
            moving = (curvature > 0) & (force > floor)
            if not bool(moving.any()):
                break
            length = (force / curvature).where(moving, 0)
            found = found + length * direction
            pull = pull - length * bent
            scaled = pull * scale
            after = (pull * scaled).sum(self.together, keepdim=True)
            direction = scaled + (after / force).where(moving, 0) * direction
            force = after
        return found

    def worth(self, entries: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
        """Return how much each of `entries` is worth: what the form would gain by it alone if it
        were zero and all others stayed.

        Of an entry that isn't zero that is what is lost without it, of a zero what it would bring.
        """
        tiny = torch.finfo(entries.dtype).tiny
        best = entries + (self.linear - self.times(entries)) / self.diagonal.clamp_min(tiny)
        return best.square() * self.diagonal


def of_own(member: Member, shared: Float[Tensor, "stream rank"]) -> Quadratic:
    """Return the error of a matrix as a form of its own factor. Its columns don't depend on each
    other where it reads.
    """
    hessian = member.hessian
    linear = shared.T @ member.pulled
    if member.reads or hessian is None:
        left = shared.T @ (shared if hessian is None else hessian @ shared)
        diagonal = left.diagonal()[:, None].expand(-1, member.weight.shape[1])
        return Quadratic(partial(torch.matmul, left), linear, diagonal, (0,))
    left = shared.T @ shared

    def times(coefficients: Tensor) -> Tensor:
        return left @ (coefficients @ hessian)

    return Quadratic(times, linear, torch.outer(left.diagonal(), hessian.diagonal()))


def of_shared(
    members: Sequence[Member], coefficients: Sequence[Float[Tensor, "rank _unit"]]
) -> Quadratic:
    """Return the sum of the errors of all matrices as a form of the factor that they share."""
    rank = len(coefficients[0])
    linear = coefficients[0].new_zeros(len(members[0].weight), rank)
    right = coefficients[0].new_zeros(rank, rank)
    # Those that see the same inputs are one term: Σ H U (Σ VVᵀ) + U (Σ VHVᵀ).
    by_input: dict[int, tuple[Tensor, Tensor]] = {}
    for member, each in zip(members, coefficients, strict=True):
        linear = linear + member.share * (member.pulled @ each.T)
        hessian = member.hessian
        if hessian is None:
            right = right + member.share * (each @ each.T)
        elif not member.reads:
            right = right + member.share * ((each @ hessian) @ each.T)
        else:
            _, before = by_input.get(id(hessian), (hessian, torch.zeros_like(right)))
            by_input[id(hessian)] = (hessian, before + member.share * (each @ each.T))
    diagonal = right.diagonal()[None].expand(len(linear), -1)
    for hessian, squares in by_input.values():
        diagonal = diagonal + torch.outer(hessian.diagonal(), squares.diagonal())

    def times(shared: Tensor) -> Tensor:
        product = shared @ right
        for hessian, squares in by_input.values():
            product = product + hessian @ (shared @ squares)
        return product

    return Quadratic(times, linear, diagonal)


def leading(members: Sequence[Member], rank: int, aware: bool) -> Float[Tensor, "stream rank"]:
    """Return the shared factor of the best dense own ones, with columns of length 1: of a truncated
    singular value decomposition.

    If not `aware`, it is that of all W side by side. Else it is the best for their outputs, of
    matrices that all write; and of such as all read where they see the same inputs: for others
    their Grams are summed. Of matrices of both kinds it is that of the W.
    """
    # In float64: eigenvectors of nearly equal eigenvalues would depend on the order of sums.
    weights = [member.weight.double() for member in members]
    if aware and not any(member.reads for member in members):
        pulled = [member.pulled.double() for member in members]
        products = zip(weights, pulled, strict=True)
        return _top([weight @ pull.T for weight, pull in products], rank)
    hessians = [member.hessian for member in members if member.reads]
    seen = [hessian.double() for hessian in hessians if hessian is not None]
    if not aware or len(seen) < len(members):
        return _top([weight @ weight.T for weight in weights], rank)
    root = torch.linalg.cholesky(reduce(add, seen))
    whitened = [root.T @ weight for weight in weights]
    top = _top([white @ white.T for white in whitened], rank)
    return _unit(torch.linalg.solve_triangular(root.T, top, upper=True))


def best_own(member: Member, shared: Float[Tensor, "stream rank"]) -> Float[Tensor, "rank unit"]:
    """Return the dense own factor that errs least with this shared one; its columns must be
    independent.
    """
    columns = shared.double()
    left = columns
    if member.reads and member.hessian is not None:
        left = member.hessian.double() @ columns
    best = torch.linalg.solve(columns.T @ left, left.T @ member.weight.double())
    return best.to(member.weight.dtype)


def truncated(members: Sequence[Member], rank: int, aware: bool, dtype: torch.dtype) -> Factored:
    """Return factors of singular value decompositions, the own ones dense: each fits its matrix
    best with the shared one as it is stored.
    """
    shared = _stored(leading(members, rank, aware).to(members[0].weight.dtype), dtype)
    coefficients = tuple(
        exact_factor(best_own(member, shared), 0, rank, dtype) for member in members
    )
    return Factored(shared.to(dtype), coefficients)


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
    shared = leading(members, rank, aware=False).to(members[0].weight.dtype)
    coefficients = [best_own(member, shared) for member in members]
    keep: list[Tensor | None] = [None] * len(members)
    sparse = max(1, rounds - SETTLED)
    for done in range(1, rounds + 1):
        for i, member in enumerate(members):
            form = of_own(member, shared)
            size = coefficients[i].numel()
            if kept[i] < size and done <= sparse:
                more = int((size - kept[i]) * (1 - done / sparse) ** 3)
                keep[i] = _chosen(form, coefficients[i], kept[i] + more)
            coefficients[i] = _fitted(member, form, shared, coefficients[i], keep[i], steps)
        shared, coefficients = _balanced(
            of_shared(members, coefficients).descended(shared, steps), coefficients
        )
    # The own factors are fitted once more to the numbers that are stored.
    shared = _stored(shared, dtype)
    for i, member in enumerate(members):
        fitted = _fitted(
            member, of_own(member, shared), shared, coefficients[i], keep[i], LAST * steps
        )
        coefficients[i] = exact_factor(fitted, 0, rank, dtype)
    return Factored(shared.to(dtype), tuple(coefficients))


def _chosen(form: Quadratic, coefficients: Tensor, count: int) -> Tensor:
    """Which `count` numbers are worth most."""
    worth = form.worth(coefficients).reshape(1, -1)
    return keep_highest(worth, coefficients.numel() - count).reshape(coefficients.shape)


def _fitted(
    member: Member,
    form: Quadratic,
    shared: Tensor,
    coefficients: Tensor,
    keep: Tensor | None,
    steps: int,
) -> Tensor:
    if keep is None:
        return best_own(member, shared)
    return form.descended(coefficients.masked_fill(~keep, 0), steps, keep)


def _stored(shared: Tensor, dtype: torch.dtype) -> Tensor:
    """The shared factor with the numbers that it is stored with, in the type that is computed
    in.
    """
    return exact_factor(shared, 1, shared.shape[1], dtype).to(shared.dtype)


def _balanced(shared: Tensor, coefficients: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The same products, with columns of length 1 in the shared factor."""
    length = shared.norm(dim=0)
    # Only where the scale lies changes: it keeps the two factors' steps alike.
    length = length.where(length > 0, 1)
    return shared / length, [each * length[:, None] for each in coefficients]


def _unit(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm(dim=0)


def _top(parts: Sequence[Tensor], rank: int) -> Tensor:
    """The eigenvectors of the sum of symmetric matrices with the largest eigenvalues, largest
    first.
    """
    # Made symmetric, since products may round the two triangles differently.
    total = torch.stack(list(parts)).sum(0)
    return torch.linalg.eigh((total + total.T) / 2).eigenvectors.flip(1)[:, :rank]
