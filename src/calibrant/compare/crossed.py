"""The crossed model of items and draws: what a difference is, and how sure.

Two runs are measured on the same items (documents), so they are compared item by item: a document that is hard for both says nothing
about which is better. A loss is a ratio, Σ nats / Σ tokens over documents; its error, and that of a difference of two, comes from the
residuals of the linearised ratio, with the document as the unit (tokens of one document are anything but independent).

Draw d of a set gives item i the value μ + Iᵢ + D_d + ε_id: items are shared by all sets, draws belong to one. For a contrast of sets, with
a draw's number of items n, three mean squares are formed: A, the variance of the mean over items of what each item gave on average over
draws; B, the sum over sets of the variance of the mean over draws; C, the interaction's part, which both of them hold. A − C is what items
alone add and is never taken below zero; the variance is max((A − C)⁺ + B, A), so that no negative estimate narrows an interval.

Its quantile is Cochran's: that of t with the items' degrees of freedom and that with the draws', each weighted with its part of the
variance. The draws' degrees of freedom are Satterthwaite's, with the largest variance counted 1 + 2/df times, since the one that chance made
large weighs most.

That is the form that held its level best of those simulated (`benchmarks/levels.py`): 20 and 300 items; a set alone, two, and a pool of two
against one; items, interaction and draws each from absent to dominant. At a nominal 5 %, its worst false positive rate was 6.0, 5.3, 5.4 and
5.3 % at 2, 3, 5 and 10 draws, its mean 2.2, 3.2, 4.1 and 4.6 % (at 0.5 %, the worst: 1.4, 0.8, 0.7, 0.6 %). A + B with Satterthwaite's degrees
of freedom for the whole gave up to 12.9 and 8.2 % at two and three draws, and so did A + B − C.

With one draw of a set the interval covers items only: it says nothing about the next draw, and whoever shows it must say so. The same where
the draws of a set overlap, since what they share makes them alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from calibrant.compare.estimate import Estimate
from calibrant.errors import DataError
from calibrant.outcomes import called
from calibrant.store import Measurement, Score

Drawn = Literal["apart", "overlapping", "not"]
"""Whether draws are independent of one another, share their rows, or don't exist."""

Draws = Sequence[Measurement]
"""One measured set: what each draw of a calibration set gave on it (one, for a run that takes no draws)."""


def contrast(a: Mapping[str, Draws], b: Mapping[str, Draws] | None = None) -> Estimate:
    """How much *worse* `a` is than `b`, averaged over the measured sets that both map to their draws; without `b`, the plain mean of `a`.

    A side with a single draw adds no draws' variance, whether it is a set drawn once or a model that takes no draws.
    Raises `DataError` where the two weren't measured on the same items, in the same unit, at the same context length.
    """
    if b is not None and a.keys() != b.keys():
        raise DataError(f"{sorted(a)} can't be compared with {sorted(b)}: compare runs that were measured on the same sets")
    sides = [{name: Side.of([Sample.of(m) for m in draws]) for name, draws in side.items()} for side in ([a] if b is None else [a, b])]
    turn = {name: sides[0][name].worse if b is not None else 1.0 for name in a}
    return combination([(side, {name: c * turn[name] / len(a) for name in a}) for c, side in zip((1.0, -1.0), sides, strict=False)])


@dataclass(frozen=True)
class Sample:
    """One measurement as arrays: its items in the order of their names, and what each gave."""

    score: Score
    items: tuple[str, ...]
    values: Float[np.ndarray, " items"]
    weights: Float[np.ndarray, " items"]
    beside: tuple[Score, ...] = ()

    @staticmethod
    def of(measurement: Measurement) -> "Sample":
        """The same of what a store keeps."""
        rows = sorted((called(o.item), o.value, o.weight) for o in measurement.outcomes)
        values, weights = (np.array([row[i] for row in rows], dtype=np.float64) for i in (1, 2))
        return Sample(measurement.score, tuple(row[0] for row in rows), values, weights, measurement.beside)


@dataclass(frozen=True)
class Side:
    """One calibration set on one measured set.

    `draws` is each draw's ratio and `value` their mean; `residuals` the items' linearised residuals, averaged over draws; `interaction` the
    variance that the interaction of items and draws gives to the mean. `drawn` says whether the draws count as draws: a model that takes none
    has none, and draws that share their rows are alike for that reason.
    """

    score: Score
    items: tuple[str, ...]
    weights: Float[np.ndarray, " items"]
    draws: Float[np.ndarray, " draws"]
    residuals: Float[np.ndarray, " items"]
    interaction: float
    value: float
    drawn: Drawn = "apart"

    @property
    def counted(self) -> bool:
        """Whether the draws tell how much another one would change."""
        return self.drawn == "apart" and len(self.draws) > 1

    @property
    def worse(self) -> float:
        """What a difference is multiplied with, so that more is worse."""
        return -1.0 if self.score.better == "higher" else 1.0

    @staticmethod
    def of(samples: Sequence[Sample], drawn: Drawn = "apart") -> "Side":
        """The side that `samples`, one a draw, make. Raises `DataError` if they hold other items or tokens than one another, or none."""
        first = samples[0]
        for sample in samples[1:]:
            check_paired(first, sample)
        values, weights = np.stack([s.values for s in samples]), first.weights
        total, many, count = weights.sum(), len(first.items), len(samples)
        if many == 0 or total <= 0:
            raise DataError(f"{first.score.measured!r} has no items with outcomes; there is nothing to compare", subject=first.score.measured)
        ratios = values.sum(1) / total
        each = (values - ratios[:, None] * weights) / total
        mean = each.mean(0)
        squares = float(((each - mean) ** 2).sum())
        interaction = squares * many / ((many - 1) * (count - 1) * count) if many > 1 and count > 1 else 0.0
        return Side(first.score, first.items, weights, ratios, mean, interaction, float(ratios.mean()), drawn)


def combination(terms: Sequence[tuple[Mapping[str, Side], Mapping[str, float]]], value: float | None = None) -> Estimate:
    """A linear combination of calibration sets: of each term the sides by measured set, and the coefficient of each of them.

    `value` stands in the place of the combination's own where it is the linear form of something else. The error covers draws (`over_draws`)
    where every set in it has two or more, independent of one another.
    """
    names = list(terms[0][1])
    parts: list[tuple[float, float]] = []
    for name in names:
        sides = [side[name] for side, _ in terms]
        for other in sides[1:]:
            check_paired(sides[0], other)
        # Summed over documents and not a product of matrices: what is equal in both cancels to exactly nothing.
        residuals = sum(coefs[name] * side.residuals for side, (_, coefs) in zip(sides, terms, strict=True))
        parts.append((variance_of_sum(np.asarray(residuals)), len(sides[0].items) - 1.0))
    drawn = [term for term in terms if term[0][names[0]].counted]
    all_drawn = all(side[names[0]].counted or side[names[0]].drawn == "not" for side, _ in terms)
    over = [(variance_over_draws(sides, coefs), len(sides[names[0]].draws) - 1.0) for sides, coefs in drawn] or [(0.0, 1.0)]
    inner = sum(coefs[n] ** 2 * sides[n].interaction for sides, coefs in drawn for n in names)
    found = Spread.of(*_satterthwaite(parts), np.array([v for v, _ in over]), np.array([df for _, df in over]), np.array(inner))
    total = sum(coefs[n] * sides[n].value for sides, coefs in terms for n in names)
    return found.estimate(total if value is None else value, sum(len(terms[0][0][n].items) for n in names), all_drawn and bool(drawn))


def variance_of_sum(residuals: Float[np.ndarray, " items"]) -> float:
    """Of the sum of `residuals`, one independent item each; not a number for a single item."""
    many = len(residuals)
    return float((residuals**2).sum()) * many / (many - 1) if many > 1 else float("nan")


def variance_over_draws(sides: Mapping[str, Side], coefs: Mapping[str, float]) -> float:
    """Of the mean over draws: a draw that is good for one measured set may be good for another, so they are added draw by draw."""
    each = sum(c * sides[name].draws for name, c in coefs.items())
    return float(np.var(each, ddof=1)) / np.size(each)


def _satterthwaite(parts: Sequence[tuple[float, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The variance of a sum of independent parts, and its degrees of freedom."""
    total = sum(v for v, _ in parts)
    squares = sum(v**2 / df for v, df in parts if v > 0)
    return np.array(total), np.array(total**2 / squares if squares > 0 else max(1.0, *(df for _, df in parts), 1.0))


@dataclass(frozen=True)
class Spread:
    """Variances with the parts that make them, one or a whole table of them: see the head of this module."""

    variance: NDArray[np.float64]
    share: NDArray[np.float64]
    items_df: NDArray[np.float64]
    draws_df: NDArray[np.float64]

    @staticmethod
    def of(items: Any, items_df: Any, draws: Any, draws_df: Any, interaction: Any) -> "Spread":
        """From A, B (a last axis more: one for each set that was drawn) and C, with the degrees of freedom of A and of each of B."""
        alone, over = np.maximum(items - interaction, 0.0), draws.sum(-1)
        largest = np.arange(draws.shape[-1]) == draws.argmax(-1)[..., None]
        counted = draws * np.where(largest, 1 + 2 / draws_df, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            df = np.where(over > 0, counted.sum(-1) ** 2 / (counted**2 / draws_df).sum(-1), draws_df.max(-1))
            share = np.where(over > 0, over / (alone + over), 0.0)
        return Spread(*map(np.asarray, (np.maximum(alone + over, items), share, items_df, df)))

    def half(self, p: float) -> NDArray[np.float64]:
        """How far above the value the `p` quantile lies."""
        from scipy.special import stdtrit

        return np.asarray(np.sqrt(self.variance) * ((1 - self.share) * stdtrit(self.items_df, p) + self.share * stdtrit(self.draws_df, p)))

    def at(self, index: Any) -> "Spread":
        """Those of a part of the table."""
        return Spread(self.variance[index], self.share[index], self.items_df[index], self.draws_df[index])

    def estimate(self, value: float, items: int, over_draws: bool, at: tuple[int, ...] = ()) -> Estimate:
        """The one at an index, as a number with its uncertainty."""
        variance, share, first, second = (float(table[at]) for table in (self.variance, self.share, self.items_df, self.draws_df))
        if np.isnan(variance):
            return Estimate(value, None, 0.0, items)
        df = 1 / ((1 - share) ** 2 / first + share**2 / second)
        return Estimate(value, variance**0.5, df, items, over_draws, share, (first, second) if share else None)


def check_paired(a: "Sample | Side", b: "Sample | Side") -> None:
    """Raises `DataError` unless both hold the same items and tokens, in the same unit at the same context length."""
    name = a.score.measured
    if a.items is not b.items and a.items != b.items:
        odd = sorted(set(a.items) ^ set(b.items))
        raise DataError(
            f"two runs on {name!r} can't be paired: {len(a.items)} and {len(b.items)} items, {len(odd)} of them in one alone"
            + (f" (such as {odd[0]!r})" if odd else "")
            + "; measure both with the same evaluator",
            subject=name,
        )
    if _scale(a.score) != _scale(b.score):
        raise DataError(f"two runs on {name!r} can't be compared: {_said(a.score)} and {_said(b.score)}", subject=name)
    if a.weights is not b.weights and not np.array_equal(a.weights, b.weights):
        raise DataError(f"two runs on {name!r} can't be paired: the same items hold {a.weights.sum():g} and {b.weights.sum():g} tokens", subject=name)


def _scale(score: Score) -> tuple[str, str, Any]:
    return score.metric, score.unit, score.facts.get("length")


def _said(score: Score) -> str:
    metric, unit, length = _scale(score)
    return f"{metric} in {unit}" + (f" at context length {length}" if length is not None else "")
