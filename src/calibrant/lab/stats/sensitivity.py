"""How much the choice of calibration set decides for a method, against the luck of the draw.

Three numbers for each model, method and target, over the sets that were drawn more than once and
aren't controls:

**Between sets over between draws.** The variance of the sets' true means over that of the draws of
one set. It is 0 where another text changes no more than another draw, 1 where it changes as much
again. This is one-way analysis of variance with sets as a sample of the texts that one might take.
On several measured sets it is that of the sum of squares over all of them, F being
(tr B / (k − 1)) / (tr W / Σ (n − 1)) for k sets. What is measured on two texts isn't independent,
so degrees of freedom are Dempster's (1958, "A high dimensional two sample significance test"):
multiplied with r = (tr Σ)² / tr Σ² of a covariance, which is estimated and so on the low side. For
p both have that of the draws, as where sets don't differ. In the interval the numerator has that
of the sets' means, which may differ along other directions than draws do. It takes the measured
documents as they are.

**What the choice is worth.** How much worse the worst set is than the best one, averaged over the
measured sets: what somebody risks who calibrates without asking. Its interval is the range that
all differences of two sets allow together (Bonferroni over pairs and measured sets; for the mean
of what was measured over pairs): from the largest difference that is certain to the largest that
is possible. It covers other documents and other draws. The draws of all sets are taken to vary
alike here: three draws of each of seven sets say with 14 degrees of freedom how much, and each
alone with 2.

**What chance makes of it.** The largest of many differences is large by chance too. So beside it
stand what it comes to, in 95 of 100 studies at most, where all sets are alike (`by_chance`); and
what is left of it where the draws that choose the best and the worst set aren't those that measure
them (`cross_fitted`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from calibrant.lab.stats.crossed import Pairs, SharedItems, Side, shared_items
from calibrant.lab.stats.estimate import LEVEL
from calibrant.lab.stats.ranking import MEAN, ComparedGroup, pairs

STUDIES: Final = 10_000
"""How many studies of sets that are alike are simulated: the quantile is then known to about half
a per cent.
"""


@dataclass(frozen=True)
class Gap:
    """How much worse the `worst` set is than the `best` one: `value`, with its joint interval.

    `floor` is how far two sets that are alike may lie apart by chance, at most: in 95 of 100
    studies no two of them lie further apart on anything that was measured. Where nothing varies
    over too few documents, nothing is certain, and what is possible has no end.
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
    another cancels. `by_chance` is what `worth` stays below in 95 of 100 studies whose sets are
    alike, `cross_fitted` what is left of it on draws that didn't choose.
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
    by_chance: float = math.nan
    cross_fitted: float = math.nan

    @property
    def worth(self) -> float:
        """What the choice is worth to somebody with one of the measured texts in mind: how much
        worse the worst set is, averaged over them.
        """
        return _mean([gap.value for gap in self._single])

    @property
    def worth_interval(self) -> tuple[float, float]:
        """Its interval: those of the measured sets hold together, so their mean holds too."""
        low = _mean([gap.interval[0] for gap in self._single])
        high = _mean([gap.interval[1] for gap in self._single])
        return low, high

    @property
    def beyond_chance(self) -> bool:
        """Whether the choice is worth more than chance makes of sets that are alike.

        Where nothing varies, chance gives 0; then a difference counts only with enough documents.
        """
        if self.by_chance == 0:
            return self.worth_interval[0] > 0
        return self.worth > self.by_chance

    @property
    def floor(self) -> float:
        """The mean of what two sets that are alike may lie apart anywhere (see `Gap`). It is far
        above `by_chance`, since the largest of all differences is seldom large everywhere.
        """
        return _mean([gap.floor for gap in self._single])

    @property
    def share(self) -> float | None:
        """What the choice is worth as a share of the increase, by which methods of different
        strength can be compared; None where there is none.
        """
        if self.increase is None or self.increase <= 0:
            return None
        return self.worth / self.increase

    @property
    def _single(self) -> Sequence[Gap]:
        single = [gap for name, gap in self.gaps.items() if name != MEAN]
        return single or [self.gaps[MEAN]]


@dataclass(frozen=True)
class DocumentErrors:
    """What documents add to the mean of a set, beyond what draws show already.

    By measured set, `variances` are theirs. Standard normal numbers times `root` vary as documents
    do: alike where measured sets share them. `groups` says for each measured set which of the
    groups it belongs to that share none, and `degrees` are the degrees of freedom of each group.
    """

    variances: Float[np.ndarray, " measured"]
    root: Float[np.ndarray, "measured measured"]
    groups: Int[np.ndarray, " measured"]
    degrees: Float[np.ndarray, " group"]


def sensitivity(group: ComparedGroup) -> Sensitivity | None:
    """Return how much the choice of set decides in a group.

    None with fewer than two sets that were drawn more than once, independently, and where a single
    document was measured.
    """
    measured = group.averaged
    rows = _drawn_again(group)
    if len(rows) < 2:
        return None
    # All sides of a measured set have the same documents.
    any_sides, *_ = rows.values()
    if any(len(any_sides[name].items) < 2 for name in measured):
        return None
    draws = [_draws(sides, measured) for sides in rows.values()]
    ratio, interval, p = variance_ratio(draws, group.level)
    documents = _over_documents(rows, measured)
    return Sensitivity(
        **group.setting._asdict(),
        unit=group.units[measured[0]],
        sets=tuple(rows),
        draws=min(map(len, draws)),
        increase=_increase(rows, group.dense, measured),
        ratio=ratio,
        ratio_interval=interval,
        p=p,
        gaps=_gaps(rows, measured, group.level),
        level=group.level,
        by_chance=worth_by_chance(draws, documents, group.level),
        cross_fitted=cross_fitted(draws),
    )


def _drawn_again(group: ComparedGroup) -> dict[str, Mapping[str, Side]]:
    """Return the sides of the sets with content that were drawn more than once, independently."""
    rows: dict[str, Mapping[str, Side]] = {}
    for name in group.sets:
        sides = group.rows[name]
        # A set has as many draws on every measured set.
        any_side = sides[group.averaged[0]]
        if any_side.counted and not group.label(name).control:
            rows[name] = sides
    return rows


def variance_ratio(
    sets: Sequence[Float[np.ndarray, "_draw measured"]], level: float = LEVEL
) -> tuple[float, tuple[float, float], float] | tuple[None, None, None]:
    """Return the variance between sets over that between draws of a set, its interval and p; None
    where the draws of no set vary.

    >>> low, high = np.array([[1.0], [1.1]]), np.array([[3.0], [3.1]])
    >>> ratio, (least, most), p = variance_ratio([low, low + 1, high])
    >>> f"{ratio:.0f} ({least:.0f} to {most:.0f}), p {p:.4f}"
    '199 (12 to 7833), p 0.0002'
    """
    from scipy.special import fdtrc, fdtri

    counts = np.array([len(draws) for draws in sets])
    total = counts.sum()
    within_sets = _squares(_from_mean(sets))
    if not np.trace(within_sets) > 0:
        return None, None, None
    means = np.stack([draws.mean(0) for draws in sets])
    mean_of_all = counts @ means / total
    deviations = np.sqrt(counts)[:, None] * (means - mean_of_all)
    between_sets = _squares(deviations)
    within_directions = _directions(within_sets)
    between_directions = _directions(between_sets)
    within_df = int(total) - len(sets)
    between_df = len(sets) - 1
    within_square = np.trace(within_sets) / within_df
    between_square = np.trace(between_sets) / between_df
    statistic = float(between_square / within_square)
    # Dempster's degrees of freedom: both parts times the directions of the draws.
    p = fdtrc(within_directions * between_df, within_directions * within_df, statistic)
    # The draws of a set, or what comes nearest to it where sets have different numbers of them.
    draws_a_set = float(total - (counts**2).sum() / total) / between_df

    def ratio_of(f: float) -> float:
        # F is 1 where sets don't differ, and grows with the draws of a set where they do.
        return max(0.0, (f - 1) / draws_a_set)

    tail = (1 - level) / 2
    ends: list[float] = []
    for quantile in (1 - tail, tail):
        least = fdtri(between_directions * between_df, within_directions * within_df, quantile)
        ends.append(ratio_of(statistic / float(least)))
    return ratio_of(statistic), (ends[0], ends[1]), float(p)


def worth_by_chance(
    sets: Sequence[Float[np.ndarray, "_draw measured"]],
    documents: DocumentErrors,
    level: float = LEVEL,
) -> float:
    """Return the `level` quantile of worst less best set, averaged over the measured sets, where
    all sets are alike.

    Studies are simulated in which draws vary as the residuals of these do, all measured sets
    together, and documents vary as `documents` says. For one measured set and no documents it is
    the quantile of the studentized range. At a nominal 5 %, sets that are alike exceeded it in 2.7
    to 5.8 % of simulated studies: least often where what is measured is independent. The draws of
    all sets are taken to vary alike; where they varied as unequally as Wanda's do, it was 11 to
    15 %.
    """
    counts = np.array([len(draws) for draws in sets])
    within_df = int(counts.sum()) - len(sets)
    residuals = _from_mean(sets)
    per_mean = float((1 / counts).mean())
    draw_variances = (residuals**2).sum(0) / within_df
    variances = draw_variances * per_mean + documents.variances
    if not variances.any():
        return 0.0
    root = np.asarray(np.linalg.qr(residuals, mode="r")) / math.sqrt(within_df)
    # A factorisation is unique but for the signs of its rows; the same ones on every machine.
    signs = np.where(np.diag(root) < 0, -1.0, 1.0)
    root = root * signs[:, None]
    # Always the same studies: a report says the same twice.
    random = np.random.default_rng(0)
    # The mean of each set on each measured set, [study, set, measured].
    means = random.standard_normal((STUDIES, len(sets), len(root))) @ root
    means /= np.sqrt(counts)[:, None]
    means += random.standard_normal(means.shape) @ documents.root
    gaps = means.max(1) - means.min(1)
    worths = gaps.mean(1)
    # Each simulated study estimates its own error, with as many degrees of freedom as this one
    # has: the quantile of the ratio allows for an error that was estimated too small.
    again = random.standard_normal((STUDIES, within_df, len(root))) @ root
    chi_squared = random.chisquare(documents.degrees, (STUDIES, len(documents.degrees)))
    over_draws = (again**2).mean(1) * per_mean
    # What documents add is estimated from the same ones where measured sets share them.
    estimated = (chi_squared / documents.degrees)[:, documents.groups]
    over_documents = documents.variances * estimated
    estimated_errors = np.sqrt(over_draws + over_documents).mean(1)
    quantile = np.quantile(worths / estimated_errors, level)
    error = np.sqrt(variances).mean()
    return float(quantile * error)


def cross_fitted(sets: Sequence[Float[np.ndarray, "_draw measured"]]) -> float:
    """Return worst less best set, averaged over the measured sets, on draws that didn't choose.

    Each draw is held out in turn: the others say which set is best and which is worst on each
    measured set, and the held out draws of these two are compared. It isn't too large by having
    been picked by luck of the draw, as the plain difference is; where the choice is wrong it is too
    small. Documents aren't held out: what suits these few documents alone stays in it.
    """
    fewest = min(map(len, sets))
    worths: list[float] = []
    for held_out in range(fewest):
        others = [np.delete(draws, held_out, axis=0) for draws in sets]
        choosing = np.stack([draws.mean(0) for draws in others])
        measuring = np.stack([draws[held_out] for draws in sets])
        # On each measured set another set may be the worst or the best.
        columns = np.arange(measuring.shape[1])
        worst = measuring[choosing.argmax(0), columns]
        best = measuring[choosing.argmin(0), columns]
        gaps = worst - best
        worths.append(float(gaps.mean()))
    return _mean(worths)


def _over_documents(
    rows: Mapping[str, Mapping[str, Side]], measured: Sequence[str]
) -> DocumentErrors:
    """Return what documents add to the mean of a set."""
    added = np.zeros(len(measured))
    for place, name in enumerate(measured):
        sides = [row_sides[name] for row_sides in rows.values()]
        differing = _without_common(sides)
        documents = differing.shape[1]
        mean_square = float((differing**2).sum()) / (len(sides) - 1)
        variance = mean_square * documents / (documents - 1)
        over_draws: list[float] = []
        for side in sides:
            draws_variance = float(side.draws.var(ddof=1))
            over_draws.append(draws_variance / len(side.draws))
        # As in `Spread`: the interaction is in the draws already, and no negative estimate
        # narrows anything.
        interaction = _mean([side.interaction for side in sides])
        in_draws = min(interaction, _mean(over_draws))
        added[place] = max(0.0, variance - in_draws)
    any_sides, *_ = rows.values()
    root = np.diag(np.sqrt(added))
    groups = np.zeros(len(measured), dtype=int)
    degrees: list[float] = []
    for number, group in enumerate(shared_items(any_sides, measured)):
        places = [measured.index(name) for name in group.names]
        groups[places] = number
        degrees.append((len(rows) - 1.0) * (group.fewest - 1.0))
        if len(places) > 1:
            correlation_root = _root_of_correlation(rows, group)
            root[np.ix_(places, places)] = correlation_root * np.sqrt(added[places])
    return DocumentErrors(added, root, groups, np.array(degrees))


def _root_of_correlation(
    rows: Mapping[str, Mapping[str, Side]], group: SharedItems
) -> Float[np.ndarray, "measured measured"]:
    """Return the root of the correlation that shared documents give to the measured sets of a
    group.
    """
    by_set: list[Float[np.ndarray, " _row"]] = []
    for name, places in zip(group.names, group.places, strict=True):
        differing = _without_common([row_sides[name] for row_sides in rows.values()])
        # A document that this measured set doesn't have stays zero: nothing in common there.
        by_item = np.zeros((len(rows), group.different))
        by_item[:, places] = differing
        by_set.append(by_item.ravel())
    columns = np.stack(by_set, axis=1)
    norms = np.linalg.norm(columns, axis=0)
    columns = columns / np.where(norms > 0, norms, 1.0)
    # The symmetric root is unique; eigenvectors alone aren't.
    values, vectors = np.linalg.eigh(columns.T @ columns)
    return vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T


def _without_common(sides: Sequence[Side]) -> Float[np.ndarray, "sets items"]:
    """Return the residuals without what all sets share, which cancels in every difference."""
    residuals = np.stack([side.residuals for side in sides])
    return residuals - residuals.mean(0)


def _increase(
    rows: Mapping[str, Mapping[str, Side]], dense: Mapping[str, Side], measured: Sequence[str]
) -> float | None:
    if not dense:
        return None
    increases: list[float] = []
    for sides in rows.values():
        for name in measured:
            side = sides[name]
            increases.append(side.worse * (side.value - dense[name].value))
    return _mean(increases)


def _from_mean(
    sets: Sequence[Float[np.ndarray, "_draw measured"]],
) -> Float[np.ndarray, "every_draw measured"]:
    """Return all draws less the mean of their set."""
    residuals: list[Float[np.ndarray, "_draw measured"]] = []
    for draws in sets:
        # From the first draw on, so that draws that are the same to the last bit vary by exactly
        # nothing: a mean of equal numbers may be off by rounding.
        from_first = draws - draws[0]
        residuals.append(from_first - from_first.mean(0))
    return np.concatenate(residuals)


def _squares(rows: Float[np.ndarray, "row measured"]) -> Float[np.ndarray, "measured measured"]:
    return rows.T @ rows


def _directions(covariance: Float[np.ndarray, "measured measured"]) -> float:
    """Return how many measured sets of equal variance, independent of one another, would vary like
    these: from 1 to their number.
    """
    squares = float((covariance**2).sum())
    if not squares > 0:
        return 1.0
    return float(np.trace(covariance)) ** 2 / squares


def _gaps(
    rows: Mapping[str, Mapping[str, Side]], measured: Sequence[str], level: float
) -> dict[str, Gap]:
    """Return what the choice is worth on each measured set, and on their mean."""
    pair_count = pairs(len(rows))
    gaps: dict[str, Gap] = {}
    for name in measured:
        table = Pairs.of(rows, [name], pooled=True)
        gaps[name] = _gap(table, level, pair_count * len(measured))
    of_means = Pairs.of(rows, measured, pooled=True)
    gaps[MEAN] = _gap(of_means, level, pair_count)
    return gaps


def _gap(table: Pairs, level: float, comparisons: int) -> Gap:
    """Return what the choice is worth by a table of all pairs."""
    half = table.half(level, comparisons)
    largest = int(table.values.argmax())
    worst, best = np.unravel_index(largest, table.values.shape)
    distinct = ~np.eye(len(table.labels), dtype=bool)  # a set isn't compared with itself
    certain = float((table.values - half)[distinct].max())
    possible = float((table.values + half)[distinct].max())
    return Gap(
        best=table.labels[best],
        worst=table.labels[worst],
        value=float(table.values.max()),
        interval=(max(0.0, certain), possible),
        floor=float(half[distinct].max()),
    )


def _draws(
    sides: Mapping[str, Side], measured: Sequence[str]
) -> Float[np.ndarray, "draw measured"]:
    columns: list[Float[np.ndarray, " draw"]] = []
    for name in measured:
        side = sides[name]
        columns.append(side.worse * side.draws)
    return np.stack(columns, axis=1)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
