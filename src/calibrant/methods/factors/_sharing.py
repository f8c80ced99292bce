"""What methods share that put factors in the place of a feed-forward network's matrices: which
matrices share one, what a budget buys, the edits.

A budget is a share of the numbers that the matrices of feed-forward networks consist of, `numbers
0.2` for a fifth fewer. Each set of matrices keeps to it by itself: what remains are the numbers of
the shared factor and those of the own ones that aren't zero. Where numbers are that aren't zero
takes room too, a bit for each place of an own factor; the notes say how much remains with these
counted, and a method may be asked to count them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, NamedTuple, final

import torch

from calibrant.activations import Gram, Seen, wide
from calibrant.edits import Edit, Replace
from calibrant.errors import CalibrantError, ModelError, NumericsError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods._base import MOST_DAMP, finite, observed
from calibrant.methods._model_method import ModelMethod, parts_of
from calibrant.methods.factors._factors import Factored, Member
from calibrant.methods.pruning._gradients import damped
from calibrant.models import ModelView, Stream, Weight
from calibrant.packed import Compressed, Factors
from calibrant.spec import check_most
from calibrant.spec.foreign import brief
from calibrant.system.clock import spent_on
from calibrant.targets import Share, Sparsity, Target
from calibrant.walk import Propagation
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
    """What a set of matrices becomes: the rank, how many numbers each own factor keeps, and the
    share of all numbers that remains so.

    `with_indices` counts where the numbers are, too.
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

    `bits` are those of a number. With `indices` the places of numbers count too. `what` names the
    set in errors. They advise larger groups only if the method `can_group_more`.
    """

    shapes: tuple[tuple[int, int], ...]
    target: Share
    bits: int
    indices: bool
    what: str
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
    def all(self) -> int:
        """The numbers that there are."""
        return self.stream * self.units

    @property
    def allowed(self) -> int:
        """The numbers that may remain."""
        return self.all - self.target.quota(self.all)

    def with_rank(self, rank: int | None) -> FactorSizes:
        """Return what remains with this rank, the largest one if None: the own factors get what
        the shared one leaves, each as many a unit.
        """
        rank = self.width if rank is None else rank
        if rank > self.width:
            raise self._refused(
                f"rank={rank} is above the width of {self.width}; choose at most that"
            )
        left, places = self._left(rank), rank * self.units
        if left < self.units:
            most = self._largest_rank()
            ways = [f"a rank of at most {most}"] if most else []
            advice = self._advice(*ways)
            fits = f"a shared factor of rank {rank} takes {self.stream * rank:,} of the {self.allowed:,} numbers that may remain"
            left_over = "which leaves the own ones less than one a unit"
            raise self._refused(f"{fits}, {left_over}; {advice}")
        if left >= places:
            remain = self.stream * rank + places
            raise self._refused(
                f"factors of rank {rank} have {remain:,} numbers at most, and {self.allowed:,} may remain; choose a larger rank"
            )
        return self._plan(rank, tuple(left * units // self.units for _, units in self.shapes))

    def with_density(self, density: float) -> FactorSizes:
        """Return what remains with the largest rank for which the own factors can keep so large
        a share of their numbers.
        """
        share = Fraction(str(density))
        sparse = self.indices and share < 1
        each = self.stream + share * self.units + (Fraction(self.units, self.bits) if sparse else 0)
        rank = int(self.allowed / each)
        while (
            rank > 0 and self._taken(rank, share, sparse) > self.allowed
        ):  # indices are rounded up
            rank -= 1
        if rank < 1:
            taken = self._taken(1, share, sparse)
            fits = f"factors of rank 1 have {taken:,} numbers, and {self.allowed:,} may remain"
            raise self._refused(f"{fits}; {self._advice()}")
        if rank > self.width:
            least = (
                math.ceil(
                    Fraction(
                        10_000 * (self.allowed - self.stream * self.width), self.units * self.width
                    )
                )
                / 10_000
            )
            raise self._refused(
                f"density={density:g} needs a rank of {rank}, above the width of {self.width}; choose a density of at least {least:g}"
            )
        return self._plan(rank, tuple(int(share * rank * units) for _, units in self.shapes))

    def _plan(self, rank: int, kept: tuple[int, ...]) -> FactorSizes:
        numbers = self.stream * rank + sum(kept)
        places = sum(
            rank * units
            for (_, units), few in zip(self.shapes, kept, strict=True)
            if few < rank * units
        )
        return FactorSizes(
            rank, kept, _six(numbers / self.all), _six((numbers + places / self.bits) / self.all)
        )

    def _taken(self, rank: int, share: Fraction, sparse: bool) -> int:
        own = sum(int(share * rank * units) for _, units in self.shapes)
        return self.stream * rank + own + (-(-rank * self.units // self.bits) if sparse else 0)

    def _left(self, rank: int) -> int:
        """The numbers that a shared factor of this rank leaves for the own ones."""
        return (
            self.allowed
            - self.stream * rank
            - (-(-rank * self.units // self.bits) if self.indices else 0)
        )

    def _largest_rank(self) -> int:
        """The largest rank that leaves the own factors one number a unit; 0 if none does."""
        rank = max(0, self.allowed - self.units) // self.stream
        while rank and self._left(rank) < self.units:
            rank -= 1
        return rank

    def _advice(self, *ways: str) -> str:
        """What can be done about a budget that is too small: `ways` are the method's own."""
        ways = (*ways, "larger groups") if self.can_group_more else ways
        return f"choose {', '.join(ways)}, or ask for less to go" if ways else "ask for less to go"

    def _refused(self, why: str) -> TargetError:
        return TargetError(
            f"{self.target} of {self.what} can't be kept to: {why}", subject=str(self.target)
        )


@dataclass(frozen=True, repr=False)
class Sharing(ModelMethod, ABC):
    """Puts products of factors in the place of the matrices of feed-forward networks; a subclass
    says which share a factor, and makes them.

    A set is factorised when all of its matrices are seen, on the inputs of the untouched model, so
    only `dense` is possible. Matrices that no token reached stay as they are, and don't count. To a
    Gram `damp` · mean diagonal is added.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Sparsity, Share)
    propagate: ClassVar[Propagation] = "dense"
    propagations: ClassVar[tuple[Propagation, ...]] = ("dense",)
    relative: ClassVar[bool] = False
    """Whether the error of each matrix counts as a share of its outputs."""

    damp: float = 0.01

    def __post_init__(self) -> None:
        if not (self.damp > 0 and math.isfinite(self.damp)):
            raise SpecError(
                f"{self.spec_name()}(damp={brief(self.damp)}): damp must be above 0; 0.01 is usual",
                subject="damp",
            )
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
        del view
        return False

    @property
    def indices_count(self) -> bool:
        """Whether the budget is for the places of numbers, too."""
        return False

    def aim(self, target: Target) -> Target:
        self.check(target)
        return parts_of(target, "numbers")

    def check(self, target: Target) -> None:
        super().check(target)
        parts_of(target, "numbers")

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        for one in self.sets(view):
            self._planned(one, target, self.can_group_more(view))

    def edits(self, job: Job) -> Iterator[Edit]:
        if parts_of(job.target, "numbers").fraction == 0:
            return
        done = {edit.weight.name for edit in job.done if isinstance(edit, Replace)}
        left = [
            one
            for one in self.sets(job.view)
            if any(sharer.weight.name not in done for sharer in one)
        ]
        if not left:
            return
        # A set of which a part was replaced before an interruption is factorised anew, from the
        # first of its blocks on, and comes out the same.
        first = min(sharer.weight.block for one in left for sharer in one)
        rest = replace(
            job, done=[edit for edit in job.done if edit.block is not None and edit.block < first]
        )
        place = {weight.name: number for number, weight in enumerate(job.view.weights)}
        more = self.can_group_more(job.view)
        seen: dict[str, Seen] = {}
        for block, there in by_block(job.view.blocks[rest.start :], rest.walk(self.observes)):
            seen |= {weight.name: one for weight, one in there.items()}
            ready = [
                one for one in left if max(sharer.weight.block for sharer in one) == block.index
            ]
            with spent_on("method"):
                made: list[Replace] = []
                for one in ready:
                    made += self._replaced(one, seen, job.target, more)
            yield from (
                edit
                for edit in sorted(made, key=lambda edit: place[edit.weight.name])
                if edit.weight.name not in done
            )
            for sharer in (sharer for one in ready for sharer in one):
                seen.pop(sharer.weight.name, None)

    def _replaced(
        self,
        one: Sequence[Sharer],
        seen: Mapping[str, Seen],
        target: Target,
        can_group_more: bool,
    ) -> Iterator[Replace]:
        """The edits of one set."""
        reached = [sharer for sharer in one if sharer.weight.name in seen]
        if not reached:
            return
        plan = self._planned(reached, target, can_group_more)
        dtype, name = reached[0].weight.get().dtype, reached[0].weight.name
        try:
            factors = self.factored(
                [self._member(sharer, seen[sharer.weight.name]) for sharer in reached], plan, dtype
            )
        except CalibrantError as error:
            raise type(error)(
                f"{self.spec_name()} failed at {name} and those that share with it: {error}",
                subject=name,
            ) from error
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            what = f"{self.spec_name()} failed at {name} and those that share with it"
            why = "their inputs are too large or too few to solve for factors"
            advice = f"look at the activations, or give a damp above {self.damp:g}"
            raise NumericsError(f"{what}: {why}; {advice}", subject=name) from error
        for sharer, own in zip(reached, factors.own, strict=True):
            packed = Factors(name, factors.shared, own, len(reached), sharer.reads)
            notes = {
                "rank": plan.rank,
                "density": _six(int(own.count_nonzero()) / own.numel()),
                "shared_by": len(reached),
                "left": plan.left,
                "left_with_indices": plan.with_indices,
            }
            yield Replace(
                sharer.weight,
                Compressed(finite(packed.dense(), "the product of the factors"), notes, packed),
                seen[sharer.weight.name],
            )

    def _member(self, sharer: Sharer, seen: Seen) -> Member:
        weight = finite(sharer.weight.get(), f"the weight of {sharer.weight.name}").to(
            wide(sharer.weight.get().dtype)
        )
        hessian = damped(observed(seen, Gram), self.damp).to(weight.dtype) if Gram in seen else None
        return Member(
            weight.T.contiguous() if sharer.reads else weight, hessian, sharer.reads, self.relative
        )

    def _planned(
        self,
        one: Sequence[Sharer],
        target: Target,
        can_group_more: bool,
    ) -> FactorSizes:
        share, bits = parts_of(target, "numbers"), one[0].weight.stored.element_size() * 8
        what = (
            f"{one[0].weight.name}"
            if len(one) == 1
            else f"the {len(one)} matrices that share with {one[0].weight.name}"
        )
        shapes = tuple(sharer.shape for sharer in one)
        if len({stream for stream, _ in shapes}) > 1:
            raise ModelError(
                f"{what} are of different widths, so they can't share a factor",
                subject=one[0].weight.name,
            )
        if share.fraction == 0:
            return FactorSizes(0, (), 1.0, 1.0)
        return self.plan(Budget(shapes, share, bits, self.indices_count, what, can_group_more))


def networks(view: ModelView) -> dict[int, list[Sharer]]:
    """Return the matrices of every block's feed-forward networks, in the order of the model.
    `ModelError` where the stream isn't understood.
    """
    hidden, names = Stream.of(view).hidden, view.named
    reading = {up.name for one in hidden for up in one.up}
    writing = {one.down.name for one in hidden}
    found: dict[int, list[Sharer]] = {}
    for name, weight in names.items():
        if name in reading | writing:
            found.setdefault(weight.block, []).append(Sharer(weight, name in reading))
    if not found:
        message = f"{type(view.model).__name__} has no feed-forward networks between a residual stream and itself; choose a method that needs none"
        raise ModelError(message, subject=type(view.model).__name__)
    return found


def grouped(blocks: Iterable[int], group: int, distant: bool, spec: str) -> list[tuple[int, ...]]:
    """Return groups of so many blocks: neighbours, or, if `distant`, such as lie as far apart as
    they can. `SpecError` if they can't be divided so.

    >>> grouped(range(6), 2, False, "fips"), grouped(range(6), 2, True, "fips")
    ([(0, 1), (2, 3), (4, 5)], [(0, 3), (1, 4), (2, 5)])
    """
    indices = list(blocks)
    if len(indices) % group:
        fitting = [str(size) for size in range(1, len(indices) + 1) if len(indices) % size == 0]
        choice = f"{', '.join(fitting[:-1])} or {fitting[-1]}" if fitting[1:] else fitting[0]
        count = "1 block" if len(indices) == 1 else f"{len(indices)} blocks"
        message = f"{spec}: {count} can't be divided into groups of {brief(group)}; choose {choice}"
        raise SpecError(message, subject="group")
    count = len(indices) // group
    return [
        tuple(indices[n::count]) if distant else tuple(indices[n * group : (n + 1) * group])
        for n in range(count)
    ]


def _six(number: float) -> float:
    return float(f"{number:.6g}")
