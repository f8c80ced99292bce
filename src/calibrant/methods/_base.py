"""What a method is: a frozen dataclass with one pure verb."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from calibrant.activations import Seen, Statistic
from calibrant.errors import NumericsError
from calibrant.spec import Spec
from calibrant.targets import Target

S = TypeVar("S", bound=Statistic)


@dataclass(frozen=True)
class Compressed:
    """A new weight, and what the record should know about how it came about (a damping step that was needed, …)."""

    weight: Float[Tensor, "out in"]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Method(Spec, ABC):
    """Compresses one matrix at a time. Pure: the same arguments give the same result, and the arguments are left as they were.

    `observes` says which statistics the walk must gather; a method that looks at nothing leaves it empty and costs no forward.
    `updates` says whether kept weights change too: weights fitted to inputs that no longer come do harm, so a study propagates such
    methods' errors by default (`arrival`), and lets all others share one pass over the untouched model (`dense`).
    `prunes` says whether the target's share of the weights becomes exactly zero.
    """

    observes: ClassVar[tuple[type[Statistic], ...]] = ()
    updates: ClassVar[bool] = False
    prunes: ClassVar[bool] = True

    @abstractmethod
    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """The compressed weight, of the same shape, type and device; `weight` itself is left alone."""


class BlockMethod(Spec, ABC):
    """Removes whole blocks of the model. A second, small protocol: it sees what every block did, and names the blocks that go."""

    observes: ClassVar[tuple[type[Statistic], ...]] = ()

    @abstractmethod
    def choose(self, seen: Sequence[Seen], target: Target) -> Sequence[int]:
        """Indices of the blocks to remove, given what each block in turn did to its input."""


def finite(numbers: Shaped[Tensor, "..."], what: str) -> Shaped[Tensor, "..."]:
    """`numbers`, detached; a `NumericsError` that says `what` they are if one is NaN or infinite. The caller adds which matrix it was."""
    numbers = numbers.detach()
    # The extremes tell of NaN and infinity, and are found ten times as fast as they are counted.
    if numbers.numel() and not all(bool(extreme.isfinite()) for extreme in numbers.aminmax()):
        bad = numbers.numel() - int(numbers.isfinite().count_nonzero())
        raise NumericsError(
            f"{what} holds NaN or infinity ({bad} of {numbers.numel()} numbers); look at the model's file and at its dtype", subject=what
        )
    return numbers


def observed(seen: Seen, kind: type[S]) -> S:
    """What the matrix saw; a `NumericsError` if no token reached it, because then there is nothing to judge its inputs by."""
    statistic = seen[kind]
    if statistic.tokens == 0 or not statistic.mass > 0:
        raise NumericsError(
            f"no token reached the matrix ({statistic.tokens} tokens, weight {statistic.mass:g}), so nothing says which inputs matter; leave it dense"
        )
    return statistic


def prune(weight: Float[Tensor, "out in"], keep: Bool[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """A copy of `weight` with exact zeros where it isn't kept."""
    return weight.detach().masked_fill(~keep, 0)
