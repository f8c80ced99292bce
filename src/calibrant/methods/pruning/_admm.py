"""Alternating directions, which `alps` and `admm` share: weights that fit the outputs and weights
that are sparse pull at each other.

Inputs are scaled so that each has the same size, and weights with them: with H = Gram/mass and its
diagonal D², G̃ = D⁻¹HD⁻¹ and W̃ = WD. Then a weight's size alone says how much it matters, so the
closest sparse matrix is that of the largest weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.activations import Gram
from calibrant.methods._base import finite
from calibrant.methods._elimination import by_rows, inverse_of, mean_square, take_root
from calibrant.methods.pruning._gradients import Masked, descend, masked
from calibrant.system.products import where_exact

PANEL: Final = 256
"""Rows of an inverse that are computed together."""


@dataclass(frozen=True)
class Scaled:
    """A Gram whose diagonal is 1, `hessian`; `scale` is D, and 0 for an input that was always
    zero.
    """

    scale: Float[Tensor, "in"]
    hessian: Float[Tensor, "in in"]

    def response(self, rho: float) -> Float[Tensor, "in in"]:
        """Return ρ(G̃ + ρI)⁻¹: what is left of a pull at the weights once the others have made
        up for it.
        """
        response = self._shifted(rho)
        if invert(response):
            return response.mul_(rho)
        # It is of no use now, and eigenvectors take several times its memory.
        del response
        # Of few tokens and a small ρ: an eigenvalue that rounding left below zero counts as zero.
        hessian = self.hessian.to(where_exact(self.hessian.device))
        eigenvalues, eigenvectors = torch.linalg.eigh(hessian)
        shares = rho / (eigenvalues.clamp_min(0) + rho)
        return ((eigenvectors * shares) @ eigenvectors.T).to(self.hessian.device)

    def _shifted(self, rho: float) -> Float[Tensor, "in in"]:
        """Return G̃ + ρI."""
        shifted = self.hessian.clone()
        shifted.diagonal().add_(rho)
        return shifted

    def unscaled(
        self, scaled: Float[Tensor, "out in"], dense: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        """Return the weights whose scaled form this is; those of inputs that were always zero
        are those of `dense`.
        """
        scale = self.scale.to(scaled.dtype)
        return torch.where(scale > 0, scaled / scale, dense)


def invert(matrix: Float[Tensor, "in in"]) -> bool:
    """Put the inverse of a symmetric matrix in its place, symmetric to the last bit. Return whether
    the matrix is positive definite; if it isn't, what is left in it is of no use.
    """
    if not take_root(matrix):
        return False
    invert_upper(matrix.triu_())
    # With W the inverse of the root, WᵀW: half of it is multiplied, panel by panel, and mirrored.
    # In place, since an earlier panel needs no row of a later one.
    for start in reversed(range(0, len(matrix), PANEL)):
        panel = slice(start, start + PANEL)
        rows = matrix[: start + PANEL, panel].T @ matrix[: start + PANEL, start:]
        # Not every processor sums both sides of the diagonal in one order.
        square = rows[:, :PANEL]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[panel, start:] = rows
        matrix[start:, panel] = rows.T
    return True


def invert_upper(root: Float[Tensor, "in in"]) -> None:
    """Put the inverse of an upper triangular matrix, with zeros below its diagonal, in its place.
    It is made by halves, so that nearly all of the work is products.
    """
    width = len(root)
    if width <= PANEL:
        root.copy_(inverse_of(root))
        return
    # [[A, B], [0, D]]⁻¹ = [[A⁻¹, -A⁻¹BD⁻¹], [0, D⁻¹]]
    left = slice(0, width // 2)
    right = slice(width // 2, width)
    invert_upper(root[left, left])
    invert_upper(root[right, right])
    root[left, right] = (root[left, left] @ root[left, right] @ root[right, right]).neg_()


def shared_scaled(gram: Gram, damp: float, after_scaling: bool = False) -> Scaled:
    """Return the scaled Gram, computed once for all matrices that share it and all methods that are
    given it.

    Before it is scaled, `damp` times its mean is added to the diagonal; or with `after_scaling`,
    once it is scaled, `damp` itself, the same for every input. Raises `NumericsError` for a Gram
    that isn't finite.
    """
    return gram.cached(("scaled", damp, after_scaling), lambda: _scaled(gram, damp, after_scaling))


def _scaled(gram: Gram, damp: float, after_scaling: bool) -> Scaled:
    diagonal = finite(gram.norms(), "the squared norms of the inputs")
    dead = diagonal == 0
    hessian = gram.symmetric().div_(gram.mass)
    if not after_scaling:
        hessian.diagonal().add_(mean_square(gram) * damp)
    # An input that was always zero is tied to no other: with a diagonal of 1 it neither gives nor
    # takes corrections.
    scale = hessian.diagonal().sqrt().masked_fill(dead, 1)
    hessian.div_(scale).div_(scale[:, None])
    if after_scaling:
        hessian.diagonal().add_(damp)
    hessian.diagonal().masked_fill_(dead, 1)
    return Scaled(scale.masked_fill(dead, 0), hessian)


class Directions:
    """The state of the iteration: `pulled` is Z + U, the sparse weights where `keep` is true and
    the scaled dual elsewhere.

    A step is the paper's three in one: with P = ρ(G̃ + ρI)⁻¹ the weights that fit are W̃ + (Z - U -
    W̃)P; Z is what is kept of these plus U; and U is the rest of that sum. So Z and U are never
    different from zero in the same place, and one matrix holds both.
    """

    def __init__(
        self,
        dense: Float[Tensor, "out in"],
        pulled: Float[Tensor, "out in"],
        keep: Bool[Tensor, "out in"],
    ) -> None:
        self.dense = dense
        self.keep = keep
        self.pulled = pulled.clone()
        self._rest = torch.empty_like(dense)
        self._sparse = torch.empty_like(dense)

    def pull(self, response: Float[Tensor, "in in"]) -> None:
        """Go on by one step, after which `keep` is to be chosen anew from `pulled`."""
        prepare = _in_rows if self.dense.device.type == "cpu" else _all_rows
        # With S = W̃ + Z + U, the step is S - Z + 2(Z - S/2)P; and P is its own transpose, with
        # which oneDNN's products are faster.
        prepare(self.pulled, self.dense, self.keep, self._rest, self._sparse)
        self._rest.addmm_(self._sparse, response.T, alpha=2)
        self.pulled, self._rest = self._rest, self.pulled

    def rescale(self, factor: float) -> None:
        """Multiply the dual by `factor`: what the old ρ is over the new one."""
        self.pulled = torch.where(self.keep, self.pulled, self.pulled * factor)

    def sparse(self) -> Float[Tensor, "out in"]:
        """Return the sparse weights, scaled."""
        return self.pulled.masked_fill(~self.keep, 0)


def _in_rows(pulled: Tensor, dense: Tensor, keep: Tensor, rest: Tensor, sparse: Tensor) -> None:
    """Set `rest` to S - Z and `sparse` to Z - S/2, on the CPU."""
    halves = torch.tensor([0, 0.5], dtype=pulled.dtype)
    parts = (pulled, dense, keep, rest, sparse, halves)
    by_rows(_kernel(), len(pulled), [part.numpy() for part in parts])


def _all_rows(pulled: Tensor, dense: Tensor, keep: Tensor, rest: Tensor, sparse: Tensor) -> None:
    """Do the same on any device."""
    torch.mul(pulled, keep, out=sparse)
    torch.add(pulled, dense, out=rest)
    sparse.sub_(rest, alpha=0.5)
    rest.addcmul_(pulled, keep.to(pulled.dtype), value=-1)


@cache
def _kernel() -> Callable[..., None]:
    """Imported at the first use: numba takes longer to import than listing methods may."""
    from calibrant.methods.pruning._gradients_kernel import prepare

    return prepare


def chosen(
    dense: Float[Tensor, "out in"],
    largest_mask: Bool[Tensor, "out in"],
    directions: Directions,
    scaled: Scaled,
    hessian: Float[Tensor, "in in"],
    steps: int = 0,
) -> Masked:
    """Return the sparse weights that the `directions` came to, fitted in up to `steps` steps; or
    those of `largest_mask`, likewise fitted, where as they were they lose no more.

    They do where inputs hardly depend on each other: then the largest are the best, and a small ρ
    moves away from them.
    """
    sparse = masked(dense, scaled.unscaled(directions.sparse(), dense), directions.keep, hessian)
    fitted = descend(sparse, hessian, steps)
    largest = masked(dense, dense, largest_mask, hessian)
    if float(largest.loss.sum()) <= float(fitted.loss.sum()):
        return descend(largest, hessian, steps)
    return fitted
