"""The factor of an inverse Hessian, H⁻¹ = UᵀU with U upper, by one Cholesky and one triangular
inverse.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram
from calibrant.errors import NumericsError
from calibrant.methods._base import finite

LADDER: Final = ((False, 1), (True, 1), (True, 10), (True, 100), (True, 1000))
"""Steps taken, in order, until the Hessian is positive definite: (in float64?, times the damping
that was asked for). Precision comes first because it changes only rounding; more damping changes
the question.
"""

_HALVE_ABOVE: Final = 128


@dataclass(frozen=True)
class Factor:
    """`upper` is U; `saliency` is what |W_oi| is multiplied with to give a score, 1/U_ii, and 0
    for an input that was always zero.
    """

    upper: Float[Tensor, "in in"]
    saliency: Float[Tensor, "in"]
    notes: Mapping[str, Any]


def shared_factor(gram: Gram, damp: float) -> Factor:
    """Return `factorise(gram, damp)`, computed once for all matrices that share the Gram and all
    methods that are given it.
    """
    return gram.cached(("factor", damp), lambda: factorise(gram, damp))


def factorise(gram: Gram, damp: float) -> Factor:
    """Factor H⁻¹ for H = gram/mass + λI, λ = `damp` · mean diagonal over the inputs that were ever
    used.

    Inputs that were always zero get a diagonal of 1: they are tied to no other input, so they
    neither give nor take corrections. A Hessian that isn't positive definite climbs `LADDER`;
    `notes` say which step held. Raises `NumericsError` if none does, and for a Gram that isn't
    finite.
    """
    diagonal = finite(gram.norms(), "the squared norms of the inputs")
    dead = diagonal == 0
    mean = float(diagonal.double().sum()) / gram.mass / max(1, int((~dead).count_nonzero()))
    tried = None
    for widen, times in LADDER:
        dtype = torch.float64 if widen else gram.matrix.dtype
        if (dtype, times) == tried:
            continue
        tried = dtype, times
        # In float32 a Gram of few tokens has eigenvalues that rounding makes negative: the cure is
        # precision, and only then more damping.
        upper = _inverse_factor(gram, dead, mean * damp * times, dtype)
        if upper is not None:
            saliency = (1 / upper.diagonal()).masked_fill(dead.to(upper.device), 0)
            notes = {
                "damp": damp * times,
                "precision": str(dtype).removeprefix("torch."),
                "dead_inputs": int(dead.count_nonzero()),
            }
            return Factor(
                upper.to(gram.matrix.device, gram.matrix.dtype),
                saliency.to(gram.matrix.device, gram.matrix.dtype),
                notes,
            )
    raise NumericsError(
        f"the Gram of the inputs isn't positive definite, not even in float64 with damp={damp * LADDER[-1][1]:g}; "
        f"its diagonal reaches from {float(diagonal.min()):g} to {float(diagonal.max()):g}, look at the activations, or give a damp above {damp:g}"
    )


def _inverse_factor(gram: Gram, dead: Tensor, damping: float, dtype: torch.dtype) -> Tensor | None:
    """U, or None if the Hessian isn't positive definite. With J the index reversal and JHJ =
    LLᵀ, R = JLJ is upper, H = RRᵀ and U = R⁻¹.
    """
    device = (
        "cpu" if gram.matrix.device.type == "mps" and dtype == torch.float64 else gram.matrix.device
    )
    # One copy after the other: of the widest matrices of a large model each takes hundreds of
    # megabytes.
    hessian = gram.matrix.flip(0, 1).to(device, dtype)
    hessian /= gram.mass
    hessian.diagonal().add_(dead.flip(0).to(device, dtype)).add_(damping)
    lower, info = torch.linalg.cholesky_ex(hessian)
    del hessian
    if int(info) != 0:
        return None
    flipped = lower.flip(0, 1)
    del lower
    upper = flipped.contiguous()  # row by row, as kernels and those who share it want it
    del flipped
    invert_upper(upper)
    return upper if all(bool(extreme.isfinite()) for extreme in upper.aminmax()) else None


def invert_upper(r: Float[Tensor, "in in"]) -> None:
    """Put the inverse of an upper triangular matrix in its place, again upper, by halving: a
    third of the work of solving for a whole identity.
    """
    n = len(r)
    if n <= _HALVE_ABOVE:
        r.copy_(
            torch.linalg.solve_triangular(
                r, torch.eye(n, dtype=r.dtype, device=r.device), upper=True
            )
        )
        return
    # [[A, B], [0, D]]⁻¹ = [[A⁻¹, -A⁻¹BD⁻¹], [0, D⁻¹]]
    a, d = slice(0, n // 2), slice(n // 2, n)
    invert_upper(r[a, a])
    invert_upper(r[d, d])
    r[a, d] = (r[a, a] @ r[a, d] @ r[d, d]).neg_()
