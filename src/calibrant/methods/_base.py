"""What a method says of itself, and the kind that most are: `MatrixMethod`, which compresses one
matrix at a time and knows tensors alone.

`compress/matrices.py` walks through a model and calls it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from calibrant.activations import Gram, Propagation, Seen, Statistic
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.packed import Compressed
from calibrant.spec import Spec
from calibrant.spec.foreign import brief
from calibrant.targets import (
    FloatGrid,
    GgufBudget,
    GgufRecipe,
    Grid,
    Removal,
    Scheme,
    Target,
    accepted,
)

S = TypeVar("S", bound=Statistic)

MOST_DAMP: Final = 1_000_000
"""The largest damping or pull. Above it nothing changes."""
MOST_CANDIDATES: Final = 10_000
"""Candidates at most that a search measures at a time."""
MOST_PARTS: Final = 10_000
"""Blocks or experts that a method takes together: no model has as many."""


class Method(Spec, ABC):
    """A way to compress a model: a frozen dataclass. What it says of itself is read before any
    work.

    `accepts` says which kinds of target it takes; it is given no other. `observes` says which
    statistics the walk must gather; where that depends on parameters, it is a property. A method
    that looks at nothing leaves it empty and costs no forward. `tries` says that the method
    measures the model on the calibration tokens, so it needs them whatever it observes.

    `updates` says that the weights that stay change too. Weights fitted to inputs that no longer
    come do harm. So a study calibrates such methods on the inputs that arrive (`arrival`), and
    lets all others share one pass over the dense model (`dense`).

    `by_block` is true for a method of edits that replaces the matrices of one block after the
    other, and needs nothing else of the model: its blocks may stay on disk.

    `prunes` is false for a method that leaves everything as it is; all others remove the share that
    a `Removal` names. `propagate` is the propagation that `prune` uses unless it gets another,
    `propagations` are those that the method can be used with.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Removal,)
    observes: ClassVar[tuple[type[Statistic], ...]] = ()
    tries: ClassVar[bool] = False
    updates: ClassVar[bool] = False
    prunes: ClassVar[bool] = True
    by_block: ClassVar[bool] = False
    propagate: ClassVar[Propagation] = "arrival"
    propagations: ClassVar[tuple[Propagation, ...]] = ("arrival", "reference", "dense")

    def check(self, target: Target) -> None:
        """Raise `TargetError` for a target that isn't accepted; it says which ones are."""
        if not isinstance(target, self.accepts):
            message = f"{self} can't be asked for {target}: it accepts {accepted(self.accepts)}"
            if isinstance(target, GgufRecipe | GgufBudget):
                message += "; for whole GGUF files take the method llama_cpp"
            raise TargetError(message, subject=str(target))

    def aim(self, target: Target) -> Target:
        """Return `target` as this method understands it: 0.25 may be a share of blocks. Raises
        `TargetError` as `check` does.
        """
        # llama.cpp's recipe has the name of a scheme.
        if str(target) == "NVFP4" and FloatGrid in self.accepts:
            target = Scheme("NVFP4")
        self.check(target.weights)
        return target

    @property
    def looks(self) -> bool:
        """Whether its result depends on calibration data."""
        return bool(self.observes) or self.tries

    def heeds(self, target: Target) -> bool:
        """Return whether calibration data makes a difference to what becomes of `target`."""
        return self.looks

    def tried(self, blocks: int, target: Target) -> int:
        """Return how many tokens at most it runs through a model of so many blocks to try edits. A
        plan counts them.
        """
        return 0

    def tokens_again(self, tokens: int, length: int) -> int:
        """Return how many tokens it runs through each block again, when it is shown `tokens` in
        windows of `length`. A plan counts them. A gradient counts as two forwards.
        """
        return 0

    def work_bytes(self, block_numbers: int, state_bytes: int) -> int:
        """Return how many bytes a method of edits needs beside the model and its activations.

        The largest block has `block_numbers` numbers. The hidden states of all tokens between two
        blocks take `state_bytes`.
        """
        return 0

    def drops_parts(self, blocks: int, target: Target) -> bool:
        """Return whether a model of so many blocks is sure to lose blocks or experts.

        An export that can't say so refuses the method before any work.
        """
        return False

    def stand_in(self, target: Target) -> "StandIn | None":
        """Return what predicts its errors on mixtures of calibration sets, from sums of
        statistics alone; None where nothing does.
        """
        return None


@dataclass(frozen=True)
class TokenUse:
    """How a method wants the calibration tokens shown to a matrix.

    With `sources_apart` each source of a mixture goes through the model by itself, and what the
    matrix saw has `Sources` besides. With `sources_halved` each goes by itself too, and the halves
    of all are added, first to first; in `reference` all go together. Each window is shown `turns`
    times, begun at another place every time. With `by_attention` tokens count as `token_weights`
    says. `one_process` is for statistics that can't be summed over several processes.
    """

    sources_apart: bool = False
    sources_halved: bool = False
    turns: int = 1
    by_attention: bool = False
    one_process: bool = False


class Sources(Statistic):
    """What a matrix saw of each source by itself: Grams whose masses are the sources' shares of
    the mixture.
    """

    def __init__(self, grams: Sequence[Gram]) -> None:
        self.grams = tuple(grams)
        self.tokens = sum(gram.tokens for gram in grams)
        self.mass = sum(gram.mass for gram in grams)

    def __add__(self, other: "Sources") -> "Sources":
        return Sources(
            [mine + theirs for mine, theirs in zip(self.grams, other.grams, strict=True)]
        )

    def __mul__(self, factor: float) -> "Sources":
        return Sources([gram * factor for gram in self.grams])


class MatrixMethod(Method, ABC):
    """Compresses one matrix at a time. Pure: the same arguments give the same result, and the
    arguments are left as they were.
    """

    copies: ClassVar[int] = 4
    """How many copies of the matrix in float32 are in memory at once where the processor
    computes.
    """
    copies_elsewhere: ClassVar[int] = 7
    """The same on a device, where no compiled kernel goes from row to row; at least `copies`."""

    @abstractmethod
    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Return the compressed weight, of the same shape, type and device; `weight` itself is
        left alone.
        """

    @property
    def token_use(self) -> TokenUse:
        """How it wants the calibration tokens shown: by default as they are, all together."""
        return TokenUse()

    def token_weights(
        self, attention: Float[Tensor, "sample position"], real: Bool[Tensor, "sample position"]
    ) -> Float[Tensor, "sample position"]:
        """Return how much each token counts, from the `attention` that it gets in the block.

        `real` says which tokens aren't padding. It is called only if `token_use` says
        `by_attention`.
        """
        raise NotImplementedError

    def judged_by(self, seen: Seen) -> Seen:
        """Return the statistics that a record judges the matrix's error by."""
        return seen

    def copies_on(self, device: torch.device) -> int:
        """Return how many copies of the matrix in float32 are in memory at once where `device`
        computes.
        """
        if device.type == "cpu":
            return self.copies
        return max(self.copies, self.copies_elsewhere)

    @property
    def compressions(self) -> int:
        """How often a matrix is compressed until one of the results stays."""
        return 1

    def squares(self, sources: int) -> int:
        """Return how many square matrices in float32, as large as a Gram, are in memory at once,
        with so many sources in the calibration set.
        """
        return 4

    def stand_in(self, target: Target) -> "StandIn | None":
        return StandIn(self, target)


class StandIn(NamedTuple):
    """A matrix method, with its target, that predicts another method's errors. `differs` says in
    words what it leaves out; empty where it leaves out nothing.
    """

    method: MatrixMethod
    target: Target
    differs: str = ""


def standing_in(method: Method, target: Target, differs: str) -> StandIn | None:
    """Return the stand-in of `method`, for another that builds on it; `differs` says what that
    other does besides. None where `method` has none.
    """
    inner = method.stand_in(target)
    if inner is None:
        return None
    if inner.differs:
        differs = f"{differs}; {inner.differs}"
    return StandIn(inner.method, inner.target, differs)


def removes(method: object) -> bool:
    """Return whether `method` removes weights, matrix by matrix, and takes tokens as they are."""
    if not isinstance(method, MatrixMethod) or not method.prunes or method.token_use != TokenUse():
        return False
    return any(issubclass(kind, Removal) for kind in method.accepts)


def check_least(method: Method, **least: int) -> None:
    """Raise `SpecError` for the first of these parameters that is below its least value; one
    that is None is left to the method.
    """
    for name, lowest in least.items():
        value = getattr(method, name)
        if value is not None and value < lowest:
            message = f"{method.spec_name()}({name}={value}): {name} must be at least {lowest}"
            raise SpecError(message, subject=name)


def check_positive(method: Method, **hints: str) -> None:
    """Raise `SpecError` for the first of these parameters that isn't above 0 and finite; the
    `hints` say what is usual.
    """
    for name, hint in hints.items():
        value = getattr(method, name)
        if not (value > 0 and math.isfinite(value)):
            message = f"{method.spec_name()}({name}={value}): {name} must be above 0; {hint}"
            raise SpecError(message, subject=name)


def check_choice(method: Method, **choices: Sequence[str]) -> None:
    """Raise `SpecError` for the first of these parameters that is none of its choices."""
    for name, allowed in choices.items():
        value = getattr(method, name)
        if value not in allowed:
            advice = f"write {', '.join(allowed[:-1])} or {allowed[-1]}"
            message = f"{method.spec_name()}({name}={brief(value)}) is not known; {advice}"
            raise SpecError(message, subject=name)


def removal(target: Target) -> Removal:
    """Return `target`, which must say which weights go; a `TargetError` if it doesn't."""
    if not isinstance(target, Removal):
        problem = f"the target {target} doesn't say which weights to remove"
        raise TargetError(f"{problem}; ask for {accepted((Removal,))}", subject=str(target))
    return target


def grid(target: Target) -> Grid | FloatGrid:
    """Return `target`, which must say which values weights are rounded to; a `TargetError` if it
    doesn't.
    """
    if not isinstance(target, Grid | FloatGrid):
        problem = f"the target {target} doesn't say which values to round weights to"
        raise TargetError(f"{problem}; ask for {accepted((Grid, FloatGrid))}", subject=str(target))
    return target


def finite(numbers: Shaped[Tensor, "..."], name: str) -> Shaped[Tensor, "..."]:
    """Return `numbers`, detached; a `NumericsError` that says their `name` if one is NaN or
    infinite. The caller adds which matrix it was.
    """
    numbers = numbers.detach()
    # The extremes show NaN and infinity, and are computed ten times as fast as a count.
    if numbers.numel() and not all(bool(extreme.isfinite()) for extreme in numbers.aminmax()):
        not_finite = numbers.numel() - int(numbers.isfinite().count_nonzero())
        problem = f"{name} holds NaN or infinity ({not_finite} of {numbers.numel()} numbers)"
        raise NumericsError(f"{problem}; look at the model's file and at its dtype", subject=name)
    return numbers


def observed(seen: Seen, kind: type[S]) -> S:
    """Return the matrix's statistic of this kind.

    Raises `NumericsError` if no token reached the matrix: there is nothing to judge its inputs by.
    """
    statistic = seen[kind]
    if statistic.tokens == 0 or not statistic.mass > 0:
        arrived = f"{statistic.tokens} tokens, weight {statistic.mass:g}"
        raise NumericsError(
            f"no token reached the matrix ({arrived}), so nothing says which inputs matter; "
            "leave it dense"
        )
    return statistic


def prune(weight: Float[Tensor, "out in"], keep: Bool[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Return a copy of `weight` with exact zeros where it isn't kept."""
    return weight.detach().masked_fill(~keep, 0)
