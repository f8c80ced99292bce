"""Methods that compress a model by edits of any kind: `ModelMethod`, and those of them that remove
whole blocks or experts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Final

from calibrant.activations import Propagation
from calibrant.edits import DropBlocks, DropExperts, Edit
from calibrant.errors import CalibrantError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods._base import Method
from calibrant.models import ModelView, expert_layers
from calibrant.targets import Parts, Share, Sparsity, Target

PRODUCTS: Final = ("linear", "addmm", "mm", "matmul", "__matmul__")
"""Torch's functions that multiply with a matrix, by the names that a function mode sees."""


class ModelMethod(Method, ABC):
    """Compresses a model by a list of edits."""

    @abstractmethod
    def edits(self, job: Job) -> Iterator[Edit]:
        """Yield what is to be done to the model of `job`; each edit is applied before the next
        one is computed.

        Deterministic: the same job gives the same edits. After an interruption `job.done` holds
        those that came first, and the rest is yielded.
        """

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        """Raise `TargetError`, before anything is touched, if it can't be used with this model;
        `targets` are those of its matrices, by name.

        A method that doesn't go matrix by matrix takes no targets by matrix.
        """
        if any(other != target for other in targets.values()):
            problem = f"{self} doesn't go matrix by matrix, so nothing can be shared among matrices"
            raise TargetError(f"{problem}; leave the allocation out", subject=str(self))


def check_matrices(view: ModelView, targets: Mapping[str, Target]) -> None:
    """Raise `TargetError` for the first matrix that can't become what its target says."""
    for weight in view.weights:
        targets[weight.name].check(weight.shape, weight.name)


def check_one_process(method: Method, job: Job) -> None:
    """Raise `SpecError` if several processes share the job, for a method that can't be shared."""
    if job.ranks.size > 1:
        message = f"{method.spec_name()} works in one process; start it without torchrun"
        raise SpecError(message, subject=str(method))


def check_blocks_together(method: Method, job: Job) -> None:
    """Raise `SpecError` if blocks go to the device in turn, for a method that needs all of them
    there at once.
    """
    if job.view.residence.elsewhere:
        message = f"{method} needs all blocks on the device at once, and they go there in turn"
        raise SpecError(f"{message}; allow more device_memory", subject=str(method))


@contextmanager
def failing_at(method: Method, place: str, subject: str = "") -> Iterator[None]:
    """Make errors inside say which method failed at which `place`, such as a matrix.

    Their subject becomes `subject`, or the place itself where none is given. An error that isn't
    one of ours is a defect of the method: it stays as it is, and has a note.
    """
    failed = f"{method.spec_name()} failed at {place}"
    try:
        yield
    except CalibrantError as error:
        raise type(error)(f"{failed}: {error}", subject=subject or place) from error
    except Exception as error:
        error.add_note(failed)
        raise


class PartMethod(ModelMethod, ABC):
    """Removes whole `parts` of a model, blocks or experts: for the target 0.25 a quarter of them.
    It looks at the model as it is.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Sparsity, Share)
    propagate: ClassVar[Propagation] = "dense"
    propagations: ClassVar[tuple[Propagation, ...]] = ("dense",)
    parts: ClassVar[Parts]

    def aim(self, target: Target) -> Target:
        self.check(target)
        return as_share(target, self.parts)

    def drops_parts(self, blocks: int, target: Target) -> bool:
        return as_share(target, self.parts).fraction > 0

    @abstractmethod
    def left_to_drop(self, job: Job) -> int:
        """Return how many parts are still to go, of each layer where they are experts: the target's
        count, less what was dropped before an interruption.
        """


class BlockMethod(PartMethod, ABC):
    """Removes whole blocks."""

    parts: ClassVar[Parts] = "blocks"

    def left_to_drop(self, job: Job) -> int:
        dropped = sum(len(edit.indices) for edit in job.done if isinstance(edit, DropBlocks))
        # The share is one of the model as it came.
        count = len(job.view.blocks) + dropped
        return count_of_share(count, job.target, self.parts) - dropped

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        count_of_share(len(view.blocks), target, self.parts)


class ExpertMethod(PartMethod, ABC):
    """Removes experts, equally many of every layer."""

    parts: ClassVar[Parts] = "experts"

    def dropped(self, job: Job) -> int:
        """Return how many experts of a layer went before an interruption: equally many of each."""
        count = 0
        for edit in job.done:
            if isinstance(edit, DropExperts):
                count += max(map(len, edit.experts.values()), default=0)
        return count

    def left_to_drop(self, job: Job) -> int:
        dropped = self.dropped(job)
        count = expert_layers(job.view)[0].count + dropped
        return count_of_share(count, job.target, self.parts) - dropped

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        layers = expert_layers(view)
        if not layers:
            problem = f"{self} drops experts, and {type(view.model).__name__} has none"
            raise TargetError(f"{problem}; choose a method for dense models", subject=str(self))
        # A router must be left as many experts as it picks.
        fraction = as_share(target, self.parts).fraction
        for layer in layers:
            remaining = layer.count - count_of_share(layer.count, target, self.parts)
            if remaining < layer.top_k:
                most = (layer.count - layer.top_k) / layer.count
                message = (
                    f"{fraction} of the {layer.count} experts of {layer.name} would leave "
                    f"{remaining}, and its router picks {layer.top_k}; ask for at most {most:g}"
                )
                raise TargetError(message, subject=layer.name)


def as_share(target: Target, parts: Parts) -> Share:
    """Return `target` as a share of a model's `parts`: 0.25 is `blocks 0.25`. Raises
    `TargetError` for a share of other parts.
    """
    if isinstance(target, Sparsity):
        return Share(parts, target.fraction)
    if not isinstance(target, Share) or target.parts != parts:
        advice = f"write {parts} and a number, such as {parts} 0.25"
        raise TargetError(f"{target} is no share of {parts}; {advice}", subject=str(target))
    return target


def count_of_share(count: int, target: Target, parts: Parts) -> int:
    """Return how many of `count` parts a share of them is: rounded down, and at least one unless
    the share is 0.

    Raises `TargetError` for a target that is no share of them, or one that is less than a part.
    """
    share = as_share(target, parts)
    dropped = share.quota(count)
    if dropped == 0 and share.fraction > 0:
        least = "0, since the only one must stay"
        if count > 1:
            least = f"at least {least_share(count)}"
        problem = f"{share.fraction} of {count} {parts} is less than one"
        raise TargetError(f"{problem}; ask for {least}", subject=str(target))
    return dropped


def least_share(count: int) -> str:
    """Return the least share of `count` parts that is one of them, to three digits."""
    # Rounded up, so that it is accepted when it is asked for.
    return f"{math.ceil(1000 / count) / 1000:g}"
