"""What a target is: a frozen value that is written as a short text. Also how a mask follows from
scores: exactly as many go as were asked for, and of equal scores the first goes first.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrant.errors import NumericsError, SpecError
from calibrant.spec import Spec
from calibrant.spec.spec import Call, parse

Group = Literal["row", "matrix"]
Verb = Literal["prune", "quantize"]


class Target(Spec, ABC):
    """What a matrix is to become. A frozen, hashable value; `str` gives the text that a user would
    write.

    `written` says in words how its kind is written, and `example` is such a text: both end up in
    sentences about what is allowed. `verb` is the command that its kind is for.
    """

    written: ClassVar[str]
    example: ClassVar[str]
    verb: ClassVar[Verb] = "quantize"

    @classmethod
    @abstractmethod
    def read(cls, value: str | float | int) -> "Target | None":
        """Return the target that is written as `value`; None for what isn't written like a target
        of this kind. Raises `TargetError` for what is written like one and can't be asked for.
        """

    @abstractmethod
    def __str__(self) -> str: ...

    @property
    def amount(self) -> float | None:
        """How much is asked, as a number that can be averaged over matrices: the share that goes,
        or the bits that stay; None if there is no such number.
        """
        return None

    @property
    def weights(self) -> "Target":
        """What the weights of a matrix are to become: all that is asked, unless the target is a
        scheme that rounds inputs too. A method is asked for this.
        """
        return self

    @property
    def looks(self) -> bool:
        """Whether a part of it, such as a scale of inputs, is found on calibration data, whatever
        the method.
        """
        return False

    @property
    def revised(self) -> int:
        """How often what it stands for has changed since the first version. A stored run that was
        made before has a smaller number, and so another id.
        """
        return 0

    def check(self, shape: tuple[int, int], name: str) -> None:
        """Raise `TargetError`, naming the matrix, if a matrix of `shape` (out, in) can't become
        this. Most targets fit every shape.
        """


class Removal(Target, ABC):
    """A target that says which weights go."""

    verb: ClassVar[Verb] = "prune"

    @abstractmethod
    def keep(self, scores: Float[Tensor, "out in"], group: Group = "row") -> Bool[Tensor, "out in"]:
        """Return which weights stay, given how much each matters: exact counts within each `group`;
        of equal scores the lowest index goes first.

        Raises `NumericsError` for scores that are NaN.
        """


def keep_highest(
    scores: Float[Tensor, "group member"], remove: int
) -> Bool[Tensor, "group member"]:
    """Return all but the `remove` lowest scores of each row; of equal scores the first goes first.

    The same mask as a stable sort gives, several times faster: find each row's threshold, and count
    only ties at it. Raises `NumericsError` if a score is NaN.
    """
    refuse_nan(scores)
    if remove == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = _nth_lowest(scores, remove)
    keep = scores > threshold
    removed = keep.numel() - int(keep.count_nonzero())
    # Exact already, unless some scores that tie with the threshold must stay.
    if removed == remove * scores.shape[0]:
        return keep
    below = scores < threshold
    tied = scores == threshold
    tied_to_remove = remove - below.sum(dim=1, keepdim=True)
    return ~(below | (tied & (tied.cumsum(dim=1) <= tied_to_remove)))


def _nth_lowest(scores: Float[Tensor, "group member"], rank: int) -> Float[Tensor, "group 1"]:
    """Return the score of each row that is the lowest (`rank` 1), the second lowest (2), …"""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        # NumPy's partition is vectorised, and up to ten times as fast as torch's selections.
        partition = np.partition(scores.detach().numpy(), rank - 1, axis=1)
        return torch.from_numpy(partition[:, rank - 1 : rank].copy())
    if scores.device.type != "cpu" and len(scores) == 1:
        # Of a GPU `kthvalue` takes one of its many processors for a row, and `sort` all of them.
        return scores.sort(dim=1).values[:, rank - 1 : rank]
    return scores.kthvalue(rank, dim=1, keepdim=True).values


def refuse_nan(scores: Tensor) -> None:
    """Raise `NumericsError` if a score is NaN."""
    # A sum is faster than a count. It is NaN if a score is, and also if opposite infinities meet.
    if not bool(scores.sum().isnan()):
        return
    count = int(scores.isnan().count_nonzero())
    if count:
        raise NumericsError(
            f"{count} of {scores.numel()} scores are NaN, so no weight can be chosen; "
            f"look for NaN or infinity in the weight and its inputs"
        )


def name_and_word(text: str, parameter: str, usual: str) -> tuple[str, Any] | None:
    """Return the name in a text such as `FP8(range=mse)` and the word of its one parameter, with or
    without quotes; `usual` where there is none. None for a text of another form.

    >>> name_and_word("FP8(range=mse)", "range", "absmax"), name_and_word("FP8", "range", "absmax")
    (('FP8', 'mse'), ('FP8', 'absmax'))
    """
    try:
        call = parse(text)
    except SpecError:
        return None
    if not isinstance(call, Call) or call.arguments.keys() - {parameter}:
        return None
    word: Any = call.arguments.get(parameter, usual)
    # A name without quotes is read as a call without arguments.
    if isinstance(word, Call):
        word = word.name
    if not isinstance(word, str):
        return None
    return call.name, word
