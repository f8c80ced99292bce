"""How alike calibration sets are, by three measures: their words, what the model feels of them, what they do to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from calibrant.compare.layers import Layers
from calibrant.compare.summaries import SetSummary, weights_of_words

MEASURES: Final = {"words": "their words", "statistics": "the statistics that the model gets", "masks": "the masks that they lead to"}


@dataclass(frozen=True)
class Similarity:
    """Tables of similarity by measure, `sets` × `sets`: 1 on the diagonal, larger is more alike, NaN where it isn't known.

    `words` is the cosine of two sets' TF-IDF weights. `statistics` is e to the minus distance of the activations (see `Layers.statistics`), over
    all blocks, and `masks` the share of sampled mask bits that agree; both are averaged over the groups of runs that have the two sets.
    """

    sets: tuple[str, ...]
    by: Mapping[str, Float[np.ndarray, "set set"]]

    def nearest(self, name: str, measure: str, most: int = 5) -> list[tuple[str, float]]:
        """The sets that are most like `name` by one measure, the most alike first."""
        row = self.by[measure][self.sets.index(name)]
        known = [(other, float(value)) for other, value in zip(self.sets, row, strict=True) if other != name and np.isfinite(value)]
        return sorted(known, key=lambda pair: (-pair[1], self.sets.index(pair[0])))[:most]


def similarity(summaries: Sequence[SetSummary], found: Sequence[Layers]) -> Similarity:
    """All three tables of a study's sets."""
    sets = tuple(summary.name for summary in summaries)
    by = {
        "words": _words(summaries),
        "statistics": _over_groups(sets, found, [np.exp(-np.sqrt((of.statistics**2).mean(-1))) for of in found]),
        "masks": _over_groups(sets, found, [of.masks.mean(-1) for of in found]),
    }
    for table in by.values():
        np.fill_diagonal(table, 1.0)
    return Similarity(sets, by)


def _words(summaries: Sequence[SetSummary]) -> Float[np.ndarray, "set set"]:
    table = np.full((len(summaries), len(summaries)), np.nan)
    known = {i: p.profile for i, p in enumerate(summaries) if p.profile is not None and p.profile["words"]}
    _, weights = weights_of_words({str(i): profile for i, profile in known.items()})
    if known:
        table[np.ix_(list(known), list(known))] = weights @ weights.T
    return table


def _over_groups(sets: Sequence[str], found: Sequence[Layers], tables: Sequence[Float[np.ndarray, "n n"]]) -> Float[np.ndarray, "set set"]:
    total, count = np.zeros((len(sets), len(sets))), np.zeros((len(sets), len(sets)))
    for of, table in zip(found, tables, strict=True):
        at = np.ix_([sets.index(name) for name in of.sets], [sets.index(name) for name in of.sets])
        known = np.isfinite(table)
        total[at] += np.where(known, table, 0.0)
        count[at] += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
