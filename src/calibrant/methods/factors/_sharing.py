"""What methods have in common that put factors in the place of a feed-forward network's matrices:
which matrices share one, which sizes a budget allows, the edits.

A budget is a share of the numbers that the matrices of feed-forward networks consist of, `numbers
0.2` for a fifth fewer. Each set of matrices keeps to it by itself. What remains are the numbers of
the shared factor, and those of the own factors that aren't zero. To store where these are takes
room too: indices, a bit for each place of an own factor. The notes say how much remains with
indices and without. A method may be asked to count them in the budget.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, NamedTuple, final

import torch

from calibrant.activations import Gram, Propagation, Seen, wide
from calibrant.edits import Edit, Replace
from calibrant.errors import ModelError, NumericsError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods._base import MOST_DAMP, check_positive, finite, observed
from calibrant.methods._model_method import ModelMethod, as_share, failing_at
from calibrant.methods.factors._factors import Factored, Member
from calibrant.methods.pruning._gradients import damped
from calibrant.models import ModelView, Stream, Weight
from calibrant.numerics import ceil_div, six_digits
from calibrant.packed import Compressed, Factors
from calibrant.spec import check_most
from calibrant.spec.foreign import brief
from calibrant.system.clock import spent_on
from calibrant.targets import Share, Sparsity, Target
from calibrant.walk.statistics import by_block


class Sharer(NamedTuple):
    """A matrix of a feed-forward network, and whether it reads the residual stream; else it
    writes to it.
    """

    weight: Weight
    reads: bool

    @property
    def shape(self) -> tuple[int, int]:
        """How wide the stream is, and how many units there are."""
        out, inputs = self.weight.shape
        return (inputs, out) if self.reads else (out, inputs)


class FactorSizes(NamedTuple):
    """The sizes of the factors of a set of matrices: the rank, and how many numbers each own factor
    keeps.

    `left` is the share of all numbers that remains; `with_indices` is that with indices counted.
    """

    rank: int
    kept: tuple[int, ...]
    left: float
    with_indices: float


@final
@dataclass(frozen=True)
class Budget:
    """How many numbers may remain of a set of matrices, all as wide as the stream: `shapes` are
    [stream, unit].

    `bits` are those of a number. With `indices` these count too. Errors call the set by its `name`,
    and advise larger groups only if the method `can_group_more`.
    """

    shapes: tuple[tuple[int, int], ...]
    target: Share
    bits: int
    indices: bool
    name: str
    can_group_more: bool = True

    @property
    def stream(self) -> int:
        """The rows of the shared factor."""
        return self.shapes[0][0]

    @property
    def units(self) -> int:
        """The columns of all own factors."""
        return sum(units for _, units in self.shapes)

    @property
    def width(self) -> int:
        """The largest rank that there can be."""
        return min(self.stream, self.units)

    @property
    def total(self) -> int:
        """The numbers that there are."""
        return self.stream * self.units

    @property
    def allowed(self) -> int:
        """The numbers that may remain."""
        return self.total - self.target.quota(self.total)

    def with_rank(self, rank: int | None) -> FactorSizes:
        """Return the sizes with this rank, the largest one if None: the own factors get what the
        shared one leaves, the same number for each unit.

        Raises `TargetError` for a rank that leaves them too few or more than they can hold.
        """
        if rank is None:
            rank = self.width
        if rank > self.width:
            problem = f"rank={rank} is above the width of {self.width}"
            raise self._refusal(f"{problem}; choose at most that")
        left = self._left_for_own_factors(rank)
        # With less than one number a unit, some units would be cut off altogether.
        if left < self.units:
            most = self._largest_rank()
            advice = self._advice()
            if most:
                advice = self._advice(f"a rank of at most {most}")
            raise self._refusal(
                f"a shared factor of rank {rank} takes {self.stream * rank:,} of the "
                f"{self.allowed:,} numbers that may remain, which leaves the own ones less than "
                f"one a unit; {advice}"
            )
        if left >= rank * self.units:
            full_size = (self.stream + self.units) * rank
            problem = f"factors of rank {rank} have {full_size:,} numbers at most"
            raise self._refusal(f"{problem}, and {self.allowed:,} may remain; choose a larger rank")
        kept = [left * units // self.units for _, units in self.shapes]
        return self._plan(rank, kept)

    def with_density(self, density: float) -> FactorSizes:
        """Return the sizes with the largest rank at which the own factors can keep so large a share
        of their numbers. Raises `TargetError` where no rank fits.
        """
        # A fraction, so that 0.1 is a tenth and counts are exact.
        share = Fraction(str(density))
        # A dense own factor needs no indices.
        count_indices = self.indices and share < 1
        per_rank = self.stream + share * self.units
        if count_indices:
            per_rank += Fraction(self.units, self.bits)
        rank = int(self.allowed / per_rank)
        # Indices are rounded up to whole numbers, so this rank may be one too many.
        while rank > 0 and self._numbers_taken(rank, share, count_indices) > self.allowed:
            rank -= 1
        if rank < 1:
            taken = self._numbers_taken(1, share, count_indices)
            fits = f"factors of rank 1 have {taken:,} numbers, and {self.allowed:,} may remain"
            raise self._refusal(f"{fits}; {self._advice()}")
        if rank > self.width:
            # Four digits, rounded up: with that density the largest rank fits.
            left = self.allowed - self.stream * self.width
            least = ceil_div(10_000 * left, self.units * self.width) / 10_000
            problem = f"density={density:g} needs a rank of {rank}, above the width of {self.width}"
            raise self._refusal(f"{problem}; choose a density of at least {least:g}")
        return self._plan(rank, self._kept_at(rank, share))

    def _kept_at(self, rank: int, share: Fraction) -> list[int]:
        """How many numbers each own factor keeps of such a share."""
        return [int(share * rank * units) for _, units in self.shapes]

    def _plan(self, rank: int, kept: Sequence[int]) -> FactorSizes:
        numbers = self.stream * rank + sum(kept)
        places = 0
        for (_, units), count in zip(self.shapes, kept, strict=True):
            # A dense own factor needs no indices.
            if count < rank * units:
                places += rank * units
        with_indices = numbers + places / self.bits
        return FactorSizes(
            rank,
            tuple(kept),
            left=six_digits(numbers / self.total),
            with_indices=six_digits(with_indices / self.total),
        )

    def _numbers_taken(self, rank: int, share: Fraction, count_indices: bool) -> int:
        """The numbers of factors whose own ones keep such a share, indices included."""
        own_numbers = sum(self._kept_at(rank, share))
        indices = self._numbers_of_indices(rank) if count_indices else 0
        return self.stream * rank + own_numbers + indices

    def _left_for_own_factors(self, rank: int) -> int:
        """The numbers that a shared factor of this rank leaves for the own ones."""
        indices = self._numbers_of_indices(rank) if self.indices else 0
        return self.allowed - self.stream * rank - indices

    def _numbers_of_indices(self, rank: int) -> int:
        """How many numbers take as much room as a bit for each place of the own factors."""
        return ceil_div(rank * self.units, self.bits)

    def _largest_rank(self) -> int:
        """The largest rank that leaves the own factors one number a unit; 0 if none does."""
        rank = max(0, self.allowed - self.units) // self.stream
        while rank and self._left_for_own_factors(rank) < self.units:
            rank -= 1
        return rank

    def _advice(self, *ways: str) -> str:
        """What can be done about a budget that is too small: `ways` are the method's own."""
        if self.can_group_more:
            ways = (*ways, "larger groups")
        if not ways:
            return "ask for less to go"
        return f"choose {', '.join(ways)}, or ask for less to go"

    def _refusal(self, reason: str) -> TargetError:
        message = f"{self.target} of {self.name} can't be kept to: {reason}"
        return TargetError(message, subject=str(self.target))


@dataclass(frozen=True, repr=False)
class Sharing(ModelMethod, ABC):
    """Puts products of factors in the place of the matrices of feed-forward networks; a subclass
    says which matrices share a factor, and makes the factors.

    A set may reach over several blocks, and is factorised when the walk has passed its last one.
    Its matrices must have seen the inputs of the untouched model then, so only `dense` is possible.
    Matrices that no token reached stay as they are, and don't count. Where the others of their set
    are too few to share a factor within the budget, they stay too. To a Gram `damp` · mean
    diagonal is added.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Sparsity, Share)
    propagate: ClassVar[Propagation] = "dense"
    propagations: ClassVar[tuple[Propagation, ...]] = ("dense",)
    relative: ClassVar[bool] = False
    """Whether the error of each matrix counts as a share of its outputs."""

    damp: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self, damp="0.01 is usual")
        if not self.observes and self.damp != Sharing.damp:
            message = f"{self}: without data there is no Gram to damp; leave damp out"
            raise SpecError(message, subject="damp")
        check_most(self, damp=MOST_DAMP)

    @abstractmethod
    def sets(self, view: ModelView) -> Sequence[Sequence[Sharer]]:
        """Return the matrices that share a factor, set by set. Raises `ModelError` or
        `SpecError` where there can't be such sets.
        """

    @abstractmethod
    def plan(self, budget: Budget) -> FactorSizes:
        """Return what becomes of a set. Raises `TargetError` for a budget that can't be kept to."""

    @abstractmethod
    def factored(
        self, members: Sequence[Member], plan: FactorSizes, dtype: torch.dtype
    ) -> Factored:
        """Return the factors of a set."""

    def can_group_more(self, view: ModelView) -> bool:
        """Return whether more matrices of this model could share a factor."""
        return False

    @property
    def indices_count(self) -> bool:
        """Whether the budget is for the places of numbers, too."""
        return False

    def aim(self, target: Target) -> Target:
        self.check(target)
        return as_share(target, "numbers")

    def check(self, target: Target) -> None:
        super().check(target)
        as_share(target, "numbers")

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        for sharers in self.sets(view):
            self._planned(sharers, target, self.can_group_more(view))

    def edits(self, job: Job) -> Iterator[Edit]:
        if as_share(job.target, "numbers").fraction == 0:
            return
        done = {edit.weight.name for edit in job.done if isinstance(edit, Replace)}
        # By the last block of a set, with which all of it has been seen.
        sets_by_last_block: dict[int, list[Sequence[Sharer]]] = defaultdict(list)
        waiting: dict[str, Weight] = {}
        for sharers in self.sets(job.view):
            weights = {sharer.weight.name: sharer.weight for sharer in sharers}
            if not weights.keys() <= done:
                last_block = max(weight.block for weight in weights.values())
                sets_by_last_block[last_block].append(sharers)
                waiting |= weights
        if not waiting:
            return
        # A set of which a part was replaced before an interruption is factorised anew, from the
        # first of its blocks on, and comes out the same.
        first_block = min(weight.block for weight in waiting.values())
        job = _restarted_at(job, first_block)
        position = {weight.name: number for number, weight in enumerate(job.view.weights)}

        def place(edit: Replace) -> int:
            return position[edit.weight.name]

        can_group_more = self.can_group_more(job.view)
        seen: dict[str, Seen] = {}
        blocks_to_walk = job.view.blocks[job.start :]
        for block, arrived in by_block(blocks_to_walk, job.walk(self.observes)):
            # Grams are large, and those of other matrices aren't needed.
            for weight, matrix_seen in arrived.items():
                if weight.name in waiting:
                    seen[weight.name] = matrix_seen
            edits: list[Replace] = []
            for sharers in sets_by_last_block[block.index]:
                with spent_on("method"):
                    edits += self._replacements(sharers, seen, job.target, can_group_more)
                # These aren't needed any more.
                for sharer in sharers:
                    seen.pop(sharer.weight.name, None)
            # In the order of the model, whatever set a matrix belongs to.
            edits.sort(key=place)
            for edit in edits:
                if edit.weight.name not in done:
                    yield edit

    def _replacements(
        self,
        sharers: Sequence[Sharer],
        seen: Mapping[str, Seen],
        target: Target,
        can_group_more: bool,
    ) -> Iterator[Replace]:
        """The edits of a set, from what its matrices saw; those that no token reached have none."""
        reached = [sharer for sharer in sharers if sharer.weight.name in seen]
        if not reached:
            return
        try:
            plan = self._planned(reached, target, can_group_more)
        except TargetError:
            # `check_model` saw that the whole set fits. What was reached of it is too little for a
            # shared factor, and stays as it is too.
            if len(reached) == len(sharers):
                raise
            return
        name = reached[0].weight.name
        dtype = reached[0].weight.stored.dtype
        with failing_at(self, f"{name} and those that share with it", name):
            members = [self._member(sharer, seen[sharer.weight.name]) for sharer in reached]
            try:
                factors = self.factored(members, plan, dtype)
            except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
                problem = "their inputs are too large or too few to solve for factors"
                advice = f"look at the activations, or give a damp above {self.damp:g}"
                raise NumericsError(f"{problem}; {advice}", subject=name) from error
        for sharer, own_factor in zip(reached, factors.own_factors, strict=True):
            packed = Factors(name, factors.shared, own_factor, len(reached), sharer.reads)
            density = int(own_factor.count_nonzero()) / own_factor.numel()
            notes = {
                "rank": plan.rank,
                "density": six_digits(density),
                "shared_by": len(reached),
                "left": plan.left,
                "left_with_indices": plan.with_indices,
            }
            product = finite(packed.dense(), "the product of the factors")
            compressed = Compressed(product, notes, packed)
            yield Replace(sharer.weight, compressed, seen[sharer.weight.name])

    def _member(self, sharer: Sharer, seen: Seen) -> Member:
        """What the factors are computed from; without a Gram, all inputs count alike."""
        weight = finite(sharer.weight.get(), f"the weight of {sharer.weight.name}")
        matrix = weight.to(wide(weight.dtype))
        hessian = None
        if Gram in seen:
            hessian = damped(observed(seen, Gram), self.damp).to(matrix.dtype)
            matrix = matrix.to(hessian.device)
        if sharer.reads:
            matrix = matrix.T.contiguous()
        return Member(matrix, hessian, sharer.reads, self.relative)

    def _planned(
        self, sharers: Sequence[Sharer], target: Target, can_group_more: bool
    ) -> FactorSizes:
        """The sizes of a set's factors. Raises `ModelError` for matrices that can't share one, and
        `TargetError` for a budget that can't be kept to.
        """
        share = as_share(target, "numbers")
        weight = sharers[0].weight
        name = weight.name
        if len(sharers) > 1:
            name = f"the {len(sharers)} matrices that share with {weight.name}"
        shapes = tuple(sharer.shape for sharer in sharers)
        widths = {stream for stream, _ in shapes}
        if len(widths) > 1:
            message = f"{name} are of different widths, so they can't share a factor"
            raise ModelError(message, subject=weight.name)
        if share.fraction == 0:
            return FactorSizes(0, (), 1.0, 1.0)
        bits = weight.stored.element_size() * 8
        return self.plan(Budget(shapes, share, bits, self.indices_count, name, can_group_more))


def networks(view: ModelView) -> list[Sharer]:
    """Return the matrices of every block's feed-forward networks, in the order of the model. Raises
    `ModelError` where there are none, or where the stream isn't understood.
    """
    reading: set[str] = set()
    writing: set[str] = set()
    for network in Stream.of(view).hidden:
        reading.update(up.name for up in network.up)
        writing.add(network.down.name)
    sharers: list[Sharer] = []
    for name, weight in view.named.items():
        if name in reading or name in writing:
            sharers.append(Sharer(weight, name in reading))
    if not sharers:
        model = type(view.model).__name__
        problem = f"{model} has no feed-forward networks between a residual stream and itself"
        raise ModelError(f"{problem}; choose a method that needs none", subject=model)
    return sharers


def grouped(blocks: int, group: int, method: str, distant: bool = False) -> list[range]:
    """Return the numbers of the blocks, in groups of `group`: neighbours, or, if `distant`, blocks
    that lie as far apart as they can. Raises `SpecError` if they can't be divided so.

    >>> grouped(6, 2, "fips"), grouped(6, 2, "fips", distant=True)
    ([range(0, 2), range(2, 4), range(4, 6)], [range(0, 6, 3), range(1, 6, 3), range(2, 6, 3)])
    """
    if blocks % group:
        fitting = [str(size) for size in range(1, blocks + 1) if blocks % size == 0]
        choice = fitting[0]
        if len(fitting) > 1:
            choice = f"{', '.join(fitting[:-1])} or {fitting[-1]}"
        count = "1 block" if blocks == 1 else f"{blocks} blocks"
        problem = f"{method}(group={group}): {count} can't be divided into groups of {brief(group)}"
        raise SpecError(f"{problem}; choose {choice}", subject="group")
    if not distant:
        return [range(start, start + group) for start in range(0, blocks, group)]
    # Blocks of a group lie as far apart as there are groups.
    group_count = blocks // group
    return [range(start, blocks, group_count) for start in range(group_count)]


def _restarted_at(job: Job, first_block: int) -> Job:
    """Return the job with those edits alone done that lie in blocks before `first_block`."""
    earlier: list[Edit] = []
    for edit in job.done:
        if edit.block is not None and edit.block < first_block:
            earlier.append(edit)
    return replace(job, done=earlier)
