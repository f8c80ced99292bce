"""SparseGPT: corrects the weights that stay, for a third less error of each matrix than wanda
(Frantar, Alistarh 2023, arXiv 2301.00774).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import Gram, Seen, Statistic, wide
from calibrant.errors import SpecError, TargetError
from calibrant.methods._base import MOST_DAMP, Compressed, MatrixMethod, finite, observed, removal
from calibrant.methods._elimination import eliminate
from calibrant.methods._factor import shared_factor
from calibrant.methods.pruning._ordering import by_loss
from calibrant.methods.quantization._quantizing import quantize
from calibrant.methods.quantization._rounding import check_rule, scales_by
from calibrant.spec import check_most, later
from calibrant.targets import Removal, SparseGrid, Target

MOST_COLUMNS: Final = 1_000_000
"""No matrix is as wide."""


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
    than asked), and they don't count in the mean diagonal; one Cholesky of the reversed H and one
    triangular inverse instead of Cholesky, inverse and Cholesky; H isn't doubled, which changes
    nothing; a Gram that isn't positive definite climbs the ladder of `factorise`, and the notes say
    how far.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Removal, SparseGrid)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    updates: ClassVar[bool] = True

    damp: float = 0.01
    block: int = 128
    scales: str = later("absmax")
    order: str = later("natural")

    def __post_init__(self) -> None:
        if not (self.damp > 0 and math.isfinite(self.damp)):
            raise SpecError(
                f"sparsegpt(damp={self.damp}): damp must be above 0; 0.01 is the paper's",
                subject="damp",
            )
        if self.block < 1:
            raise SpecError(
                f"sparsegpt(block={self.block}): block must be at least 1 column; 128 is the paper's",
                subject="block",
            )
        check_rule("sparsegpt", self.scales)
        if self.order not in ("natural", "loss"):
            raise SpecError(
                f"sparsegpt(order={self.order!r}): columns are taken in natural order or by loss; write one",
                subject="order",
            )
        check_most(self, damp=MOST_DAMP, block=MOST_COLUMNS)

    def check(self, target: Target) -> None:
        super().check(target)
        if self.order != "natural" and isinstance(target, SparseGrid):
            raise TargetError(
                f"{self} can't be asked for {target}: with a grid columns are taken in natural order",
                subject=str(target),
            )

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Notes: the `damp` and the `precision` that the factorisation took, and how many
        `dead_inputs` were always zero; with `order=loss` whether the columns were `reordered`.

        Raises `NumericsError` for a weight or Gram that isn't finite, a Gram beyond repair, or if
        no token arrived; `TargetError` for a target that doesn't fit the shape or removes nothing.
        """
        self.check(target)
        target.check((weight.shape[0], weight.shape[1]), "the matrix")
        gram = observed(seen, Gram)
        if self.order == "loss":
            return self._by_loss(weight, gram, removal(target))
        factor = shared_factor(gram, self.damp)
        sound = finite(weight, "the weight")
        if isinstance(target, SparseGrid):
            packed = quantize(
                sound,
                factor,
                scales_by(self.scales, sound, target.grid, gram.norms()),
                target.removal,
                block=self.block,
            )
            return Compressed(finite(packed.dense(), "the corrected weight"), factor.notes, packed)
        pruned = eliminate(sound.to(wide(weight.dtype)), factor, removal(target), self.block)
        return Compressed(finite(pruned.to(weight.dtype), "the corrected weight"), factor.notes)

    def _by_loss(self, weight: Tensor, gram: Gram, target: Removal) -> Compressed:
        sound = finite(weight, "the weight").to(wide(weight.dtype))
        norms = finite(gram.norms(), "the squared norms of the inputs").sqrt()
        order = by_loss(sound.abs() * norms.to(sound.dtype), target, self.block)
        inputs = torch.arange(weight.shape[1], device=weight.device) if order is None else order
        turned = (
            gram if order is None else Gram(gram.matrix[inputs][:, inputs], gram.tokens, gram.mass)
        )
        factor = shared_factor(turned, self.damp)
        pruned = eliminate(sound[:, inputs], factor, target, self.block)[:, inputs.argsort()]
        notes = {**factor.notes, "reordered": order is not None}
        return Compressed(finite(pruned.to(weight.dtype), "the corrected weight"), notes)
