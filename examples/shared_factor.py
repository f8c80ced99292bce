"""A method that shares: matrices of a block that read as many inputs become products with one
common factor.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from calibrant.edits import Edit, Replace
from calibrant.job import Job
from calibrant.methods import Compressed, ModelMethod
from calibrant.models import Weight
from calibrant.packed import Packed
from calibrant.targets import Sparsity, Target


@dataclass(frozen=True)
class Product(Packed):
    """A factor of the matrix's own times one that `sharing` matrices have in common."""

    form: ClassVar[str] = "shared_factor"
    own: Tensor
    common: Tensor
    sharing: int

    @property
    def weights(self) -> int:
        return self.own.shape[0] * self.common.shape[1]

    @property
    def bits(self) -> int:
        return (
            (self.own.numel() + self.common.numel() // self.sharing) * self.own.element_size() * 8
        )

    def dense(self) -> Tensor:
        return self.own @ self.common

    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"sharing": self.sharing}, {"own": self.own, "common": self.common}

    @classmethod
    def read(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Product":
        return cls(tensors["own"], tensors["common"], facts["sharing"])


@dataclass(frozen=True, repr=False)
class SharedFactor(ModelMethod):
    """Keeps the strongest directions of all such matrices together, as many as the share of
    numbers that may stay has room for.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Sparsity,)

    def edits(self, job: Job) -> Iterator[Edit]:
        stays = 1 - (job.target.amount or 0)
        for block in job.view.blocks[job.start :]:
            by_width: dict[int, list[Weight]] = {}
            for weight in block.weights:
                by_width.setdefault(weight.shape[1], []).append(weight)
            for weights in by_width.values():
                stacked = torch.cat([weight.get() for weight in weights])
                rank = int(stays * stacked.numel() / sum(stacked.shape))
                directions = torch.linalg.svd(stacked.float(), full_matrices=False).Vh
                common = directions[:rank].to(stacked.dtype)
                for weight in weights:
                    product = Product(weight.get() @ common.T, common, len(weights))
                    yield Replace(weight, Compressed(product.dense(), {"rank": rank}, product))
