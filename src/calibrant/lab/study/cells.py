"""The cells of a study as requests: the union of its groups' grids without what it excludes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Final

from calibrant.allocations import Allocation
from calibrant.allocations.uniform import Uniform
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet
from calibrant.errors import TargetError
from calibrant.lab.study.request import DENSE, Labels, RunRequest
from calibrant.methods import MatrixMethod, Method
from calibrant.methods.pruning.none import Untouched
from calibrant.targets import Sparsity, Target
from calibrant.transforms import Transform
from calibrant.walk import Propagation

USUAL: Final[Propagation] = "dense"
"""The propagation that a recipe names where its method looks at no data."""


def propagation(method: Method, chosen: Propagation | None) -> Propagation | None:
    """Return what a matrix sees in a study: as `chosen`, else the method's own default.

    It is None for a method that looks at no data. One that only scores matrices has `dense`, since
    one pass then serves all its targets.
    """
    if not method.looks:
        return None
    if chosen is not None:
        return chosen
    scores = isinstance(method, MatrixMethod) and not method.updates
    return "dense" if scores else method.propagate


def aimed(method: Method, target: Target) -> Target:
    """Return what a target is to `method`. One that it doesn't accept is refused elsewhere."""
    try:
        return method.aim(target)
    except TargetError:
        return target


@dataclass(frozen=True)
class Axes:
    """One grid: the values on each of its axes, and the transforms that come before every method.

    `blind` is the propagation in recipes of methods that look at no data.
    """

    models: Sequence[str]
    data: Sequence[CalibrationSet]
    methods: Sequence[Method]
    targets: Sequence[Target]
    seeds: Sequence[int]
    allocations: Sequence[Allocation]
    transforms: tuple[Transform, ...] = ()
    propagate: Propagation | None = None
    blind: Propagation = USUAL

    @property
    def looks(self) -> bool:
        """Whether anything in it looks at data."""
        parts = (*self.methods, *self.allocations, *self.transforms)
        return any(_part_looks(part) for part in parts)

    def count(self) -> int:
        """Return how many cells it has, before any is made."""
        draws = len(self.data) * len(self.seeds)
        ways = 0
        for method, allocation in product(self.methods, self.allocations):
            ways += draws if self._looks(method, allocation) else 1
        return len(self.models) * (1 + len(self.targets) * ways)

    def _looks(self, method: Method, allocation: Allocation) -> bool:
        parts = (method, allocation, *self.transforms)
        return any(_part_looks(part) for part in parts)

    def requests(self) -> Iterator[RunRequest]:
        """Yield a request for every cell, the dense models among them."""
        # The dense model is the model as it came, whatever is done to it for the other methods.
        dense = Recipe(Untouched(), Sparsity(0.0), Uniform(), self.blind)
        for model in self.models:
            yield RunRequest(model, None, dense)
            for method in self.methods:
                if str(method) != DENSE:
                    yield from self._of_method(model, method)

    def _of_method(self, model: str, method: Method) -> Iterator[RunRequest]:
        seen = propagation(method, self.propagate) or self.blind
        targets = [aimed(method, target) for target in self.targets]
        for allocation in self.allocations:
            parts = allocation, seen, self.transforms
            recipes = [Recipe(method, target, *parts) for target in targets]
            sets = self._draws if self._looks(method, allocation) else [None]
            for calibration in sets:
                for recipe in recipes:
                    yield RunRequest(model, calibration, recipe)

    @cached_property
    def _draws(self) -> list[CalibrationSet]:
        drawn = product(self.seeds, self.data)
        return [calibration.redrawn(seed) for seed, calibration in drawn]


def _part_looks(part: Method | Allocation | Transform) -> bool:
    return part.looks if isinstance(part, Method) else bool(part.observes)


def union(
    cells: Mapping[Labels, RunRequest],
    exclude: Sequence[Mapping[str, Collection[str | int]]] = (),
) -> dict[Labels, RunRequest]:
    """Return the cells in the order of the work, without those among any of `exclude`.

    A model of which nothing else is left has no dense run either. The order is model by model, what
    looks at no data first, then draw by draw and set by set, so that a set's tokens and statistics
    are used while they are in memory.
    """
    left = [labels for labels in cells if not _excluded(labels, exclude)]
    # A model that is only measured has no other run to begin with, and stays.
    compressed = {labels.model for labels in cells if labels.method != DENSE}
    remaining = {labels.model for labels in left if labels.method != DENSE}
    gone = compressed - remaining
    places = [_places(values) for values in zip(*cells, strict=True)]

    def order(labels: Labels) -> tuple[object, ...]:
        numbers = [places[axis][value] for axis, value in enumerate(labels)]
        model, data, _, method, target, propagate, allocation = numbers
        looks = bool(labels.data)
        return model, looks, labels.seed, data, propagate, method, allocation, target

    kept = sorted((labels for labels in left if labels.model not in gone), key=order)
    return {labels: cells[labels] for labels in kept}


def _excluded(labels: Labels, exclude: Sequence[Mapping[str, Collection[str | int]]]) -> bool:
    if labels.method == DENSE:
        return False
    return any(labels.among(entry) for entry in exclude)


def _places(values: Sequence[object]) -> dict[object, int]:
    """The number of each value, in the order in which they come."""
    distinct = dict.fromkeys(values)
    return {value: number for number, value in enumerate(distinct)}
