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

Two kinds of values aren't independent. Where measured sets are averaged that hold the same items,
as one text does in two formats, what an item gave in all of them is added before it is squared: it
is one document, met twice. Where a pool holds several sets of one source, their draws share rows.
Which draws share how many depends on the formats, so the variance is the largest that there can be:
that of draws which all go up and down together.

Without these two, this is the form that held its level best of those simulated
(`benchmarks/levels.py`): 20 and 300 items; a set alone, two, and a pool of two against one; items,
interaction and draws each from absent to dominant. At a nominal 5 %, its worst false positive rate
was 6.0, 5.3, 5.4 and 5.3 % at 2, 3, 5 and 10 draws, its mean 2.2, 3.2, 4.1 and 4.6 % (at 0.5 %, the
worst: 1.4, 0.8, 0.7, 0.6 %).
A + B with Satterthwaite's degrees of freedom for the whole gave up to 12.9 and 8.2 % at two and
three draws, and so did A + B − C.

With one draw of a set the interval covers items only: it says nothing about the next draw, and
whoever shows it must say so. The same where the draws of a set overlap, since what they share makes
them alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

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
    single draw adds no draws' variance, and `over_draws` is false, whether it is a set drawn once
    or a model that takes no draws: measurements don't say which. Raises `DataError` where the two
    weren't measured on the same items, in the same unit, at the same context length.

    >>> from calibrant.results import Outcome
    >>> def loss(*nats):  # one draw: the loss of each of three documents of 10 tokens
    ...     items = tuple(Outcome(f"document {i}", float(n), 10.0) for i, n in enumerate(nats))
    ...     score = Score("docs", "loss", sum(nats) / 30, None, 3, "nats/token", "lower")
    ...     return Measurement(score, items)
    >>> f"{contrast({'docs': [loss(31, 42, 37)]}, {'docs': [loss(30, 40, 35)]}):+.3f}"
    '+0.167 ± 0.033'
    """
    first = _sides(a)
    if b is None:
        means = {name: 1 / len(a) for name in a}
        return combination([(first, means)])
    if a.keys() != b.keys():
        raise DataError(
            f"{sorted(a)} can't be compared with {sorted(b)}: "
            "compare runs that were measured on the same sets"
        )
    coefs = {name: side.worse / len(a) for name, side in first.items()}
    negative = {name: -coef for name, coef in coefs.items()}
    return combination([(first, coefs), (_sides(b), negative)])


def _sides(draws: Mapping[str, Draws | Sequence[ItemValues]]) -> dict[str, "Side"]:
    sides: dict[str, Side] = {}
    for name, measured in draws.items():
        values: list[ItemValues] = []
        for draw in measured:
            if not isinstance(draw, ItemValues):
                draw = ItemValues.of(draw)
            values.append(draw)
        sides[name] = Side.of(values)
    return sides


@dataclass(frozen=True)
class Side:
    """One calibration set on one measured set.

    `draws` is each draw's ratio and `value` their mean; `residuals` the items' linearised
    residuals, averaged over draws; `deviations` how far each draw's are from that average.
    `independence` says whether the draws count as draws: a model that takes none has none, and
    draws that share their rows are alike for that reason. `source` is whose rows the draws
    take, as the set's text has it: draws of two sets with one source share rows. What shares rows
    under another text, such as a mixture and its parts, isn't known to.
    """

    score: Score
    items: tuple[str, ...]
    weights: Float[np.ndarray, " items"]
    draws: Float[np.ndarray, " draws"]
    residuals: Float[np.ndarray, " items"]
    deviations: Float[np.ndarray, "draws items"]
    value: float
    independence: Independence = "independent"
    source: str = ""

    @property
    def counted(self) -> bool:
        """Whether the draws tell how much another one would change."""
        return self.independence == "independent" and len(self.draws) > 1

    @property
    def worse(self) -> float:
        """What a difference is multiplied with, so that more is worse."""
        return -1.0 if self.score.better == "higher" else 1.0

    @property
    def interaction(self) -> float:
        """The variance that the interaction of items and draws gives to the mean over draws."""
        return interaction({"": self}, {"": 1.0})

    @staticmethod
    def of(
        draws: Sequence[ItemValues], independence: Independence = "independent", source: str = ""
    ) -> "Side":
        """Return the side that these draws make. Raises `DataError` if they hold other items or
        tokens than one another, or none.
        """
        first = draws[0]
        for other in draws[1:]:
            check_paired(first, other)
        # All draws were measured on the same items, so one row of weights serves them all.
        weights = first.weights
        total = weights.sum()
        if not first.items or total <= 0:
            raise DataError(
                f"{first.score.measured!r} has no items with outcomes; there is nothing to compare",
                subject=first.score.measured,
            )
        values = np.stack([draw.values for draw in draws])
        ratios = values.sum(1) / total
        # The ratio Σ v / Σ w, linearised: item i moves it by (vᵢ − ratio · wᵢ) / Σ w.
        residuals = (values - ratios[:, None] * weights) / total
        mean = residuals.mean(0)
        return Side(
            first.score,
            first.items,
            weights,
            ratios,
            mean,
            residuals - mean,
            float(ratios.mean()),
            independence,
            source,
        )


@dataclass(frozen=True)
class SharedItems:
    """Measured sets that hold some of the same items; one alone shares with none.

    `places` says for each of them where its items stand among all of the group, which are
    `different` in number. `fewest` is the least number of items that one of them has.
    """

    names: tuple[str, ...]
    places: tuple[NDArray[np.intp], ...]
    different: int
    fewest: int

    def by_item(
        self, rows: Sequence[Float[np.ndarray, "... _item"]]
    ) -> Float[np.ndarray, "... _item"]:
        """Return residuals of each measured set, summed by item: their squares add up to the
        variance of the sum of the sets' means.
        """
        first = rows[0]
        sums = np.zeros((*first.shape[:-1], self.different))
        for row, places in zip(rows, self.places, strict=True):
            items = len(places)
            # Residuals sum to zero, which takes one degree of freedom; a single item has none left.
            scale = math.sqrt(items / (items - 1)) if items > 1 else math.nan
            sums[..., places] += scale * row
        return sums


def shared_items(sides: Mapping[str, Side], names: Sequence[str]) -> tuple[SharedItems, ...]:
    """Return the measured sets `names` in groups, of which no two have an item in common."""
    if len(names) == 1:
        (name,) = names
        count = len(sides[name].items)
        return (SharedItems((name,), (np.arange(count),), count, count),)
    return _shared_items(tuple((name, sides[name].items) for name in names))


# Hundreds of comparisons in a row are about the same few measured sets.
@lru_cache(maxsize=64)
def _shared_items(
    items_by_set: tuple[tuple[str, tuple[str, ...]], ...],
) -> tuple[SharedItems, ...]:
    items_of = dict(items_by_set)
    groups: list[tuple[list[str], set[str]]] = []
    for name, items in items_by_set:
        joined_names: list[str] = []
        joined_items = set(items)
        apart: list[tuple[list[str], set[str]]] = []
        for names, group_items in groups:
            if group_items.isdisjoint(items):
                apart.append((names, group_items))
            else:
                joined_names += names
                joined_items |= group_items
        groups = [*apart, ([*joined_names, name], joined_items)]
    found: list[SharedItems] = []
    for names, group_items in groups:
        place_of = {item: place for place, item in enumerate(sorted(group_items))}
        places: list[NDArray[np.intp]] = []
        for name in names:
            places.append(np.array([place_of[item] for item in items_of[name]], dtype=np.intp))
        fewest = min(map(len, places))
        found.append(SharedItems(tuple(names), tuple(places), len(place_of), fewest))
    return tuple(found)


WeightedSides = tuple[Mapping[str, Side], Mapping[str, float]]
"""A calibration set's sides by measured set, and the coefficient of each."""


def combination(terms: Sequence[WeightedSides], value: float | None = None) -> Estimate:
    """Return a linear combination of calibration sets.

    `value` stands in the place of the combination's own where it is the linear form of something
    else. The error covers draws (`over_draws`) where every set in it has two or more, independent
    of one another.
    """
    first_sides, first_coefs = terms[0]
    names = list(first_coefs)
    items_variance, items_df = _over_items(terms)
    draws_variances, draws_df = _over_draws(terms)
    interactions = 0.0
    over_draws = True
    combined = 0.0
    for sides, coefs in terms:
        any_side = sides[names[0]]
        if any_side.counted:
            # C: a set without draws has no interaction to tell from its items.
            interactions += interaction(sides, coefs)
        elif any_side.independence != "no draws":
            over_draws = False
        for name in names:
            combined += coefs[name] * sides[name].value
    over_draws = over_draws and bool(draws_variances)
    if not draws_variances:
        # Then B is zero; one degree of freedom only keeps the division by it defined.
        draws_variances.append(0.0)
        draws_df.append(1.0)
    spread = Spread.of(
        np.array(items_variance),
        np.array(items_df),
        np.array(draws_variances),
        np.array(draws_df),
        np.array(interactions),
    )
    count = sum(group.different for group in shared_items(first_sides, names))
    if value is None:
        value = combined
    return spread.estimate(value, count, over_draws)


def _over_items(terms: Sequence[WeightedSides]) -> tuple[float, float]:
    """Return A of a combination, and its degrees of freedom."""
    first_sides, first_coefs = terms[0]
    variances: list[float] = []
    degrees: list[float] = []
    for group in shared_items(first_sides, list(first_coefs)):
        rows: list[Float[np.ndarray, " items"]] = []
        for name in group.names:
            first = first_sides[name]
            residuals = np.zeros(len(first.items))
            # A document at a time and not a product of matrices: what is equal in both cancels to
            # exactly nothing.
            for sides, coefs in terms:
                check_paired(first, sides[name])
                residuals = residuals + coefs[name] * sides[name].residuals
            rows.append(residuals)
        variances.append(float((group.by_item(rows) ** 2).sum()))
        degrees.append(group.fewest - 1.0)
    # Satterthwaite: a sum of independent variances has (Σ v)² / Σ (v² / df) degrees of freedom.
    total = sum(variances)
    squares: list[float] = []
    for variance, df in zip(variances, degrees, strict=True):
        if variance > 0:
            squares.append(variance**2 / df)
    if not squares:
        return total, max(1.0, *degrees)
    return total, total**2 / sum(squares)


def _over_draws(terms: Sequence[WeightedSides]) -> tuple[list[float], list[float]]:
    """Return B of a combination in parts that add, and the degrees of freedom of each. A set drawn
    once, or with overlapping draws, has nothing to add.
    """
    by_source: dict[tuple[object, ...], list[Float[np.ndarray, " draws"]]] = {}
    for place, (sides, coefs) in enumerate(terms):
        side, *_ = sides.values()
        if not side.counted:
            continue
        key: tuple[object, ...] = (place,)
        if side.source:
            # Of the two sides of a difference, what draws share cancels; of one side it adds up.
            key = (side.source, sum(coefs.values()) > 0)
        by_source.setdefault(key, []).append(by_draw(sides, coefs))
    variances: list[float] = []
    degrees: list[float] = []
    for pool in by_source.values():
        # As if all went up and down together: the standard errors add.
        stderr = sum(math.sqrt(variance_of_mean(draws)) for draws in pool)
        variances.append(stderr**2)
        degrees.append(min(map(len, pool)) - 1.0)
    return variances, degrees


def by_draw(sides: Mapping[str, Side], coefs: Mapping[str, float]) -> Float[np.ndarray, " draws"]:
    """Return what each draw of a set gives to a combination: a draw that is good for one measured
    set may be good for another.
    """
    names = list(coefs)
    combined = np.zeros(len(sides[names[0]].draws))
    for name, coef in coefs.items():
        combined += coef * sides[name].draws
    return combined


def variance_of_mean(draws: Float[np.ndarray, " draws"]) -> float:
    """Return the variance of the mean over draws."""
    return float(np.var(draws, ddof=1)) / len(draws)


def interaction(sides: Mapping[str, Side], coefs: Mapping[str, float]) -> float:
    """Return the variance that the interaction of items and draws gives to the mean over draws:
    as over items, but draw by draw.
    """
    variance = 0.0
    for group in shared_items(sides, list(coefs)):
        rows = [coefs[name] * sides[name].deviations for name in group.names]
        draws = len(rows[0])
        # With one draw, or one item, it can't be told from the rest.
        if draws > 1 and group.fewest > 1:
            squares = float((group.by_item(rows) ** 2).sum())
            variance += squares / ((draws - 1) * draws)
    return variance


@dataclass(frozen=True)
class Spread:
    """A variance with the parts that make it, or a whole table of such: see the head of this
    module.

    `share` is the part of it that draws have.
    """

    variance: NDArray[np.float64]
    share: NDArray[np.float64]
    items_df: NDArray[np.float64]
    draws_df: NDArray[np.float64]

    @staticmethod
    def of(items: Any, items_df: Any, draws: Any, draws_df: Any, interaction: Any) -> "Spread":
        """Return the spread for A (`items`), B (`draws`) and C (`interaction`), with the degrees of
        freedom of A and of each part of B.

        B and its degrees of freedom have one axis more, the last: one part for each set that was
        drawn.
        """
        # A − C is never taken below zero: no negative estimate narrows an interval.
        items_alone = np.maximum(items - interaction, 0.0)
        all_draws = draws.sum(-1)
        # Satterthwaite takes the variances for the truth; the largest of a few is more likely too
        # large, and counts 1 + 2/df times.
        places = np.arange(draws.shape[-1])
        is_largest = places == draws.argmax(-1)[..., None]
        counted = draws * np.where(is_largest, 1 + 2 / draws_df, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            satterthwaite = counted.sum(-1) ** 2 / (counted**2 / draws_df).sum(-1)
            share = all_draws / (items_alone + all_draws)
        df = np.where(all_draws > 0, satterthwaite, draws_df.max(-1))
        share = np.where(all_draws > 0, share, 0.0)
        variance = np.maximum(items_alone + all_draws, items)
        return Spread(np.asarray(variance), share, np.asarray(items_df), df)

    def half(self, p: float) -> NDArray[np.float64]:
        """Return how far above the value the `p` quantile lies."""
        from scipy.special import stdtrit

        # Cochran's: the quantiles of both parts, each weighted with its part of the variance.
        items_part = (1 - self.share) * stdtrit(self.items_df, p)
        draws_part = self.share * stdtrit(self.draws_df, p)
        return np.asarray(np.sqrt(self.variance) * (items_part + draws_part))

    def part(self, index: Any) -> "Spread":
        """Return the spread of a part of the table."""
        return Spread(
            self.variance[index], self.share[index], self.items_df[index], self.draws_df[index]
        )

    def estimate(
        self, value: float, items: int, over_draws: bool, index: tuple[int, ...] = ()
    ) -> Estimate:
        """Return `value` with the uncertainty at an index of the table; `items` are how many."""
        variance = float(self.variance[index])
        if np.isnan(variance):  # a single item
            return Estimate(value, None, 0.0, items)
        share = float(self.share[index])
        items_df = float(self.items_df[index])
        draws_df = float(self.draws_df[index])
        # One number for whoever wants the degrees of freedom of the whole, by Satterthwaite;
        # intervals are made from both.
        df = 1 / ((1 - share) ** 2 / items_df + share**2 / draws_df)
        both = (items_df, draws_df) if share else None
        return Estimate(value, variance**0.5, df, items, over_draws, share, both)


def check_paired(a: "ItemValues | Side", b: "ItemValues | Side") -> None:
    """Raise `DataError` unless both hold the same items and tokens, in the same unit at the same
    context length.
    """
    name = a.score.measured
    if a.items is not b.items and a.items != b.items:
        unpaired = sorted(set(a.items) ^ set(b.items))
        example = f" (such as {unpaired[0]!r})" if unpaired else ""
        raise DataError(
            f"two runs on {name!r} can't be paired: {len(a.items)} and {len(b.items)} items, "
            f"{len(unpaired)} of them in one alone{example}; measure both with the same evaluator",
            subject=name,
        )
    first = _scale(a.score)
    second = _scale(b.score)
    if first != second:
        raise DataError(
            f"two runs on {name!r} can't be compared: {first} and {second}", subject=name
        )
    if a.weights is not b.weights and not np.array_equal(a.weights, b.weights):
        raise DataError(
            f"two runs on {name!r} can't be paired: "
            f"the same items hold {a.weights.sum():g} and {b.weights.sum():g} tokens",
            subject=name,
        )


def _scale(score: Score) -> str:
    length = score.facts.get("length")
    within = "" if length is None else f" at context length {length}"
    return f"{score.metric} in {score.unit}{within}"


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
        count = len(labels)
        first = sides[labels[0]]
        coefs = {name: first[name].worse / len(measured) for name in measured}
        values = np.zeros(count)
        counted = np.zeros(count, dtype=bool)
        with_draws = np.zeros(count, dtype=bool)
        over_draws = np.zeros(count)
        over_df = np.ones(count)
        interactions = np.zeros(count)
        for row, row_sides in enumerate(sides.values()):
            any_side = row_sides[measured[0]]
            with_draws[row] = any_side.independence != "no draws"
            if any_side.counted:
                counted[row] = True
                over_draws[row] = variance_of_mean(by_draw(row_sides, coefs))
                over_df[row] = len(any_side.draws) - 1.0
                # What isn't known to be of draws has no interaction to take off.
                interactions[row] = interaction(row_sides, coefs)
            for name, coef in coefs.items():
                side = row_sides[name]
                check_paired(first[name], side)
                values[row] += coef * side.value
        items, items_df = _variance_over_items(sides, coefs)
        if pooled and counted.any():
            draws, draws_df = _pooled(over_draws, over_df, counted)
        else:
            # A difference has the draws of both its sets.
            draws = _of_both(over_draws)
            draws_df = _of_both(over_df)
        of_pairs = interactions[:, None] + interactions
        spread = Spread.of(items, items_df, draws, draws_df, of_pairs)
        item_count = sum(group.different for group in shared_items(first, measured))
        return Pairs(labels, values[:, None] - values, spread, item_count, counted, with_draws)

    def estimate(self, a: str, b: str) -> Estimate:
        """Return how much worse `a` is than `b`."""
        row = self.labels.index(a)
        column = self.labels.index(b)
        value = float(self.values[row, column])
        # What takes no draws, such as a baseline, doesn't keep the error from covering draws.
        places = [row, column]
        with_draws = self.with_draws[places]
        counted = self.counted[places]
        over_draws = bool(with_draws.any() and counted[with_draws].all())
        return self.spread.estimate(value, self.items, over_draws, (row, column))

    def worse(self, level: float = LEVEL, comparisons: int = 1) -> Bool[np.ndarray, "n n"]:
        """Return where row is significantly worse than column, jointly over so many
        `comparisons`.
        """
        # What has no error (not a number) is never significant.
        return self.values > self.half(level, comparisons)

    def half(self, level: float = LEVEL, comparisons: int = 1) -> Float[np.ndarray, "n n"]:
        """Return how far intervals reach from the values, jointly over so many `comparisons`:
        without end where values differ and nothing varies over too few documents for this level.
        """
        tail = (1 - level) / (2 * comparisons)
        # As `Estimate.interval`: where nothing varies, the test is that of signs (`sign_p`).
        smallest_p = np.exp2(-self.spread.items_df)
        is_constant = (self.spread.variance == 0) & (self.values != 0)
        is_untold = is_constant & (smallest_p > (1 - level) / comparisons)
        return np.where(is_untold, np.inf, self.spread.half(1 - tail))

    def among(self, labels: Sequence[str]) -> "Pairs":
        """Return the same of some labels only, in this order."""
        places = [self.labels.index(label) for label in labels]
        grid = np.ix_(places, places)
        return Pairs(
            tuple(labels),
            self.values[grid],
            self.spread.part(grid),
            self.items,
            self.counted[places],
            self.with_draws[places],
        )


def _pooled(
    variances: Float[np.ndarray, " n"],
    degrees: Float[np.ndarray, " n"],
    counted: Bool[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "n n 1"], Float[np.ndarray, "n n 1"]]:
    """Return B of every two labels' difference as one part, and its degrees of freedom, where the
    draws of all labels vary alike.
    """
    # The variance of a single draw, from all of them; what isn't counted has none.
    numbers = np.where(counted, degrees + 1, np.inf)
    df = degrees[counted].sum()
    single_draw = (variances * numbers * degrees)[counted].sum() / df
    of_means = single_draw / numbers
    sums = of_means[:, None] + of_means
    draws = sums[..., None]
    return draws, np.full_like(draws, df)


def _of_both(numbers: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n 2"]:
    """Return a table with the number of the row and the number of the column in each place."""
    of_row, of_column = np.broadcast_arrays(numbers[:, None], numbers)
    return np.stack([of_row, of_column], axis=-1)


def _variance_over_items(
    sides: Mapping[str, Mapping[str, Side]], coefs: Mapping[str, float]
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """Return A of every two labels' difference, and its degrees of freedom."""
    total = np.zeros((len(sides), len(sides)))
    squares = np.zeros_like(total)
    most_df = 1.0
    first_sides, *_ = sides.values()
    for group in shared_items(first_sides, list(coefs)):
        by_set: list[Float[np.ndarray, "n items"]] = []
        for name in group.names:
            residuals = [coefs[name] * row_sides[name].residuals for row_sides in sides.values()]
            by_set.append(np.stack(residuals))
        table = group.by_item(by_set)
        # A row at a time and not by a product of matrices: what is equal in both cancels to
        # exactly nothing.
        sums_by_row: list[Float[np.ndarray, " n"]] = []
        for row in table:
            squared_differences = (table - row) ** 2
            sums_by_row.append(squared_differences.sum(1))
        variance = np.stack(sums_by_row)
        df = group.fewest - 1.0
        total += variance
        squares += variance**2 / max(df, 1.0)
        most_df = max(most_df, df)
    with np.errstate(invalid="ignore", divide="ignore"):
        satterthwaite = total**2 / squares
    return total, np.where(squares > 0, satterthwaite, most_df)


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
    value = 0.0
    own_coefs: dict[str, float] = {}
    dense_coefs: dict[str, float] = {}
    for name in measured:
        side = sides[name]
        share = share_of(side.value, dense[name].value, side.score)
        if share is None:
            return None
        value += share.value
        own_coefs[name] = share.own_slope / len(measured)
        dense_coefs[name] = share.dense_slope / len(measured)
    if not own_coefs:
        return None
    # The delta method: the error is that of the linear form whose coefficients are the slopes.
    return combination([(sides, own_coefs), (dense, dense_coefs)], value / len(measured))


class KeptShare(NamedTuple):
    """A share of the dense model's performance, and its derivatives by a model's own value and by
    the dense one's.
    """

    value: float
    own_slope: float
    dense_slope: float


def share_of(value: float, dense: float, score: Score) -> KeptShare | None:
    """Return the share that a value keeps of the dense model's on the same scale; None where
    there is none.
    """
    if score.better == "higher":
        chance = score.chance or 0.0
        above_chance = dense - chance
        if above_chance <= 0:
            return None
        share = (value - chance) / above_chance
        return KeptShare(share, 1 / above_chance, -share / above_chance)
    if score.unit.startswith("nats"):
        share = math.exp(min(dense - value, 700.0))  # e^700 is the last power that a float holds
        return KeptShare(share, -share, share)
    if value <= 0:
        return None
    return KeptShare(dense / value, -dense / value**2, 1 / value)
