"""What a target is: a frozen value that is written as a short text."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.spec import Spec

Group = Literal["row", "matrix"]


class Target(Spec, ABC):
    """What a matrix is to become. A frozen, hashable value; `str` gives the text that a user would
    write.

    `written` says in words how its kind is written, and `example` is one: both end up in sentences
    about what is allowed.
    """

    written: ClassVar[str]
    example: ClassVar[str]

    @classmethod
    @abstractmethod
    def read(cls, value: str | float | int) -> "Target | None":
        """Return the target that is written as `given`; None for what isn't written like one of
        this kind.

        Raises `TargetError` for what is written like one, and can't be asked for.
        """

    @abstractmethod
    def __str__(self) -> str: ...

    @property
    def amount(self) -> float | None:
        """How much is asked, as a number whose mean over matrices is that of all: the share that
        goes, or the bits that stay; None if none is.
        """
        return None

    def check(self, shape: tuple[int, int], name: str) -> None:  # most targets fit every shape
        """Raise `TargetError`, naming the matrix, if a matrix of `shape` (out, in) can't become
        this.
        """


class Removal(Target, ABC):
    """A target that says which weights go."""

    @abstractmethod
    def keep(self, scores: Float[Tensor, "out in"], group: Group = "row") -> Bool[Tensor, "out in"]:
        """Return which weights stay, given how much each matters: exact counts within each `group`;
        of equal scores the lowest index goes first.

        Raises `NumericsError` for scores that are NaN.
        """
