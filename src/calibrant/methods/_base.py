"""What a method is: a frozen dataclass that yields edits; most define one pure verb, and the
rest is written here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, NamedTuple, TypeVar

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from calibrant.activations import Seen, Statistic
from calibrant.edits import DropBlocks, DropExperts, Edit, Replace
from calibrant.errors import CalibrantError, NumericsError, SpecError, TargetError
from calibrant.job import Job
from calibrant.models import ModelView, Weight, expert_layers
from calibrant.packed import Compressed
from calibrant.spec import Spec
from calibrant.system.clock import spent_on
from calibrant.targets import Grid, Parts, Removal, Share, Sparsity, Target, accepted
from calibrant.walk import Propagation

S = TypeVar("S", bound=Statistic)


class Method(Spec, ABC):
    """Compresses a model by a list of edits. What a subclass says of itself is read before any
    work:

    `observes` says which statistics the walk must gather; a method that looks at nothing leaves it
    empty and costs no forward. Where that depends on parameters, which then all have defaults, it
    is a property. `updates` says whether the remaining weights change too: weights fitted to inputs
    that no longer come do harm, so a study propagates such methods' errors by default (`arrival`),
    and lets all others share one pass over the dense model (`dense`). `tries` says whether it
    measures the model on the calibration tokens (`job.loss`); it needs them then, whatever it
    observes. `accepts` says which kinds of target it takes; it is given no other. `prunes` is false
    for what leaves everything as it is whatever the target; all else removes the share that a
    `Removal` names. `propagate` is the propagation that `prune` uses unless it gets another,
    `propagations` are those that it can be used with.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Removal,)
    observes: ClassVar[tuple[type[Statistic], ...]] = ()
    tries: ClassVar[bool] = False
    updates: ClassVar[bool] = False
    prunes: ClassVar[bool] = True
    propagate: ClassVar[Propagation] = "arrival"
    propagations: ClassVar[tuple[Propagation, ...]] = ("arrival", "reference", "dense")

    def aim(self, target: Target) -> Target:
        """Return what `target` is to this method. Raises `TargetError` as `check` does."""
        self.check(target)
        return target

    @property
    def looks(self) -> bool:
        """Whether its result depends on calibration data."""
        return bool(self.observes) or self.tries

    def tried(self, blocks: int, target: Target) -> int:
        """Return how many tokens one that `tries` runs through a model of so many blocks at
        most: for plans.
        """
        del blocks, target
        return 0

    def drops_parts(self, view: ModelView, target: Target) -> bool:
        """Return whether the model is sure to have fewer blocks or experts afterwards: an export
        that can't say so refuses it before any work.
        """
        del view, target
        return False

    def heeds(self, target: Target) -> bool:
        """Return whether calibration data makes a difference to what this method does with
        `target`.
        """
        return self.looks

    def stand_in(self, target: Target) -> "StandIn | None":
        """Return what predicts its errors on mixtures of calibration sets, from sums of
        statistics alone; None where nothing does.
        """
        return None

    def check(self, target: Target) -> None:
        """Raise `TargetError`, saying what it accepts, if this method can't be used with
        `target`.
        """
        if not isinstance(target, self.accepts):
            raise TargetError(
                f"{self} can't be asked for {target}: it accepts {accepted(self.accepts)}",
                subject=str(target),
            )

    @abstractmethod
    def edits(self, job: Job) -> Iterator[Edit]:
        """Yield what is to be done to the model of `job`, change by change: each is applied before
        the next one is computed.

        Deterministic: the same job gives the same edits. After an interruption `job.done` holds
        those that came first, and the rest is yielded.
        """

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        """Raise `TargetError`, before anything is touched, if it can't be used with this model;
        `targets` are those of its matrices, by name.

        A method that doesn't go matrix by matrix takes no targets by matrix.
        """
        if any(other != target for other in targets.values()):
            message = f"{self} doesn't go matrix by matrix, so nothing can be shared among matrices; leave the allocation out"
            raise TargetError(message, subject=str(self))


class MatrixMethod(Method, ABC):
    """Compresses one matrix at a time. Pure: the same arguments give the same result, and the
    arguments are left as they were.
    """

    copies: ClassVar[int] = 4
    """How many copies of the matrix in float32 are in memory at once."""

    def squares(self, sources: int) -> int:
        """Return how many square matrices in float32, as large as a Gram, are in memory at once,
        with so many sources in the calibration set.
        """
        return 4

    def stand_in(self, target: Target) -> "StandIn | None":
        return StandIn(self, target)

    @abstractmethod
    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Return the compressed weight, of the same shape, type and device; `weight` itself is
        left alone.
        """

    def arrivals(self, job: Job) -> Iterator[tuple[Weight, Seen]]:
        """Yield the matrices with what they saw. A method that wants other tokens, or weighs
        them block by block, says so here.
        """
        return job.walk(self.observes)

    def edits(self, job: Job) -> Iterator[Edit]:
        for weight, seen in self.arrivals(job):
            try:
                with spent_on("method"):
                    compressed = self.compress(weight.get(), seen, job.targets[weight.name])
            except CalibrantError as error:
                raise type(error)(
                    f"{self.spec_name()} failed at {weight.name}: {error}", subject=weight.name
                ) from error
            yield Replace(weight, compressed, seen)
            del compressed, seen  # a Gram is large, and that of another matrix may be gathered now

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        for weight in view.weights:
            targets[weight.name].check(weight.shape, weight.name)


class StandIn(NamedTuple):
    """A method that goes matrix by matrix, and its target, in the place of another; `differs`
    says in words what it leaves out, empty for nothing.
    """

    method: MatrixMethod
    target: Target
    differs: str = ""


def standing_in(method: Method, target: Target, differs: str) -> StandIn | None:
    """Return what predicts `method`, in the place of one that builds on it; `differs` says what
    that one does besides. None where nothing does.
    """
    found = method.stand_in(target)
    return found and StandIn(
        found.method, found.target, "; ".join(filter(None, (differs, found.differs)))
    )


class PartMethod(Method, ABC):
    """Removes whole `parts` of a model: of a target such as 0.25 so large a share of them goes.
    It looks at the model as it is.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Sparsity, Share)
    propagate: ClassVar[Propagation] = "dense"
    parts: ClassVar[Parts]

    def aim(self, target: Target) -> Target:
        self.check(target)
        return parts_of(target, self.parts)

    def drops_parts(self, view: ModelView, target: Target) -> bool:
        return parts_of(target, self.parts).fraction > 0

    @abstractmethod
    def left_to_drop(self, job: Job) -> int:
        """Return how many parts are still to go: the target's count, less what was dropped
        before an interruption.
        """


class BlockMethod(PartMethod, ABC):
    """Removes whole blocks."""

    parts: ClassVar[Parts] = "blocks"

    def left_to_drop(self, job: Job) -> int:
        dropped = sum(len(edit.indices) for edit in job.done if isinstance(edit, DropBlocks))
        return share_of(len(job.view.blocks) + dropped, job.target, self.parts) - dropped

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        share_of(len(view.blocks), target, self.parts)


class ExpertMethod(PartMethod, ABC):
    """Removes experts, equally many of every layer."""

    parts: ClassVar[Parts] = "experts"

    def left_to_drop(self, job: Job) -> int:
        dropped = sum(
            max(map(len, edit.experts.values()), default=0)
            for edit in job.done
            if isinstance(edit, DropExperts)
        )
        return (
            share_of(expert_layers(job.view)[0].count + dropped, job.target, self.parts) - dropped
        )

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        layers = expert_layers(view)
        if not layers:
            raise TargetError(
                f"{self} drops experts, and {type(view.model).__name__} has none; choose a method for dense models",
                subject=str(self),
            )
        for layer in layers:
            remaining = layer.count - share_of(layer.count, target, self.parts)
            if remaining < layer.top_k:
                dropped = f"{parts_of(target, self.parts).fraction} of the {layer.count} experts of {layer.name}"
                most = f"{(layer.count - layer.top_k) / layer.count:g}"
                raise TargetError(
                    f"{dropped} would leave {remaining}, and its router picks {layer.top_k}; ask for at most {most}",
                    subject=layer.name,
                )


def parts_of(target: Target, parts: Parts) -> Share:
    """Return `target` as a share of a model's `parts`: 0.25 is `blocks 0.25`. Raises
    `TargetError` for a share of other parts.
    """
    if isinstance(target, Sparsity):
        return Share(parts, target.fraction)
    if not isinstance(target, Share) or target.parts != parts:
        raise TargetError(
            f"{target} is no share of {parts}; write {parts} and a number, such as {parts} 0.25",
            subject=str(target),
        )
    return target


def share_of(count: int, target: Target, parts: Parts) -> int:
    """Return how many of `count` parts a share of them is: rounded down, and at least one unless
    the share is 0.

    Raises `TargetError` for a target that is no share of them, or one that is less than a part.
    """
    share = parts_of(target, parts)
    dropped = share.quota(count)
    if dropped == 0 and share.fraction > 0:
        least = (
            f"at least {math.ceil(1000 / count) / 1000:g}"
            if count > 1
            else "0, since the only one must stay"
        )
        raise TargetError(
            f"{share.fraction} of {count} {parts} is less than one; ask for {least}",
            subject=str(target),
        )
    return dropped


MOST_DAMP: Final = 1_000_000
"""The largest damping or pull. Above it nothing changes."""
MOST_CANDIDATES: Final = 10_000
"""Candidates at a time."""
MOST_PARTS: Final = 10_000
"""Blocks or experts that a method takes together: no model has as many."""


def check_least(method: Method, **least: int) -> None:
    """Raise `SpecError` for the first of these parameters that is below its least value; one
    that is None is left to the method.
    """
    for name, lowest in least.items():
        value = getattr(method, name)
        if value is not None and value < lowest:
            raise SpecError(
                f"{method.spec_name()}({name}={value}): {name} must be at least {lowest}",
                subject=name,
            )


def removal(target: Target) -> Removal:
    """Return `target`, which must say which weights go; a `TargetError` if it doesn't."""
    if not isinstance(target, Removal):
        raise TargetError(
            f"the target {target} doesn't say which weights to remove; ask for {accepted((Removal,))}",
            subject=str(target),
        )
    return target


def grid(target: Target) -> Grid:
    """Return `target`, which must say which values weights are rounded to; a `TargetError` if it
    doesn't.
    """
    if not isinstance(target, Grid):
        raise TargetError(
            f"the target {target} doesn't say which values to round weights to; ask for {accepted((Grid,))}",
            subject=str(target),
        )
    return target


def finite(numbers: Shaped[Tensor, "..."], what: str) -> Shaped[Tensor, "..."]:
    """Return `numbers`, detached; a `NumericsError` that says `what` they are if one is NaN or
    infinite. The caller adds which matrix it was.
    """
    numbers = numbers.detach()
    # The extremes show NaN and infinity, and are computed ten times as fast as a count.
    if numbers.numel() and not all(bool(extreme.isfinite()) for extreme in numbers.aminmax()):
        bad = numbers.numel() - int(numbers.isfinite().count_nonzero())
        raise NumericsError(
            f"{what} holds NaN or infinity ({bad} of {numbers.numel()} numbers); look at the model's file and at its dtype",
            subject=what,
        )
    return numbers


def observed(seen: Seen, kind: type[S]) -> S:
    """Return the matrix's statistic of this kind; a `NumericsError` if no token reached it,
    because then there is nothing to judge its inputs by.
    """
    statistic = seen[kind]
    if statistic.tokens == 0 or not statistic.mass > 0:
        raise NumericsError(
            f"no token reached the matrix ({statistic.tokens} tokens, weight {statistic.mass:g}), so nothing says which inputs matter; leave it dense"
        )
    return statistic


def prune(weight: Float[Tensor, "out in"], keep: Bool[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Return a copy of `weight` with exact zeros where it isn't kept."""
    return weight.detach().masked_fill(~keep, 0)
