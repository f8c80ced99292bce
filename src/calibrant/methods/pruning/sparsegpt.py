"""SparseGPT: corrects the weights that stay, for a third less error of each matrix than wanda
(Frantar, Alistarh 2023, arXiv 2301.00774).
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.activations import Gram, Seen, Statistic, wide
from calibrant.errors import TargetError
from calibrant.methods._base import (
    MOST_DAMP,
    Compressed,
    MatrixMethod,
    check_choice,
    check_least,
    check_positive,
    finite,
    observed,
    removal,
)
from calibrant.methods._elimination import (
    choose,
    eliminate,
    factorise_in_order,
    shared_factor,
    spans,
)
from calibrant.methods.quantization._quantizing import quantize
from calibrant.methods.quantization._rounding import RULES, scales_by
from calibrant.spec import check_most, later
from calibrant.targets import NofM, Removal, SparseGrid, Target

MOST_COLUMNS: Final = 1_000_000
"""No matrix is as wide."""

UNEVEN: Final = 0.5
"""Blocks are reordered where the largest loss of a block and the smallest differ by more than this
share of the largest.
"""


@dataclass(frozen=True, repr=False)
class SparseGPT(MatrixMethod):
    """Removes weights column by column, and corrects the columns that follow for the error that
    this makes in the outputs (algorithm 1).

    With H = Gram/mass + λI, λ = `damp` · mean diagonal, and H⁻¹ = UᵀU: a weight's score is (W_oi /
    U_ii)², taken from weights that are already corrected; removing it leaves the error e = W_oi /
    U_ii, and every later column j loses e·U_ij. For a sparsity the choice is made `block` columns
    at a time over all rows of the block; for N:M within each group when its turn comes.

    With a grid besides (`2:4+w4g64`) the weights that stay are rounded when their column's turn
    comes, as in `gptq`, and both errors are corrected together (the paper's section 3.5). Removed
    ones are the code of zero; others may be rounded to it. `scales` are chosen before, with all
    weights of a group: by `absmax`, `mse` or `importance` (see `rtn`).

    `order=loss` takes blocks of columns, and columns in a block, by falling loss, where blocks lose
    unevenly: ROSE (Su, Wang 2026, arXiv 2603.05878). What a column will lose is the sum of
    |W_oi|·‖x_i‖ over its weights that are the lowest of its block. For N:M a block is a group. It
    takes a factorisation of its own for each matrix, and a target that only removes.

    Differs from the paper's code in: the count is exact (the code removes everything up to a
    threshold, so at least one weight more in each block, and all ties), with block quotas whose
    sums are exact, so that the matrix loses ⌊out·in·s⌋ weights; inputs that were always zero are
    removed first, but beyond the quota they keep their weights (the code zeroes all of them: more
    than asked), and they don't count in the mean diagonal; one Cholesky of the reversed H instead
    of Cholesky, inverse and Cholesky, and corrections that follow from the changes of the columns
    before instead of from their errors (see `up_to_date`), which are equal; H isn't doubled, which
    changes nothing; a Gram that isn't positive definite climbs the ladder of `factorise`, and the
    notes say how far.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Removal, SparseGrid)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    updates: ClassVar[bool] = True

    damp: float = 0.01
    block: int = 128
    scales: str = later("absmax")
    order: str = later("natural")

    def __post_init__(self) -> None:
        check_positive(self, damp="0.01 is the paper's")
        check_least(self, block=1)
        check_choice(self, scales=RULES, order=("natural", "loss"))
        check_most(self, damp=MOST_DAMP, block=MOST_COLUMNS)

    def check(self, target: Target) -> None:
        super().check(target)
        if self.order != "natural" and isinstance(target, SparseGrid):
            reason = "with a grid columns are taken in natural order"
            message = f"{self} can't be asked for {target}: {reason}"
            raise TargetError(message, subject=str(target))
        if self.scales != "absmax" and not isinstance(target, SparseGrid):
            reason = "it rounds nothing, so there are no scales to choose; leave scales out"
            message = f"{self} can't be asked for {target}: {reason}"
            raise TargetError(message, subject=str(target))

    def squares(self, sources: int) -> int:
        # The Gram, a Gram that is added to it, and the root. An order takes another Gram.
        return 3 if self.order == "natural" else 4

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: the `damp` and the `precision` that the factorisation took, and how many
        `dead_inputs` were always zero; with `order=loss` whether the columns were `reordered`.

        Raises `NumericsError` for a weight or Gram that isn't finite, a Gram beyond repair, or if
        no token arrived; `TargetError` for a target that isn't accepted or doesn't fit the shape.
        """
        self.check(target)
        target.check((weight.shape[0], weight.shape[1]), "the matrix")
        gram = observed(seen, Gram)
        if self.order == "loss":
            return self._by_loss(weight, gram, removal(target))
        factor = shared_factor(gram, self.damp)
        checked = finite(weight, "the weight")
        if isinstance(target, SparseGrid):
            scales = scales_by(self.scales, checked, target.grid, gram.norms())
            packed = quantize(checked, factor, scales, target.removal, block=self.block)
            return Compressed(finite(packed.dense(), "the corrected weight"), factor.notes, packed)
        pruned = eliminate(checked.to(wide(weight.dtype)), factor, removal(target), self.block)
        return Compressed(finite(pruned.to(weight.dtype), "the corrected weight"), factor.notes)

    def _by_loss(self, weight: Tensor, gram: Gram, target: Removal) -> Compressed:
        """Prune with the columns in the order of what they will lose."""
        checked = finite(weight, "the weight").to(wide(weight.dtype))
        norms = finite(gram.norms(), "the squared norms of the inputs").sqrt()
        order = by_loss(checked.abs() * norms.to(checked.dtype), target, self.block)
        if order is None:
            factor = shared_factor(gram, self.damp)
            pruned = eliminate(checked, factor, target, self.block)
        else:
            # Not shared: the order is this matrix's.
            factor = factorise_in_order(gram, order, self.damp)
            pruned = eliminate(checked[:, order], factor, target, self.block)[:, order.argsort()]
        notes = {**factor.notes, "reordered": order is not None}
        return Compressed(finite(pruned.to(weight.dtype), "the corrected weight"), notes)


def by_loss(
    scores: Float[Tensor, "out in"], target: Removal, block: int
) -> Int[Tensor, "in"] | None:
    """Return the inputs in the order of what they will lose, those that lose most first, while
    many others can still make up for it; None where blocks lose about alike.

    Of each block of columns, the target removes as many weights as it says, those of the lowest
    `scores`; an input loses the scores of those that are its own. Blocks come by falling loss, and
    so do the inputs of a block. For N:M a block is a group, whose inputs stay in order. So do equal
    ones.
    """
    if isinstance(target, NofM):
        block = target.m
    block_losses: list[Tensor] = []
    orders: list[Tensor] = []
    for span in spans(scores.shape[1], target, block):
        span_scores = scores[:, span.start : span.stop]
        column_losses = span_scores.where(choose(span_scores, target, span), 0).sum(0)
        columns = torch.arange(span.start, span.stop, device=scores.device)
        if not span.group:
            columns = columns[column_losses.argsort(descending=True, stable=True)]
        block_losses.append(column_losses.sum())
        orders.append(columns)
    losses = torch.stack(block_losses)
    if not float(losses.max() - losses.min()) > UNEVEN * float(losses.max()):
        return None
    order = losses.argsort(descending=True, stable=True).tolist()
    return torch.cat([orders[place] for place in order])
