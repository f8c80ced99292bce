"""What is asked of a matrix: a sparsity such as `0.5`, or a pattern such as `2:4` (two kept of every four).

Targets are small values. They choose, exactly: the count is the one that was asked for, to the weight, and where scores tie the lowest
index goes first. So a mask depends on nothing but the scores: not on the device, the threads, or how a sort happens to break ties.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calibrant.errors import NumericsError, TargetError
from calibrant.foreign import brief, decimal_number, user_text, whole_number

Group = Literal["row", "matrix"]

ALLOWED: Final = "write a sparsity from 0 up to (not including) 1, such as 0.5, or N:M with N kept of every M inputs, such as 2:4"
_PAIRWISE_UP_TO: Final = 8
"""Groups up to this size are ranked by comparing pairs of columns: there a partition of each tiny group costs more."""


class Target(ABC):
    """What is asked of a matrix. A frozen, hashable value; `str` gives the text that a user would write."""

    @abstractmethod
    def __str__(self) -> str: ...

    @property
    def amount(self) -> float | None:
        """How much is asked, as a number whose mean over matrices is that of all: the share that goes, or the bits that stay; None if none is."""
        return None

    def check(self, shape: tuple[int, int], name: str) -> None:  # noqa: B027  # most targets fit every shape
        """Raise `TargetError`, naming the matrix, if this can't be asked of a matrix of `shape` (out, in)."""

    def keep(self, scores: Float[Tensor, "out in"], group: Group = "row") -> Bool[Tensor, "out in"]:
        """Which weights stay, given how much each matters: exact counts within each `group`; of equal scores the lowest index goes first.

        Raises `NumericsError` for scores that are NaN, and `TargetError` if this target removes no weights (a width in bits, say).
        """
        raise TargetError(f"the target {self} doesn't say which weights to remove; {ALLOWED}", subject=str(self))


@dataclass(frozen=True)
class Sparsity(Target):
    """A share of the weights, `0 <= fraction < 1`; of `count` weights exactly ⌊count·fraction⌋ go."""

    fraction: float | int

    def __post_init__(self) -> None:
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, int | float) or not 0 <= self.fraction < 1:
            raise TargetError(f"{brief(self.fraction)} is no sparsity{_hint(self.fraction)}; {ALLOWED}", subject=brief(self.fraction))
        object.__setattr__(self, "fraction", float(self.fraction) + 0.0)  # + 0.0: one zero, not two

    def __str__(self) -> str:
        return str(self.fraction)

    @property
    def amount(self) -> float:
        return self.fraction

    def quota(self, count: int) -> int:
        """How many of `count` weights go: the floor of the exact product of the decimal as written (0.29 of 100 is 29, not 28)."""
        return int(count * Fraction(str(self.fraction)))

    def keep(self, scores: Float[Tensor, "out in"], group: Group = "row") -> Bool[Tensor, "out in"]:
        rows = scores.reshape(1, -1) if group == "matrix" else scores
        return keep_highest(rows, self.quota(rows.shape[1])).reshape(scores.shape)


@dataclass(frozen=True)
class NofM(Target):
    """`n` kept of every `m` consecutive inputs, `1 <= n < m`."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if type(self.n) is not int or type(self.m) is not int or not 1 <= self.n < self.m:
            given = f"{brief(self.n)}:{brief(self.m)}"
            raise TargetError(f"{given} is no pattern: N of N:M are kept, so 1 <= N < M; {ALLOWED}", subject=given)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def amount(self) -> float:
        return 1 - self.n / self.m

    def check(self, shape: tuple[int, int], name: str) -> None:
        if shape[1] % self.m:
            message = f"{name} has {shape[1]} inputs, and {self} needs a multiple of {self.m}; choose an M that divides it, or a sparsity such as 0.5"
            raise TargetError(message, subject=name)

    def keep(self, scores: Float[Tensor, "out in"], group: Group = "row") -> Bool[Tensor, "out in"]:
        """As in `Target`; the groups of `m` lie within rows, so `group` makes no difference."""
        self.check((scores.shape[0], scores.shape[1]), "the matrix")
        if self.m > _PAIRWISE_UP_TO:
            return keep_highest(scores.reshape(-1, self.m), self.m - self.n).reshape(scores.shape)
        _refuse_nan(scores)
        # A weight goes if fewer than m - n others of its group go before it.
        columns = [scores[:, i :: self.m].contiguous() for i in range(self.m)]
        before = [torch.zeros_like(columns[0], dtype=torch.int16) for _ in columns]
        for late in range(self.m):
            for early in range(late):
                first = columns[early] <= columns[late]
                before[late] += first
                before[early] += ~first
        return torch.stack([b >= self.m - self.n for b in before], dim=-1).reshape(scores.shape)


def keep_highest(scores: Float[Tensor, "group member"], remove: int) -> Bool[Tensor, "group member"]:
    """All but the `remove` lowest scores of each row; of equal scores the first goes first.

    The same mask as a stable sort gives, several times faster: find each row's threshold, and count only ties at it. Raises `NumericsError`
    if a score is NaN.
    """
    _refuse_nan(scores)
    if remove == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = _lowest(scores, remove)
    kept = scores > threshold
    if kept.numel() - int(kept.count_nonzero()) == remove * scores.shape[0]:
        return kept
    below, tied = scores < threshold, scores == threshold
    still: Int[Tensor, "group 1"] = remove - below.sum(dim=1, keepdim=True)
    return ~(below | (tied & (tied.cumsum(dim=1) <= still)))


def parse_target(text: str | float | int) -> Target:
    """The target that a text or number such as `0.5`, `"0.5"` or `"2:4"` asks for; `TargetError` for anything else."""
    if not isinstance(text, str):
        return Sparsity(text)
    kept, colon, every = user_text(text, TargetError).partition(":")
    n, m = whole_number(kept), whole_number(every)
    if colon and n is not None and m is not None and min(n, m) >= 0:
        return NofM(n, m)
    number = float(word) if (word := text.strip().lower()) in ("nan", "inf") else decimal_number(text)
    if number is None:
        raise TargetError(f"{text!r} is no target{_hint(text)}; {ALLOWED}", subject=text)
    return Sparsity(number)


def _lowest(scores: Tensor, k: int) -> Tensor:
    """The k-th lowest score of each row, [group, 1]. NumPy's partition is vectorised, and up to ten times as fast as torch's selections."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.partition(scores.detach().numpy(), k - 1, axis=1)[:, k - 1 : k].copy())
    return scores.kthvalue(k, dim=1, keepdim=True).values


def _refuse_nan(scores: Tensor) -> None:
    # A sum is NaN where a score is, and also where infinities meet; only then is counting worth its time.
    if bool(scores.sum().isnan()) and (nan := int(scores.isnan().count_nonzero())):
        raise NumericsError(
            f"{nan} of {scores.numel()} scores are NaN, so no weight can be chosen; look for NaN or infinity in the weight and its inputs"
        )


def _hint(given: str | float | int) -> str:
    """The likely meaning of 50 or "50%"."""
    number = decimal_number(given.removesuffix("%")) if isinstance(given, str) else given
    likely = number is not None and not isinstance(number, bool) and 1 < number < 100
    return f", did you mean {number / 100:g}?" if likely and number is not None else ""
