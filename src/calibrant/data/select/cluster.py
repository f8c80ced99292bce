"""Clustered sampling: EvoP's CCDS (Wu et al. 2025, arXiv 2502.14910)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrant.data.select._base import MOST, Context, Picking, check_between
from calibrant.data.select._embedding import ENCODER, check_embedding, clustered, embedded, in_turn


@dataclass(frozen=True, repr=False)
class Cluster(Picking):
    """As many candidates of each of `k` clusters, so that what is rare in the pool is not rare in
    the set.

    The candidates are embedded (`embed`: `model`, the untouched model's mean-pooled last hidden
    states; `tfidf`, which needs no model; `sentence`, the encoder of sentence-transformers called
    `encoder`), put into clusters by k-means, and taken one of each cluster in turn: the clusters
    and their members in an order seeded by the draw. A cluster that is used up is passed over.
    `SpecError` for `k` below 1 or an unknown embedding.

    A reconstruction: of the paper's text only the abstract was at hand, which says that the
    calibration set is sampled by clusters. k-means over embeddings and the same number from each
    are inferred. `k`, embedding with the model itself, and points of length one are ours.
    """

    after = "EvoP 2025 (reconstruction)"
    source: str
    candidates: int = 1000
    k: int = 16
    embed: str = "model"
    encoder: str = ENCODER

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, k=(1, MOST))
        check_embedding(self, self.embed)

    @property
    def needs_model(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # here it depends on the embedding
        """Only where the model embeds."""
        return self.embed == "model"

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        points = embedded(self, texts, self.embed, self.encoder, context)
        labels, _ = clustered(points, self.k, context.draw)
        # Which cluster and which member goes first is chance, so that draws differ.
        chance = np.random.default_rng(context.draw)
        members: list[np.ndarray] = []
        for label in chance.permutation(np.unique(labels)):
            members.append(chance.permutation(np.flatnonzero(labels == label)))
        if not members:
            return [], ""
        sizes = [len(cluster) for cluster in members]
        return in_turn(members), f"{len(sizes)} clusters of {min(sizes)} to {max(sizes)}"
