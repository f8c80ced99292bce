"""Methods that stand in for others where mixtures of calibration sets are predicted: matrix by
matrix, from a sum of statistics.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Propagation, Seen, Statistic, wide
from calibrant.errors import TargetError
from calibrant.methods._base import Compressed, MatrixMethod, finite, grid, observed
from calibrant.methods.quantization._rounding import clipped, effective, input_scales, scales_of
from calibrant.methods.quantization.ggml import Ggml
from calibrant.targets import FloatGrid, GgufBudget, GgufRecipe, Grid, Target


@final
@dataclass(frozen=True, repr=False)
class RecipeByMatrix(MatrixMethod):
    """Rounds a matrix to the kind of blocks that most matrices of a recipe of llama.cpp's get, or
    to the kind that llama.cpp falls back to where rows don't fit.

    A recipe gives some matrices more bits, by their place in the model and by whether there is an
    imatrix; that is left out here.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (GgufRecipe,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)
    propagate: ClassVar[Propagation] = "dense"

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `TargetError` for a target that is no recipe, or one whose kinds aren't made
        matrix by matrix; else as `ggml` does.
        """
        kind = target.kind if isinstance(target, GgufRecipe) else None
        if kind is None:
            problem = f"{target} is no recipe whose blocks are made matrix by matrix"
            raise TargetError(f"{problem}; ask for one such as Q4_K_M", subject=str(target))
        fitting = kind.fitting(weight.shape[1])
        if fitting is None:
            return Compressed(weight.detach().clone())
        return Ggml().compress(weight, seen, fitting)


@final
@dataclass(frozen=True, repr=False)
class BudgetByMatrix(MatrixMethod):
    """Rounds a matrix to the kind that it would get if a budget of bytes were shared equally.

    `llama_cpp` gives more bits to tensors that lose more, and its choice depends on the text; that
    is left out here.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (GgufBudget,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureNorms,)
    propagate: ClassVar[Propagation] = "dense"

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `TargetError` for a target that is no budget; else as `ggml` does."""
        self.check(target)
        assert isinstance(target, GgufBudget)
        kind = target.kind_alone(weight.shape[1])
        if kind is None:
            return Compressed(weight.detach().clone())
        return Ggml().compress(weight, seen, kind)


@final
@dataclass(frozen=True, repr=False)
class ScaledAlone(MatrixMethod):
    """Does what `awq` does to a matrix alone: columns times s, the best of `steps` powers of their
    inputs' sizes, rounded, and divided by s again.

    Sizes are root mean squares, which follow from the Gram's diagonal, where `awq` takes the mean
    of |x|; errors are those of the matrix's own outputs. No scale has to be folded into what comes
    before the matrix, so every input can have one. A global scale is that of the rows alone.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid, FloatGrid)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    propagate: ClassVar[Propagation] = "dense"

    steps: int = 20
    clip: bool = True

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises as `awq` does."""
        target_grid = grid(target)
        if isinstance(target_grid, FloatGrid):
            # It reaches as far as the numbers before their columns are multiplied.
            target_grid = replace(target_grid, reach=None)
        target_grid.check((weight.shape[0], weight.shape[1]), "the matrix")
        gram = observed(seen, Gram)
        checked = finite(weight, "the weight")
        dtype = wide(checked.dtype)
        squares = finite(gram.norms(), "the squared norms of the inputs") / gram.mass
        sizes = squares.sqrt().to(dtype)
        dense = checked.to(dtype)
        matrix = gram.matrix.to(dtype)
        least_error = torch.inf
        best_scales = torch.ones_like(sizes)
        for step in range(self.steps):
            column_scales = input_scales(sizes, step / self.steps)
            change = effective(checked, target_grid, column_scales) - dense
            error = float(((change @ matrix) * change).sum())
            # The first of equals, as in `awq`.
            if error < least_error:
                least_error = error
                best_scales = column_scales
        scaled = (dense * best_scales).to(checked.dtype)
        group_scales = scales_of("absmax", scaled, target_grid)
        if self.clip and isinstance(target_grid, Grid):
            # Inputs are divided by what the columns were multiplied by.
            scaled_gram = Gram(
                matrix / torch.outer(best_scales, best_scales), gram.tokens, gram.mass
            )
            group_scales = clipped(scaled, target_grid, scaled_gram)
        rounded = group_scales.nearest(scaled).dense().to(dtype)
        return Compressed((rounded / best_scales).to(checked.dtype))
