"""COLA's choice of samples in the space of activations (2025, arXiv 2510.10618, stage 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from calibrant.data.select._base import MOST, Context, Picking, check_between
from calibrant.data.select._embedding import clustered, in_turn
from calibrant.data.select._reading import beginnings, pooled


@dataclass(frozen=True, repr=False)
class COLA(Picking):
    """What lies nearest to the centres of `k` clusters of activations: the nearest of each cluster
    first, then the second nearest, …

    The mean over tokens of each block's output is scaled to length one, those of all blocks are put
    one behind the other and projected to `project` dimensions by a Gaussian matrix seeded by the
    draw; then k-means. `k` is the number of samples that is wanted, as in the paper's code.
    `SpecError` if `k` or `project` is below 1.

    Of the paper this is the last of three stages; the first (which sources) and the second (how
    they are processed) are an expression's own business. Differs from the code: what has no more
    features than `project` is not projected, and of a cluster more than the nearest is taken where
    the budget asks for it, larger clusters first.
    """

    after = "COLA 2025, stage 3"
    source: str
    candidates: int = 1000
    k: int = 128
    project: int = 64

    needs_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, k=(1, MOST), project=(1, MOST))

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        sequences = beginnings(texts, context.tokenizer, context.length)
        points = pooled(context.model(self), sequences, "all", context.progress).double().numpy()
        features = points.shape[1]
        if features > self.project:
            chance = np.random.default_rng(context.draw)
            noise = chance.standard_normal((features, self.project))
            # Johnson and Lindenstrauss: divided by the root, distances stay about what they were.
            points = points @ noise / np.sqrt(self.project)
        labels, distances = clustered(points, self.k, context.draw)
        # Of equals the earlier candidate, so that the order is the same everywhere.
        nearest_first = np.argsort(distances, kind="stable")
        clusters: list[np.ndarray] = []
        for label in np.unique(labels):
            clusters.append(nearest_first[labels[nearest_first] == label])

        def largest_first(members: np.ndarray) -> tuple[int, int]:
            return -len(members), int(members[0])

        clusters.sort(key=largest_first)
        return in_turn(clusters), f"{len(clusters)} clusters in {points.shape[1]} dimensions"
