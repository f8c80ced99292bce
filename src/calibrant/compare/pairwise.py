"""Every two of many sets compared at once: letters, ranks and what is really best are read from such tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from calibrant.compare.crossed import Side, Spread, check_paired, variance_over_draws
from calibrant.compare.estimate import LEVEL, Estimate


@dataclass(frozen=True)
class Pairs:
    """All differences of some labels on some measured sets, averaged: row less column, more is worse. As `combination`, for all at once."""

    labels: tuple[str, ...]
    values: Float[np.ndarray, "n n"]
    spread: Spread
    items: int
    counted: Bool[np.ndarray, " n"]
    drawn: Bool[np.ndarray, " n"]

    @staticmethod
    def of(sides: Mapping[str, Mapping[str, Side]], measured: Sequence[str]) -> "Pairs":
        """From the sides of each label by measured set."""
        labels = tuple(sides)
        coefs = {m: sides[labels[0]][m].worse / len(measured) for m in measured}
        for m in measured:
            for label in labels[1:]:
                check_paired(sides[labels[0]][m], sides[label][m])
        own = np.array([sum(c * sides[label][m].value for m, c in coefs.items()) for label in labels])
        firsts = [sides[label][measured[0]] for label in labels]
        counted = np.array([side.counted for side in firsts])
        over = np.array([variance_over_draws(sides[label], coefs) if yes else 0.0 for label, yes in zip(labels, counted, strict=True)])
        over_df = np.array([len(side.draws) - 1.0 if side.counted else 1.0 for side in firsts])
        inner = np.array([sum(c**2 * sides[k][m].interaction for m, c in coefs.items()) for k in labels]) * counted
        drawn = np.array([side.drawn != "not" for side in firsts])
        spread = Spread.of(*_over_items(sides, coefs), _paired(over), _paired(over_df), inner[:, None] + inner)
        return Pairs(labels, own[:, None] - own, spread, sum(len(sides[labels[0]][m].items) for m in measured), counted, drawn)

    def estimate(self, a: str, b: str) -> Estimate:
        """How much worse `a` is than `b`."""
        i, j = self.labels.index(a), self.labels.index(b)
        drawn = self.drawn[[i, j]]
        over = bool(drawn.any() and self.counted[[i, j]][drawn].all())
        return self.spread.estimate(float(self.values[i, j]), self.items, over, (i, j))

    def worse(self, level: float = LEVEL, comparisons: int = 1) -> Bool[np.ndarray, "n n"]:
        """Where row is surely worse than column, jointly over `comparisons` comparisons."""
        half = self.spread.half(1 - (1 - level) / (2 * comparisons))
        return self.values > half  # what has no error (not a number) is never sure

    def among(self, labels: Sequence[str]) -> "Pairs":
        """The same of some labels only, in this order."""
        at = [self.labels.index(label) for label in labels]
        grid = np.ix_(at, at)
        return Pairs(tuple(labels), self.values[grid], self.spread.at(grid), self.items, self.counted[at], self.drawn[at])


def _paired(each: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n 2"]:
    return np.stack(np.broadcast_arrays(each[:, None], each), axis=-1)


def _over_items(sides: Mapping[str, Mapping[str, Side]], coefs: Mapping[str, float]) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """The variance over items of every difference, and Satterthwaite's degrees of freedom for it."""
    total, squares, most = np.zeros((len(sides), len(sides))), np.zeros((len(sides), len(sides))), 1.0
    for m, coef in coefs.items():
        table = np.stack([coef * side[m].residuals for side in sides.values()])
        many = table.shape[1]
        # A row at a time and not by a product of matrices: what is equal in both cancels to exactly nothing.
        sums = np.stack([((table - row) ** 2).sum(1) for row in table])
        variance = sums * (many / (many - 1) if many > 1 else np.nan)
        total, squares, most = total + variance, squares + variance**2 / max(many - 1, 1), max(most, many - 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total, np.where(squares > 0, total**2 / squares, most)
