"""Whether rankings agree with one another across methods, targets and measured sets.

The interval holds every τ that the order of the sets may have, given which two are told apart: jointly over all pairs in both rankings, so
that it covers the truth whatever the effects are. Resampling sets is hopeless with few of them, and resampling their estimates draws τ towards
zero, since what is resampled is noisier than the truth: where effects are small, that interval misses it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float

from calibrant.compare.field import Field
from calibrant.compare.pairwise import Pairs
from calibrant.compare.ranking import MEAN, pairs

Along = Literal["method", "target", "measured"]


@dataclass(frozen=True)
class RankAgreement:
    """How far two rankings of the same `sets` calibration sets agree: Kendall's τ-b, 1 for the same order, −1 for the reverse.

    `a` and `b` are two methods, targets or measured sets of `model`; `within` says what both have in common. Controls are left out: that both
    put them last is no agreement worth a number. `interval` is None where the estimates have no errors to make one from.
    """

    along: Along
    a: str
    b: str
    model: str
    tau: float
    interval: tuple[float, float] | None
    sets: int
    within: str = ""


def agreements(fields: Sequence[Field]) -> list[RankAgreement]:
    """Every two rankings of three sets or more that differ in one thing only: the method, the target, or what is measured."""
    found = [pair for a, b in combinations(fields, 2) if (pair := _across(a, b)) is not None]
    return [*found, *(pair for field in fields for pair in _within(field))]


def _across(a: Field, b: Field) -> RankAgreement | None:
    ours, theirs = a.group, b.group
    if ours.model != theirs.model or ours.propagate != theirs.propagate or a.averaged != b.averaged:
        return None
    if ours.target == theirs.target:
        return _agreement("method", ours.method, theirs.method, a, (a, b), (MEAN, MEAN), f"{ours.target}")
    if ours.method == theirs.method:
        return _agreement("target", ours.target, theirs.target, a, (a, b), (MEAN, MEAN), ours.method)
    return None


def _within(field: Field) -> Iterator[RankAgreement]:
    for a, b in combinations(field.measured, 2):
        found = _agreement("measured", a, b, field, (field, field), (a, b), f"{field.group.method} at {field.group.target}")
        if found is not None:
            yield found


def _agreement(along: Along, a: str, b: str, field: Field, both: tuple[Field, Field], names: tuple[str, str], within: str) -> RankAgreement | None:
    sets = [label for label in both[0].sets if label in both[1].sets and not field.label(label).control]
    if len(sets) < 3:
        return None
    first, second = (one.tables[name].among(sets) for one, name in zip(both, names, strict=True))
    return RankAgreement(
        along, a, b, field.group.model, tau_b(first.values, second.values), tau_interval(first, second, field.level), len(sets), within
    )


def tau_b(a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"]) -> float:
    """Kendall's τ-b of two tables of differences between the same things; 0 where one of them ranks nothing."""
    first, second = np.sign(a), np.sign(b)
    both = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / both if both else 0.0


def tau_interval(a: Pairs, b: Pairs, level: float) -> tuple[float, float] | None:
    """Every τ that fits what is told apart in both tables; None where a table has no errors.

    A sign is wrong with half the probability that a two-sided test is, and there are two tables, so as many looks as pairs make it joint.
    """
    if np.isnan(a.spread.variance).any() or np.isnan(b.spread.variance).any():
        return None
    comparisons = pairs(len(a.labels))
    first, second = ((worse := table.worse(level, comparisons)).astype(int) - worse.T for table in (a, b))
    every = len(a.labels) * (len(a.labels) - 1)
    known, open_ = int((first * second).sum()), every - int((first * second != 0).sum())
    return (known - open_) / every, (known + open_) / every
