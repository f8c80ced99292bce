"""How much the choice of calibration set decides for a method, against the luck of the draw.

Two numbers for each model, method and target, over the sets that were drawn more than once and
aren't controls:

**Between sets over between draws.** The variance of the sets' true means over that of the draws of
one set: 0 where another text changes no more than another draw, 1 where it changes as much again.
One-way analysis of variance with sets as a sample of the texts that one might take. On several
measured sets it is that of the sum of squares over all of them, F being (tr B / (k − 1)) / (tr W /
Σ (n − 1)) for k sets. What is measured on two texts isn't independent, so degrees of freedom are
Dempster's (1958, "A high dimensional two sample significance test"): multiplied with r = (tr Σ)² /
tr Σ² of a covariance, estimated and so on the low side. For p both have that of the draws, as where
sets don't differ; in the interval the numerator has that of the sets' means, which may differ along
other directions than draws do. It takes the measured documents as they are.

**What the choice is worth.** How much worse the worst set is than the best one, on each measured
set: what somebody risks who calibrates without asking. The difference of a largest and a smallest
is large by chance too, the more so the more draws and documents vary. So beside it stands a floor,
and its interval is the range that all differences of two sets allow together (Bonferroni over pairs
and measured sets; for the mean of what was measured over pairs): from the largest difference that
is certain to the largest that is possible. They cover other documents and other draws. The draws of
all sets are taken to vary alike here: three draws of each of seven sets say with 14 degrees of
freedom how much, and each alone with 2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from calibrant.lab.stats.crossed import Pairs, Side
from calibrant.lab.stats.estimate import LEVEL
from calibrant.lab.stats.ranking import MEAN, ComparedGroup, pairs


@dataclass(frozen=True)
class Gap:
    """How much worse the `worst` set is than the `best` one: `value`, with its joint interval.

    `floor` is how far two sets that are alike may lie apart by chance, at most: in 95 of 100
    studies no two of them lie further apart anywhere.
    """

    best: str
    worst: str
    value: float
    interval: tuple[float, float]
    floor: float

    @property
    def significant(self) -> bool:
        """Whether any two of the sets differ significantly."""
        return self.interval[0] > 0


@dataclass(frozen=True)
class Sensitivity:
    """How much the choice of calibration set decides for one model, method and target; see the head
    of this module.

    `sets` are those that are compared, `draws` how many the least drawn of them has. `ratio` is the
    variance between sets over that between draws, with its interval, and `p` that of the test that
    it is zero; None where the draws don't vary at all. `increase` is how much worse than the dense
    model the models are, averaged over sets and measured sets; None without a dense model. `gaps`
    are by measured set, and for their mean under `MEAN`: there what helps on one text and harms on
    another cancels.
    """

    model: str
    method: str
    target: str
    propagate: str
    unit: str
    sets: tuple[str, ...]
    draws: int
    increase: float | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    p: float | None
    gaps: Mapping[str, Gap]
    level: float = LEVEL

    @property
    def worth(self) -> float:
        """What the choice is worth to somebody with one of the measured texts in mind: how much
        worse the worst set is, averaged over them.
        """
        return _mean([gap.value for gap in self._single])

    @property
    def worth_interval(self) -> tuple[float, float]:
        """Its interval: those of the measured sets hold together, so their mean holds too."""
        low, high = (_mean([gap.interval[i] for gap in self._single]) for i in (0, 1))
        return low, high

    @property
    def floor(self) -> float:
        """What the choice may seem to be worth by chance where all sets are alike, at most (see
        `Gap`).
        """
        return _mean([gap.floor for gap in self._single])

    @property
    def share(self) -> float | None:
        """What the choice is worth as a share of the increase, by which methods of different
        strength can be compared; None where there is none.
        """
        return (
            self.worth / self.increase if self.increase is not None and self.increase > 0 else None
        )

    @property
    def _single(self) -> Sequence[Gap]:
        return [gap for name, gap in self.gaps.items() if name != MEAN] or [self.gaps[MEAN]]


def sensitivity(group: ComparedGroup) -> Sensitivity | None:
    """Return how much the choice of set decides in a group.

    None with fewer than two sets that were drawn more than once, independently, and where a single
    document was measured.
    """
    rows = {
        name: group.rows[name]
        for name in group.sets
        if not group.label(name).control and group.rows[name][group.averaged[0]].counted
    }
    if len(rows) < 2:
        return None
    measured = group.averaged
    if any(len(side.items) < 2 for sides in rows.values() for side in (sides[m] for m in measured)):
        return None
    comparisons = pairs(len(rows)) * len(measured)
    gaps = {m: _gap(Pairs.of(rows, [m], pooled=True), group.level, comparisons) for m in measured}
    gaps[MEAN] = _gap(Pairs.of(rows, measured, pooled=True), group.level, pairs(len(rows)))
    ratio, interval, p = variance_ratio(
        [_draws(sides, measured) for sides in rows.values()], group.level
    )
    return Sensitivity(
        **group.setting._asdict(),
        unit=group.units[measured[0]],
        sets=tuple(rows),
        draws=min(len(sides[measured[0]].draws) for sides in rows.values()),
        increase=_mean(
            [
                side[m].worse * (side[m].value - group.dense[m].value)
                for side in rows.values()
                for m in measured
            ]
        )
        if group.dense
        else None,
        ratio=ratio,
        ratio_interval=interval,
        p=p,
        gaps=gaps,
        level=group.level,
    )


def variance_ratio(
    sets: Sequence[Float[np.ndarray, "_draw measured"]], level: float = LEVEL
) -> tuple[float, tuple[float, float], float] | tuple[None, None, None]:
    """Return the variance between sets over that between draws of a set, its interval and p; None
    where the draws of no set vary.

    >>> ratio, (low, high), p = variance_ratio([np.array([[1.0], [1.1]]), np.array([[2.0], [2.1]]), np.array([[3.0], [3.1]])])
    >>> f"{ratio:.0f} ({low:.0f} to {high:.0f}), p {p:.4f}"
    '199 (12 to 7833), p 0.0002'
    """
    from scipy.special import fdtrc, fdtri

    counts = np.array([len(draws) for draws in sets])
    means = np.stack([draws.mean(0) for draws in sets])
    # From the first draw on, so that draws that are the same to the last bit vary by exactly
    # nothing: a mean of equal numbers may be off by rounding.
    from_first = [draws - draws[0] for draws in sets]
    within_sets = _squares(np.concatenate([draws - draws.mean(0) for draws in from_first]))
    over, within = len(sets) - 1, int(counts.sum()) - len(sets)
    if not np.trace(within_sets) > 0:
        return None, None, None
    between_sets = _squares(np.sqrt(counts)[:, None] * (means - counts @ means / counts.sum()))
    r, r_between = _directions(within_sets), _directions(between_sets)
    f = float(np.trace(between_sets) / over / (np.trace(within_sets) / within))
    # The draws of a set, or what comes nearest to it where sets have different numbers of them.
    each = float(counts.sum() - (counts**2).sum() / counts.sum()) / over
    tail = (1 - level) / 2
    low, high = (
        max(0.0, (f / float(fdtri(r_between * over, r * within, q)) - 1) / each)
        for q in (1 - tail, tail)
    )
    return max(0.0, (f - 1) / each), (low, high), float(fdtrc(r * over, r * within, f))


def _squares(rows: Float[np.ndarray, "row measured"]) -> Float[np.ndarray, "measured measured"]:
    return rows.T @ rows


def _directions(covariance: Float[np.ndarray, "measured measured"]) -> float:
    """How many measured sets of equal variance, independent of one another, would vary like
    these: from 1 to their number.
    """
    squares = float((covariance**2).sum())
    return float(np.trace(covariance)) ** 2 / squares if squares > 0 else 1.0


def _gap(table: Pairs, level: float, comparisons: int) -> Gap:
    """What the choice is worth by a table of all pairs."""
    half = table.spread.half(1 - (1 - level) / (2 * comparisons))
    worst, best = np.unravel_index(int(table.values.argmax()), table.values.shape)
    apart = ~np.eye(len(table.labels), dtype=bool)
    sure, possible = (float((table.values + sign * half)[apart].max()) for sign in (-1, 1))
    floor = float(half[apart].max())
    return Gap(
        table.labels[best],
        table.labels[worst],
        float(table.values.max()),
        (max(0.0, sure), possible),
        floor,
    )


def _draws(
    sides: Mapping[str, Side], measured: Sequence[str]
) -> Float[np.ndarray, "draw measured"]:
    return np.stack([sides[m].worse * sides[m].draws for m in measured], axis=1)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
