"""A quantizer: every weight becomes a code on the target's grid; what is stored are the codes
and one scale for each group.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from calibrant.activations import Seen
from calibrant.errors import TargetError
from calibrant.methods import Compressed, MatrixMethod
from calibrant.packed import Codes
from calibrant.targets import Grid, Target


@dataclass(frozen=True, repr=False)
class RoundUp(MatrixMethod):
    """Rounds each weight up to the next value of a symmetric grid, which is worse than rounding
    to the nearest: an example.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid,)

    def check(self, target: Target) -> None:
        super().check(target)
        if not isinstance(target, Grid) or not target.symmetric:
            raise TargetError(f"{self} knows symmetric grids, such as w4g64, and {target} is none")

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        assert isinstance(target, Grid)
        groups = weight.detach().unflatten(1, (-1, target.width(weight.shape[1])))
        scales = (groups.abs().amax(dim=2) / target.highest).to(weight.dtype)
        scales = torch.where(scales > 0, scales, torch.ones_like(scales))
        codes = (groups / scales[:, :, None]).ceil().clamp(target.lowest, target.highest)
        packed = Codes(target, codes.flatten(1).to(torch.int8), scales)
        return Compressed(packed.dense(), packed=packed)
