"""llama.cpp's own quantizers, matrix by matrix: what users of GGUF get, from the statistics that
an imatrix holds.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from calibrant.activations import FeatureNorms, Propagation, Seen, Statistic
from calibrant.errors import TargetError
from calibrant.llama_cpp.quantizing import needs_importance, quantize_matrix
from calibrant.methods._base import Compressed, MatrixMethod, finite, observed
from calibrant.packed import GgmlBlocks
from calibrant.system.products import exact
from calibrant.targets import GgmlKind, Target, accepted
from calibrant.targets.ggml_kind import UNWEIGHTED


@dataclass(frozen=True, repr=False)
class Ggml(MatrixMethod):
    """Rounds each matrix to blocks of llama.cpp's, with its own code; inputs count by their mean
    square, as with an imatrix.

    With `importance=false` it looks at no data, as llama-quantize without an imatrix. The bytes are
    those that llama-quantize writes. Needs the package llama-cpp-py-sync: `pip install
    'calibrant[ggml]'`.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (GgmlKind,)
    propagate: ClassVar[Propagation] = "dense"

    importance: bool = True

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return (FeatureNorms,) if self.importance else ()

    def check(self, target: Target) -> None:
        super().check(target)
        if not self.importance and isinstance(target, GgmlKind) and needs_importance(target.name):
            problem = f"{target} can't be chosen without knowing which inputs matter"
            raise TargetError(f"{problem}; leave importance=false out", subject=str(target))

    def heeds(self, target: Target) -> bool:
        return self.importance and not (isinstance(target, GgmlKind) and target.name in UNWEIGHTED)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Raises `NumericsError` for numbers that aren't finite, `TargetError` for a target that
        is no kind or doesn't fit the shape.
        """
        if not isinstance(target, GgmlKind):
            problem = f"the target {target} is no kind of llama.cpp's blocks"
            raise TargetError(f"{problem}; ask for {accepted((GgmlKind,))}", subject=str(target))
        target.check((weight.shape[0], weight.shape[1]), "the matrix")
        numbers = finite(weight, "the weight").float().cpu().contiguous().numpy()
        means = None
        if self.importance:
            statistic = observed(seen, FeatureNorms)
            norms = finite(statistic.norms(), "the norms of its inputs")
            # In float32, which llama.cpp takes.
            means = (exact(norms) / statistic.mass).float().cpu().numpy()
        blocks = torch.from_numpy(quantize_matrix(numbers, target.name, means)).to(weight.device)
        packed = GgmlBlocks(target.name, blocks, weight.dtype)
        return Compressed(packed.dense(), packed=packed)
