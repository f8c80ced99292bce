"""Points in clusters, and one of each in turn."""

import warnings
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from calibrant.select._embedding import Points

Labels = Int[np.ndarray, " text"]
Distances = Float[np.ndarray, " text"]

STARTS: Final = 4


def clustered(points: Points, k: int, seed: int) -> tuple[Labels, Distances]:
    """The k-means cluster of each point, and its distance to that cluster's centre; fewer clusters where there are fewer distinct points.

    Lloyd's algorithm from k-means++, the best of `STARTS` starts (scikit-learn's); seeded, on one thread, so that sums are taken in one order.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    count = points.shape[0]
    if not count or not points.shape[1]:
        return np.zeros(count, dtype=np.int64), np.zeros(count)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # there are fewer distinct points than clusters
        options: dict[str, Any] = {"n_init": STARTS, "random_state": seed}
        found = KMeans(min(k, count), **options).fit(points)
        labels, distances = np.asarray(found.labels_, dtype=np.int64), found.transform(points)
    return labels, np.asarray(distances[np.arange(count), labels], dtype=np.float64)


def in_turn(groups: Iterable[Iterable[Any]]) -> list[int]:
    """The first of each group, then the second of each that has one, and so on."""
    return [int(one) for turn in zip_longest(*groups) for one in turn if one is not None]
