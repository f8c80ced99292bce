"""How the damage of word groups goes with the loss: Spearman's rank correlation over groups,
with an interval over documents.
"""

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from jaxtyping import Float

RESAMPLES: Final = 400
"""Of the documents, for an interval."""
LEVEL: Final = 0.95
FEWEST: Final = 8
"""Groups that a correlation is stated of at least."""

Table = Float[np.ndarray, "document group"]
"""Sums over the words of a group in a document."""
Column = Float[np.ndarray, " group"]


@final
@dataclass(frozen=True)
class Relation:
    """Sums by document and group that the damage and the loss of each group follow from.

    `dense` and `shown` are the dense model's and the compressed one's part in the pattern; `raised`
    is by how many nats the losses of what belongs to a group rose, of `tokens` tokens.
    """

    dense: Table
    shown: Table
    raised: Table
    tokens: Table

    def facts(self, name: str, seed: int) -> dict[str, Any]:
        """Return the correlation under `name`, its interval, and the correlation at equal
        frequency of the groups; nothing for few groups.
        """
        whole = np.ones(len(self.dense))
        value, partial = self._of(whole)
        if value is None:
            return {}
        chance = np.random.default_rng(seed)
        again = range(
            RESAMPLES if len(whole) > 1 else 0
        )  # a single document says nothing of others
        draws = [
            self._of(chance.multinomial(len(whole), whole / len(whole)).astype(np.float64))
            for _ in again
        ]
        known = [draw[0] for draw in draws if draw[0] is not None]
        low, high = (
            np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if known else (None, None)
        )
        found = {
            name: value,
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_at_equal_frequency": partial,
        }
        return {
            key: None if number is None else round(float(number), 6)
            for key, number in found.items()
        }

    def columns(self, weights: Float[np.ndarray, " document"]) -> tuple[Column, Column, Column]:
        """Return damage, nats a token and frequency of each group, its documents counted as
        often as `weights` says; NaN where there is nothing.
        """
        dense, shown, raised, tokens = (
            weights @ table for table in (self.dense, self.shown, self.raised, self.tokens)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return (
                np.where(dense > 0, 1 - shown / dense, np.nan),
                np.where(tokens > 0, raised / tokens, np.nan),
                tokens,
            )

    def _of(self, weights: Float[np.ndarray, " document"]) -> tuple[float | None, float | None]:
        damage, loss, frequency = self.columns(weights)
        known = np.isfinite(damage) & np.isfinite(loss)
        if known.sum() < FEWEST:
            return None, None
        ranked = [ranks(each[known]) for each in (damage, loss, frequency)]
        return correlation(ranked[0], ranked[1]), correlation(
            *(_without(each, ranked[2]) for each in ranked[:2])
        )


def ranks(values: Column) -> Column:
    """Return the rank of each value from 0 on; equal ones share the mean of theirs."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[at]


def correlation(a: Column, b: Column) -> float | None:
    """Return Pearson's correlation; None where one of the two doesn't vary."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 1e-12 * len(a) else None


def _without(of: Column, other: Column) -> Column:
    """What is left of ranks once their straight line over others is taken off."""
    other = other - other.mean()
    size = float(other @ other)
    return of - of.mean() - (other * float(other @ of) / size if size else 0.0)
