"""N kept of every M consecutive inputs, such as `2:4`."""

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.errors import TargetError
from calibrant.spec.foreign import brief
from calibrant.spec.grammar import read_target
from calibrant.targets._base import Group, Removal, keep_highest, refuse_nan
from calibrant.targets._kinds import allowed

_PAIRWISE_UP_TO: Final = 8
"""Groups up to this size are ranked by comparing every pair of columns, for all groups at once: a
partition of each tiny group would cost more.
"""


@dataclass(frozen=True)
class NofM(Removal):
    """`n` kept of every `m` consecutive inputs, `1 <= n < m`."""

    written: ClassVar[str] = "N:M with N kept of every M inputs"
    example: ClassVar[str] = "2:4"

    n: int
    m: int

    def __post_init__(self) -> None:
        whole = type(self.n) is int and type(self.m) is int
        if not whole or not 1 <= self.n < self.m:
            text = f"{brief(self.n)}:{brief(self.m)}"
            raise TargetError(
                f"{text} is no pattern: N of N:M are kept, so 1 <= N < M; {allowed((Removal,))}",
                subject=text,
            )

    @classmethod
    def read(cls, value: str | float | int) -> "NofM | None":
        if not isinstance(value, str):
            return None
        pattern = read_target(value).pattern
        return None if pattern is None else cls(*pattern)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def amount(self) -> float:
        return 1 - self.n / self.m

    def check(self, shape: tuple[int, int], name: str) -> None:
        if shape[1] % self.m:
            raise TargetError(
                f"{name} has {shape[1]} inputs, and {self} needs a multiple of {self.m}; "
                f"choose an M that divides it, or a sparsity such as 0.5",
                subject=name,
            )

    def keep(self, scores: Float[Tensor, "out in"], group: Group = "row") -> Bool[Tensor, "out in"]:
        """Return what is kept, as `Removal` says; the groups of `m` lie within rows, so `group`
        makes no difference.

        >>> NofM(2, 4).keep(torch.tensor([[0.1, 3.0, 2.0, 0.2]]))
        tensor([[False,  True,  True, False]])
        """
        self.check((scores.shape[0], scores.shape[1]), "the matrix")
        removed = self.m - self.n
        if self.m > _PAIRWISE_UP_TO:
            return keep_highest(scores.reshape(-1, self.m), removed).reshape(scores.shape)
        refuse_nan(scores)
        # Of each weight, how many others of its group would go before it: those with a lower score,
        # and of equal ones those that stand earlier. It goes if these are fewer than m - n.
        columns = [scores[:, place :: self.m].contiguous() for place in range(self.m)]
        before = [torch.zeros_like(columns[0], dtype=torch.int16) for _ in columns]
        for late in range(self.m):
            for early in range(late):
                first = columns[early] <= columns[late]
                before[late] += first
                before[early] += ~first
        kept = [count >= removed for count in before]
        return torch.stack(kept, dim=-1).reshape(scores.shape)
