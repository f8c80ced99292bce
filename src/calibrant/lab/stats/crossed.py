"""The crossed model of items and draws: what a difference is, and how sure.

Two runs are measured on the same items (documents), so they are compared item by item: a document
that is hard for both says nothing about which is better. A loss is a ratio, Σ nats / Σ tokens over
documents; its error, and that of a difference of two, comes from the residuals of the linearised
ratio, with the document as the unit (tokens of one document are anything but independent).

Draw d of a set gives item i the value μ + Iᵢ + D_d + ε_id: items are shared by all sets, draws
belong to one. For a contrast of sets, with a draw's number of items n, three mean squares are
formed: A, the variance of the mean over items of what each item gave on average over draws; B, the
sum over sets of the variance of the mean over draws; C, the interaction's part, which both of them
hold. A − C is what items alone add and is never taken below zero; the variance is max((A − C)⁺ + B,
A), so that no negative estimate narrows an interval.

Its quantile is Cochran's: that of t with the items' degrees of freedom and that with the draws',
each weighted with its part of the variance. The draws' degrees of freedom are Satterthwaite's, with
the largest variance counted 1 + 2/df times, since the one that chance made large weighs most.

That is the form that held its level best of those simulated (`benchmarks/levels.py`): 20 and 300
items; a set alone, two, and a pool of two against one; items, interaction and draws each from
absent to dominant. At a nominal 5 %, its worst false positive rate was 6.0, 5.3, 5.4 and 5.3 % at
2, 3, 5 and 10 draws, its mean 2.2, 3.2, 4.1 and 4.6 % (at 0.5 %, the worst: 1.4, 0.8, 0.7, 0.6 %).
A + B with Satterthwaite's degrees of freedom for the whole gave up to 12.9 and 8.2 % at two and
three draws, and so did A + B − C.

With one draw of a set the interval covers items only: it says nothing about the next draw, and
whoever shows it must say so. The same where the draws of a set overlap, since what they share makes
them alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from calibrant.errors import DataError
from calibrant.lab.stats.estimate import LEVEL, Estimate
from calibrant.results import Measurement, Score

Independence = Literal["independent", "overlapping", "no draws"]
"""Whether the draws of a side share no rows, share some, or don't exist, as of a model that
takes none.
"""


@dataclass(frozen=True)
class ItemValues:
    """One measurement as arrays: its items in the order of their names, and what each gave."""

    score: Score
    items: tuple[str, ...]
    values: Float[np.ndarray, " items"]
    weights: Float[np.ndarray, " items"]
    beside: tuple[Score, ...] = ()

    @staticmethod
    def of(measurement: Measurement) -> "ItemValues":
        """Return the outcomes of a stored measurement as arrays."""
        return ItemValues(measurement.score, *measurement.by_item, measurement.beside)


Draws = Sequence[Measurement]
"""One measured set: what each draw of a calibration set gave on it (one, for a run that takes no
draws).
"""


def contrast(
    a: Mapping[str, Draws | Sequence[ItemValues]],
    b: Mapping[str, Draws | Sequence[ItemValues]] | None = None,
) -> Estimate:
    """Return how much *worse* `a` is than `b`, averaged over the measured sets that both map to
    their draws; without `b`, the mean of `a`.

    A draw is a measurement of a store (`draws`), or its items as `Results` has them. A side with a
    single draw adds no draws' variance, whether it is a set drawn once or a model that takes no
    draws. Raises `DataError` where the two weren't measured on the same items, in the same unit, at
    the same context length.

    >>> from calibrant.results import Outcome
    >>> def loss(*nats):  # one draw: the loss of each of three documents of 10 tokens
    ...     items = tuple(Outcome(f"document {i}", float(n), 10.0) for i, n in enumerate(nats))
    ...     return Measurement(Score("docs", "loss", sum(nats) / 30, None, 3, "nats/token", "lower"), items)
    >>> f"{contrast({'docs': [loss(31, 42, 37)]}, {'docs': [loss(30, 40, 35)]}):+.3f}"
    '+0.167 ± 0.033'
    """
    if b is not None and a.keys() != b.keys():
        raise DataError(
            f"{sorted(a)} can't be compared with {sorted(b)}: compare runs that were measured on the same sets"
        )
    sides = [
        {
            name: Side.of([m if isinstance(m, ItemValues) else ItemValues.of(m) for m in draws])
            for name, draws in side.items()
        }
        for side in ([a] if b is None else [a, b])
    ]
    turn = {name: sides[0][name].worse if b is not None else 1.0 for name in a}
    return combination(
        [
            (side, {name: c * turn[name] / len(a) for name in a})
            for c, side in zip((1.0, -1.0), sides, strict=False)
        ]
    )


@dataclass(frozen=True)
class Side:
    """One calibration set on one measured set.

    `draws` is each draw's ratio and `value` their mean; `residuals` the items' linearised
    residuals, averaged over draws; `interaction` the variance that the interaction of items and
    draws gives to the mean. `independence` says whether the draws count as draws: a model that
    takes none has none, and draws that share their rows are alike for that reason.
    """

    score: Score
    items: tuple[str, ...]
    weights: Float[np.ndarray, " items"]
    draws: Float[np.ndarray, " draws"]
    residuals: Float[np.ndarray, " items"]
    interaction: float
    value: float
    independence: Independence = "independent"

    @property
    def counted(self) -> bool:
        """Whether the draws tell how much another one would change."""
        return self.independence == "independent" and len(self.draws) > 1

    @property
    def worse(self) -> float:
        """What a difference is multiplied with, so that more is worse."""
        return -1.0 if self.score.better == "higher" else 1.0

    @staticmethod
    def of(draws: Sequence[ItemValues], independence: Independence = "independent") -> "Side":
        """Return the side that these draws make. Raises `DataError` if they hold other items or
        tokens than one another, or none.
        """
        first = draws[0]
        for other in draws[1:]:
            check_paired(first, other)
        # All draws were measured on the same items, so one row of weights serves them all.
        values, weights = np.stack([draw.values for draw in draws]), first.weights
        total, many, count = weights.sum(), len(first.items), len(draws)
        if many == 0 or total <= 0:
            raise DataError(
                f"{first.score.measured!r} has no items with outcomes; there is nothing to compare",
                subject=first.score.measured,
            )
        ratios = values.sum(1) / total
        # The ratio Σ v / Σ w, linearised: item i moves it by (vᵢ − ratio · wᵢ) / Σ w.
        residuals = (values - ratios[:, None] * weights) / total
        mean = residuals.mean(0)
        squares = float(((residuals - mean) ** 2).sum())
        # The interaction's mean square, divided by the draws that the mean is over; without two of
        # both it is part of the rest.
        interaction = (
            squares * many / ((many - 1) * (count - 1) * count) if many > 1 and count > 1 else 0.0
        )
        return Side(
            first.score,
            first.items,
            weights,
            ratios,
            mean,
            interaction,
            float(ratios.mean()),
            independence,
        )


def combination(
    terms: Sequence[tuple[Mapping[str, Side], Mapping[str, float]]], value: float | None = None
) -> Estimate:
    """Return a linear combination of calibration sets: of each term the sides by measured set, and
    the coefficient of each of them.

    `value` stands in the place of the combination's own where it is the linear form of something
    else. The error covers draws (`over_draws`) where every set in it has two or more, independent
    of one another.
    """
    names = list(terms[0][1])
    variances: list[float] = []
    degrees: list[float] = []
    for name in names:
        sides = [side[name] for side, _ in terms]
        for other in sides[1:]:
            check_paired(sides[0], other)
        # Summed over documents and not a product of matrices: what is equal in both cancels to
        # exactly nothing.
        residuals = np.asarray(
            sum(coefs[name] * side.residuals for side, (_, coefs) in zip(sides, terms, strict=True))
        )
        many = len(residuals)
        variances.append(
            float((residuals**2).sum()) * many / (many - 1) if many > 1 else float("nan")
        )
        degrees.append(many - 1.0)
    # Satterthwaite: a sum of independent variances has (Σ v)² / Σ (v² / df) degrees of freedom.
    items = sum(variances)
    squares = sum(v**2 / df for v, df in zip(variances, degrees, strict=True) if v > 0)
    items_df = items**2 / squares if squares > 0 else max(1.0, *degrees, 1.0)
    # B: draws belong to one set, so the sets' variances add; a set drawn once, or with overlapping
    # draws, has nothing to add.
    with_draws = [term for term in terms if term[0][names[0]].counted]
    all_counted = all(
        side[names[0]].counted or side[names[0]].independence == "no draws" for side, _ in terms
    )
    # Where no set was drawn more than once B is zero; one degree of freedom only keeps the division
    # by it defined.
    over = [
        (variance_over_draws(sides, coefs), len(sides[names[0]].draws) - 1.0)
        for sides, coefs in with_draws
    ] or [(0.0, 1.0)]
    # C: each measured set has items of its own, so its parts add; a set without draws has no
    # interaction to tell from its items.
    interaction = sum(
        coefs[n] ** 2 * sides[n].interaction for sides, coefs in with_draws for n in names
    )
    draws, draws_df = (np.array(column) for column in zip(*over, strict=True))
    spread = Spread.of(np.array(items), np.array(items_df), draws, draws_df, np.array(interaction))
    total = sum(coefs[n] * sides[n].value for sides, coefs in terms for n in names)
    count = sum(len(terms[0][0][n].items) for n in names)
    return spread.estimate(
        total if value is None else value, count, all_counted and bool(with_draws)
    )


def variance_over_draws(sides: Mapping[str, Side], coefs: Mapping[str, float]) -> float:
    """Return the variance of the mean over draws: a draw that is good for one measured set may
    be good for another, so they add draw by draw.
    """
    each = sum(c * sides[name].draws for name, c in coefs.items())
    return float(np.var(each, ddof=1)) / np.size(each)


@dataclass(frozen=True)
class Spread:
    """Variances with the parts that make them, one or a whole table of them: see the head of
    this module.
    """

    variance: NDArray[np.float64]
    share: NDArray[np.float64]
    items_df: NDArray[np.float64]
    draws_df: NDArray[np.float64]

    @staticmethod
    def of(items: Any, items_df: Any, draws: Any, draws_df: Any, interaction: Any) -> "Spread":
        """Return it for A, B (a last axis more: one for each set that was drawn) and C, with the
        degrees of freedom of A and of each of B.
        """
        alone, over = np.maximum(items - interaction, 0.0), draws.sum(-1)
        # Satterthwaite takes the variances for the truth; the largest of a few is more likely too
        # large, and counts 1 + 2/df times.
        largest = np.arange(draws.shape[-1]) == draws.argmax(-1)[..., None]
        counted = draws * np.where(largest, 1 + 2 / draws_df, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            df = np.where(
                over > 0, counted.sum(-1) ** 2 / (counted**2 / draws_df).sum(-1), draws_df.max(-1)
            )
            share = np.where(over > 0, over / (alone + over), 0.0)
        return Spread(*map(np.asarray, (np.maximum(alone + over, items), share, items_df, df)))

    def half(self, p: float) -> NDArray[np.float64]:
        """Return how far above the value the `p` quantile lies."""
        from scipy.special import stdtrit

        return np.asarray(
            np.sqrt(self.variance)
            * (
                (1 - self.share) * stdtrit(self.items_df, p)
                + self.share * stdtrit(self.draws_df, p)
            )
        )

    def at(self, index: Any) -> "Spread":
        """Return those of a part of the table."""
        return Spread(
            self.variance[index], self.share[index], self.items_df[index], self.draws_df[index]
        )

    def estimate(
        self, value: float, items: int, over_draws: bool, at: tuple[int, ...] = ()
    ) -> Estimate:
        """Return the one at an index, as a number with its uncertainty."""
        variance, share, first, second = (
            float(table[at]) for table in (self.variance, self.share, self.items_df, self.draws_df)
        )
        if np.isnan(variance):  # a single item
            return Estimate(value, None, 0.0, items)
        # One number for whoever wants the degrees of freedom of the whole, by Satterthwaite;
        # intervals are made from both.
        df = 1 / ((1 - share) ** 2 / first + share**2 / second)
        return Estimate(
            value, variance**0.5, df, items, over_draws, share, (first, second) if share else None
        )


def check_paired(a: "ItemValues | Side", b: "ItemValues | Side") -> None:
    """Raise `DataError` unless both hold the same items and tokens, in the same unit at the same
    context length.
    """
    name = a.score.measured
    if a.items is not b.items and a.items != b.items:
        odd = sorted(set(a.items) ^ set(b.items))
        raise DataError(
            f"two runs on {name!r} can't be paired: {len(a.items)} and {len(b.items)} items, {len(odd)} of them in one alone"
            + (f" (such as {odd[0]!r})" if odd else "")
            + "; measure both with the same evaluator",
            subject=name,
        )
    scales = [
        (side.score.metric, side.score.unit, side.score.facts.get("length")) for side in (a, b)
    ]
    if scales[0] != scales[1]:
        one, other = (
            f"{metric} in {unit}" + (f" at context length {n}" if n is not None else "")
            for metric, unit, n in scales
        )
        raise DataError(f"two runs on {name!r} can't be compared: {one} and {other}", subject=name)
    if a.weights is not b.weights and not np.array_equal(a.weights, b.weights):
        raise DataError(
            f"two runs on {name!r} can't be paired: the same items hold {a.weights.sum():g} and {b.weights.sum():g} tokens",
            subject=name,
        )


@dataclass(frozen=True)
class Pairs:
    """All differences of some labels on some measured sets, averaged: row less column, more is
    worse. As `combination`, for all at once.
    """

    labels: tuple[str, ...]
    values: Float[np.ndarray, "n n"]
    spread: Spread
    items: int
    counted: Bool[np.ndarray, " n"]
    with_draws: Bool[np.ndarray, " n"]

    @staticmethod
    def of(
        sides: Mapping[str, Mapping[str, Side]], measured: Sequence[str], pooled: bool = False
    ) -> "Pairs":
        """Return them for the sides of each label by measured set; `pooled` takes the draws of
        all labels to vary alike.
        """
        labels = tuple(sides)
        coefs = {m: sides[labels[0]][m].worse / len(measured) for m in measured}
        for m in measured:
            for label in labels[1:]:
                check_paired(sides[labels[0]][m], sides[label][m])
        own = np.array(
            [sum(c * sides[label][m].value for m, c in coefs.items()) for label in labels]
        )
        firsts = [sides[label][measured[0]] for label in labels]
        counted = np.array([side.counted for side in firsts])
        over = np.array(
            [
                variance_over_draws(sides[label], coefs) if yes else 0.0
                for label, yes in zip(labels, counted, strict=True)
            ]
        )
        over_df = np.array([len(side.draws) - 1.0 if side.counted else 1.0 for side in firsts])
        inner = (
            np.array(
                [sum(c**2 * sides[k][m].interaction for m, c in coefs.items()) for k in labels]
            )
            * counted
        )
        with_draws = np.array([side.independence != "no draws" for side in firsts])

        total, squares, most = (
            np.zeros((len(sides), len(sides))),
            np.zeros((len(sides), len(sides))),
            1.0,
        )
        for m, coef in coefs.items():
            table = np.stack([coef * side[m].residuals for side in sides.values()])
            many = table.shape[1]
            # A row at a time and not by a product of matrices: what is equal in both cancels to
            # exactly nothing.
            sums = np.stack([((table - row) ** 2).sum(1) for row in table])
            variance = sums * (many / (many - 1) if many > 1 else np.nan)
            total, squares, most = (
                total + variance,
                squares + variance**2 / max(many - 1, 1),
                max(most, many - 1.0),
            )
        with np.errstate(invalid="ignore", divide="ignore"):
            items_df = np.where(squares > 0, total**2 / squares, most)  # Satterthwaite's

        # A difference has the draws of both its sets: the last axis is the row's and the column's.
        draws, draws_df = (
            np.stack(np.broadcast_arrays(each[:, None], each), axis=-1) for each in (over, over_df)
        )
        if pooled and counted.any():
            count = np.where(counted, over_df + 1, np.inf)
            one = (over * count * over_df)[counted].sum() / over_df[counted].sum() / count
            draws, draws_df = (
                (one[:, None] + one)[..., None],
                np.full((*total.shape, 1), over_df[counted].sum()),
            )
        spread = Spread.of(total, items_df, draws, draws_df, inner[:, None] + inner)
        items = sum(len(sides[labels[0]][m].items) for m in measured)
        return Pairs(labels, own[:, None] - own, spread, items, counted, with_draws)

    def estimate(self, a: str, b: str) -> Estimate:
        """Return how much worse `a` is than `b`."""
        i, j = self.labels.index(a), self.labels.index(b)
        with_draws = self.with_draws[[i, j]]
        over = bool(with_draws.any() and self.counted[[i, j]][with_draws].all())
        return self.spread.estimate(float(self.values[i, j]), self.items, over, (i, j))

    def worse(self, level: float = LEVEL, comparisons: int = 1) -> Bool[np.ndarray, "n n"]:
        """Return where row is significantly worse than column, jointly over so many
        `comparisons`.
        """
        half = self.spread.half(1 - (1 - level) / (2 * comparisons))
        return self.values > half  # what has no error (not a number) is never significant

    def among(self, labels: Sequence[str]) -> "Pairs":
        """Return the same of some labels only, in this order."""
        at = [self.labels.index(label) for label in labels]
        grid = np.ix_(at, at)
        return Pairs(
            tuple(labels),
            self.values[grid],
            self.spread.at(grid),
            self.items,
            self.counted[at],
            self.with_draws[at],
        )


def share_kept(
    sides: Mapping[str, Side], dense: Mapping[str, Side], measured: Sequence[str]
) -> Estimate | None:
    """Return the share of the dense model's performance that `sides` keep, averaged over the
    `measured` sets; None where there is none.

    Of a loss or a divergence in nats it is exp(dense − its own): of the probability that each token
    of the right text had, what is left in the geometric mean. Where more is better it is (its own −
    chance) / (dense − chance), and there is none if the dense model is no better than chance; of
    anything else, dense / its own. The error is by the delta method.
    """
    parts = {m: share_of(sides[m].value, dense[m].value, sides[m].score) for m in measured}
    shares = {m: part for m, part in parts.items() if part is not None}
    if len(shares) < len(parts) or not parts:
        return None
    many = len(shares)
    by_own = {m: slope / many for m, (_, slope, _) in shares.items()}
    by_dense = {m: slope / many for m, (_, _, slope) in shares.items()}
    return combination(
        [(sides, by_own), (dense, by_dense)], sum(share for share, _, _ in shares.values()) / many
    )


def share_of(own: float, dense: float, score: Score) -> tuple[float, float, float] | None:
    """Return the share that a value keeps of the dense model's on the same scale, and its
    derivatives by the one and by the other.
    """
    if score.better == "higher":
        room = dense - (score.chance or 0.0)
        share = (own - (score.chance or 0.0)) / room if room > 0 else 0.0
        return (share, 1 / room, -share / room) if room > 0 else None
    if score.unit.startswith("nats"):
        share = math.exp(min(dense - own, 700.0))  # e^700 is the last power that a float holds
        return share, -share, share
    return (dense / own, -dense / own**2, 1 / own) if own > 0 else None
