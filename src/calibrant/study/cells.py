"""The labels of the cells of a grid, and which cells a study has: the union of its groups without what it excludes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple

from calibrant.allocations import Allocation
from calibrant.allocations.uniform import Uniform
from calibrant.errors import TargetError
from calibrant.methods import MatrixMethod, Method
from calibrant.targets import parse_target

DENSE: Final = "none"
"""The method that leaves the model as it is: the dense model is always among the runs."""
EQUAL: Final = "uniform"
"""The allocation that gives every matrix the same target."""


class Labels(NamedTuple):
    """A cell of the grid, in canonical texts; `data` and `propagate` are empty, and `seed` is 0, for what looks at no data."""

    model: str
    data: str
    seed: int
    method: str
    target: str
    propagate: str
    allocation: str = EQUAL

    @property
    def way(self) -> str:
        """What a table calls the method: with its allocation, where matrices get different targets."""
        return named(self.method, self.allocation)

    def among(self, values: Mapping[str, Collection[str | int]]) -> bool:
        """Whether each label is one of the `values` of its kind; what looks at no data never matches data, draw or propagation."""
        return all((self.data or kind not in ("data", "seed", "propagate")) and getattr(self, kind) in of for kind, of in values.items())


def named(method: str, allocation: str) -> str:
    """Return what a table calls a method with an allocation: `wanda + owl`.

    >>> named("wanda", "uniform"), named("wanda", "owl(times=3.0)")
    ('wanda', 'wanda + owl(times=3.0)')
    """
    return method if allocation == EQUAL else f"{method} + {allocation}"


def propagation(method: Method, chosen: str | None) -> str:
    """Return what a matrix sees in a study: as `chosen`, else the method's own default; empty for a method that looks at no data.

    One that only scores matrices has `dense` there, since one pass serves all its targets.
    """
    scores = isinstance(method, MatrixMethod) and not method.updates
    return (chosen or ("dense" if scores else method.propagate)) if method.looks else ""


def aimed(method: Method, target: str) -> str:
    """Return what a target is called for `method`: `blocks 0.25` for one that drops blocks. One that it doesn't accept is refused elsewhere."""
    try:
        return str(method.aim(parse_target(target)))
    except TargetError:
        return target


@dataclass(frozen=True)
class Axes:
    """One grid: what stands on each of its axes, in canonical texts."""

    models: Sequence[str]
    data: Sequence[str]
    methods: Sequence[Method]
    targets: Sequence[str]
    seeds: Sequence[int]
    propagate: str | None = None
    looking: bool = False
    """Whether the study's transforms look at data, so that every method has a run for each set and draw."""
    allocations: Sequence[Allocation] = (Uniform(),)

    def labels(self) -> Iterator[Labels]:
        """Every cell, the dense models among them."""
        for model in self.models:
            yield Labels(model, "", 0, DENSE, "0.0", "")
            for method, allocation in product((m for m in self.methods if str(m) != DENSE), self.allocations):
                looks = method.looks or self.looking or bool(allocation.observes)
                seen = propagation(method, self.propagate)
                draws = [(data, seed) for seed in self.seeds for data in self.data] if looks else [("", 0)]
                for (data, seed), target in product(draws, self.targets):
                    yield Labels(model, data, seed, str(method), aimed(method, target), seen, str(allocation))


def union(grids: Sequence[Axes], exclude: Sequence[Mapping[str, Collection[str | int]]] = ()) -> list[Labels]:
    """Return each cell of the grids once, without those among any of `exclude`; a model of which nothing else is left has no dense run either.

    The order is that of the work: model by model, what looks at no data first, then draw by draw and set by set, so that a set's tokens and
    statistics are used while they are in memory.
    """
    cells = list(dict.fromkeys(labels for grid in grids for labels in grid.labels()))
    left = [labels for labels in cells if labels.method == DENSE or not any(labels.among(entry) for entry in exclude)]
    alone = {labels.model for labels in cells} - {labels.model for labels in cells if labels.method != DENSE}
    remaining = alone | {labels.model for labels in left if labels.method != DENSE}
    place = [{value: at for at, value in enumerate(dict.fromkeys(values))} for values in zip(*cells, strict=True)]

    def order(labels: Labels) -> tuple[object, ...]:
        model, data, _, method, target, propagate, allocation = (places[label] for places, label in zip(place, labels, strict=True))
        return model, bool(labels.data), labels.seed, data, propagate, method, allocation, target

    return sorted((labels for labels in left if labels.model in remaining), key=order)
